"""Parameters of a test that occur once by default, and in every combination in `make test-all`."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def each_once(*values: Iterable[Any]) -> list[Any]:
    """All combinations of the values of several parameters; those beyond the first occurrence of each value are slow.

    With 3 and 5 values that are 15 combinations, of which 5 run by default.
    """
    columns = [list(column) for column in values]
    longest = max(map(len, columns))
    first = {tuple(column[i % len(column)] for column in columns) for i in range(longest)}
    return [pytest.param(*each, marks=() if each in first else pytest.mark.slow) for each in product(*columns)]


def first_only(values: Iterable[Any], quick: int = 1) -> list[Any]:
    """Values of one parameter; those after the first ones are slow."""
    return [pytest.param(value, marks=pytest.mark.slow if i >= quick else ()) for i, value in enumerate(values)]


def one_of_each(values: Iterable[Any], quick: Iterable[Any]) -> list[Any]:
    """Values of one parameter; those that are not among the quick ones are slow."""
    quick = tuple(quick)
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]
