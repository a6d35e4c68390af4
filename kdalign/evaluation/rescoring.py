"""Take the scores that files tell from the answers that were kept beside them once more, and say where they differ.

No model is loaded: a score is a function of kept answers. What an answer file does not hold is said, not passed over.
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
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, Metric, Score, metrics_named, score
from kdalign.metrics.intervals import example_interval
from kdalign.metrics.text import TEXT_METRICS, check_words, score_texts
from kdalign.runs.discovery import RunGroup, discover, evaluations_in, read_evaluation
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import check_weights, read_checked
from kdalign.runs.prediction_table import ModelColumns, PredictionTable, TokenPredictions, read_predictions
from kdalign.runs.record import RECORD

if TYPE_CHECKING:
    import pandas as pd

Told = Mapping[str, Any]
"""A score as a file tells it."""

AGREEMENT = "agreement"
TOLERANCE = 1e-9
"""Relative, and below 1 absolute: sums in another order differ by less."""
KEPT_TOLERANCE = 1e-4
"""The same for what an ablation keeps, which rounds scores that are no classes to four digits."""
_LINES = 3
"""So many differences are told in one line."""


@dataclass(frozen=True)
class RescoreReport:
    """What came of it.

    Attributes:
        runs: that were read.
        scores: that were taken again, whether they agreed or not.
        differences: a line for each that differs.
        untaken: a line for what could not be taken again, and why.
    """

    runs: int = 0
    scores: int = 0
    differences: tuple[str, ...] = ()
    untaken: tuple[str, ...] = ()

    def __add__(self, other: "RescoreReport") -> "RescoreReport":
        return RescoreReport(
            self.runs + other.runs,
            self.scores + other.scores,
            self.differences + other.differences,
            tuple(dict.fromkeys(self.untaken + other.untaken)),
        )

    def check(self) -> None:
        """Refuse to go on where a score is not what its answers give.

        Raises:
            RunError: the first differences, and how many there are more.
        """
        if self.differences:
            more = len(self.differences) - _LINES
            rest = f"; and {more:,} more" if more > 0 else ""
            raise RunError("; ".join(self.differences[:_LINES]) + rest)

    @property
    def notes(self) -> tuple[str, ...]:
        """For a table."""
        runs = f"{self.runs:,} run{'s' if self.runs > 1 else ''}"
        weights = f"; the weights of {runs} are as their records say" if self.runs else ""
        return (f"verified: {self.scores:,} scores taken from kept answers again{weights}", *self.untaken)


def rescore(paths: Sequence[str | Path]) -> RescoreReport:
    """Take every score again of the runs and evaluations at some paths; weights are checked by their hashes.

    Raises:
        UsageError: nothing there, or a run that was changed after it ended.
    """
    found = RescoreReport()
    for entry in discover(paths).entries:
        if entry.ablation is not None:
            found += rescore_archived(entry)
            continue
        for run in entry.folders.values():
            found += rescore_run(run)
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        alone = path.is_file() and path.name != RECORD
        for file in [path] if alone else evaluations_in(path)[0]:
            found += rescore_evaluation(file)
    return found


def rescore_run(run: Path) -> RescoreReport:
    """Take a run's scores again: its student's, its teacher's, and their agreement and calibration.

    Raises:
        UsageError: the run was changed after it ended, its weights included.
    """
    record = read_checked(run)
    check_weights(run, record)
    metrics, untaken = metrics_named(record.metrics)
    found = RescoreReport(
        runs=1, untaken=tuple(f"run {str(run)!r}: {line}: its scores were not taken again" for line in untaken)
    )
    for split, told in record.scores.items():
        where = f"run {str(run)!r}, {split}"
        file = RunFolder(run).predictions(split)
        if not file.is_file():
            found += RescoreReport(untaken=(f"{where}: its answers are not kept, so its scores were not taken again",))
            continue
        found += _verify_split(
            told, RecordedAnswers(read_predictions(file, record.data["reported"][split]["n"]), metrics), where
        )
    return found


def _without_numbers(answers: "RecordedAnswers", where: str) -> RescoreReport:
    """What tells that a run's student, or its teacher, answered NaN, from which a class can still be taken."""
    differences = []
    for who, columns in (("student", answers.table.student), ("teacher", answers.table.teacher)):
        numbers = [columns.logits, None if columns.nll is None else columns.nll[:, None]]
        for values in [part.astype(np.float64) for part in numbers if part is not None]:
            none = ~np.isfinite(values).any(axis=1) if values.shape[1] > 1 else np.isnan(values[:, 0])
            bad = int((np.isnan(values).any(axis=1) | none).sum())
            if bad:
                differences.append(
                    f"{where}: the {who} gives NaN: {bad:,} of {len(values):,} kept answers are no numbers, so that "
                    f"no score of theirs means anything"
                )
    return RescoreReport(0, 0, tuple(differences))


def rescore_archived(entry: RunGroup) -> RescoreReport:
    """Take the scores again of an ablation's runs, of the answers that it keeps of them."""
    import pandas as pd

    found = RescoreReport()
    for task, record in entry.records.items():
        metrics, missing = metrics_named(record.metrics)
        found += RescoreReport(untaken=tuple(f"ablation {str(entry.ablation)!r}, {task}: {line}" for line in missing))
        for split, told in record.scores.items():
            answers = RecordedAnswers(PredictionTable(pd.DataFrame(entry.answers[task][split])), metrics)
            where = f"{entry.name}, {task}, seed {entry.seed}, {split}"
            found += _verify_split(told, answers, where, f"ablation {str(entry.ablation)!r}", KEPT_TOLERANCE)
    return found


def _verify_split(
    told: Mapping[str, Any], answers: "RecordedAnswers", where: str, whole: str = "", tolerance: float = TOLERANCE
) -> RescoreReport:
    """Take a run's scores on a split again.

    Args:
        told: as its record has them.
        answers: that it kept.
        where: the run and split, for what differs.
        whole: what cannot be taken again is said of, where it is the same of many runs.
        tolerance: as ``TOLERANCE``.
    """
    found = _without_numbers(answers, where)
    alike = [told[AGREEMENT]] if told.get(AGREEMENT) is not None else []
    groups = [("student ", [*told["student"]]), ("teacher ", [*told["teacher"]])]
    groups += [(f"{who} ", [error]) for who, error in told.get("calibration", {}).items()]
    for who, scores in groups:
        taken = answers.teacher(scores) if who == "teacher " else answers.student(scores)
        found += _verified(where, who, scores, taken, whole, tolerance)
    return found + _verified(where, "", alike, answers.agreement() if alike else [], whole, tolerance)


@dataclass(frozen=True)
class RecordedAnswers:
    """Kept predictions of a model on a split, and of its teacher if it has one, to be scored again."""

    table: PredictionTable
    metrics: Mapping[str, Metric]

    def student(self, told: Sequence[Told]) -> list[Score | str]:
        """The model's scores, in the order of the recorded ones; a reason for each that cannot be computed."""
        return self._scores(told, self.table.student)

    def teacher(self, told: Sequence[Told]) -> list[Score | str]:
        """The teacher's scores, likewise."""
        return self._scores(told, self.table.teacher)

    def agreement(self) -> list[Score | str]:
        """The agreement of model and teacher, or a reason why it cannot be computed."""
        ours, theirs = self.table.student.answers, self.table.teacher.answers
        if ours is None or theirs is None:
            return ["its teacher's answers are not kept"]
        if self.table.of_tokens:
            from kdalign.evaluation.likelihood import token_agreement

            tokens = self.table.tokens
            nothing = np.zeros(len(tokens))
            pair = TokenPredictions(nothing, tokens, ours), TokenPredictions(nothing, tokens, theirs)
            return [token_agreement(*pair, interval=True)]
        metric = METRICS["pearson" if ours.dtype.kind == "f" else "accuracy"]
        return [replace(_scored(metric, ours, theirs), metric=AGREEMENT)]

    def _scores(self, told: Sequence[Told], model: ModelColumns) -> list[Score | str]:
        if self.table.of_tokens:
            return self._likelihoods(told, model)
        return [self._of_values(one, model) for one in told]

    def _of_values(self, told: Told, model: ModelColumns) -> Score | str:
        """A metric of classes, scores or cosines against the labels."""
        metric = self.metrics.get(told["metric"])
        if metric is None:
            return f"{told['metric']} is not known here"
        labels, values = self.table.labels, model.values
        if labels is None or values is None:
            return f"{'its answers' if values is None else 'labels'} are not kept"
        answers = model.logits if metric.of_logits else values
        return "its logits are not kept" if answers is None else _scored(metric, answers, labels)

    def _likelihoods(self, told: Sequence[Told], model: ModelColumns) -> list[Score | str]:
        """Perplexities from each row's likelihood; word and byte counts are taken from the recorded scores."""
        from kdalign.evaluation.likelihood import TokenLikelihoods, token_perplexities

        if model.nll is None:
            return ["its answers are not kept"] * len(told)
        units = {one["metric"]: one["n"] for one in told}
        size = units.get("byte_ppl", units.get("bits_per_byte", 0))
        rows = TokenLikelihoods(model.nll, self.table.tokens, units.get("word_ppl", 0), size)
        named = {score.metric: score for score in token_perplexities(rows, "", masked="masked_ppl" in units)}
        return [self._as_told(named.get(one["metric"]), one) for one in told]

    @staticmethod
    def _as_told(found: Score | None, told: Told) -> Score | str:
        """A perplexity; where a text has several windows, the rows do not say which are resampled together."""
        if found is None:
            return f"{told['metric']} is not of likelihoods"
        return (
            replace(found, low=told["low"], high=told["high"])
            if told["signature"].startswith("left to right, windows")
            else found
        )


def _scored(metric: Metric, answers: Array, references: Array) -> Score:
    low, high = example_interval(metric.name, metric.compute, answers, references, metric.of_counts)
    return replace(score(metric, answers, references), low=low, high=high)


def rescore_evaluation(file: Path) -> RescoreReport:
    """Take the scores again in a file that ``kdalign eval`` wrote, as far as the answers lie beside it."""
    found = RescoreReport()
    for result in read_evaluation(file):
        where = f"evaluation {str(file)!r}, {result['model']}, {result['split']}"
        groups: dict[tuple[Path | None, str], list[Told]] = {}
        for told in result["scores"]:
            groups.setdefault(_kept(file, result, told), []).append(told)
        for (answers, kind), told in groups.items():
            if answers is None or not answers.is_file():
                names = ", ".join(one["metric"] for one in told)
                found += RescoreReport(untaken=(f"{where}: the answers behind {names} are not beside it",))
                continue
            found += _verified(where, "", told, _again(answers, kind, told, result))
    return found


def _written_texts(file: Path) -> "pd.DataFrame":
    """The table of texts that a model wrote, with what they are compared with.

    Raises:
        UsageError: the file holds something else.
    """
    table = read_table(file)
    if not {"prediction", "references"} <= set(table.columns):
        raise UsageError(f"{str(file)!r} keeps no texts: it lacks a column 'prediction' or 'references'")
    for row, (text, known) in enumerate(zip(table["prediction"], table["references"], strict=True), 1):
        alright = isinstance(known, list | np.ndarray) and len(known) and all(isinstance(one, str) for one in known)
        if not isinstance(text, str) or not alright:
            raise UsageError(f"{str(file)!r}, row {row}: a text and the texts that it is compared with are kept there")
    return table


def _kept(file: Path, result: Told, told: Told) -> tuple[Path | None, str]:
    """The file with the answers that a score is of, and their kind; None where nothing says its name."""
    metric, _, noise = told["metric"].partition(" ")
    kind = "pseudo" if told.get("mark") == "pseudo" else "texts" if metric in TEXT_METRICS else "predictions"
    ends = {"predictions": ".parquet", "texts": "-texts.parquet", "pseudo": "-pseudo.parquet"}
    named = next((result[one] for one in (kind, *ends) if result.get(one)), None)
    if named is None or result.get("kind") == "file":
        return None, kind
    for end in sorted(ends.values(), key=len, reverse=True):
        if named.endswith(end):
            name = named.removesuffix(end) + (f"-{noise}" if noise else "") + ends[kind]
            return file.with_suffix("") / Path(name).name, kind  # nowhere else, whatever the file says
    return None, kind


def _again(file: Path, kind: str, told: Sequence[Told], result: Told) -> list[Score | str]:
    """Scores of kept answers, for those that are told."""
    plain = [{**one, "metric": one["metric"].partition(" ")[0]} for one in told]
    if kind == "texts":
        return _of_texts(_written_texts(file), plain, result)
    answers = RecordedAnswers(read_predictions(file), METRICS)
    own = [one for one in plain if one["metric"] != AGREEMENT]
    taken = iter(answers.student(own))
    return [answers.agreement()[0] if one["metric"] == AGREEMENT else next(taken) for one in plain]


def _of_texts(table: "pd.DataFrame", told: Sequence[Told], result: Told) -> list[Score | str]:
    """Metrics of texts; their language is not told, so that it is the one which gives the signatures that are."""
    names = [one["metric"] for one in told]
    references = [list(known) for known in table["references"]]
    signed = [one["signature"] for one in told]
    found: list[Score] = []
    alike = -1
    for language in _languages(result, names):
        scores, _ = score_texts(names, table["prediction"].to_list(), references, language)
        same = sum(one.signature == how for one, how in zip(scores, signed, strict=True))
        if same > alike:
            found, alike = scores, same
        if same == len(signed):
            break
    return [
        one if one.signature == how else f"{one.metric} was made by {how}, and here would be by {one.signature}"
        for one, how in zip(found, signed, strict=True)
    ]


def _languages(result: Told, names: Sequence[str]) -> Iterator[str]:
    """The likeliest first: the task's own, English, none, and others, of which German stands for those with blanks."""
    try:
        task = find_task(result["task"])
    except UsageError:
        task = None
    own = [task.language] if isinstance(task, LanguageTask) and task.language else []
    for language in dict.fromkeys([*own, "en", "", "de", "zh", "tr", "ja", "ko"]):
        try:
            check_words(names, language)
        except UsageError:  # a package is missing that was there, which the signatures then say
            continue
        yield language


def _verified(
    where: str,
    who: str,
    told: Sequence[Told],
    found: Sequence[Score | str],
    whole: str = "",
    tolerance: float = TOLERANCE,
) -> RescoreReport:
    """Compare what is told with what was found, one by one."""
    differences: list[str] = []
    untaken: dict[str, None] = {}
    taken = 0
    for one, again in zip(told, found, strict=True):
        if isinstance(again, str):
            untaken[f"{whole or where}: {who}{one['metric']} was not taken again: {again}"] = None
            continue
        taken += 1
        differences += [f"{where}: {who}{line}" for line in _differences(one, again, tolerance)]
    return RescoreReport(0, taken, tuple(differences), tuple(untaken))


def _differences(told: Told, found: Score, tolerance: float) -> Iterator[str]:
    """The value, the interval's ends, and the number of examples."""
    for name, word in (("value", ""), ("low", " lower end"), ("high", " upper end"), ("n", " n")):
        one, other = told[name], getattr(found, name)
        if not _alike(one, other, tolerance):
            made = (
                ""
                if told["signature"].endswith(found.signature)
                else f" by {found.signature}, once {told['signature']}"
            )
            yield f"{told['metric']}{word} is told as {_written(one)}, and its answers give {_written(other)}{made}"


def _alike(one: float | None, other: float | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)


def _written(value: float | None) -> str:
    return "none" if value is None else f"{value:.12g}"
