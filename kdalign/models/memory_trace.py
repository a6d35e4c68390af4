"""Count the memory of a computation before any weight is loaded: run it on tensors of shapes alone.

The fake tensors of torch have a shape, a type and a device, but no storage that takes memory; so every operation gives
what it would give, at the cost of its bookkeeping. What depends on values takes the larger way: all rows are selected.
"""

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_TRUTH_VALUES = (torch.bool, torch.uint8)


def shapes_only() -> FakeTensorMode:
    """Return the mode in which tensors are made without storage; real ones among their operands are allowed."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_storage(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> None:
    """Give a model of the meta device, in place, weights that count as those of a device; tied ones stay tied."""
    made: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = nn.Parameter(
                        FakeTensor(mode, parameter.data.to("meta"), device), parameter.requires_grad
                    )
                module._parameters[name] = made[parameter]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = FakeTensor(mode, buffer.to("meta"), device)


class MemoryTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows how much memory lives at a time, by the part that allocated it.

    To be entered inside its mode. What it is told to ``skip`` does not count.

    Attributes:
        mode: ``shapes_only``.
        part: part that allocates now.
        live: bytes that live now, by part.
        peak: bytes by part when most lived.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mode, self.part = mode, ""
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self._most = 0
        self._known: dict[int, object] = {}

    def skip(self, *tensors: Tensor) -> None:
        """Leave tensors out of the count, such as a model's weights."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = storage

    def hold(self, size: int) -> Tensor:
        """Let the part that allocates now have this many bytes for as long as the tensor that is returned lives."""
        return torch.empty(size, dtype=torch.uint8)

    def forget_peak(self) -> None:
        """Begin again to look for the peak, from what lives now."""
        self.peak = dict(self.live)
        self._most = self.live.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of what it gives."""
        given = _whatever_the_values(func, args)
        out = func(*args, **(kwargs or {})) if given is None else given
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size, part = storage._cdata, storage.nbytes(), self.part
        if key in self._known:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.live[part] -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live[part] += size
        if self.live.total() > self._most:
            self.forget_peak()


def _whatever_the_values(func: Any, args: Any) -> Any:
    """Give the result of an operation whose shape or value depends on values; None for all others.

    A condition is true, a number 1, and a mask selects everything.
    """
    if func is _ATEN._local_scalar_dense.default:
        dtype = args[0].dtype
        return True if dtype is torch.bool else 1.0 if dtype.is_floating_point else 1
    if func is _ATEN.nonzero.default:
        return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
    if func is _ATEN.index.Tensor:
        *before, mask = args[1]
        if mask is not None and mask.dtype in _TRUTH_VALUES and before == [None] * len(before):
            values, first = args[0], len(before)
            return values.reshape(*values.shape[:first], -1, *values.shape[first + mask.ndim :]).clone()
    return None
