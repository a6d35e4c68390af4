"""From finished runs to verdicts: which arms are better than a baseline, by the answers that runs keep.

Reads records and kept predictions only; no model, no torch.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from kdalign.comparison.comparability import scored_split
from kdalign.comparison.table import metric_key
from kdalign.errors import UsageError, unknown
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS, metrics_named, reason_of
from kdalign.metrics.significance import (
    LabelOutputs,
    PairedDifference,
    SufficientStats,
    SystemOutputs,
    TestResult,
    UndefinedDifference,
    correct_for_arms,
    macro_difference,
    paired_difference,
)
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import PredictionTable, read_predictions
from kdalign.runs.record import RunRecord, first_split, read_record


@dataclass(frozen=True)
class ArmRuns:
    """A finished run.

    Attributes:
        folder: where its answers lie.
        kept: or the answers themselves, by split and column.
    """

    record: RunRecord
    folder: RunFolder
    kept: Mapping[str, Mapping[str, Array]] | None = field(default=None, compare=False)

    @classmethod
    def read(cls, folder: RunFolder) -> "ArmRuns":
        """From a run's folder.

        Raises:
            UsageError: nothing there, or an unfinished run.
        """
        return cls(read_record(folder.path), folder)

    @property
    def name(self) -> str:
        """What an error line calls it."""
        return str(self.folder.path)

    @property
    def split(self) -> str:
        """The split that stands for the task (MNLI's matched one)."""
        return next(iter(self.record.scores))

    @property
    def scores(self) -> list[dict[str, Any]]:
        """The student's scores on it, the primary metric first."""
        found: list[dict[str, Any]] = first_split(self.record)["student"]
        return found

    @cached_property
    def answers(self) -> PredictionTable:
        """Kept predictions of the student and its teacher.

        Raises:
            UsageError: the file is gone, or holds no such answers.
        """
        import pandas as pd

        if self.kept is not None:
            return PredictionTable(pd.DataFrame(self.kept[self.split]))
        file = self.folder.predictions(self.split)
        if not file.is_file():
            raise UsageError(
                f"run {self.name!r} has no {file.relative_to(self.folder.path)}, which verdicts are made of"
            )
        return read_predictions(file, self.record.data["reported"][self.split]["n"])

    @property
    def modelled(self) -> bool:
        """True if it predicts tokens."""
        return self.answers.of_tokens


Arm = Mapping[tuple[str, int], ArmRuns]
"""An arm's runs by task and seed."""


@dataclass(frozen=True)
class ArmVerdict:
    """A verdict and what it is about.

    Attributes:
        arm: which is compared with the baseline.
        key: the column of a comparison that it belongs to: ``task/metric``, a task for the mean of its metrics,
            ``task/agreement``, ``macro``, or ``agreement`` for the mean over tasks.
        unit: of the difference; ``%`` stands for points of a score in per cent.
        seeds: that were compared.
        primary: whether it is of a task's first metric.
    """

    arm: str
    key: str
    task: str
    metric: str
    unit: str
    seeds: tuple[int, ...]
    primary: bool
    verdict: TestResult

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class ArmVerdicts:
    """All verdicts against one baseline, and what must be known to read them."""

    baseline: str
    verdicts: tuple[ArmVerdict, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class _Question:
    """What is asked of every arm; its arms are one family of Holm's correction."""

    key: str
    task: str
    metric: str
    unit: str
    primary: bool = False


def compare_arms(arms: Mapping[str, Arm], baseline: str) -> ArmVerdicts:
    """Compare every arm with the baseline: in each metric, in agreement with the teacher, and over tasks.

    Runs are paired by task and seed. p is corrected across arms within each metric, not across metrics.

    Args:
        arms: runs by task and seed, by the name of their arm; the baseline is one of them.
        baseline: its name.

    Raises:
        UsageError: no such baseline, nothing beside it, runs scored on different data, or a run without its answers.
    """
    if baseline not in arms:
        raise unknown("baseline", baseline, arms)
    if len(arms) < 2:
        raise UsageError(f"nothing to compare with the baseline {baseline!r}: give another arm")
    for task in _tasks(arms.values()):
        _check_data([run for arm in arms.values() for (of, _), run in arm.items() if of == task])
    found: dict[_Question, dict[str, tuple[tuple[int, ...], PairedDifference]]] = {}
    notes: dict[str, None] = {}
    for name, arm in arms.items():
        if name != baseline:
            for question, seeds, value in _differences(name, arm, arms[baseline], baseline, notes):
                found.setdefault(question, {})[name] = (seeds, value)
    verdicts = []
    for question, by_arm in found.items():
        for (name, (seeds, _)), verdict in zip(
            by_arm.items(), correct_for_arms([value for _, value in by_arm.values()]), strict=True
        ):
            verdicts.append(ArmVerdict(name, **{**asdict(question), "seeds": seeds}, verdict=verdict))
    if any(len(one.seeds) == 1 for one in verdicts):
        notes["one seed: a verdict is on these two models; how another seed would turn out is not in it"] = None
    if any(len(one.seeds) == 2 for one in verdicts):
        notes["two seeds say little of how seeds differ: a verdict needs a very large difference; three do better"] = (
            None
        )
    return ArmVerdicts(baseline, tuple(verdicts), tuple(notes))


def _tasks(arms: Iterable[Arm]) -> list[str]:
    return list(dict.fromkeys(task for arm in arms for task, _ in arm))


def _check_data(runs: Sequence[ArmRuns]) -> None:
    """Refuse runs of one task that were scored on different examples."""
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = scored_split(run.record), scored_split(first.record)
        if ours != theirs:
            raise UsageError(
                f"runs {first.name!r} and {run.name!r} were scored on different data ({theirs.data}; {ours.data}), "
                f"so that their answers cannot be paired"
            )


def _differences(
    name: str, arm: Arm, base: Arm, baseline: str, notes: dict[str, None]
) -> list[tuple[_Question, tuple[int, ...], PairedDifference]]:
    """One arm's differences to the baseline, over the seeds that both have; what is missing goes into the notes."""
    found = []
    shared = [task for task in _tasks([arm]) if task in _tasks([base])]
    for task in (task for task in _tasks([arm, base]) if task not in shared):
        notes[f"{task}: only one of {name} and {baseline} has runs of it"] = None
    kept: list[tuple[str, tuple[int, ...]]] = []
    lacking: dict[str, list[str]] = {}
    for task in shared:
        seeds, left = _paired_seeds(task, arm, base)
        if left:
            lacking.setdefault(_listed(left), []).append(task)
        if seeds:
            kept.append((task, seeds))
        else:
            notes[f"{name} and {baseline}, {task}: no seed in common, no verdict"] = None
    for seeds_left, tasks in lacking.items():
        notes[f"{name} and {baseline}, {', '.join(tasks)}: seeds {seeds_left} left out, which only one of them has"] = (
            None
        )
    several = len(kept) > 1
    for task, seeds in kept:
        pairs = [(arm[task, seed], base[task, seed]) for seed in seeds]
        for question, ours, theirs, up in _asked(task, pairs, several, notes):
            try:
                value = paired_difference(
                    ours, theirs, higher_is_better=up, what=f"{name} and {baseline}, {question.key}"
                )
            except UndefinedDifference as why:
                notes[f"{why}, no verdict"] = None
            else:
                found.append((question, seeds, value))
    return found + (_over_tasks(name, kept, arm, base, baseline, notes) if several else [])


def _over_tasks(
    name: str,
    kept: Sequence[tuple[str, tuple[int, ...]]],
    arm: Arm,
    base: Arm,
    baseline: str,
    notes: dict[str, None],
) -> list[tuple[_Question, tuple[int, ...], PairedDifference]]:
    """The differences of the means over tasks: of their scores, where all are in per cent, and of agreement."""
    common = sorted(set.intersection(*(set(seeds) for _, seeds in kept)))
    dropped = sorted(set.union(*(set(seeds) for _, seeds in kept)) - set(common))
    if dropped:
        notes[
            f"{name} and {baseline}, means over tasks: seeds {_listed(dropped)} left out, which not all tasks have"
        ] = None
    if not common:
        return []
    found = []
    for word in ("macro", "agreement"):
        parts = []
        for task, _ in kept:
            pairs = [(arm[task, seed], base[task, seed]) for seed in common]
            asked = _one_number(task, pairs) if word == "macro" else _agreement(task, pairs, {})
            if asked is None:
                break
            question, ours, theirs, _ = asked
            try:
                parts.append(paired_difference(ours, theirs, what=f"{name} and {baseline}, {question.key}"))
            except UndefinedDifference:
                break
        scores = [
            each for task, _ in kept for side in (arm, base) for seed in common for each in side[task, seed].scores
        ]
        if len(parts) < len(kept) and word == "macro" and _undefined(scores):
            notes[f"{name} and {baseline}, macro: a task's score is undefined, no verdict"] = None
        if len(parts) == len(kept):
            found.append((_Question(word, "", word, "%"), tuple(common), macro_difference(parts)))
    return found


def _paired_seeds(task: str, arm: Arm, base: Arm) -> tuple[tuple[int, ...], list[int]]:
    """The seeds that both have of a task, and those that one lacks."""
    ours, theirs = ({seed for of, seed in runs if of == task} for runs in (arm, base))
    return tuple(sorted(ours & theirs)), sorted(ours ^ theirs)


def _listed(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))


Pairs = Sequence[tuple[ArmRuns, ArmRuns]]
Asked = tuple[_Question, list[SystemOutputs], list[SystemOutputs], bool]


def _asked(task: str, pairs: Pairs, several: bool, notes: dict[str, None]) -> list[Asked]:
    """What is asked about a task: each metric that all runs have, the mean of these, and agreement."""
    runs = [run for pair in pairs for run in pair]
    found: list[Asked] = []
    if not _same_tokens(pairs):
        notes[f"{task}: {pairs[0][0].name} and {pairs[0][1].name} were asked for different tokens, no verdict"] = None
        return []
    for place, score in enumerate(runs[0].scores):
        metric = score["metric"]
        if not all(metric in [each["metric"] for each in run.scores] for run in runs):
            notes[f"{task}: not all runs have {metric}, no verdict"] = None
            continue
        why = _undefined(each for run in runs for each in run.scores if each["metric"] == metric)
        if why:
            notes[f"{metric_key(task, metric)}: undefined for a run ({why}), no verdict"] = None
            continue
        question = _Question(metric_key(task, metric), task, metric, score["unit"], primary=place == 0)
        try:
            ours, theirs = ([_answers(run, (metric,)) for run in side] for side in zip(*pairs, strict=True))
        except UndefinedDifference as why:
            notes[f"{why}, no verdict"] = None
            continue
        found.append((question, ours, theirs, score["higher_is_better"]))
    mean = _one_number(task, pairs)
    if several and mean is not None and len(runs[0].scores) > 1:
        found.append(mean)
    agreement = _agreement(task, pairs, notes)
    return found if agreement is None else [*found, agreement]


def _undefined(scores: Iterable[Mapping[str, Any]]) -> str:
    """Why scores have no value, those that have none; empty where all have one."""
    return "; ".join(dict.fromkeys(reason_of(score) for score in scores if score["value"] is None))


def _same_tokens(pairs: Pairs) -> bool:
    return all(
        ours.modelled == theirs.modelled
        and (not ours.modelled or np.array_equal(ours.answers.tokens, theirs.answers.tokens))
        for ours, theirs in pairs
    )


def _one_number(task: str, pairs: Pairs) -> Asked | None:
    """A task's one number, the mean of its metrics, as GLUE averages them; None where they are not all in per cent."""
    scores = pairs[0][0].scores
    metrics = tuple(score["metric"] for score in scores)
    same = all(tuple(each["metric"] for each in run.scores) == metrics for pair in pairs for run in pair)
    if not same or not all(score["unit"] == "%" and score["higher_is_better"] for score in scores):
        return None
    if _undefined(each for pair in pairs for run in pair for each in run.scores):  # said of the metric itself
        return None
    try:
        ours, theirs = ([_answers(run, metrics) for run in side] for side in zip(*pairs, strict=True))
    except UndefinedDifference:  # said of the metric itself
        return None
    return _Question(task, task, "mean", "%"), ours, theirs, True


def _agreement(task: str, pairs: Pairs, notes: dict[str, None]) -> Asked | None:
    """Agreement with the teacher that both arms had; None where there was none, or another one."""
    if any(run.answers.teacher.answers is None for pair in pairs for run in pair) or not _same_tokens(pairs):
        return None
    told = [first_split(run.record)["agreement"] for pair in pairs for run in pair]
    why = _undefined(each for each in told if each is not None)
    if why:
        notes[f"{task}/agreement: undefined for a run ({why}), no verdict"] = None
        return None
    for ours, theirs in pairs:
        if not np.array_equal(_teacher_answers(ours), _teacher_answers(theirs)):
            notes[f"{task}: {ours.name} and {theirs.name} had different teachers, no verdict on agreement"] = None
            return None
    made = _token_agreement if pairs[0][0].modelled else _class_agreement
    ours_made, theirs_made = ([made(run) for run in side] for side in zip(*pairs, strict=True))
    return _Question(f"{task}/agreement", task, "agreement", "%"), ours_made, theirs_made, True


def _answers(run: ArmRuns, metrics: tuple[str, ...]) -> SystemOutputs:
    """A run's answers, for the mean of some metrics."""
    table = run.answers
    if run.modelled:
        (metric,) = metrics
        (score,) = (each for each in run.scores if each["metric"] == metric)
        tokens, nll = table.tokens, table.student.nll
        assert nll is not None, "a run of a language model keeps its likelihoods"
        if not score["n"]:
            raise UndefinedDifference(f"run {run.name!r}: {metric} is of nothing")
        return SufficientStats(
            np.column_stack([nll, tokens]),
            _perplexity(int(tokens.sum()) / score["n"], score["unit"]),
            tokens,
        )
    known, missing = metrics_named(run.record.metrics)
    if any(name not in known for name in metrics):
        why = f": {'; '.join(missing)}" if missing else ""
        raise UndefinedDifference(f"run {run.name!r}: {', '.join(metrics)} cannot be taken here{why}")
    found = tuple(known[name] for name in metrics)
    of_logits = any(metric.of_logits for metric in found)
    values, labels = table.student.logits if of_logits else table.student.values, table.labels
    if values is None or labels is None or (of_logits and len(found) > 1):
        raise UndefinedDifference(f"run {run.name!r}: {' and '.join(metrics)} cannot be taken of what is kept")
    return LabelOutputs(found, values, labels)


def _perplexity(tokens_a_unit: float, unit: str) -> Callable[[Array], Array]:
    """Of sums (resamples, 2) of nll and tokens; a unit is what the perplexity is over: a token, a word, a byte.

    How many tokens a unit has is the split's, also where its rows are drawn again.
    """

    def value(sums: Array) -> Array:
        nats = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0) * tokens_a_unit
        bits: Array = nats / math.log(2)
        known: Array = np.exp(np.where(nats < 700, nats, np.nan))  # beyond every number, as in likelihood.totals
        return bits if unit == "bits" else known

    return value


def _teacher_answers(run: ArmRuns) -> Array:
    answers = run.answers.teacher.answers
    assert answers is not None, "agreement is computed if the teacher's answers are kept"
    return answers


def _class_agreement(run: ArmRuns) -> SystemOutputs:
    """Classes that are the teacher's, or the correlation with its scores."""
    predictions, teacher = run.answers.student.values, _teacher_answers(run)
    assert predictions is not None, "a run of classes or scores keeps them"
    name = "pearson" if np.issubdtype(predictions.dtype, np.floating) else "accuracy"
    return LabelOutputs((METRICS[name],), predictions, teacher)


def _token_agreement(run: ArmRuns) -> SystemOutputs:
    """Target tokens at which the likeliest token is the teacher's, row by row."""
    table = run.answers
    tokens, best, teacher = table.tokens, table.student.best, table.teacher.best
    assert best is not None, "a run of a language model keeps its likeliest tokens"
    assert teacher is not None, "agreement is computed if the teacher's answers are kept"
    same = [np.sum(ours == theirs) for ours, theirs in zip(best, teacher, strict=True)]

    def value(sums: Array) -> Array:
        shares: Array = 100 * np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        return shares

    return SufficientStats(np.column_stack([same, tokens]).astype(float), value, tokens)
