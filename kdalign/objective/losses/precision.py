"""Where a loss is worked out."""

import torch
from torch import Tensor


def to_float32(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: sums over classes or features in bfloat16 lose most of their digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
