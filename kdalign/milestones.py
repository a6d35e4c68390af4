"""How fast runs learn: the first step at which a score on the watched texts reached a value."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdalign.entries import Entry, first_split, records_of
from kdalign.errors import UsageError, unknown
from kdalign.runs import RunFolder, RunRecord
from kdalign.table import Cell, Column, metric_key


@dataclass(frozen=True)
class Milestone:
    """A score that is to be reached, such as ``accuracy=85`` or ``sst2/accuracy=85``.

    Attributes:
        name: a metric, or a column's key.
        text: the value as it was written.
    """

    name: str
    value: float
    text: str

    @classmethod
    def parse(cls, written: str) -> "Milestone":
        """Read one.

        Raises:
            UsageError: it is none.
        """
        name, _, text = (part.strip() for part in written.rpartition("="))
        try:
            return cls(name, float(text), text)
        except ValueError:
            raise UsageError(f"--steps-to {written!r}: {text!r} is no number (such as accuracy=85)") from None

    def columns(self, entries: Sequence[Entry]) -> list[Column]:
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
                f"steps to {f'{task} ' if several else ''}{metric} {self.text}",
                "",
                0,
                higher_is_better=False,
                cost=True,
                training=True,
            )
            for task, metric in found.values()
        ]

    def cells(self, entry: Entry) -> dict[str, Cell]:
        """The steps of an entry's runs, by column; reads their histories."""
        return {
            _key(self, task, metric): _reached(RunFolder(entry.folders[task]), metric, self.value, higher)
            for task, record in entry.records.items()
            for metric, higher in _directions(record).items()
            if self.name in (metric, metric_key(task, metric))
        }


def _key(milestone: Milestone, task: str, metric: str) -> str:
    return f"steps-to/{metric_key(task, metric)}={milestone.text}"


def _directions(record: RunRecord) -> dict[str, bool]:
    """The metrics that a run may have been watched by, and whether higher is better."""
    split = first_split(record)
    own = {score["metric"]: bool(score["higher_is_better"]) for score in split["student"]}
    return own | ({"agreement": True} if split["agreement"] else {})


def _reached(folder: RunFolder, metric: str, value: float, higher_is_better: bool) -> Cell:
    seen = [event for event in folder.read_history() if event.get("kind") == "evaluation"]
    scores = [(event["step"], event[metric]) for event in seen if event.get(metric) is not None]
    if not scores:
        return Cell(None, reason="its history holds no such score")
    for step, score in scores:
        if score >= value if higher_is_better else score <= value:
            return Cell(float(step))
    nearest = (max if higher_is_better else min)(score for _, score in scores)
    return Cell(None, reason=f"never reached, {nearest:.4g} at best")
