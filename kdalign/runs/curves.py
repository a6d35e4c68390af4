"""Curves of a run's history: losses, scores, gradient norms by step."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.metrics.classification import METRICS
from kdalign.recipe import KEYS_OF_TERMS, TERM_FACTS
from kdalign.runs.finished import FinishedRun
from kdalign.runs.history_rows import steps_a_row


@dataclass(frozen=True)
class Curves:
    """Curves of one training.

    Attributes:
        name: the run's name.
        group: key of its recipe, as in ``FinishedRun``.
        steps: (steps,) counted from 1.
        terms: (steps,) values of each term before its weight, in the objective's order.
        weights: weights of the terms; (steps,) each if they change during training.
        units: units of the terms before their weights.
        loss: (steps,) weighted sum of the terms.
        gradient_norm: (steps,) norm before clipping.
        clip: largest norm that the optimizer saw.
        looks: (looks,) steps before which each term's own gradient was measured.
        pulls: (looks,) norms of each weighted term's gradient there; NaN in a stage without it.
        every: 1, or n if only every n-th step is included at the end of a long training.
        samples: (steps,) measures of the student's own texts, by name; NaN in steps on data.
        alarms: number of steps with each alarm, by name.
    """

    name: str
    task: str
    group: str
    steps: Array
    terms: Mapping[str, Array]
    weights: Mapping[str, float | Array]
    units: Mapping[str, str]
    loss: Array
    gradient_norm: Array
    clip: float
    looks: Array = field(default_factory=lambda: np.zeros(0))
    pulls: Mapping[str, Array] = field(default_factory=dict)
    every: int = 1
    samples: Mapping[str, Array] = field(default_factory=dict)
    alarms: Mapping[str, int] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, Array]:
        """Each term's part of the loss in per cent, (steps,); 0 in a stage without it."""
        parts = {name: self.weights[name] * np.nan_to_num(values) for name, values in self.terms.items()}
        whole = np.sum(list(parts.values()), axis=0)
        return {
            name: 100 * np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0) for name, part in parts.items()
        }


def read_curves(run: FinishedRun) -> Curves | None:
    """Read a run's curves from its history; None if it is empty or gone."""
    events, every = _events(run.folder.history, "step", ("parts", "weights", "on_policy"), ("loss", "gradient_norm"))
    looks, _ = _events(run.folder.history, "gradients", ("norms",), ())
    if not events:
        return None
    names = dict.fromkeys(name for event in events for name in event["parts"])
    objective = run.recipe.objective.built.weights
    kinds = {name: _term_of(name, run.recipe.objective.terms) for name in names}
    unknown = [name for name, kind in kinds.items() if KEYS_OF_TERMS.get(kind, kind) not in objective]
    if unknown:
        raise UsageError(f"{str(run.folder.history)!r} has a term {unknown[0]!r}, which the run's recipe does not have")
    scores = run.record.metrics[0] in METRICS and METRICS[run.record.metrics[0]].regression
    return Curves(
        name=run.name,
        task=run.record.task,
        group=run.group,
        steps=np.array([event["step"] for event in events]),
        terms={name: np.array([event["parts"].get(name, np.nan) for event in events]) for name in names},
        weights={
            name: _weights(events, name, objective[KEYS_OF_TERMS.get(kind, kind)]) for name, kind in kinds.items()
        },
        units={name: _unit(kind, scores) for name, kind in kinds.items()},
        loss=np.array([event["loss"] for event in events]),
        gradient_norm=np.array([event["gradient_norm"] for event in events]),
        clip=run.recipe.train.clip,
        looks=np.array([event["step"] for event in looks]),
        pulls={name: np.array([_number(event["norms"].get(name)) for event in looks]) for name in names if looks},
        every=_last_distance([event["step"] for event in events], every),
        samples={
            name: np.array([_number(event.get("on_policy", {}).get(name)) for event in events])
            for name in dict.fromkeys(name for event in events for name in event.get("on_policy", {}))
        },
        alarms=Counter(str(name) for event in events for name in event.get("alarms", ())),
    )


def _last_distance(steps: Sequence[int], every: int) -> int:
    """Return how many steps stand for one at the end of a history of which every n-th row was read."""
    gaps = np.diff(steps[-100:])  # few of several tasks' steps are neighbours, and older versions wrote a row for each
    return every if not len(gaps) else max(every, min(every * steps_a_row(steps[-1]), int(np.median(gaps))))


def _term_of(name: str, further: Iterable[str]) -> str:
    """Term of a name in a history, which may end with a stack's; the path of a user's term may have spaces."""
    own = [term for term in further if name == term or name.startswith(f"{term} ")]
    return max(own, key=len) if own else name.partition(" ")[0]


def _unit(term: str, scores: bool) -> str:
    """Unit of a term's values, which differs for tasks of scores; a user's term has its own."""
    facts = TERM_FACTS.get(term)
    if facts is None:
        return "own unit"
    return (facts.unit_of_scores if scores else "") or facts.unit


MOST_EVENTS = 20_000
"""Limit of events of a kind in a plot; of a longer history every second, fourth, ... and the last are read."""


def _events(file: Path, kind: str, named: Sequence[str], numbers: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Read the events of one kind in a history line by line, so that a million steps need little memory.

    Args:
        file: a history.
        kind: kind of the events.
        named: keys with numbers by name; the first must be there.
        numbers: keys with a number.

    Returns:
        The events, and n if only every n-th is included.

    Raises:
        UsageError: an event of another shape.
    """
    found: list[dict[str, Any]] = []
    every, count, last = 1, 0, None
    for number, line in enumerate(_lines(file), 1):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # a killed run left it half written
            continue
        if not isinstance(event, dict) or event.get("kind") != kind:
            continue
        if not _is_event(event, kind, named, numbers):
            raise UsageError(f"{str(file)!r}, line {number}: not an event of a training")
        last = event
        if count % every == 0:
            found.append(event)
        count += 1
        if len(found) > MOST_EVENTS:
            found, every = found[::2], 2 * every
    if last is not None and found[-1] is not last:
        found.append(last)
    return found, every


def _lines(file: Path) -> Iterator[bytes]:
    if not file.is_file():
        return
    with file.open("rb") as lines:
        while line := lines.readline(_LONGEST_EVENT):
            if len(line) == _LONGEST_EVENT:
                raise UsageError(f"{str(file)!r} has a line of more than {_LONGEST_EVENT:,} bytes")
            yield line


_LONGEST_EVENT = 2**20


def _is_event(event: Mapping[str, Any], kind: str, named: Sequence[str], numbers: Sequence[str]) -> bool:
    def number(value: object) -> bool:
        if value is None:
            return kind == "gradients"  # a norm that is beyond floats
        return isinstance(value, int | float) and not isinstance(value, bool)

    return (
        isinstance(event.get("step"), int)
        and 0 <= event["step"] <= _MOST_STEPS
        and named[0] in event
        and all(isinstance(event.get(key, {}), dict) and all(map(number, event.get(key, {}).values())) for key in named)
        and all(number(event.get(key)) for key in numbers)
        and isinstance(event.get("alarms", []), list)
    )


_MOST_STEPS = 2**53
"""Limit of step numbers: larger whole numbers have no exact float for a plot."""


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _weights(events: Sequence[Mapping[str, Any]], name: str, fixed: float) -> float | Array:
    """A term's weight, or its weights by step if they changed during training."""
    if not any("weights" in event for event in events):
        return fixed
    return np.array([event.get("weights", {}).get(name, 0.0) for event in events])
