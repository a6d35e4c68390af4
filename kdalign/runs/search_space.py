"""What a search chooses from: for each recipe key, a list of values or a range of numbers.

::

    search:                                                  # in the recipe file of an ablation
      train.lr: {low: 1e-5, high: 1e-3, log: true}           # --search train.lr=1e-5..1e-3,log
      objective.temperature: [1, 2, 4]                       # --search objective.temperature=1,2,4
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdalign.errors import UsageError, shorten
from kdalign.recipe import TERM_KEYS, parse_value, read_tree
from kdalign.runs.ablation_spec import TRIALS, AblationSpec, parse_sweep

FORMS = "KEY=VALUE,VALUE or KEY=LOW..HIGH[,log], such as train.lr=1e-4,2e-4 or train.lr=1e-5..1e-3,log"
"""What ``--search`` takes."""
DIGITS = 3
"""Significant digits of a number from a range; more make no difference and fill tables."""
_RANGE = re.compile(r"(?P<low>[-+.\deE]*\d\.?)\.\.(?P<high>[-+.\deE]*\d\.?)(?P<log>,\s*log)?")
_LIKE_RANGE = re.compile(r"\s*[-+]?\d[-+.\deE]*\s*\.\.")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; whole ones if both ends are.

    Attributes:
        log: true to draw them evenly by their logarithm.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Refuse ends that make no range.

        Raises:
            UsageError: they are not finite, in the wrong order, or not above 0 for a logarithm.
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"a range goes from a number to a larger one; given {self.low} to {self.high}")
        if self.log and self.low <= 0:
            raise UsageError(f"a range with log begins above 0; given {self.low} to {self.high}")

    @property
    def whole(self) -> bool:
        """True if only whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def rounded(self, number: float) -> float:
        """Round a number to ``DIGITS`` digits, within the range."""
        return number if self.whole else min(max(float(f"{number:.{DIGITS}g}"), self.low), self.high)

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int if self.whole else int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{',log' if self.log else ''}"


Space = Mapping[str, Range | tuple[Any, ...]]
"""Values to choose from, by recipe key."""


def read_space(file: Path | None, searches: Sequence[str]) -> dict[str, Range | tuple[Any, ...]]:
    """Read what is searched from a recipe file's key ``search``, and from ``--search``, which wins.

    Raises:
        UsageError: another form, a key given twice, a single value, or a key that every run sets itself.
    """
    space = _space_in(read_tree(file).get("search")) if file is not None else {}
    given: dict[str, Range | tuple[Any, ...]] = {}
    for text in searches:
        key, values = _parse_search(text)
        if key in given:
            raise UsageError(f"--search {key} is given twice: put its values together, {key}=V,V")
        given[key] = values
    for key in (*given, *space):
        if key in TRIALS:
            raise UsageError(f"--search {key}: every run of an ablation has its own")
    for key, values in (space | given).items():
        if not isinstance(values, Range) and len(values) == 1:
            if ".." in str(values[0]):
                raise UsageError(f"search of {key}: the ends of {values[0]!r} are not numbers; --search takes {FORMS}")
            raise UsageError(
                f"search of {key}: one value leaves nothing to choose; --set {key}={values[0]} gives it to every run, "
                f"and --search takes {FORMS}"
            )
    return space | given


def check_space(ablation: AblationSpec, space: Space) -> None:
    """Refuse keys and values that the recipe does not accept, arm by arm; of ranges the ends are looked at.

    Raises:
        UsageError: the arm, and what is wrong.
    """
    for key, values in space.items():
        for arm, own in ablation.arms.items():
            if key in own and (not key.startswith("objective.") or f" {key.rpartition('.')[2]}=" in arm):
                raise UsageError(f"arm {arm!r} is defined by {key}={own[key]}, which a search would replace")
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            for arm in ablation.arms:
                if is_searched(ablation, arm, key):
                    AblationSpec(ablation.base, {arm: {**ablation.arms[arm], key: value}}, (0,)).trials(Path("runs"))


def is_searched(ablation: AblationSpec, arm: str, key: str) -> bool:
    """Return whether a key makes a difference to an arm: one without a teacher, or without a term, stays without."""
    section, _, name = key.rpartition(".")
    if section != "objective":
        return True
    recipes = [trial.recipe for trial in ablation.trials(Path("runs")) if trial.arm == arm]  # tasks may differ
    taught = any(recipe.objective.needs_teacher for recipe in recipes)
    defines = name in (*TERM_KEYS, "align_first")
    return taught and (not defines or any(recipe.flat().get(key) for recipe in recipes))


def _parse_search(text: str) -> tuple[str, Range | tuple[Any, ...]]:
    """Parse KEY=VALUE,VALUE or KEY=LOW..HIGH[,log]."""
    key, _, values = text.partition("=")
    written = _RANGE.fullmatch(values.strip())
    if written is None:
        if _LIKE_RANGE.match(values):
            raise UsageError(f"--search takes {FORMS}; given {text!r}")
        key, listed = parse_sweep(text, f"--search takes {FORMS}")
        return key, _distinct(key, listed)
    low, high = (_number(key.strip(), written[name]) for name in ("low", "high"))
    return key.strip(), _range(key.strip(), low, high, bool(written["log"]))


def _space_in(tree: object) -> dict[str, Range | tuple[Any, ...]]:
    """The space in a recipe file."""
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UsageError(f"search takes the recipe's keys with values or ranges; given {shorten(repr(tree), 100)}")
    return {str(key): _values_in(str(key), values) for key, values in tree.items()}


def _values_in(key: str, values: object) -> Range | tuple[Any, ...]:
    if isinstance(values, list) and values:
        return _distinct(key, [parse_value(key, value) if isinstance(value, str) else value for value in values])
    if isinstance(values, Mapping) and {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        log = values.get("log", False)
        if isinstance(log, bool):
            return _range(key, _number(key, values["low"]), _number(key, values["high"]), log)
    raise UsageError(
        f"search of {key}: accepted are a list of values, or a range such as {{low: 1e-5, high: 1e-3, log: true}}; "
        f"given {shorten(repr(values), 100)}"
    )


def _distinct(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if len({repr(value) for value in values}) < len(values):
        raise UsageError(f"search of {key}: a value is given twice")
    return tuple(values)


def _range(key: str, low: float, high: float, log: bool) -> Range:
    try:
        return Range(low, high, log)
    except UsageError as error:
        raise UsageError(f"search of {key}: {error}") from None


def _number(key: str, given: object) -> float:
    """Read an end of a range; YAML reads 1e-5 as text."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return given
    try:
        return int(str(given)) if re.fullmatch(r"[-+]?\d{1,15}", str(given)) else float(str(given))
    except ValueError:
        raise UsageError(f"search of {key}: {given!r} is not a number") from None
