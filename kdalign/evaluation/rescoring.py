"""Compute recorded scores again from kept predictions, and report where they differ.

No model is loaded: a score is a function of kept predictions. What a file does not hold is reported, not skipped
silently.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.tables import read_table
from kdalign.data.tasks import LanguageTask, find_task
from kdalign.errors import RunError, UsageError
from kdalign.evaluation.metric_names import AGREEMENT
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, Metric, Score, agreement_metric, metrics_named, score
from kdalign.metrics.intervals import example_interval
from kdalign.metrics.text import TEXT_METRICS, check_words, score_texts
from kdalign.runs.archive import ROUNDING
from kdalign.runs.discovery import RunGroup, discover, evaluations_in, read_evaluation
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.prediction_table import ModelColumns, PredictionTable, read_predictions
from kdalign.runs.record import RECORD

if TYPE_CHECKING:
    import pandas as pd

Recorded = Mapping[str, Any]
"""A score as a file records it."""
Rescored = Score | str
"""A score computed again, or the reason why it cannot be."""

TOLERANCE = 1e-9
"""Accepted difference, relative, and absolute below 1: sums in another order differ by less."""
_SHOWN = 3
"""Differences shown in one error."""


@dataclass(frozen=True)
class RescoreReport:
    """The outcome of rescoring.

    Attributes:
        runs: number of runs read.
        scores: number of scores computed again, equal or not.
        differences: a line for each score that differs.
        skipped: a line for each score that could not be computed again, with the reason.
    """

    runs: int = 0
    scores: int = 0
    differences: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __add__(self, other: "RescoreReport") -> "RescoreReport":
        return RescoreReport(
            self.runs + other.runs,
            self.scores + other.scores,
            self.differences + other.differences,
            tuple(dict.fromkeys(self.skipped + other.skipped)),
        )

    def check(self) -> None:
        """Raise an error if a recorded score is not what its predictions give.

        Raises:
            RunError: the first differences, and the number of the others.
        """
        if self.differences:
            more = len(self.differences) - _SHOWN
            rest = f"; and {more:,} more" if more > 0 else ""
            raise RunError("; ".join(self.differences[:_SHOWN]) + rest)

    @property
    def notes(self) -> tuple[str, ...]:
        """Footnotes of a table."""
        runs = f"{self.runs:,} run{'s' if self.runs > 1 else ''}"
        weights = f"; the weights of {runs} are as their records say" if self.runs else ""
        return (f"verified: {self.scores:,} scores computed again from kept predictions{weights}", *self.skipped)


def rescore(paths: Sequence[str | Path]) -> RescoreReport:
    """Compute every score of the runs and evaluations at some paths again; check weights by their hashes.

    Raises:
        UsageError: there is nothing, or a run was changed after it ended.
    """
    report = RescoreReport()
    for entry in discover(paths).entries:
        if entry.ablation is not None:
            report += rescore_archived(entry)
            continue
        for run in entry.folders.values():
            report += rescore_run(run)
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        is_evaluation = path.is_file() and path.name != RECORD
        for file in [path] if is_evaluation else evaluations_in(path)[0]:
            report += rescore_evaluation(file)
    return report


def rescore_run(run: Path) -> RescoreReport:
    """Compute a run's scores again: its student's, its teacher's, and their agreement and calibration.

    Raises:
        UsageError: the run or its weights were changed after it ended.
    """
    record = read_checked(run)
    check_weights(run, record)
    metrics, unknown = metrics_named(record.metrics)
    skipped = tuple(f"run {str(run)!r}: {line}: its scores were not computed again" for line in unknown)
    report = RescoreReport(runs=1, skipped=skipped)
    for split, scores in record.scores.items():
        where = f"run {str(run)!r}, {split}"
        file = RunFolder(run).predictions(split)
        if not file.is_file():
            line = f"{where}: its predictions are not kept, so its scores were not computed again"
            report += RescoreReport(skipped=(line,))
            continue
        table = read_predictions(file, record.data["reported"][split]["n"])
        report += _rescore_split(scores, RecordedPredictions(table, metrics), where)
    return report


def rescore_archived(entry: RunGroup) -> RescoreReport:
    """Compute the scores of an ablation's runs again, from the predictions in its archive."""
    import pandas as pd

    report, ablation = RescoreReport(), f"ablation {str(entry.ablation)!r}"
    for task, record in entry.records.items():
        metrics, unknown = metrics_named(record.metrics)
        report += RescoreReport(skipped=tuple(f"{ablation}, {task}: {line}" for line in unknown))
        for split, scores in record.scores.items():
            table = PredictionTable(pd.DataFrame(entry.answers[task][split]))
            where = f"{entry.name}, {task}, seed {entry.seed}, {split}"
            predictions = RecordedPredictions(table, metrics)
            report += _rescore_split(scores, predictions, where, ablation, ROUNDING)
    return report


def rescore_evaluation(file: Path) -> RescoreReport:
    """Compute the scores in a file of ``kdalign eval`` again, as far as the predictions are next to it."""
    report = RescoreReport()
    for result in read_evaluation(file):
        where = f"evaluation {str(file)!r}, {result['model']}, {result['split']}"
        groups: dict[tuple[Path | None, str], list[Recorded]] = {}
        for recorded in result["scores"]:
            groups.setdefault(_prediction_file(file, result, recorded), []).append(recorded)
        for (predictions, kind), scores in groups.items():
            if predictions is None or not predictions.is_file():
                names = ", ".join(recorded["metric"] for recorded in scores)
                report += RescoreReport(skipped=(f"{where}: the predictions behind {names} are not next to it",))
                continue
            report += _compare(where, scores, _rescore_file(predictions, kind, scores, result))
    return report


def _rescore_split(
    scores: Mapping[str, Any],
    predictions: "RecordedPredictions",
    where: str,
    group: str = "",
    tolerance: float = TOLERANCE,
) -> RescoreReport:
    """Compute a run's scores on a split again.

    Args:
        scores: the split's scores in the run's record.
        predictions: the kept predictions.
        where: run and split, for differences.
        group: name of many runs, for what cannot be computed again in any of them.
        tolerance: accepted difference, as ``TOLERANCE``.
    """
    report = _check_numbers(predictions, where)
    parts = [("student", [*scores["student"]]), ("teacher", [*scores["teacher"]])]
    parts += [(who, [error]) for who, error in scores.get("calibration", {}).items()]
    for who, recorded in parts:
        rescored = predictions.teacher(recorded) if who == "teacher" else predictions.student(recorded)
        report += _compare(where, recorded, rescored, f"{who} ", group, tolerance)
    if scores.get(AGREEMENT) is not None:
        report += _compare(where, [scores[AGREEMENT]], [predictions.agreement(scores[AGREEMENT])], "", group, tolerance)
    return report


def _check_numbers(predictions: "RecordedPredictions", where: str) -> RescoreReport:
    """Report a student or teacher whose outputs are NaN, where argmax would still give a class."""
    differences = []
    for who, columns in (("student", predictions.table.student), ("teacher", predictions.table.teacher)):
        parts = [columns.logits, None if columns.nll is None else columns.nll[:, None]]
        for values in [part.astype(np.float64) for part in parts if part is not None]:
            none = ~np.isfinite(values).any(axis=1) if values.shape[1] > 1 else np.isnan(values[:, 0])
            bad = int((np.isnan(values).any(axis=1) | none).sum())
            if bad:
                differences.append(
                    f"{where}: the {who} gives NaN: {bad:,} of {len(values):,} kept predictions are not numbers, so "
                    f"that no score of theirs means anything"
                )
    return RescoreReport(differences=tuple(differences))


@dataclass(frozen=True)
class RecordedPredictions:
    """Kept predictions of a model on a split, and of its teacher if it has one, to be scored again.

    Attributes:
        table: the predictions.
        metrics: metrics by name.
    """

    table: PredictionTable
    metrics: Mapping[str, Metric]

    def student(self, recorded: Sequence[Recorded]) -> list[Rescored]:
        """Compute the model's scores, in the order of the recorded ones."""
        return self._rescore(recorded, self.table.student)

    def teacher(self, recorded: Sequence[Recorded]) -> list[Rescored]:
        """Compute the teacher's scores, in the order of the recorded ones."""
        return self._rescore(recorded, self.table.teacher)

    def agreement(self, recorded: Recorded) -> Rescored:
        """Compute the agreement of model and teacher, by what the recorded one was computed by."""
        ours, theirs, agreed = self.table.student.values, self.table.teacher.values, self.table.agreed
        if agreed is not None:
            from kdalign.evaluation.likelihood import agreement_score

            return agreement_score(agreed, self.table.tokens, interval=True)
        if self.table.student.written is not None and self.table.teacher.written is not None:
            same = [(text,) for text in self.table.teacher.written]
            [score], _ = score_texts(["exact_match"], self.table.student.written, same)
            return replace(score, metric=AGREEMENT)
        if ours is None or theirs is None:
            return "its teacher's predictions are not kept"
        metric = agreement_metric(ours, recorded["signature"])
        return replace(_score(metric, ours, theirs), metric=AGREEMENT)

    def _rescore_written(self, recorded: Sequence[Recorded], model: ModelColumns) -> list[Rescored]:
        """Compute metrics of written texts against their references."""
        if model.written is None:
            return ["its predictions are not kept"] * len(recorded)
        names = [score["metric"] for score in recorded if score["metric"] in TEXT_METRICS]
        scores, _ = score_texts(names, model.written, self.table.references, self.table.language)
        by_name = {score.metric: score for score in scores}
        return [by_name.get(score["metric"], f"{score['metric']} is not known here") for score in recorded]

    def _rescore(self, recorded: Sequence[Recorded], model: ModelColumns) -> list[Rescored]:
        if self.table.of_tokens:
            return self._rescore_tokens(recorded, model)
        if self.table.of_texts:
            return self._rescore_written(recorded, model)
        return [self._rescore_values(score["metric"], model) for score in recorded]

    def _rescore_values(self, name: str, model: ModelColumns) -> Rescored:
        """Compute a metric of classes, scores or cosines against the labels."""
        metric = self.metrics.get(name)
        if metric is None:
            return f"{name} is not known here"
        labels, values = self.table.labels, model.values
        if labels is None or values is None:
            return f"{'its predictions' if values is None else 'labels'} are not kept"
        outputs = model.logits if metric.of_logits else values
        return "its logits are not kept" if outputs is None else _score(metric, outputs, labels)

    def _rescore_tokens(self, recorded: Sequence[Recorded], model: ModelColumns) -> list[Rescored]:
        """Compute perplexities from each row's likelihood; word and byte counts come from the recorded scores."""
        from kdalign.evaluation.likelihood import TokenLikelihoods, token_perplexities

        if model.nll is None:
            return ["its predictions are not kept"] * len(recorded)
        units = {score["metric"]: score["n"] for score in recorded}
        size = units.get("byte_ppl", units.get("bits_per_byte", 0))
        rows = TokenLikelihoods(model.nll, self.table.tokens, units.get("word_ppl", 0), size)
        by_name = {score.metric: score for score in token_perplexities(rows, "", masked="masked_ppl" in units)}
        return [_with_recorded_interval(by_name.get(score["metric"]), score) for score in recorded]


def _with_recorded_interval(rescored: Score | None, recorded: Recorded) -> Rescored:
    """Take over the interval of texts in several rows: the rows do not say which are resampled together."""
    if rescored is None:
        return f"{recorded['metric']} is not of likelihoods"
    if recorded["signature"].startswith(("left to right, windows", "each answer")):
        return replace(rescored, low=recorded["low"], high=recorded["high"])
    return rescored


def _score(metric: Metric, outputs: Array, references: Array) -> Score:
    low, high = example_interval(metric.name, metric.compute, outputs, references, metric.of_counts, metric.of_rows)
    return replace(score(metric, outputs, references), low=low, high=high)


def _prediction_file(file: Path, result: Recorded, recorded: Recorded) -> tuple[Path | None, str]:
    """Return the file of the predictions behind a score, and their kind; None if its name is not recorded."""
    metric, _, noise = recorded["metric"].partition(" ")
    kind = "pseudo" if recorded.get("mark") == "pseudo" else "texts" if metric in TEXT_METRICS else "predictions"
    ends = {"predictions": ".parquet", "texts": "-texts.parquet", "pseudo": "-pseudo.parquet"}
    name = next((result[key] for key in (kind, *ends) if result.get(key)), None)
    if name is None or result.get("kind") == "file":
        return None, kind
    for end in sorted(ends.values(), key=len, reverse=True):
        if name.endswith(end):
            name = name.removesuffix(end) + (f"-{noise}" if noise else "") + ends[kind]
            return file.with_suffix("") / Path(name).name, kind  # nowhere else, whatever the file says
    return None, kind


def _rescore_file(file: Path, kind: str, recorded: Sequence[Recorded], result: Recorded) -> list[Rescored]:
    """Compute scores from a file of predictions, in the order of the recorded ones."""
    plain = [{**score, "metric": score["metric"].partition(" ")[0]} for score in recorded]
    if kind == "texts":
        return _rescore_texts(_read_texts(file), plain, result)
    predictions = RecordedPredictions(read_predictions(file), METRICS)
    own = iter(predictions.student([score for score in plain if score["metric"] != AGREEMENT]))
    return [predictions.agreement(score) if score["metric"] == AGREEMENT else next(own) for score in plain]


def _read_texts(file: Path) -> "pd.DataFrame":
    """Read a table of generated texts with their references.

    Raises:
        UsageError: the file holds something else.
    """
    table = read_table(file)
    if not {"prediction", "references"} <= set(table.columns):
        raise UsageError(f"{str(file)!r} keeps no texts: it lacks a column 'prediction' or 'references'")
    for row, (text, references) in enumerate(zip(table["prediction"], table["references"], strict=True), 1):
        are_texts = isinstance(references, list | np.ndarray) and all(isinstance(known, str) for known in references)
        if not isinstance(text, str) or not are_texts or not len(references):
            raise UsageError(f"{str(file)!r}, row {row}: expected a text and a list of texts to compare it with")
    return table


def _rescore_texts(table: "pd.DataFrame", recorded: Sequence[Recorded], result: Recorded) -> list[Rescored]:
    """Compute metrics of texts. Their language is not recorded: it is the one that gives the recorded signatures."""
    names, signatures = [score["metric"] for score in recorded], [score["signature"] for score in recorded]
    references = [list(known) for known in table["references"]]
    best: list[Score] = []
    most_equal = -1
    for language in _languages(result, names):
        scores, _ = score_texts(names, table["prediction"].to_list(), references, language)
        equal = sum(score.signature == signature for score, signature in zip(scores, signatures, strict=True))
        if equal > most_equal:
            best, most_equal = scores, equal
        if equal == len(signatures):
            break
    return [
        score
        if score.signature == signature
        else f"{score.metric} was computed by {signature}, and here would be by {score.signature}"
        for score, signature in zip(best, signatures, strict=True)
    ]


def _languages(result: Recorded, names: Sequence[str]) -> Iterator[str]:
    """Guess the language of texts, the likeliest first; German stands for all others with spaces between words."""
    try:
        task = find_task(result["task"])
    except UsageError:
        task = None
    own = [task.language] if isinstance(task, LanguageTask) and task.language else []
    for language in dict.fromkeys([*own, "en", "", "de", "zh", "tr", "ja", "ko"]):
        try:
            check_words(names, language)
        except UsageError:  # a package is missing that was installed then, as the signatures will show
            continue
        yield language


def _compare(
    where: str,
    recorded: Sequence[Recorded],
    rescored: Sequence[Rescored],
    who: str = "",
    group: str = "",
    tolerance: float = TOLERANCE,
) -> RescoreReport:
    """Compare recorded scores with those computed again, one by one."""
    differences: list[str] = []
    skipped: dict[str, None] = {}
    count = 0
    for old, new in zip(recorded, rescored, strict=True):
        if isinstance(new, str):
            skipped[f"{group or where}: {who}{old['metric']} was not computed again: {new}"] = None
            continue
        count += 1
        differences += [f"{where}: {who}{line}" for line in _differences(old, new, tolerance)]
    return RescoreReport(0, count, tuple(differences), tuple(skipped))


def _differences(recorded: Recorded, rescored: Score, tolerance: float) -> Iterator[str]:
    """Describe differences of the value, the interval's ends and the number of examples."""
    for field, suffix in (("value", ""), ("low", " lower end"), ("high", " upper end"), ("n", " n")):
        old, new = recorded[field], getattr(rescored, field)
        grown = max(1.0, math.log(old)) if rescored.metric.endswith("ppl") and old and field != "n" else 1.0
        if not _close(old, new, tolerance * grown):  # a perplexity is the exponential of what was rounded
            same = recorded["signature"].endswith(rescored.signature)
            how = "" if same else f" by {rescored.signature}, once {recorded['signature']}"
            name = f"{recorded['metric']}{suffix}"
            yield f"{name} is recorded as {_shown(old)}, and its predictions give {_shown(new)}{how}"


def _close(old: float | None, new: float | None, tolerance: float) -> bool:
    if old is None or new is None:
        return old is new
    return math.isclose(old, new, rel_tol=tolerance, abs_tol=tolerance)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.12g}"
