"""The student's model card: a README.md for the hub, made of the run's record and of nothing else that changes.

The front matter is Hugging Face's ``ModelCardData`` with a model index; the text says what the student is, how good it
and its teacher are, how it was made and what was not looked at. What a record does not know (licence, language,
revision of the data) is left out.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdalign.alignment.plan import Plan, read_plan
from kdalign.data.tasks import ClassificationTask, LanguageTask, find_task
from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.language import language_task
from kdalign.data.tasks.lookup import INFERRED
from kdalign.errors import UsageError, printable
from kdalign.files import read_json
from kdalign.metrics.classification import reason_of
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, auto_class, head_of_class
from kdalign.models.layouts import LAYOUTS
from kdalign.recipe import DataSettings, ObjectiveWeights, Recipe, describe_weights
from kdalign.recipe.command import distill_command
from kdalign.recipe.presets import DEFAULT
from kdalign.recipe.schedules import percent
from kdalign.runs.folder import RunFolder
from kdalign.runs.markdown import code_block, code_span, escape, escape_line
from kdalign.runs.record import RunRecord
from kdalign.runs.record_schema import check_for_card
from kdalign.runs.usage_snippets import example

TAGS = ("kdalign", "knowledge-distillation")
HUB_METRICS: Mapping[str, str] = {
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "ppl": "perplexity",
    "word_ppl": "perplexity",
    "byte_ppl": "perplexity",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "rougeLsum": "rouge",
    "cer_normalized": "cer",
    "wer_normalized": "wer",
}
"""The hub's identifiers of metrics that have another name here."""
_PIPELINES = {
    HeadKind.CLASSIFIER: "text-classification",
    HeadKind.MASKED: "fill-mask",
    HeadKind.CAUSAL: "text-generation",
    HeadKind.SEQ2SEQ: "text2text-generation",
    HeadKind.NONE: "feature-extraction",
}
_PIPELINES_OF_KINDS = {"translation": "translation", "summarization": "summarization", "dialogue": "summarization"}
_BALANCES = {
    "size": "each weight is divided by its term's running size",
    "uncertainty": "each weight is multiplied by a factor that is learnt",
    "pace": "terms that fall more slowly weigh more",
}
_LAYER_WEIGHTS = {
    "ramp": "in proportion to a layer's rank from the bottom",
    "learned": "learnt",
    "adaptive": "more for layers that are further off",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit of the hub; what lies in a folder has a shorter hash."""
_LANGUAGE = re.compile(r"[a-z]{2}")


@dataclass(frozen=True)
class _Run:
    """A run as its card sees it.

    Attributes:
        name: of the run's folder.
        head: of the student.
        model_class: its class in Transformers.
        permutation: whether it predicts tokens in any order (XLNet).
        task: what is known of the task without its data; None where that is nothing.
        hub: the data set on the hub and its configuration; None for other data, and where it is not known.
        plan: None without a teacher.
        starts: hub ids of the checkpoints that the student was made from.
    """

    record: RunRecord
    recipe: Recipe
    name: str
    head: HeadKind
    model_class: str
    permutation: bool
    task: ClassificationTask | LanguageTask | None
    hub: tuple[str, str | None] | None
    plan: Plan | None
    starts: tuple[str, ...]

    @property
    def pipeline(self) -> str:
        """The hub's word for what the student does."""
        kind = self.task.kind if isinstance(self.task, LanguageTask) else ""
        return _PIPELINES_OF_KINDS.get(kind, _PIPELINES[self.head])

    @property
    def data_name(self) -> str:
        """The data in a word or two."""
        return str(self.record.data["source"]) if self.hub is not None else Path(self.record.data["source"]).name


def model_card(record: RunRecord, path: Path) -> str:
    """The student's card.

    Args:
        record: of the run.
        path: its folder, which holds the exported student.

    Raises:
        UsageError: the folder has no exported student.
    """
    from huggingface_hub import ModelCard

    run = _run_of(record, RunFolder(path))
    parts = (_summary, _scores, _training, _data, _limits, _use, _reproduce)
    body = "\n\n".join(part(run) for part in parts)
    return str(ModelCard(f"---\n{_metadata(run).to_yaml()}\n---\n\n{body}\n"))


def _run_of(record: RunRecord, folder: RunFolder) -> _Run:
    check_for_card(record.to_json(), f"the record of run {str(folder.path)!r}")
    try:
        config = read_json(folder.student / "config.json", parse_constant=float)  # Transformers writes infinities there
        if not isinstance(config, dict) or not isinstance(config.get("architectures") or [], list):
            raise UsageError("it is no configuration")
    except UsageError:
        raise UsageError(f"run {str(folder.path)!r} has no exported student (looked for student/config.json)") from None
    model_class, model_type = str((config.get("architectures") or [""])[0]), str(config.get("model_type"))
    recipe = record.parsed_recipe()
    data = recipe.data
    task = _task_of(data)
    hub = None
    if data.dataset is not None:
        hub = (data.dataset, data.config)
    elif data.folder is None and task is not None and task.source.dataset:
        hub = (task.source.dataset, task.source.config)
    return _Run(
        record=record,
        recipe=recipe,
        name=folder.path.resolve().name,
        head=head_of_class(model_class),
        model_class=model_class,
        permutation=model_type in LAYOUTS and LAYOUTS[model_type].family == "permutation",
        task=task,
        hub=hub,
        plan=read_plan(folder.plan) if folder.plan.is_file() else None,
        starts=_starts(record, recipe, folder),
    )


def _task_of(data: DataSettings) -> ClassificationTask | LanguageTask | None:
    """The task as far as its name or its file says it; data is not read."""
    (name, *_) = data.task
    if name in GLUE:
        return GLUE[name]
    if name == INFERRED:
        return None
    try:
        return language_task(name) or find_task(name, data.folder, data.dataset, data.config)
    except UsageError:  # its file, or the folder that it points to, is no longer there
        return None


def _starts(record: RunRecord, recipe: Recipe, folder: RunFolder) -> tuple[str, ...]:
    """The hub's models behind a student: its teacher, and the checkpoint that it started from."""
    found = []
    if record.teacher is not None and _COMMIT.fullmatch(record.teacher.revision):
        found.append(recipe.teacher)
    inputs = folder.read_inputs()
    if _COMMIT.fullmatch(inputs.get("student", "")):
        found.append(recipe.student)
    return tuple(dict.fromkeys(found))


def _metadata(run: _Run) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    task_type = "sentence-similarity" if run.head is HeadKind.NONE else run.pipeline
    results = [
        EvalResult(
            task_type=task_type,
            dataset_type=printable(run.hub[0])
            if run.hub is not None
            else "unknown",  # the hub's word for data that it has not
            dataset_name=printable(run.data_name),
            dataset_config=run.hub[1] if run.hub is not None else None,
            dataset_split=printable(split),
            metric_type=printable(
                score["metric"] if score.get("mark") else HUB_METRICS.get(score["metric"], score["metric"])
            ),
            metric_name=printable(_titled(score)),
            metric_value=round(score["value"], 4),
        )
        for split, scores in run.record.scores.items()
        for score in scores["student"]
        if score["value"] is not None
    ]
    return ModelCardData(
        model_name=printable(run.name),
        base_model=list(map(printable, run.starts)) or None,
        datasets=[printable(run.hub[0])] if run.hub is not None else None,
        eval_results=results or None,
        language=_languages(run),
        library_name="transformers",
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag=run.pipeline,
        tags=list(TAGS),
    )


def _languages(run: _Run) -> list[str] | None:
    """Codes of languages where task and data name them."""
    if run.hub is not None and run.hub[0] == "nyu-mll/glue":
        return ["en"]
    if not isinstance(run.task, LanguageTask):
        return None
    pair = run.task.columns if run.task.kind == "translation" else ()
    found = [*(pair if all(map(_LANGUAGE.fullmatch, pair)) else ()), run.task.language]
    return list(dict.fromkeys(filter(None, found))) or None


def _summary(run: _Run) -> str:
    record = run.record
    ours, theirs = record.student, record.teacher
    made = f"distilled from {code_span(theirs.source)} " if theirs is not None else "trained without a teacher "
    lines = [
        f"# {escape_line(run.name)}",
        "",
        f"A {escape(run.model_class or 'model')} of {_millions(ours.parameters)} parameters, {made}on the task "
        f"{code_span(record.task)} by kdalign {escape(record.version)}. It is a stock Transformers checkpoint.",
        "",
    ]
    table = [
        ["made from", *(escape(model.source) if model else "" for model in (ours, theirs))],
        ["parameters", *(_millions(model.parameters) if model else "" for model in (ours, theirs))],
        ["weights on disk", *(f"{model.megabytes:,.1f} MB" if model else "" for model in (ours, theirs))],
        ["latency", *(_latency(model.latency_ms) if model else "" for model in (ours, theirs))],
        ["head", *(escape(model.head) if model else "" for model in (ours, theirs))],
    ]
    lines += _table(["", "student", "teacher"] if theirs is not None else ["", "student"], table)
    lines += ["", "Latency: the median of one forward, batch 1, up to 128 tokens, float32, on the machine below."]
    return "\n".join(lines)


def _scores(run: _Run) -> str:
    lines = ["## Scores", ""]
    for split, scores in run.record.scores.items():
        theirs = {score["metric"]: score for score in scores["teacher"]}
        n = run.record.data["reported"][split]["n"]
        lines += [
            f"On {code_span(split)} of {code_span(run.record.data['source'])}, n = {n:,}; "
            "95 % intervals over examples:",
            "",
        ]
        rows = [
            [escape(_titled(score)), _value(score), _value(theirs.get(score["metric"])), _retained(run, score, theirs)]
            for score in scores["student"]
        ]
        if scores["agreement"] is not None:
            agreement = scores["agreement"]
            title = _titled({**agreement, "metric": "agreement with the teacher"})
            rows.append([escape(title), _value(agreement), "", ""])
        errors = scores.get("calibration", {})
        if "student" in errors:
            title = _titled({**errors["student"], "metric": "expected calibration error"})
            rows.append([escape(title), _value(errors["student"]), _value(errors.get("teacher")), ""])
        head = ["", "student", *(["teacher", "retained (%)"] if theirs else [])]
        lines += [*_table(head, rows), ""]
        made: dict[str, list[str]] = {}
        for score in scores["student"]:
            made.setdefault(score["signature"], []).append(score["metric"])
        lines += ["- " + escape_line(f"{', '.join(metrics)}: {signature}") for signature, metrics in made.items()]
        lines += ["- " + escape_line(f"{one['metric']}: {one['note']}") for one in scores["student"] if one.get("note")]
        lines.append("")
    if any(score.get("mark") for scores in run.record.scores.values() for score in scores["student"]):
        lines.append("\\* no perplexity, and compares with none")
    return "\n".join(lines).rstrip()


def _retained(run: _Run, ours: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> str:
    """What is kept of the teacher's score, in per cent; a dash where the two do not compare."""
    if _why_not_retained(run, ours, theirs):
        return "–"
    teacher = theirs[ours["metric"]]["value"]
    share = ours["value"] / teacher if ours["higher_is_better"] else teacher / ours["value"]
    return f"{100 * share:.1f}"


def _why_not_retained(run: _Run, ours: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> str:
    """Why no share of the teacher's score can be told; empty where one can."""
    teacher = theirs.get(ours["metric"])
    if teacher is None:
        return "the teacher was not scored by it"
    if ours["unit"] != "%" and "tokenizers" in run.record.data:
        return "student and teacher read other tokens"
    for who, score in (("student", ours), ("teacher", teacher)):
        if score["value"] is None:
            return f"the {who}'s score is undefined"
    if not teacher["value"] > 0:
        return f"the teacher's score, {teacher['value']:.4g}, is not above 0"
    if not ours["higher_is_better"] and not ours["value"] > 0:
        return f"the student's score, {ours['value']:.4g}, is not above 0"
    return ""


def _training(run: _Run) -> str:
    machine, settings = run.record.environment, run.recipe.train
    ranks = run.record.training["ranks"]
    lines = ["## Training", "", *_objective(run)]
    if run.plan is not None:
        layers = f"Layers: {run.plan.chosen or 'as planned'}; student:teacher {_pairs(run.plan)}"
        lines.append(f"- {escape_line(layers + _layer_weights(run, run.plan))}")
    if settings.freeze:
        lines.append(f"- Not trained: {escape(', '.join(settings.freeze))}")
    lines += [
        *_spent(run),
        f"- AdamW, learning rate {settings.lr:g} ({escape(settings.scheduler)}), "
        f"weight decay {settings.weight_decay:g}, precision {escape(settings.precision)}, seed {settings.seed}"
        + (f", low-rank adapters of rank {settings.lora}, merged" if settings.lora else ""),
        f"- On {escape(machine['device'])}, {ranks} process{'es' if ranks > 1 else ''} of "
        f"{escape(str(machine['threads']))} threads; {escape(machine['platform'])}, Python {escape(machine['python'])}",
        f"- {escape_line(', '.join(f'{name} {version}' for name, version in machine['libraries'].items()))}",
    ]
    return "\n".join(lines)


def _objective(run: _Run) -> Iterable[str]:
    """What is minimised, part after part, and what changes on the way."""
    recipe, objective = run.recipe, run.recipe.objective
    tokens = "tokens" if run.head in LANGUAGE_HEADS.values() else "classes"
    said = describe_weights("embeddings" if run.head is HeadKind.NONE else tokens)
    if recipe.preset not in (None, DEFAULT):
        yield f"- Preset: {code_span(str(recipe.preset))}, but for what the recipe says"
    if objective.align_first:
        (_, layers), (after, answers) = objective.stages
        share = percent(after)
        first, then = _sum(run, layers, 0, after, said), _sum(run, answers, after, 1, said)
        yield f"- Objective of the first {share} of the steps, which align layers: {first}"
        yield f"- Objective of the steps after them, which learn answers: {then}"
    else:
        yield f"- Objective: {_sum(run, objective, 0, 1, said)}"
    for key, change in objective.moving.items():
        what = "temperature" if key == "temperature" else f"the weight of {said.get(key, key)}"
        yield f"- Scheduled: {escape(f'{what} {change}')}"
    if objective.balance != "static":
        yield f"- Balance of terms: {_BALANCES[objective.balance]}"


def _sum(run: _Run, objective: ObjectiveWeights, begin: float, end: float, said: Mapping[str, str]) -> str:
    """What is minimised between two places of the run: numbers that change have their values there and there."""
    moving = {key: (each.at(begin), each.at(end)) for key, each in objective.moving.items()}

    def shown(key: str, still: float) -> str:
        first, last = moving.get(key, (still, still))
        return f"{first:g} → {last:g}" if first != last else f"{first:g}"

    weights = {key: shown(key, weight) for key, weight in objective.built.weights.items() if weight}
    terms = [
        f"{f'({weight})' if '→' in weight else weight} × {said.get(key, key)}"
        for key, weight in weights.items()
        if weight != "0"
    ]
    softened = "alpha" in weights and run.head is not HeadKind.NONE
    temperature = f"; temperature {shown('temperature', objective.temperature)}" if softened else ""
    return escape(" + ".join(terms) + temperature)


def _layer_weights(run: _Run, plan: Plan) -> str:
    """How layers weigh, and when they are aligned, where that is not all alike from the start."""
    align = run.recipe.align
    if not run.recipe.objective.built.aligning:
        return ""
    weights = align.weights if plan.weighting == "static" else plan.weighting
    named = _LAYER_WEIGHTS.get(weights) if isinstance(weights, str) else ", ".join(f"{one:g}" for one in weights)
    grow = f"; one more at a time, from the bottom, over the first {percent(align.grow)} of the steps"
    return (f"; weights of layers: {named}" if named else "") + (grow if align.grow else "")


def _spent(run: _Run) -> Iterable[str]:
    """Steps and what was read in them; of a task that was learnt with others, its own beside the whole's."""
    training, settings = run.record.training, run.recipe.train
    batch = f"{settings.batch_tokens:,} tokens" if settings.batch_tokens else f"{settings.batch_size:,} examples"
    exported, whole = training["exported_step"], training.get("multi_task")
    read = f"{training['examples']:,} examples, {training['tokens']:,} tokens, {training['seconds']:,.0f} seconds"
    if whole is None:
        yield (
            f"- {training['steps']:,} steps of {batch}, {read}"
            + (f"; step {exported:,} was exported" if exported != training["steps"] else "")
        )
        return
    others = ", ".join(code_span(name) for name in whole["tasks"] if name != run.record.task)
    yield (
        f"- The body, shared with {others}: {whole['steps']:,} steps of {batch} in all, {whole['seconds']:,.0f} "
        f"seconds; each step took one task's batch"
    )
    yield f"- Of these, this task and its head had {training['steps']:,} steps: {read}"


def _data(run: _Run) -> str:
    data = run.record.data
    train = data["train"]
    kind = "data set of the hub" if run.hub is not None else "files"
    rows = [
        ["train", f"{train['n']:,}", f"{train['tokens']:,}", f"{train['truncated']:,}", code_span(train["fingerprint"])]
    ]
    if "unlabelled" in data:
        more = data["unlabelled"]
        rows.append(
            [
                "without labels",
                *(f"{more[key]:,}" for key in ("n", "tokens", "truncated")),
                code_span(more["fingerprint"]),
            ]
        )
    for split, facts in data["reported"].items():
        rows.append(
            [
                escape(f"{split} (scored)"),
                f"{facts['n']:,}",
                "",
                f"{facts['truncated']:,}",
                code_span(facts["fingerprint"]),
            ]
        )
    lines = ["## Data", "", f"Source: {code_span(data['source'])} ({kind}).", ""]
    lines += _table(["split", "n", "tokens", "cut", "fingerprint"], rows)
    if "unlabelled" in data:
        lines += ["", f"Text without labels: {escape(data['unlabelled']['source'])}."]
    augment = run.recipe.data.augment
    if "augmented" in data:
        new, whose = data["augmented"], "of the rows they are made of" if augment.keep_labels else "not known"
        lines += [
            "",
            f"New texts: {new['n']:,}, {new['tokens']:,} tokens; {escape(str(augment))}; their labels are {whose}.",
        ]
    elif augment.corrupts:
        lines += ["", f"Training texts were changed as they were read ({escape(augment.by)}): {escape(str(augment))}."]
    lines += ["", f"Watched while training: {data['watched']['n']:,} examples, {escape(data['watched']['from'])}."]
    return "\n".join(lines)


def _limits(run: _Run) -> str:
    data, recipe = run.record.data, run.recipe
    splits = ", ".join(code_span(split) for split in data["reported"])
    found = [
        f"Scored on {splits} of the data above alone. Text of other kinds and languages, longer text, mistakes in "
        f"words and bias were not looked at, nor whether training and scored texts overlap.",
        f"One seed ({recipe.train.seed}): how much another one would change is not known; the intervals are over "
        f"examples.",
    ]
    for name, facts in (("training", data["train"]), *data["reported"].items()):
        if facts["truncated"]:
            cut = f"{facts['truncated']:,} of {facts['n']:,} {escape(name)} texts"
            found.append(f"{cut} were cut to {recipe.data.max_length} tokens.")
    if recipe.data.limit is not None:
        part = "data with labels" if "unlabelled" in data else "data"
        made = ", without new texts made of them" if "augmented" in data else ""
        found.append(f"Only part of the {part} was used: at most {recipe.data.limit:,} examples of a split{made}.")
    if "unlabelled" in data and data["unlabelled"]["n"] == recipe.data.unlabelled_limit:
        found.append(f"Only part of the text without labels was used: {recipe.data.unlabelled_limit:,} texts.")
    if "tokenizers" in data:
        found.append("Teacher and student read other tokens: their perplexities do not compare.")
    for leak in run.record.training.get("multi_task", {}).get("leaks", ()):
        if f" texts of {run.record.task}, " in leak:
            found.append(f"Scored texts were looked for among those of the tasks learnt beside it: {escape(leak)}.")
    found += _undefined(run)
    found += _overlaps(run)
    for what, said in data.get("checks", {}).items():
        if what in recipe.allow:
            found.append(f"A finding of the checks before the run was let through: {escape(what)}, {escape(said)}.")
    found.append("No licence is named: those of the teacher, of the checkpoint it started from and of the data apply.")
    return "\n".join(["## Limits", "", *(f"- {said}" for said in found)])


def _undefined(run: _Run) -> Iterable[str]:
    for split, scores in run.record.scores.items():
        for score in scores["student"]:
            what = f"{escape(score['metric'])} on {code_span(split)}"
            if score["value"] is None:
                yield f"{what} is undefined: {escape(reason_of(score))}."
            elif score["low"] is None:
                yield f"{what} has no interval: the examples are too few or all alike."
        for who, score in _others(scores):
            if score["value"] is None:
                yield f"{escape(who)} on {code_span(split)} is undefined: {escape(reason_of(score))}."
        theirs = {score["metric"]: score for score in scores["teacher"]}
        for score in scores["student"]:
            why = _why_not_retained(run, score, theirs)
            if theirs and why:
                metric = escape(score["metric"])
                yield f"{metric} on {code_span(split)}: nothing is said of what is retained: {escape(why)}."


def _others(scores: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Scores beside the student's own, each with what it is called."""
    yield from ((f"the teacher's {score['metric']}", score) for score in scores["teacher"])
    if scores["agreement"] is not None:
        yield "agreement with the teacher", scores["agreement"]
    for who, score in scores.get("calibration", {}).items():
        yield f"the {who}'s expected calibration error", score


def _overlaps(run: _Run) -> Iterable[str]:
    """Where student and teacher cannot be told apart."""
    for split, scores in run.record.scores.items():
        theirs = {score["metric"]: score for score in scores["teacher"]}
        for ours in scores["student"]:
            other = theirs.get(ours["metric"])
            ends = (ours["low"], ours["high"], *((other["low"], other["high"]) if other else (None, None)))
            if None not in ends and ends[0] <= ends[3] and ends[2] <= ends[1]:
                yield (
                    f"{escape(ours['metric'])} on {code_span(split)}: the intervals of student and teacher overlap, "
                    f"so this score alone does not tell them apart."
                )


def _use(run: _Run) -> str:
    pair = isinstance(run.task, ClassificationTask) and len(run.task.columns) == 2
    auto, length = auto_class(run.head).__name__, run.recipe.data.max_length
    shown = example(run.head, auto, length, pair=pair, permutation=run.permutation)
    return f"## Use\n\n{code_block(shown, 'python')}"


def _reproduce(run: _Run) -> str:
    start = f"## Make it again\n\nWith kdalign {escape(run.record.version)}, the libraries above and "
    recipe = f"\n\n{code_block(run.recipe.dump(), 'yaml')}"
    if run.recipe.multi_task.together:
        return (
            f"{start}the recipe of all its tasks, which lies in the folder above this run's: "
            f"{code_span(distill_command(run.recipe))}\n\nThis task's part of it, which is not a recipe by itself:"
            f"{recipe}"
        )
    return f"{start}this recipe: `kdalign distill --recipe recipe.yaml`{recipe}"


def _pairs(plan: Plan) -> str:
    """Which teacher layer teaches which student layer, stack by stack."""
    return ", ".join(
        f"{one.student_stack} "
        + " ".join(f"{ours}:{theirs}" for ours, theirs in one.pairs)
        + (f" (teacher's {one.teacher_stack})" if one.teacher_stack != one.student_stack else "")
        for one in plan.maps
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of cells that are Markdown already; what goes beyond its head is left out."""
    shown = [head, ["---", *("---:" for _ in head[1:])], *(row[: len(head)] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in shown]


def _titled(score: Mapping[str, Any]) -> str:
    return f"{score['metric']} ({score['unit']})" if score["unit"] else str(score["metric"])


def _value(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    shown = _number(score["value"]) + ("\\*" if score.get("mark") else "")
    if score["low"] is not None and score["high"] is not None:
        shown += f" ({_number(score['low'])} to {_number(score['high'])})"
    return shown


def _number(value: float) -> str:
    """Two decimals; one of very many digits is shortened."""
    return f"{value:,.2f}" if abs(value) < 1e9 else f"{value:.2e}"


def _latency(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:,.2f} ms"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f} M"
