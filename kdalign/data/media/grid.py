"""Grid of positions of images, on which two models' features are compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

GRID = "grid"
"""Input whose shape is a ``Grid``; without it, a model's features have their own positions."""


@dataclass(frozen=True)
class Grid:
    """Positions of a layer: class tokens, then cells row by row."""

    class_tokens: int
    rows: int
    columns: int

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.class_tokens + self.rows * self.columns

    def __str__(self) -> str:
        cells = f"{self.rows} x {self.columns}"
        tokens = f"{self.class_tokens} class token{'s' if self.class_tokens > 1 else ''}"
        return f"{cells} and {tokens}" if self.class_tokens else cells

    def tensor(self, batch: int) -> UInt8[Tensor, "batch rows columns tokens"]:
        """Return a tensor whose shape is the grid, so that no number need be read from a device."""
        return torch.zeros(batch, self.rows, self.columns, self.class_tokens + 1, dtype=torch.uint8)


def grid_in(inputs: Mapping[str, Tensor]) -> Grid | None:
    """Return the grid that a batch asks for; None if it asks for none."""
    if GRID not in inputs:
        return None
    _, rows, columns, tokens = inputs[GRID].shape
    return Grid(tokens - 1, rows, columns)
