"""Steps to a score: the first step at which a run's score on the monitored texts reached a value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdalign.comparison.table import Cell, Column, metric_key
from kdalign.errors import UsageError, shorten, unknown
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RunRecord


@dataclass(frozen=True)
class ScoreTarget:
    """A score to reach, such as ``accuracy=85``, ``sst2/accuracy=85``, or ``accuracy=95%``.

    Attributes:
        name: a metric, or a column's key.
        value: the score, or a share of the run's last score.
        relative: true for a share.
        text: the value as the user wrote it.
    """

    name: str
    value: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, written: str) -> "ScoreTarget":
        """Parse a target.

        Raises:
            UsageError: it is not one.
        """
        name, _, text = (part.strip() for part in written.rpartition("="))
        relative = text.endswith("%")
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"--steps-to {written!r}: {text!r} is not a number (such as accuracy=85)")
        if relative and not 0 < value <= 100:
            raise UsageError(f"--steps-to {written!r}: a share of a run's last score is above 0 % and at most 100 %")
        return cls(name, value / 100 if relative else value, relative, text)

    def columns(self, entries: Sequence[RunGroup]) -> list[Column]:
        """Columns of the target: one for each task that has the metric.

        Raises:
            UsageError: no task has it.
        """
        keys: dict[str, tuple[str, str]] = {}
        for record in records_of(entries):
            keys |= {metric_key(record.task, metric): (record.task, metric) for metric in _directions(record)}
        named = {key: pair for key, pair in keys.items() if self.name in (key, pair[1])}
        if not named:
            raise unknown("metric in --steps-to", self.name, keys)
        several = len({task for task, _ in keys.values()}) > 1
        return [
            Column(
                _key(self, task, metric),
                self._title(f"{f'{task} ' if several else ''}{metric}"),
                "",
                0,
                higher_is_better=False,
                cost=True,
                training=True,
            )
            for task, metric in named.values()
        ]

    def _title(self, metric: str) -> str:
        return f"steps to {self.text} of last {metric}" if self.relative else f"steps to {metric} {self.text}"

    def cells(self, entry: RunGroup) -> dict[str, Cell]:
        """The steps of a row's runs, by column, from their histories."""
        return {
            _key(self, task, metric): self._first_step(_watched(entry, task), metric, higher)
            for task, record in entry.records.items()
            for metric, higher in _directions(record).items()
            if self.name in (metric, metric_key(task, metric))
        }

    def _first_step(self, events: Sequence[Mapping[str, Any]], metric: str, higher_is_better: bool) -> Cell:
        scores = [(event["step"], _number(event, metric)) for event in events if event.get(metric) is not None]
        if not scores:
            return Cell(None, reason="its history holds no such score")
        value = self.value
        if self.relative:
            value = scores[-1][1] * self.value if higher_is_better else scores[-1][1] / self.value
        for step, score in scores:
            if score >= value if higher_is_better else score <= value:
                return Cell(float(step))
        nearest = (max if higher_is_better else min)(score for _, score in scores)
        return Cell(None, reason=f"never reached, {nearest:.4g} at best")


def _number(event: Mapping[str, Any], metric: str) -> float:
    value = event[metric]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"a history has {shorten(repr(value), 40)} as the {metric} of step {event['step']}")
    return float(value)


def _key(target: ScoreTarget, task: str, metric: str) -> str:
    return f"steps-to/{metric_key(task, metric)}={target.text}"


def _directions(record: RunRecord) -> dict[str, bool]:
    """Metrics that a run's history may have, each with True if higher is better."""
    scores = record.first_scores
    own = {score.metric: score.higher_is_better for score in scores.student}
    return own | ({"agreement": True} if scores.agreement else {})


def _watched(entry: RunGroup, task: str) -> Sequence[Mapping[str, Any]]:
    """A run's evaluations on the monitored texts, oldest first."""
    kept = entry.watched.get(task)
    return kept if kept is not None else RunFolder(entry.folders[task]).watched
