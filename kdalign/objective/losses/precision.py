"""Precision of losses; apart from the package's ``__init__``, which imports the modules that use it."""

import torch
from torch import Tensor


def to_float32(tensor: Tensor) -> Tensor:
    """Convert to at least float32: sums over classes or features in bfloat16 lose most of their digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
