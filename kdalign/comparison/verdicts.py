"""Paired tests of arms against a baseline, on the predictions that their runs keep.

Reads records and kept predictions only; no model, no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdalign.comparison.arm_run import ArmRun, agreement_outputs, metric_outputs, text_outputs
from kdalign.comparison.comparability import scored_split
from kdalign.comparison.table import metric_key
from kdalign.errors import UsageError, unknown
from kdalign.metrics.classification import Score
from kdalign.metrics.significance import (
    PairedDifference,
    TestResult,
    UndefinedDifference,
    correct_for_arms,
    macro_difference,
    paired_difference,
)
from kdalign.metrics.system_outputs import SystemOutputs

Arm = Mapping[tuple[str, int], ArmRun]
"""An arm's runs by task and seed."""


@dataclass(frozen=True)
class ArmVerdict:
    """Result of one test of an arm against the baseline.

    Attributes:
        arm: the arm that is compared with the baseline.
        key: the column of a comparison that it belongs to: ``task/metric``, a task for the mean of its metrics,
            ``task/agreement``, ``macro``, or ``agreement`` for the mean over tasks.
        unit: unit of the difference; ``%`` stands for points of a score in per cent.
        seeds: seeds that were compared.
        primary: true for a task's first metric.
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
    """All verdicts against one baseline, with notes on what could not be tested."""

    baseline: str
    verdicts: tuple[ArmVerdict, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class _Question:
    """A quantity in which every arm is compared; its arms are one family of Holm's correction."""

    key: str
    task: str
    metric: str
    unit: str
    primary: bool = False


@dataclass(frozen=True)
class _Outputs:
    """Outputs of an arm's and the baseline's runs that answer a question, one for each seed."""

    question: _Question
    ours: list[SystemOutputs]
    theirs: list[SystemOutputs]
    higher_is_better: bool = True


@dataclass(frozen=True)
class _Difference:
    question: _Question
    seeds: tuple[int, ...]
    value: PairedDifference


def compare_arms(arms: Mapping[str, Arm], baseline: str) -> ArmVerdicts:
    """Test every arm against the baseline: in each metric, in agreement with the teacher, and over tasks.

    Runs are paired by task and seed. p is corrected across arms within each metric, not across metrics.

    Args:
        arms: runs by task and seed, by the name of their arm; the baseline is one of them.
        baseline: its name.

    Raises:
        UsageError: no such baseline, no other arm, runs scored on different data, or a run without its predictions.
    """
    if baseline not in arms:
        raise unknown("baseline", baseline, arms)
    if len(arms) < 2:
        raise UsageError(f"nothing to compare with the baseline {baseline!r}: give another arm")
    for task in _tasks(arms.values()):
        _check_data([run for arm in arms.values() for (of, _), run in arm.items() if of == task])
    notes: dict[str, None] = {}
    by_question: dict[_Question, dict[str, _Difference]] = {}
    for name, arm in arms.items():
        if name != baseline:
            for difference in _ArmPair(name, arm, baseline, arms[baseline], notes).differences():
                by_question.setdefault(difference.question, {})[name] = difference
    verdicts = [verdict for question, by_arm in by_question.items() for verdict in _correct(question, by_arm)]
    return ArmVerdicts(baseline, tuple(verdicts), (*notes, *_seed_notes(verdicts)))


def _tasks(arms: Iterable[Arm]) -> list[str]:
    return list(dict.fromkeys(task for arm in arms for task, _ in arm))


def _check_data(runs: Sequence[ArmRun]) -> None:
    """Refuse runs of one task that were scored on different examples."""
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = scored_split(run.record), scored_split(first.record)
        if ours != theirs:
            raise UsageError(
                f"runs {first.name!r} and {run.name!r} were scored on different data ({theirs.data}; {ours.data}), "
                f"so that their answers cannot be paired"
            )


def _correct(question: _Question, by_arm: Mapping[str, _Difference]) -> list[ArmVerdict]:
    """The arms' verdicts on a question, corrected for their number."""
    results = correct_for_arms([difference.value for difference in by_arm.values()])
    q = question
    return [
        ArmVerdict(name, q.key, q.task, q.metric, q.unit, difference.seeds, q.primary, result)
        for (name, difference), result in zip(by_arm.items(), results, strict=True)
    ]


def _seed_notes(verdicts: Sequence[ArmVerdict]) -> list[str]:
    counts = {len(verdict.seeds) for verdict in verdicts}
    one = "one seed: a verdict is about these two models, and does not cover the variation between seeds"
    two = "two seeds say little about the variation between seeds: only a very large difference shows; use three"
    return [note for count, note in ((1, one), (2, two)) if count in counts]


@dataclass(frozen=True)
class _ArmPair:
    """An arm next to the baseline.

    Attributes:
        notes: what could not be tested; shared by all arms.
    """

    name: str
    arm: Arm
    baseline: str
    base: Arm
    notes: dict[str, None]

    @property
    def _names(self) -> str:
        return f"{self.name} and {self.baseline}"

    def _note(self, text: str) -> None:
        self.notes[text] = None

    def differences(self) -> list[_Difference]:
        """The arm's differences from the baseline, over the seeds that both have."""
        seeds = self._common_seeds()
        found = [
            difference
            for task, common in seeds.items()
            for outputs in _task_outputs(task, self._pairs(task, common), len(seeds) > 1, self.notes)
            if (difference := self._difference(outputs, common)) is not None
        ]
        return found + (self._mean_differences(seeds) if len(seeds) > 1 else [])

    def _common_seeds(self) -> dict[str, tuple[int, ...]]:
        """The seeds that both have of each task, for tasks with any; the others go into the notes."""
        ours, theirs = _tasks([self.arm]), _tasks([self.base])
        for task in _tasks([self.arm, self.base]):
            if task not in ours or task not in theirs:
                self._note(f"{task}: only one of {self.name} and {self.baseline} has runs of it")
        common: dict[str, tuple[int, ...]] = {}
        unpaired: dict[str, list[str]] = {}
        for task in (task for task in ours if task in theirs):
            seeds, others = ({seed for of, seed in runs if of == task} for runs in (self.arm, self.base))
            if seeds ^ others:
                unpaired.setdefault(_list(sorted(seeds ^ others)), []).append(task)
            if seeds & others:
                common[task] = tuple(sorted(seeds & others))
            else:
                self._note(f"{self._names}, {task}: no seed in common, no verdict")
        for left, tasks in unpaired.items():
            self._note(f"{self._names}, {', '.join(tasks)}: seeds {left} left out, which only one of them has")
        return common

    def _pairs(self, task: str, seeds: Sequence[int]) -> "Pairs":
        return [(self.arm[task, seed], self.base[task, seed]) for seed in seeds]

    def _difference(self, outputs: _Outputs, seeds: tuple[int, ...]) -> _Difference | None:
        """The paired difference of outputs; None, with a note, if it is undefined."""
        try:
            return _Difference(outputs.question, seeds, self._paired(outputs))
        except UndefinedDifference as reason:
            self._note(f"{reason}, no verdict")
            return None

    def _paired(self, outputs: _Outputs) -> PairedDifference:
        return paired_difference(
            outputs.ours,
            outputs.theirs,
            higher_is_better=outputs.higher_is_better,
            what=f"{self._names}, {outputs.question.key}",
        )

    def _mean_differences(self, seeds: Mapping[str, tuple[int, ...]]) -> list[_Difference]:
        """Differences of the means over tasks: of their scores, if all are in per cent, and of agreement."""
        common = sorted(set.intersection(*map(set, seeds.values())))
        dropped = sorted(set.union(*map(set, seeds.values())) - set(common))
        if dropped:
            self._note(f"{self._names}, means over tasks: seeds {_list(dropped)} left out, which not all tasks have")
        if not common:
            return []
        pairs = {task: self._pairs(task, common) for task in seeds}
        means = {
            "macro": [_one_number(task, of_task) for task, of_task in pairs.items()],
            "agreement": [_agreement(task, of_task, {}) for task, of_task in pairs.items()],
        }
        found = []
        for word, outputs in means.items():
            parts = self._all_paired(outputs)
            if parts is not None:
                found.append(_Difference(_Question(word, "", word, "%"), tuple(common), macro_difference(parts)))
            elif word == "macro" and _undefined(
                score for of_task in pairs.values() for pair in of_task for run in pair for score in run.scores
            ):
                self._note(f"{self._names}, macro: a task's score is undefined, no verdict")
        return found

    def _all_paired(self, outputs: Sequence[_Outputs | None]) -> list[PairedDifference] | None:
        """The paired differences of all outputs; None if one of them is missing or undefined."""
        parts = []
        for of_task in outputs:
            if of_task is None:
                return None
            try:
                parts.append(self._paired(of_task))
            except UndefinedDifference:
                return None
        return parts


def _list(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))


Pairs = Sequence[tuple[ArmRun, ArmRun]]
"""Runs of an arm, each with the baseline's run of the same task and seed."""


def _task_outputs(task: str, pairs: Pairs, with_mean: bool, notes: dict[str, None]) -> list[_Outputs]:
    """The outputs of a task to compare: of each metric that all runs have, of their mean, of agreement, of texts."""
    outputs: list[_Outputs | None] = []
    if _same_tokens(pairs):
        scores = pairs[0][0].scores
        outputs += [_metric_outputs(task, place, pairs, notes) for place in range(len(scores))]
        if with_mean and len(scores) > 1:
            outputs.append(_one_number(task, pairs))
        outputs.append(_agreement(task, pairs, notes))
    else:
        notes[f"{task}: {pairs[0][0].name} and {pairs[0][1].name} were scored on different tokens, no verdict"] = None
    written = dict.fromkeys(metric for pair in pairs for run in pair for metric in run.texts)
    outputs += [_text_outputs(task, metric, pairs, notes) for metric in written]
    return [found for found in outputs if found is not None]


def _metric_outputs(task: str, place: int, pairs: Pairs, notes: dict[str, None]) -> _Outputs | None:
    """The outputs of a run's n-th metric; None, with a note, if a run has none or no value of it."""
    runs = [run for pair in pairs for run in pair]
    score = runs[0].scores[place]
    metric = score.metric
    if not all(metric in [other.metric for other in run.scores] for run in runs):
        notes[f"{task}: not all runs have {metric}, no verdict"] = None
        return None
    reason = _undefined(other for run in runs for other in run.scores if other.metric == metric)
    if reason:
        notes[f"{metric_key(task, metric)}: undefined for a run ({reason}), no verdict"] = None
        return None
    try:
        ours, theirs = ([metric_outputs(run, (metric,)) for run in side] for side in zip(*pairs, strict=True))
    except UndefinedDifference as error:
        notes[f"{error}, no verdict"] = None
        return None
    question = _Question(metric_key(task, metric), task, metric, score.unit, primary=place == 0)
    return _Outputs(question, ours, theirs, score.higher_is_better)


def _text_outputs(task: str, metric: str, pairs: Pairs, notes: dict[str, None]) -> _Outputs | None:
    """The outputs of a metric of written texts; None, with a note, if a run's are not there."""
    key, runs = metric_key(task, metric), [run for pair in pairs for run in pair]
    if not all(metric in run.texts for run in runs):
        notes[f"{key}: not all runs have it, no verdict"] = None
        return None
    score = runs[0].texts[metric][0]
    reason = _undefined(run.texts[metric][0] for run in runs)
    if reason:
        notes[f"{key}: undefined for a run ({reason}), no verdict"] = None
        return None
    try:
        ours, theirs = ([text_outputs(run, metric) for run in side] for side in zip(*pairs, strict=True))
    except UndefinedDifference as error:
        notes[f"{key}: {error}, no verdict"] = None
        return None
    return _Outputs(_Question(key, task, metric, score.unit), ours, theirs, score.higher_is_better)


def _undefined(scores: Iterable[Score]) -> str:
    """The reasons of scores without a value; empty if all have one."""
    return "; ".join(dict.fromkeys(score.reason for score in scores if score.value is None))


def _same_tokens(pairs: Pairs) -> bool:
    return all(
        ours.predictions.of_tokens == theirs.predictions.of_tokens
        and (not ours.predictions.of_tokens or np.array_equal(ours.predictions.tokens, theirs.predictions.tokens))
        for ours, theirs in pairs
    )


def _one_number(task: str, pairs: Pairs) -> _Outputs | None:
    """The mean of a task's metrics, as GLUE averages them; None unless all are in per cent and defined."""
    scores = pairs[0][0].scores
    metrics = tuple(score.metric for score in scores)
    same = all(tuple(score.metric for score in run.scores) == metrics for pair in pairs for run in pair)
    if not same or not all(score.unit == "%" and score.higher_is_better for score in scores):
        return None
    if _undefined(score for pair in pairs for run in pair for score in run.scores):  # noted with the metric itself
        return None
    try:
        ours, theirs = ([metric_outputs(run, metrics) for run in side] for side in zip(*pairs, strict=True))
    except UndefinedDifference:  # noted with the metric itself
        return None
    return _Outputs(_Question(task, task, "mean", "%"), ours, theirs)


def _agreement(task: str, pairs: Pairs, notes: dict[str, None]) -> _Outputs | None:
    """Agreement with the teacher that both arms had; None if there was none, or not the same one."""
    if not all(run.keeps_agreement for pair in pairs for run in pair) or not _same_tokens(pairs):
        return None
    scores = [run.record.first_scores.agreement for pair in pairs for run in pair]
    reason = _undefined(score for score in scores if score is not None)
    if reason:
        notes[f"{task}/agreement: undefined for a run ({reason}), no verdict"] = None
        return None
    for ours, theirs in pairs:
        if not ours.has_teacher_of(theirs):
            notes[f"{task}: {ours.name} and {theirs.name} had different teachers, no verdict on agreement"] = None
            return None
    our_outputs, their_outputs = ([agreement_outputs(run) for run in side] for side in zip(*pairs, strict=True))
    return _Outputs(_Question(f"{task}/agreement", task, "agreement", "%"), our_outputs, their_outputs)
