"""Dropout on the CPU whose mask comes from a quarter of the random numbers.

PyTorch draws dropout's mask there one number at a time, unless the processor is Intel's: 6 ns for each activation, 7 %
of a small encoder's training step. Sixteen bits for each are enough, and are the same on every processor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 2**16
_PER_DRAW = 4
"""Activations for which one random number of 64 bits is enough."""


class _Dropout(torch.autograd.Function):
    """Zero activations with a probability that is a multiple of 2^-16, and scale the rest so that the mean stays."""

    @staticmethod
    def forward(ctx: Any, activations: Tensor, dropped: int) -> Tensor:
        """Draw the mask from the default generator, with so many of 2^16 activations zeroed, and apply it."""
        count = activations.numel()
        drawn = torch.empty(-(-count // _PER_DRAW), dtype=torch.int64).random_(-(2**63), None)
        bits = drawn.view(torch.int16)[:count].view(activations.shape)
        mask = torch.ge(bits, dropped - _LEVELS // 2, out=torch.empty(activations.shape, dtype=activations.dtype))
        ctx.save_for_backward(mask)
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        return _scaled_product(activations, mask, ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Apply the same mask to the gradient."""
        [gradient], [mask] = gradients, ctx.saved_tensors
        return _scaled_product(gradient, mask, ctx.scale), None


def _scaled_product(activations: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Multiply in one pass; in bfloat16, too, the scale stays float32."""
    return torch.addcmul(activations.new_zeros(()), activations, mask, value=scale)


@contextmanager
def quick_dropout(device: torch.device) -> Iterator[None]:
    """Let ``torch.nn.functional.dropout``, which all models call, draw its masks this way on a CPU.

    The probability is rounded to a multiple of 2^-16. Generators, and hence resuming, work as before.
    """
    own = F.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:  # torch's names
        dropped = round(p * _LEVELS)
        usual = inplace or not training or not 0 < dropped < _LEVELS or input.device.type != "cpu"
        if usual:
            return own(input, p, training, inplace)
        result: Tensor = _Dropout.apply(input, dropped)  # type: ignore[no-untyped-call]
        return result

    if device.type == "cpu":
        F.dropout = dropout
    try:
        yield
    finally:
        F.dropout = own
