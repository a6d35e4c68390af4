"""Outputs of an encoder for each row, computed once and mapped into memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

ENCODER_OUTPUTS = "encoder_outputs"
"""Input that holds an encoder's outputs, which a model reads in place of its features."""


@dataclass(frozen=True)
class Encodings:
    """Outputs of an encoder.

    Attributes:
        values: (outputs, positions, width), float32, or the bits of bfloat16 as uint16.
        rows: number of the output of each row.
    """

    values: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]

    def read(self, numbers: Sequence[int]) -> Float[Tensor, "batch positions width"]:
        """Return the outputs of some rows."""
        found = torch.from_numpy(self.values[self.rows[np.asarray(numbers, dtype=np.int64)]])
        return found.view(torch.bfloat16) if found.dtype is torch.uint16 else found

    def take(self, numbers: np.ndarray[Any, Any]) -> "Encodings":
        """Select rows, in this order."""
        return replace(self, rows=self.rows[numbers])
