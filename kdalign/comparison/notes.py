"""Footnotes of a comparison table: how its numbers were made, and what they cannot show."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdalign.comparison.budgets import budget_notes
from kdalign.comparison.comparability import (
    describe_signatures,
    evaluation_scores,
    find_incomparable,
    find_protocols,
    have_different_tasks,
    have_different_teachers,
)
from kdalign.comparison.dashes import dash_notes, undefined_notes
from kdalign.comparison.evaluated_runs import evaluations_of
from kdalign.comparison.table import SHARED, Cell, Column, Row, list_names, metric_key
from kdalign.data.media.rows import Modality, describe_input
from kdalign.metrics.retrieval import are_ranks
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.record import ModelRecord, RunRecord


@dataclass(frozen=True)
class NotedTable:
    """Rows and columns that footnotes are written for, with the runs and evaluations behind them."""

    entries: Sequence[RunGroup]
    evaluations: Sequence[dict[str, Any]]
    rows: Sequence[Row]
    columns: Sequence[Column]

    @cached_property
    def records(self) -> list[RunRecord]:
        """The records of all runs, row by row."""
        return records_of(self.entries)

    @property
    def models(self) -> list[ModelRecord]:
        """The students and teachers of all runs."""
        return [model for record in self.records for model in (record.student, record.teacher) if model is not None]

    @cached_property
    def of_runs(self) -> list[dict[str, Any]]:
        """The evaluations of texts in the rows of runs."""
        return evaluations_of(self.entries)

    @cached_property
    def scored(self) -> list[dict[str, Any]]:
        """The evaluations that have scores, those of runs first."""
        return [result for result in (*self.of_runs, *self.evaluations) if result["scores"]]

    def shows(self, key: str) -> bool:
        """True if the table has a column of this key."""
        return any(column.key == key for column in self.columns)


Footnote = Callable[[NotedTable], list[str]]


def footnotes(
    entries: Sequence[RunGroup], evaluations: Sequence[dict[str, Any]], rows: Sequence[Row], columns: Sequence[Column]
) -> list[str]:
    """Write the footnotes of a table, in the order of ``FOOTNOTES``."""
    table = NotedTable(entries, evaluations, rows, columns)
    return [note for footnote in FOOTNOTES for note in footnote(table)]


def _protocols(table: NotedTable) -> list[str]:
    """Data and metric versions that runs were scored with, task by task."""
    notes = []
    for task, protocols in find_protocols(table.entries).items():
        notes += [f"{task}: {protocol}" for protocol in sorted(protocols)]
        if len(protocols) > 1:
            notes.append(f"{task}: rows were scored on different data or by different versions: do not rank them")
    return notes


def _score_conventions(table: NotedTable) -> list[str]:
    """Notes of single scores, such as the class that F1 is computed for; rows are named unless all share the note."""
    scored = [
        (entry.name, task, record.first_scores.student)
        for entry in table.entries
        for task, record in entry.records.items()
    ]
    scored += [
        (Path(result["model"]).name, result["task"], tuple(evaluation_scores(result))) for result in table.scored
    ]
    rows: dict[str, dict[str, None]] = {}
    rows_with: dict[tuple[str, str], dict[str, None]] = {}
    for name, task, scores in scored:
        for score in scores:
            key = metric_key(task, score.metric)
            rows.setdefault(key, {})[name] = None
            for note in filter(None, score.note.split("; ")):
                rows_with.setdefault((key, note), {})[name] = None
    return [
        f"{key}{'' if names == rows[key] else f' of {list_names(list(names))}'}: {note}"
        for (key, note), names in rows_with.items()
    ]


def _different_tokens(table: NotedTable) -> list[str]:
    """Likelihoods per token that do not compare because the rows' tokenizers differ."""
    return [
        f"{key}: per token, and the rows' tokenizers differ: do not rank them"
        + (f"; compare {' or '.join(instead)}" if instead else "")
        for key, instead in find_incomparable(table.entries).items()
        if table.shows(key)
    ]


def _shared_columns(table: NotedTable) -> list[str]:
    """Columns whose meaning depends on the row's own tasks or teacher."""
    shared = [column.key for column in table.columns if column.key in SHARED]
    if shared and have_different_tasks(table.entries):
        return [f"{', '.join(shared)}: over each row's own tasks, so they do not rank rows of different tasks"]
    if shared and have_different_teachers(table.entries):
        return [
            "agreement, retained: relative to each row's own teacher, so they do not rank rows of different teachers"
        ]
    return []


def _evaluation_protocols(table: NotedTable) -> list[str]:
    """Data and metric versions of evaluations, split by split."""
    notes: list[str] = []
    splits = dict.fromkeys((result["task"], result["split"], result["n"], result["source"]) for result in table.scored)
    for task, split, n, source in splits:
        results = [r for r in table.scored if (r["task"], r["split"], r["n"], r["source"]) == (task, split, n, source)]
        notes += _signatures_of_split(f"{task}: {split}, n = {n:,} of {source}", task, results)
    return list(dict.fromkeys(notes))


def _signatures_of_split(data: str, task: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """A note with the signatures that all models of a split share, then one for each that only some have."""
    models: dict[str, dict[str, dict[str, None]]] = {}  # by metric and signature
    for result in results:
        for score in evaluation_scores(result):
            by_signature = models.setdefault(score.metric, {})
            by_signature.setdefault(score.signature, {})[Path(result["model"]).name] = None
    shared = describe_signatures(
        {metric: next(iter(signatures)) for metric, signatures in models.items() if len(signatures) == 1}
    )
    metrics: dict[tuple[str, str], list[str]] = {}
    for metric, by_signature in models.items():
        for signature, names in by_signature.items() if len(by_signature) > 1 else ():
            metrics.setdefault((", ".join(names), signature), []).append(metric)
    return [
        f"{data}{'; ' if shared else ''}{shared}",
        *(f"{task}, {names}: {', '.join(found)} by {how}" for (names, how), found in metrics.items()),
    ]


def _evaluation_remarks(table: NotedTable) -> list[str]:
    """Notes of evaluations themselves, truncated examples, and marked scores."""
    notes: dict[str, None] = {}
    for result in table.of_runs:  # all in one way
        notes[f"{result['task']}, texts: {result['writing']}"] = None
    known = {f"{result['model']} writes: {result['writing']}" for result in table.of_runs}
    cut: dict[str, dict[str, None]] = {}
    for result in table.scored:
        notes |= dict.fromkeys(note for note in result.get("notes", ()) if note not in known)
        if result.get("truncated"):
            were = "example was" if result["truncated"] == 1 else "examples were"
            said = f"{result['task']}: {result['truncated']:,} {were} truncated"
            cut.setdefault(said, {})[Path(result["model"]).name] = None
        notes |= {mark_note(score["mark"]): None for score in result["scores"] if score.get("mark")}
    return [*notes, *(f"{list_names(list(names))}, {said}" for said, names in cut.items())]


REAL_TIME = "real-time factor, seconds of work for each second of sound, decoding of files included; measured once"


def mark_note(mark: str) -> str:
    """The footnote of a marked score, such as a pseudo-perplexity."""
    return f"* {mark}-perplexity: not a perplexity, and not comparable with one"


def _evaluations(table: NotedTable) -> list[str]:
    notes = list(dict.fromkeys([*_evaluation_protocols(table), *_evaluation_remarks(table)]))
    if any(result["scores"] for result in table.evaluations):
        notes.append("evaluations are never marked best")
    if any(result.get("trained_tokens") and result["scores"] for result in table.evaluations):
        notes.append(
            "trained: tokens that the model's own run was trained on, without those of the model that it started from"
        )
    return notes


def _batch_norm(table: NotedTable) -> list[str]:
    """Students whose numbers depend on how steps were divided, as batch norm saw rows together."""
    rows: dict[str, dict[str, None]] = {}
    for entry in table.entries:
        for record in entry.records.values():
            said = record.data.get("checks", {}).get("batch norm")
            if said:
                rows.setdefault(said, {})[entry.name] = None
    return [f"{list_names(list(names))}: batch norm {said}" for said, names in rows.items()]


def _seeds(table: NotedTable) -> list[str]:
    notes = [
        f"{row.name}: mean of {len(row.seeds)} seeds ({' '.join(map(str, row.seeds))}), 95 % t-interval over seeds"
        for row in table.rows
        if len(row.seeds) > 1 and row.kind == "student"
    ]
    if any(len(row.seeds) == 1 for row in table.rows):
        notes.append("one seed: 95 % intervals are over examples (Wilson for accuracy, bootstrap otherwise)")
    return notes


def _budgets(table: NotedTable) -> list[str]:
    return budget_notes(table.entries)


def _means(table: NotedTable) -> list[str]:
    means = [column.key for column in table.columns if column.key == column.task]
    if not means:
        return []
    return [f"{', '.join(means)}: the mean of the task's metrics; macro: the mean over tasks, as in GLUE"]


def _define(key: str, text: str) -> Footnote:
    """The footnote of a column whose definition is the same in every table."""
    return lambda table: [text] if table.shows(key) else []


def _several_teachers(table: NotedTable) -> list[str]:
    """Explain rows of several teachers combined: a student's agreement and retained share are relative to them."""
    joint = [record for record in table.records if record.teachers]
    names = {record.teacher.source: len(record.teachers) for record in joint if record.teacher is not None}
    return [
        f"{number} teachers combined: {source}; a student's agreement and retained share are relative to the "
        f"combination, size and latency are sums"
        for source, number in names.items()
    ]


def _agreement(table: NotedTable) -> list[str]:
    """Tasks on which agreement is not a share of equal classes."""
    if not table.shows("agreement"):
        return []
    agreements = {record.task: record.first_scores.agreement for record in table.records}
    signatures = {task: score.signature for task, score in agreements.items() if score is not None}
    correlated = [task for task, signature in signatures.items() if signature.startswith("scipy")]
    ranked = [task for task, signature in signatures.items() if are_ranks(signature)]
    said = {
        "Pearson's correlation with the teacher's scores": correlated,
        "the share of queries (each image among all texts, each text among all images) that student and teacher both "
        "answer right in the first place, or both wrong": ranked,
    }
    return [f"agreement on {', '.join(tasks)}: {what}" for what, tasks in said.items() if tasks]


def _flops(table: NotedTable) -> list[str]:
    titles = {"flops": "FLOPs/token", "flops-image": "FLOPs/image"}
    shown = " and ".join(title for key, title in titles.items() if table.shows(key))
    if not shown:
        return []
    read = _lengths(model for model in table.models if model.flops is not None)
    return [f"{shown}: of a forward pass over {read}, 2 per multiply-add, attention and head included"]


def _steps_to(table: NotedTable) -> list[str]:
    if not any(column.key.startswith("steps-to/") for column in table.columns):
        return []
    return [
        "steps to: the first evaluation on the monitored texts that reached the score; runs evaluate only every "
        "train.eval_every steps"
    ]


def _latency(table: NotedTable) -> list[str]:
    if not table.shows("speed-up"):
        return []
    read = _lengths(model for model in table.models if model.latency_ms is not None)
    return [
        f"latency: one forward pass over {read} in fp32, median, so that other load on the machine shows; "
        f"speed-up: both models measured in turns"
    ]


def _lengths(models: Iterable[ModelRecord]) -> str:
    """What models read when they are timed, in words: ``64 or 128 tokens``, ``one image``."""
    tokens: dict[Modality, set[int]] = {}
    for model in models:
        tokens.setdefault(model.modality, set()).add(model.tokens)
    return " or ".join(describe_input(each, " or ".join(map(str, sorted(tokens[each])))) for each in sorted(tokens))


def _multi_task_students(table: NotedTable) -> list[str]:
    """Parameters and disk of rows over several tasks, if at least one of them is a single student."""
    multi_task = {entry.name: facts for entry in table.entries if (facts := _multi_task_facts(entry)) is not None}
    notes: dict[str, None] = {}
    for name, facts in multi_task.items():
        steps = ", ".join(f"{task} {of_task['steps']:,}" for task, of_task in facts["tasks"].items())
        notes[
            f"{name}: one student for {len(facts['tasks'])} tasks, {facts['parameters'] / 1e6:.2f} M parameters and "
            f"{facts['megabytes']:,.1f} MB with all heads; params and disk are per task; steps: {steps}"
        ] = None
        notes |= dict.fromkeys(f"{name}: {leak}" for leak in facts["leaks"])
    for entry in table.entries if multi_task else ():
        if entry.name not in multi_task and len(entry.records) > 1:
            students = [record.student for record in entry.records.values()]
            parameters, disk = sum(model.parameters for model in students), sum(model.megabytes for model in students)
            notes[
                f"{entry.name}: {len(students)} students, {parameters / 1e6:.2f} M parameters and {disk:,.1f} MB in "
                f"total; params and disk are per student"
            ] = None
    return list(notes)


def _multi_task_facts(entry: RunGroup) -> dict[str, Any] | None:
    """The record of a student trained on several tasks; None for other students."""
    facts: dict[str, Any] | None = next(iter(entry.records.values())).training.get("multi_task")
    return facts


def _stored_precision(table: NotedTable) -> list[str]:
    if len({model.bytes_per_parameter for model in table.models}) < 2:
        return []
    return ["disk: some weights are stored in 2 bytes each, some in 4; compare sizes by params"]


def _unsealed(table: NotedTable) -> list[str]:
    """Runs whose records could have been edited unnoticed."""
    names = [
        entry.name
        for entry in table.entries
        if not entry.answers and not all(record.seal for record in entry.records.values())
    ]
    if not names:
        return []
    return [f"records of an older kdalign, without a seal that would reveal an edited number: {list_names(names)}"]


def _overlaps(table: NotedTable) -> list[str]:
    """Columns in which the best student's interval overlaps another's: the table then shows no difference."""
    if any(row.kind == "difference" for row in table.rows):  # paired tests tell more than intervals
        return []
    titles: dict[tuple[str, str], list[str]] = {}
    for column in table.columns:
        students = [row for row in table.rows if row.kind == "student" and column.key in row.cells]
        best = next((row for row in students if row.cells[column.key].best), None)
        if column.cost or best is None:
            continue
        top = best.cells[column.key]
        others = [row.name for row in students if row is not best and _overlap(top, row.cells[column.key])]
        if others:
            titles.setdefault((best.name, list_names(others)), []).append(column.title)
    return [
        f"{', '.join(found)}: the intervals of {best} and {others} overlap; this table alone does not tell them apart"
        for (best, others), found in titles.items()
    ]


def _overlap(first: Cell, second: Cell) -> bool:
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.low <= second.high and second.low <= first.high


def _missing_values(table: NotedTable) -> list[str]:
    return [*undefined_notes(table.rows), *dash_notes(table.rows, table.columns)]


def _published(table: NotedTable) -> list[str]:
    """Sources of published rows, and a warning if their numbers share a column with measured ones."""
    references = [row for row in table.rows if row.kind == "reference"]
    measured = [column for column in table.columns if not column.published]
    notes = []
    for mark in dict.fromkeys(row.mark for row in references):
        rows = [row for row in references if row.mark == mark]
        facts = [rows[0].source, *filter(None, [rows[0].note]), *_renamed_scores(rows, measured)]
        notes.append(f"{mark} published, not measured here: {'; '.join(facts)}")
    marks = dict.fromkeys(row.mark for row in references if any(column.key in row.cells for column in measured))
    if marks:
        notes.append(
            f"{', '.join(marks)}: shown with measured rows, but from other data or protocols, as far as is known: "
            f"do not rank them together"
        )
    return notes


def _renamed_scores(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Published numbers that are shown under a metric which their source calls by another name."""
    names: dict[str, None] = {}
    for row in rows:
        for column in columns:
            metric = column.key.removeprefix(f"{column.task}/")
            if column.key in row.cells and row.cells[column.key].called not in (column.key, metric):
                names[f"{row.cells[column.key].called} under {metric}"] = None
    return [f"shown here: its {', its '.join(names)}"] if names else []


FOOTNOTES: tuple[Footnote, ...] = (
    _protocols,
    _score_conventions,
    _different_tokens,
    _shared_columns,
    _evaluations,
    _seeds,
    _batch_norm,
    _budgets,
    _means,
    _define("retained", "retained: the student's score as a share of its teacher's (inverted for perplexities)"),
    _define("real-time-factor", f"RTF: {REAL_TIME}"),
    _agreement,
    _several_teachers,
    _define("ece", "ECE: expected calibration error in 15 bins (arXiv:1706.04599), the mean over classification tasks"),
    _flops,
    _define("tokens", "tokens: trained on, without padding, counted each time that they were read"),
    _define(
        "positions",
        "positions: of images on the grid of their features, or of sounds, trained on, counted each time that they "
        "were read",
    ),
    _steps_to,
    _latency,
    _multi_task_students,
    _stored_precision,
    _unsealed,
    _overlaps,
    _missing_values,
    _published,
)
"""The footnotes, in the order in which they stand below a table."""
