"""Schedules: numbers of the objective that change over a run, each a pure function of how far the run is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdalign.errors import did_you_mean

SHAPES = ("linear", "cosine", "steps", "constant")
JUMPS = 4
"""Of the shape ``steps``, where it says no number."""
MOST_WEIGHT = 1e6
"""Of a term: with a larger one its loss is soon beyond what a float32 holds."""
MOST_TEMPERATURE = 1e4
"""Its square multiplies the loss; the least is one over it."""
_MOST_JUMPS = 10**6
_KEYS = ("to", "shape", "from", "until", "steps")


@dataclass(frozen=True)
class Schedule:
    r"""A number on its way from its start to another.

    .. math:: v(x) = v_0 + r\big((x - a) / (b - a)\big) \, (v_1 - v_0), \quad r(u) = u,\ (1 - \cos \pi u) / 2
        \text{ or } \lfloor n u \rfloor / n

    with u kept between 0 and 1: linear, cosine or in n equal jumps; ``constant`` is :math:`v_1` from a on.

    Attributes:
        start: :math:`v_0`, what it is until it begins to change.
        to: :math:`v_1`, what it is in the end.
        shape: one of ``SHAPES``.
        begins: a, a share of the run.
        ends: b.
        jumps: n.
    """

    start: float
    to: float
    shape: str = "linear"
    begins: float = 0.0
    ends: float = 1.0
    jumps: int = JUMPS

    def at(self, place: float) -> float:
        """Its value at a place in the run: 0 is the first step and 1 the last."""
        if self.shape == "constant":
            return self.to if place >= self.begins else self.start
        part = min(max((place - self.begins) / (self.ends - self.begins), 0.0), 1.0)
        match self.shape:
            case "cosine":
                part = (1 - math.cos(math.pi * part)) / 2
            case "steps":
                part = math.floor(self.jumps * part + 1e-9) / self.jumps
        return self.to if part == 1 else self.start + part * (self.to - self.start)

    def __str__(self) -> str:
        if self.shape == "constant":
            return f"{self.start:g}, from {percent(self.begins)} of the steps on {self.to:g}"
        over = f"from {percent(self.begins)} to {percent(self.ends)} of the steps"
        if self.begins == 0:
            over = "over all steps" if self.ends == 1 else f"over the first {percent(self.ends)} of the steps"
        jumps = f"in {self.jumps} jump{'s' * (self.jumps > 1)}"
        how = {"linear": "linearly", "cosine": "along a cosine", "steps": jumps}[self.shape]
        return f"{self.start:g} to {self.to:g}, {how} {over}"


def percent(share: float) -> str:
    """A share for people, such as ``12.5 %``."""
    return f"{100 * share:g} %"


def progress_at(step: int, steps: int) -> float:
    """Where a step, counted from 0, is in a run of so many: 0 for the first, 1 for the last."""
    return step / max(1, steps - 1)


def check_schedule(key: str, given: object) -> dict[str, Any]:
    """A change as a recipe says it, with its defaults.

    Raises:
        ValueError: what is accepted.
    """
    if not isinstance(given, Mapping) or "to" not in given:
        raise ValueError(f"schedule of {key} takes what it goes to, such as {{to: 0, shape: linear}}; given {given!r}")
    for word in given:
        if word not in _KEYS:
            near = did_you_mean(str(word), _KEYS)
            raise ValueError(f"schedule of {key} has no {word!r}{near} (accepted: {', '.join(_KEYS)})")
    shape = given.get("shape", "linear")
    if shape not in SHAPES:
        near = did_you_mean(str(shape), SHAPES)
        raise ValueError(f"schedule of {key}: no shape {shape!r}{near} (accepted: {', '.join(SHAPES)})")
    to = given["to"]
    least, most = (1 / MOST_TEMPERATURE, MOST_TEMPERATURE) if key == "temperature" else (0, MOST_WEIGHT)
    if not _is_number(to) or not least <= to <= most:
        raise ValueError(f"schedule of {key}: to={to!r} must be a number from {least:g} to {most:,.0f}")
    begins, ends = given.get("from", 0.0), given.get("until", 1.0)
    for word, share in (("from", begins), ("until", ends)):
        if not _is_number(share) or not 0 <= share <= 1:
            raise ValueError(f"schedule of {key}: {word}={share!r} must be a share of the steps, 0 to 1")
    found = {"to": float(to), "shape": shape, "from": float(begins)}
    if "steps" in given and shape != "steps":
        raise ValueError(f"schedule of {key}: steps is for shape steps, not {shape}")
    if shape == "constant":
        if "until" in given:
            raise ValueError(f"schedule of {key}: shape constant has its value from `from` on, and no until")
        return found
    if ends <= begins:
        raise ValueError(f"schedule of {key}: until={ends} must lie after from={begins}")
    found["until"] = float(ends)
    if shape == "steps":
        jumps = given.get("steps", JUMPS)
        if not _is_number(jumps) or jumps != int(jumps) or not 1 <= jumps <= _MOST_JUMPS:
            raise ValueError(f"schedule of {key}: steps={jumps!r} must be a number of jumps, 1 to {_MOST_JUMPS:,}")
        found["steps"] = int(jumps)
    return found


def schedule_of(start: float, change: Mapping[str, Any]) -> Schedule:
    """A number that is at first what the recipe says, and changes as was checked."""
    return Schedule(
        start,
        change["to"],
        change["shape"],
        change["from"],
        change.get("until", 1.0),
        change.get("steps", JUMPS),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
