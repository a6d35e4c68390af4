"""Schedules: numbers of the objective as pure functions of the progress of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from kdalign.errors import did_you_mean

SHAPES = ("linear", "cosine", "steps", "constant")
JUMPS = 4
"""Default number of jumps of the shape ``steps``."""
MOST_WEIGHT = 1e6
"""Largest weight of a term; with a larger one its loss soon overflows float32."""
MOST_TEMPERATURE = 1e4
"""Largest temperature, as its square multiplies the loss; the smallest is its inverse."""
_MOST_JUMPS = 10**6
_KEYS = ("to", "shape", "from", "until", "steps")


@dataclass(frozen=True)
class Schedule:
    r"""A number that changes from one value to another during a run.

    .. math:: v(x) = v_0 + r\big((x - a) / (b - a)\big) \, (v_1 - v_0), \quad r(u) = u,\ (1 - \cos \pi u) / 2
        \text{ or } \lfloor n u \rfloor / n

    with u kept between 0 and 1: linear, cosine or in n equal jumps; ``constant`` is :math:`v_1` from a on.

    Attributes:
        start: :math:`v_0`, the initial value.
        to: :math:`v_1`, the final value.
        shape: one of ``SHAPES``.
        begins: a, the share of the run at which the change begins.
        ends: b, the share at which it ends.
        jumps: n, of the shape ``steps``.
    """

    start: float
    to: float
    shape: str = "linear"
    begins: float = 0.0
    ends: float = 1.0
    jumps: int = JUMPS

    def at(self, progress: float) -> float:
        """Compute the value at a point of the run: 0 is the first step and 1 the last."""
        if self.shape == "constant":
            return self.to if progress >= self.begins else self.start
        part = min(max((progress - self.begins) / (self.ends - self.begins), 0.0), 1.0)
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
    """Format a share in per cent, such as ``12.5 %``."""
    return f"{100 * share:g} %"


@dataclass(frozen=True)
class Place:
    """Place of a step in its run, in steps or in tokens.

    Attributes:
        done: what is trained before the step.
        total: length of the run.
        step_size: size of a step; in tokens an average.
    """

    done: int
    total: int
    step_size: float = 1

    @property
    def progress(self) -> float:
        """Progress of the run: 0 at the first step, 1 at the last."""
        return min(1.0, self.done / max(1, self.total - self.step_size))


def check_schedule(key: str, given: object) -> dict[str, Any]:
    """Check a change as a recipe gives it, and fill in its defaults.

    Raises:
        ValueError: a word or a value that is not accepted.
    """
    if not isinstance(given, Mapping) or "to" not in given:
        raise ValueError(f"schedule of {key} takes its final value, such as {{to: 0, shape: linear}}; given {given!r}")
    for word in given:
        _check_word(f"schedule of {key} has no {str(word)!r}", str(word), _KEYS)
    shape = given.get("shape", "linear")
    _check_word(f"schedule of {key}: no shape {shape!r}", str(shape), SHAPES)
    to = _check_target(key, given["to"])
    begins, ends = (
        _check_share(key, word, given.get(word, default)) for word, default in (("from", 0.0), ("until", 1.0))
    )
    change = {"to": to, "shape": shape, "from": begins}
    if "steps" in given and shape != "steps":
        raise ValueError(f"schedule of {key}: steps is for shape steps, not {shape}")
    if shape == "constant":
        if "until" in given:
            raise ValueError(f"schedule of {key}: shape constant has its value from `from` on, and no until")
        return change
    if ends <= begins:
        raise ValueError(f"schedule of {key}: until={ends} must be after from={begins}")
    change["until"] = ends
    if shape == "steps":
        change["steps"] = _check_jumps(key, given.get("steps", JUMPS))
    return change


def _check_word(problem: str, word: str, accepted: Sequence[str]) -> None:
    if word not in accepted:
        raise ValueError(f"{problem}{did_you_mean(word, accepted)} (accepted: {', '.join(accepted)})")


def _check_target(key: str, to: object) -> float:
    least, most = (1 / MOST_TEMPERATURE, MOST_TEMPERATURE) if key == "temperature" else (0, MOST_WEIGHT)
    if not _is_number(to) or not least <= to <= most:
        raise ValueError(f"schedule of {key}: to={to!r} must be a number from {least:g} to {most:,.0f}")
    return float(to)


def _check_share(key: str, word: str, share: object) -> float:
    if not _is_number(share) or not 0 <= share <= 1:
        raise ValueError(f"schedule of {key}: {word}={share!r} must be a share of the steps, 0 to 1")
    return float(share)


def _check_jumps(key: str, jumps: object) -> int:
    if not _is_number(jumps) or jumps != int(jumps) or not 1 <= jumps <= _MOST_JUMPS:
        raise ValueError(f"schedule of {key}: steps={jumps!r} must be a number of jumps, 1 to {_MOST_JUMPS:,}")
    return int(jumps)


def schedule_of(start: float, change: Mapping[str, Any]) -> Schedule:
    """Build a schedule from the recipe's initial value and a checked change."""
    return Schedule(
        start,
        change["to"],
        change["shape"],
        change["from"],
        change.get("until", 1.0),
        change.get("steps", JUMPS),
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
