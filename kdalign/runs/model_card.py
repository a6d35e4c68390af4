"""The student's model card: a README.md for the hub, made of the run's record and of nothing else that changes.

It says what the student is, how good it and its teacher are, how it was made and what was not measured. What a record
does not know (licence, language, revision of the data) is left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kdalign.data.media.rows import describe_input
from kdalign.data.tasks import ClassificationTask
from kdalign.metrics.classification import Score
from kdalign.models.heads import auto_class
from kdalign.recipe.command import distill_command
from kdalign.runs.card_facts import CardFacts, read_card_facts
from kdalign.runs.card_limits import limits_section, why_not_retained
from kdalign.runs.card_metadata import metadata, titled
from kdalign.runs.card_training import training_section
from kdalign.runs.folder import RunFolder
from kdalign.runs.markdown import code_block, code_span, escape, escape_line
from kdalign.runs.record import RunRecord, SplitScores
from kdalign.runs.usage_snippets import example, media_example


def model_card(record: RunRecord, path: Path) -> str:
    """Write the student's model card.

    Args:
        record: the run's record.
        path: the run's folder, which holds the exported student.

    Raises:
        UsageError: the folder has no exported student.
    """
    from huggingface_hub import ModelCard

    card = read_card_facts(record, RunFolder(path))
    sections = (_summary, _scores, training_section, _data, limits_section, _use, _reproduce)
    body = "\n\n".join(section(card) for section in sections)
    return str(ModelCard(f"---\n{metadata(card).to_yaml()}\n---\n\n{body}\n"))


def _summary(card: CardFacts) -> str:
    record = card.record
    ours, theirs = record.student, record.teacher
    models = [ours, theirs, *record.teachers]
    origin = theirs.source if theirs is not None else record.served_teacher
    made = f"distilled from {code_span(origin)} " if origin else "trained without a teacher "
    lines = [
        f"# {escape_line(card.name)}",
        "",
        f"A {escape(card.model_class or 'model')} of {_millions(ours.parameters)} parameters, {made}on the task "
        f"{code_span(record.task)} by kdalign {escape(record.version)}. It is a stock Transformers checkpoint.",
        "",
    ]
    table = [
        ["made from", *(escape(model.source) if model else "" for model in models)],
        ["parameters", *(_millions(model.parameters) if model else "" for model in models)],
        ["weights on disk", *(f"{model.megabytes:,.1f} MB" if model else "" for model in models)],
        ["latency", *(_latency(model.latency_ms) if model else "" for model in models)],
        ["head", *(escape(model.head) if model else "" for model in models)],
    ]
    lines += _table(["", "student", *(_teacher_headings(record))], table)
    if record.teachers:
        combined = record.data.get("checks", {}).get("teachers", "mixed")
        lines += ["", f"The teachers: {escape(combined)}. The sizes and times of all of them are sums."]
    read = describe_input(ours.modality, "up to 128")
    if theirs is not None and theirs.modality != ours.modality:
        read += f" (of the teacher, {describe_input(theirs.modality, 'up to 128')})"
    lines += ["", f"Latency: the median of one forward, batch 1, {read}, float32, on the machine below."]
    return "\n".join(lines)


def _scores(card: CardFacts) -> str:
    lines = ["## Scores", ""]
    splits = {split: card.record.split_scores(split) for split in card.record.scores}
    for split, scores in splits.items():
        lines += [
            f"On {code_span(split)} of {code_span(card.record.data['source'])}, n = {card.record.reported[split].n:,}; "
            "95 % intervals over examples:",
            "",
            *_table(["", "student", *(_score_headings(card) if scores.teacher else [])], _rows(card, scores)),
            "",
        ]
        signed: dict[str, list[str]] = {}
        for score in scores.student:
            signed.setdefault(score.signature, []).append(score.metric)
        lines += ["- " + escape_line(f"{', '.join(metrics)}: {signature}") for signature, metrics in signed.items()]
        lines += ["- " + escape_line(f"{score.metric}: {score.note}") for score in scores.student if score.note]
        lines.append("")
    if any(score.mark for scores in splits.values() for score in scores.student):
        lines.append("\\* not a perplexity, and comparable with none")
    return "\n".join(lines).rstrip()


def _teacher_headings(record: RunRecord) -> list[str]:
    """Headings of the teacher's column, and of each of several teachers."""
    if record.teacher is None:
        return []
    each = [f"teacher {number + 1}" for number in range(len(record.teachers))]
    return ["all teachers", *each] if each else ["teacher"]


def _score_headings(card: CardFacts) -> list[str]:
    """Headings of the teacher's scores, of the share that is retained, and of each of several teachers' scores."""
    first, *each = _teacher_headings(card.record) or ["teacher"]
    return [first, "retained (%)", *each]


def _rows(card: CardFacts, scores: SplitScores) -> list[list[str]]:
    """Rows of the table of scores: each metric, agreement, calibration."""
    rows = []
    for score in scores.student:
        theirs = scores.teacher_score(score.metric)
        each = [next((one for one in own if one.metric == score.metric), None) for own in scores.teachers]
        shown = [_value(score), _value(theirs), _retained(card, score, theirs), *map(_value, each)]
        rows.append([escape(titled(score)), *shown])
    if scores.agreement is not None:
        title = titled(replace(scores.agreement, metric="agreement with the teacher"))
        rows.append([escape(title), _value(scores.agreement), *[""] * (2 + len(scores.teachers))])
    if "student" in scores.calibration:
        error = scores.calibration["student"]
        title = titled(replace(error, metric="expected calibration error"))
        theirs = scores.calibration.get("teacher")
        rows.append([escape(title), _value(error), _value(theirs), *[""] * (1 + len(scores.teachers))])
    return rows


def _retained(card: CardFacts, ours: Score, theirs: Score | None) -> str:
    """The share of the teacher's score that the student keeps, in per cent; a dash if none can be stated."""
    if why_not_retained(card, ours, theirs) or theirs is None or theirs.value is None or ours.value is None:
        return "–"
    share = ours.value / theirs.value if ours.higher_is_better else theirs.value / ours.value
    return f"{100 * share:.1f}"


def _data(card: CardFacts) -> str:
    data = card.record.data
    train = data["train"]
    kind = "data set of the hub" if card.hub is not None else "files"
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
    counted = "tokens" if card.modality == "text" else "positions"
    lines += _table(["split", "n", counted, "cut", "fingerprint"], rows)
    if "unlabelled" in data:
        lines += ["", f"Text without labels: {escape(data['unlabelled']['source'])}."]
    augment = card.recipe.data.augment
    if "augmented" in data:
        new, whose = data["augmented"], "of the rows they are made of" if augment.keep_labels else "not known"
        lines += [
            "",
            f"New texts: {new['n']:,}, {new['tokens']:,} tokens; {escape(str(augment))}; their labels are {whose}.",
        ]
    elif augment.corrupts:
        lines += ["", f"Training texts were changed as they were read ({escape(augment.by)}): {escape(str(augment))}."]
    lines += ["", f"Monitored during training: {data['watched']['n']:,} examples, {escape(data['watched']['from'])}."]
    return "\n".join(lines)


def _use(card: CardFacts) -> str:
    pair = isinstance(card.task, ClassificationTask) and len(card.task.columns) == 2
    auto, length = auto_class(card.head, card.model_type).__name__, card.recipe.data.max_length
    if card.modality == "text":
        shown = example(card.head, auto, length, pair=pair, permutation=card.permutation)
    else:
        shown = media_example(card.modality, card.head, auto, card.channels, card.reads_padding)
    return f"## Use\n\n{code_block(shown, 'python')}"


def _reproduce(card: CardFacts) -> str:
    start = f"## Reproduce\n\nWith kdalign {escape(card.record.version)}, the libraries above and "
    recipe = f"\n\n{code_block(card.recipe.dump(), 'yaml')}"
    if card.recipe.multi_task.together:
        return (
            f"{start}the recipe of all its tasks, in the folder above this run's: "
            f"{code_span(distill_command(card.recipe))}\n\nThis task's part of it, which is not a recipe by itself:"
            f"{recipe}"
        )
    return f"{start}this recipe: `kdalign distill --recipe recipe.yaml`{recipe}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of Markdown cells; cells beyond its head are left out."""
    shown = [head, ["---", *("---:" for _ in head[1:])], *(row[: len(head)] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in shown]


def _value(score: Score | None) -> str:
    if score is None or score.value is None:
        return "–"
    shown = _number(score.value) + ("\\*" if score.mark else "")
    if score.low is not None and score.high is not None:
        shown += f" ({_number(score.low)} to {_number(score.high)})"
    return shown


def _number(value: float) -> str:
    """Two decimals; scientific from a thousand million."""
    return f"{value:,.2f}" if abs(value) < 1e9 else f"{value:.2e}"


def _latency(milliseconds: float | None) -> str:
    return "not measured" if milliseconds is None else f"{milliseconds:,.2f} ms"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f} M"
