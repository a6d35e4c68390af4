"""The student's model card: a README.md for the hub, made of the run's record and of nothing else that changes.

The front matter is Hugging Face's ``ModelCardData`` with a model index; the text says what the student is, how good it
and its teacher are, how it was made and what was not looked at. What a record does not know (licence, language,
revision of the data) is left out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdalign.alignment import Plan, read_plan
from kdalign.architecture import LANGUAGE_HEADS, LAYOUTS, HeadKind, auto_class, head_of_class
from kdalign.errors import UsageError
from kdalign.recipe import Data, Recipe
from kdalign.runs import RunFolder, RunRecord
from kdalign.tasks import LanguageTask, Task, find_task
from kdalign.tasks.find import INFERRED
from kdalign.tasks.glue import GLUE
from kdalign.tasks.language import language_task
from kdalign.usage import example

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
_TERMS = {
    "hard": "cross-entropy with the labels",
    "alpha": "divergence from the teacher's answers",
    "beta": "cosine between hidden states",
    "gamma": "squared distance between hidden states",
    "delta": "squared distance between attention maps",
    "embeddings": "cosine between embeddings",
    "relations": "relations between positions",
}
_TERMS_OF_TOKENS = {"hard": "cross-entropy with the text's tokens", "alpha": "divergence from the teacher's tokens"}
_TERMS_OF_EMBEDDINGS = {"alpha": "distance from the teacher's embeddings, by direction and by likeness of texts"}
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
    task: Task | LanguageTask | None
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
    try:
        config = json.loads((folder.student / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"run {str(folder.path)!r} has no exported student (looked for student/config.json)") from None
    model_class = (config.get("architectures") or [""])[0]
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
        permutation=config.get("model_type") in LAYOUTS and LAYOUTS[config["model_type"]].family == "permutation",
        task=task,
        hub=hub,
        plan=read_plan(folder.plan) if folder.plan.is_file() else None,
        starts=_starts(record, recipe, folder),
    )


def _task_of(data: Data) -> Task | LanguageTask | None:
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
    inputs = json.loads(folder.inputs.read_text(encoding="utf-8")) if folder.inputs.is_file() else {}
    if _COMMIT.fullmatch(inputs.get("student", "")):
        found.append(recipe.student)
    return tuple(dict.fromkeys(found))


def _metadata(run: _Run) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    task_type = "sentence-similarity" if run.head is HeadKind.NONE else run.pipeline
    results = [
        EvalResult(
            task_type=task_type,
            dataset_type=run.hub[0] if run.hub is not None else "unknown",  # the hub's word for data that it has not
            dataset_name=run.data_name,
            dataset_config=run.hub[1] if run.hub is not None else None,
            dataset_split=split,
            metric_type=score["metric"] if score.get("mark") else HUB_METRICS.get(score["metric"], score["metric"]),
            metric_name=_titled(score),
            metric_value=round(score["value"], 4),
        )
        for split, scores in run.record.scores.items()
        for score in scores["student"]
        if score["value"] is not None
    ]
    return ModelCardData(
        model_name=run.name,
        base_model=list(run.starts) or None,
        datasets=[run.hub[0]] if run.hub is not None else None,
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
    made = f"distilled from `{theirs.source}` " if theirs is not None else "trained without a teacher "
    lines = [
        f"# {run.name}",
        "",
        f"A {run.model_class or 'model'} of {_millions(ours.parameters)} parameters, {made}on the task "
        f"`{record.task}` by kdalign {record.version}. It is a stock Transformers checkpoint.",
        "",
    ]
    table = [
        ["made from", ours.source, theirs.source if theirs is not None else ""],
        ["parameters", *(_millions(model.parameters) if model else "" for model in (ours, theirs))],
        ["weights on disk", *(f"{model.megabytes:,.1f} MB" if model else "" for model in (ours, theirs))],
        ["latency", *(_latency(model.latency_ms) if model else "" for model in (ours, theirs))],
        ["head", ours.head, theirs.head if theirs is not None else ""],
    ]
    lines += _table(["", "student", "teacher"] if theirs is not None else ["", "student"], table)
    lines += ["", "Latency: the median of one forward, batch 1, up to 128 tokens, float32, on the machine below."]
    return "\n".join(lines)


def _scores(run: _Run) -> str:
    lines = ["## Scores", ""]
    for split, scores in run.record.scores.items():
        theirs = {score["metric"]: score for score in scores["teacher"]}
        n = run.record.data["reported"][split]["n"]
        lines += [f"On `{split}` of `{run.record.data['source']}`, n = {n:,}; 95 % intervals over examples:", ""]
        rows = [
            [_titled(score), _value(score), _value(theirs.get(score["metric"])), _retained(run, score, theirs)]
            for score in scores["student"]
        ]
        if scores["agreement"] is not None:
            agreement = scores["agreement"]
            title = _titled({**agreement, "metric": "agreement with the teacher"})
            rows.append([title, _value(agreement), "", ""])
        errors = scores.get("calibration", {})
        if "student" in errors:
            title = _titled({**errors["student"], "metric": "expected calibration error"})
            rows.append([title, _value(errors["student"]), _value(errors.get("teacher")), ""])
        head = ["", "student", *(["teacher", "retained (%)"] if theirs else [])]
        lines += [*_table(head, rows), ""]
        made: dict[str, list[str]] = {}
        for score in scores["student"]:
            made.setdefault(score["signature"], []).append(score["metric"])
        lines += [f"- {', '.join(metrics)}: {signature}" for signature, metrics in made.items()]
        lines.append("")
    if any(score.get("mark") for scores in run.record.scores.values() for score in scores["student"]):
        lines.append("\\* no perplexity, and compares with none")
    return "\n".join(lines).rstrip()


def _retained(run: _Run, ours: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> str:
    """What is kept of the teacher's score, in per cent; nothing where the two do not compare."""
    teacher = theirs.get(ours["metric"], {}).get("value")
    other_tokens = ours["unit"] != "%" and "tokenizers" in run.record.data
    if ours["value"] is None or teacher is None or not teacher > 0 or other_tokens:
        return "–"
    if ours["higher_is_better"]:
        return f"{100 * ours['value'] / teacher:.1f}"
    return f"{100 * teacher / ours['value']:.1f}" if ours["value"] > 0 else "–"


def _training(run: _Run) -> str:
    training, machine = run.record.training, run.record.environment
    objective, settings = run.recipe.objective, run.recipe.train
    said = _TERMS | (_TERMS_OF_EMBEDDINGS if run.head is HeadKind.NONE else {})
    said |= _TERMS_OF_TOKENS if run.head in LANGUAGE_HEADS.values() else {}
    terms = [f"{weight:g} × {said.get(key, key)}" for key, weight in objective.weights.items() if weight]
    softened = objective.alpha and run.head is not HeadKind.NONE
    warm = f"; temperature {objective.temperature:g}" if softened else ""
    lines = ["## Training", "", f"- Objective: {' + '.join(terms)}{warm}"]
    if run.plan is not None:
        lines.append(f"- Layers: {run.plan.chosen or 'as planned'}; student:teacher {_pairs(run.plan)}")
    batch = f"{settings.batch_tokens:,} tokens" if settings.batch_tokens else f"{settings.batch_size:,} examples"
    exported = training["exported_step"]
    lines += [
        f"- {training['steps']:,} steps of {batch}, {training['examples']:,} examples, {training['tokens']:,} tokens, "
        f"{training['seconds']:,.0f} seconds"
        + (f"; step {exported:,} was exported" if exported != training["steps"] else ""),
        f"- AdamW, learning rate {settings.lr:g} ({settings.scheduler}), weight decay {settings.weight_decay:g}, "
        f"precision {settings.precision}, seed {settings.seed}"
        + (f", low-rank adapters of rank {settings.lora}, merged" if settings.lora else ""),
        f"- On {machine['device']}, {training['ranks']} process{'es' if training['ranks'] > 1 else ''} of "
        f"{machine['threads']} threads; {machine['platform']}, Python {machine['python']}",
        f"- {', '.join(f'{name} {version}' for name, version in machine['libraries'].items())}",
    ]
    return "\n".join(lines)


def _data(run: _Run) -> str:
    data = run.record.data
    train = data["train"]
    kind = "data set of the hub" if run.hub is not None else "files"
    rows = [
        ["train", f"{train['n']:,}", f"{train['tokens']:,}", f"{train['truncated']:,}", f"`{train['fingerprint']}`"]
    ]
    if "unlabelled" in data:
        more = data["unlabelled"]
        rows.append(
            ["without labels", *(f"{more[key]:,}" for key in ("n", "tokens", "truncated")), f"`{more['fingerprint']}`"]
        )
    for split, facts in data["reported"].items():
        rows.append(
            [f"{split} (scored)", f"{facts['n']:,}", "", f"{facts['truncated']:,}", f"`{facts['fingerprint']}`"]
        )
    lines = ["## Data", "", f"Source: `{data['source']}` ({kind}).", ""]
    lines += _table(["split", "n", "tokens", "cut", "fingerprint"], rows)
    lines += ["", f"Watched while training: {data['watched']['n']:,} examples, {data['watched']['from']}."]
    return "\n".join(lines)


def _limits(run: _Run) -> str:
    data, recipe = run.record.data, run.recipe
    splits = ", ".join(f"`{split}`" for split in data["reported"])
    found = [
        f"Scored on {splits} of the data above alone. Text of other kinds and languages, longer text, mistakes in "
        f"words and bias were not looked at, nor whether training and scored texts overlap.",
        f"One seed ({recipe.train.seed}): how much another one would change is not known; the intervals are over "
        f"examples.",
    ]
    for name, facts in (("training", data["train"]), *data["reported"].items()):
        if facts["truncated"]:
            cut = f"{facts['truncated']:,} of {facts['n']:,} {name} texts were cut to {recipe.data.max_length} tokens."
            found.append(cut)
    if recipe.data.limit is not None:
        found.append(f"Only part of the data was used: at most {recipe.data.limit:,} examples of a split.")
    if "tokenizers" in data:
        found.append("Teacher and student read other tokens: their perplexities do not compare.")
    found += _undefined(run)
    found += _overlaps(run)
    for what, said in data.get("checks", {}).items():
        if what in recipe.allow:
            found.append(f"A finding of the checks before the run was let through: {what}, {said}.")
    found.append("No licence is named: those of the teacher, of the checkpoint it started from and of the data apply.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in found)])


def _undefined(run: _Run) -> Iterable[str]:
    for split, scores in run.record.scores.items():
        for score in scores["student"]:
            if score["value"] is None:
                yield f"{score['metric']} on `{split}` is undefined."
            elif score["low"] is None:
                yield f"{score['metric']} on `{split}` has no interval: the examples are too few or all alike."


def _overlaps(run: _Run) -> Iterable[str]:
    """Where student and teacher cannot be told apart."""
    for split, scores in run.record.scores.items():
        theirs = {score["metric"]: score for score in scores["teacher"]}
        for ours in scores["student"]:
            other = theirs.get(ours["metric"])
            ends = (ours["low"], ours["high"], *((other["low"], other["high"]) if other else (None, None)))
            if None not in ends and ends[0] <= ends[3] and ends[2] <= ends[1]:
                yield (
                    f"{ours['metric']} on `{split}`: the intervals of student and teacher overlap, "
                    f"so this score alone does not tell them apart."
                )


def _use(run: _Run) -> str:
    pair = isinstance(run.task, Task) and len(run.task.columns) == 2
    auto, length = auto_class(run.head).__name__, run.recipe.data.max_length
    code = example(run.head, auto, length, pair=pair, permutation=run.permutation)
    return f"## Use\n\n```python\n{code}```"


def _reproduce(run: _Run) -> str:
    return (
        f"## Make it again\n\nWith kdalign {run.record.version}, the libraries above and this recipe: "
        f"`kdalign distill --recipe recipe.yaml`\n\n```yaml\n{run.recipe.dump()}```"
    )


def _pairs(plan: Plan) -> str:
    """Which teacher layer teaches which student layer, stack by stack."""
    return ", ".join(
        f"{one.student_stack} "
        + " ".join(f"{ours}:{theirs}" for ours, theirs in one.pairs)
        + (f" (teacher's {one.teacher_stack})" if one.teacher_stack != one.student_stack else "")
        for one in plan.maps
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; what goes beyond its head is left out."""
    shown = [head, ["---", *("---:" for _ in head[1:])], *(row[: len(head)] for row in rows)]
    return [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in shown]


def _titled(score: Mapping[str, Any]) -> str:
    return f"{score['metric']} ({score['unit']})" if score["unit"] else str(score["metric"])


def _value(score: Mapping[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    shown = f"{score['value']:,.2f}" + ("\\*" if score.get("mark") else "")
    if score["low"] is not None and score["high"] is not None:
        shown += f" ({score['low']:,.2f} to {score['high']:,.2f})"
    return shown


def _latency(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:,.2f} ms"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f} M"
