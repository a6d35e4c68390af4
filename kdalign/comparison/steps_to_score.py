"""How fast runs learn: the first step at which a score on the watched texts reached a value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdalign.comparison.table import Cell, Column, metric_key
from kdalign.errors import UsageError, shorten, unknown
from kdalign.runs.discovery import RunGroup, records_of
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RunRecord, first_split


@dataclass(frozen=True)
class ScoreTarget:
    """A score that is to be reached, such as ``accuracy=85``, ``sst2/accuracy=85``, or ``accuracy=95%``.

    Attributes:
        name: a metric, or a column's key.
        value: the score, or a share of what the run itself reached at its end.
        relative: whether it is such a share.
        text: the value as it was written.
    """

    name: str
    value: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, written: str) -> "ScoreTarget":
        """Read one.

        Raises:
            UsageError: it is none.
        """
        name, _, text = (part.strip() for part in written.rpartition("="))
        relative = text.endswith("%")
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UsageError(f"--steps-to {written!r}: {text!r} is no number (such as accuracy=85)")
        if relative and not 0 < value <= 100:
            raise UsageError(f"--steps-to {written!r}: a share of a run's last score lies above 0 and up to 100 %")
        return cls(name, value / 100 if relative else value, relative, text)

    def columns(self, entries: Sequence[RunGroup]) -> list[Column]:
        """A column for each task that has the metric.

        Raises:
            UsageError: none has.
        """
        keys: dict[str, tuple[str, str]] = {}
        for record in records_of(entries):
            keys |= {metric_key(record.task, metric): (record.task, metric) for metric in _directions(record)}
        found = {key: of for key, of in keys.items() if self.name in (key, of[1])}
        if not found:
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
            for task, metric in found.values()
        ]

    def _title(self, what: str) -> str:
        return f"steps to {self.text} of last {what}" if self.relative else f"steps to {what} {self.text}"

    def cells(self, entry: RunGroup) -> dict[str, Cell]:
        """The steps of an entry's runs, by column; reads their histories."""
        return {
            _key(self, task, metric): self._reached(_watched(entry, task), metric, higher)
            for task, record in entry.records.items()
            for metric, higher in _directions(record).items()
            if self.name in (metric, metric_key(task, metric))
        }

    def _reached(self, seen: Sequence[Mapping[str, Any]], metric: str, higher_is_better: bool) -> Cell:
        scores = [(event["step"], _number(event, metric)) for event in seen if event.get(metric) is not None]
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


def _key(milestone: ScoreTarget, task: str, metric: str) -> str:
    return f"steps-to/{metric_key(task, metric)}={milestone.text}"


def _directions(record: RunRecord) -> dict[str, bool]:
    """The metrics that a run may have been watched by, and whether higher is better."""
    split = first_split(record)
    own = {score["metric"]: bool(score["higher_is_better"]) for score in split["student"]}
    return own | ({"agreement": True} if split["agreement"] else {})


def _watched(entry: RunGroup, task: str) -> Sequence[Mapping[str, Any]]:
    """A run's evaluations on the watched texts, oldest first."""
    kept = entry.watched.get(task)
    return kept if kept is not None else RunFolder(entry.folders[task]).watched
