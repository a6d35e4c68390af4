"""Statistics of turns: what a row's measurements come to, each with its spread."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import share_of_peak

MOST_OTHERS = 0.25
"""Cores that other processes may keep busy during a turn before its row says so."""

Turn = Mapping[str, Any]
"""What `benchmarks.peers.meter.Meter` measured in one turn."""


@dataclass(frozen=True)
class Spread:
    """A median of turns, with the least and the largest."""

    median: float
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """Summarise values; None if there are none."""
        return cls(statistics.median(values), min(values), max(values), len(values)) if values else None


MEASURES: Mapping[str, Callable[[Turn], float]] = {
    "samples_per_second": lambda turn: turn["samples"] / turn["seconds"],
    "tokens_per_second": lambda turn: turn["tokens"] / turn["seconds"],
    "cpu_seconds": lambda turn: 1000 * turn["cpu_seconds"] / turn["samples"],
    "gib": lambda turn: turn["gib"],
}
"""Measures of a turn; ``cpu_seconds`` are for 1,000 samples."""


def measure(turns: Sequence[Turn], name: str) -> Spread | None:
    """Summarise a measure of some turns."""
    return Spread.of([MEASURES[name](turn) for turn in turns])


def share(turns: Sequence[Turn], flops_per_token: float, peaks: Mapping[str, float]) -> Spread | None:
    """Summarise the share of the peak of matrix products, in the precision of each turn, that real tokens need."""
    tokens = MEASURES["tokens_per_second"]
    return Spread.of([share_of_peak(tokens(turn), flops_per_token, peaks[turn["precision"]]) for turn in turns])


def ratio(turns: Mapping[int, Turn], reference: Mapping[int, Turn]) -> Spread | None:
    """Summarise the samples a second in units of a reference's in the same turn; both by the turn's number."""
    speed = MEASURES["samples_per_second"]
    return Spread.of([speed(turn) / speed(reference[number]) for number, turn in turns.items() if number in reference])


def busy(turns: Mapping[int, Turn]) -> list[int]:
    """Return the turns during which other processes were at work, counted from 1."""
    return [number + 1 for number, turn in turns.items() if turn["other_cores"] > MOST_OTHERS]


def scores(turns: Sequence[Turn], when: str) -> list[Mapping[str, float]]:
    """Return the scores ``after_steps`` or ``after_seconds``, each with its steps and seconds."""
    return [turn[when] for turn in turns if when in turn]
