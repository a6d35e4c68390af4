"""Tensors of a learner in safetensors files: one file for all, or one for each rank that trained its own rows.

A sharded parameter's rows follow each other in the files of the ranks; what is not sharded is in the first one's. So
any number of ranks reads what any other wrote: each its own rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kdalign.files import atomic_file, sha256
from kdalign.models.sharding import has_shards, local, local_rows, sharded_like, whole

FILES = MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
"""Names of the files of weights and of the optimizer's state that one process writes for all."""
OF_EACH_WEIGHT = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Parts of an optimizer's state with a number for each weight; others are counters, scales and tables of codes."""


class TensorFiles:
    """Tensors of files that are open to be read, whole or some rows.

    Attributes:
        names: names of all tensors.
    """

    def __init__(self, opened: Sequence[Any]) -> None:
        """Take files in the order of the ranks that wrote them, opened by ``safe_open``."""
        self._parts: dict[str, list[Any]] = {}
        for file in opened:
            for name in file.keys():
                self._parts.setdefault(name, []).append(file)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        shapes = [tuple(file.get_slice(name).get_shape()) for file in self._parts[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def read(self, name: str) -> Tensor:
        """Read a whole tensor."""
        parts = [file.get_tensor(name) for file in self._parts[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Read some rows of a tensor with dimensions."""
        found: list[Tensor] = []
        start = 0
        for file in self._parts[name]:
            part = file.get_slice(name)
            size = int(part.get_shape()[0])
            first, last = (min(max(edge - start, 0), size) for edge in (rows.start, rows.stop))
            if first < last:
                found.append(part[first:last])
            start += size
        return torch.cat(found) if found else self._parts[name][0].get_tensor(name)[:0]


@contextmanager
def opened_files(files: Sequence[Path]) -> Iterator[TensorFiles]:
    """Open files of tensors to be read."""
    with ExitStack() as stack:
        yield TensorFiles([stack.enter_context(safe_open(str(file), "pt")) for file in files])


def named_tensors(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return a module's parameters and kept buffers, each with all its names; tied ones once."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _own_weights(module: nn.Module, first: bool) -> dict[str, Tensor]:
    """Return what a rank keeps of a module: its rows, and on the first rank what is not sharded."""
    kept = [(names[0], tensor) for names, tensor in named_tensors(module) if first or isinstance(tensor, DTensor)]
    return {name: local(tensor).detach().cpu().contiguous() for name, tensor in kept}


def gather_weights(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Gather a module's tensors from all ranks one by one, in the memory of the host; none where ``keep`` is false."""
    kept = {}
    for names, tensor in named_tensors(module):
        gathered = whole(tensor)
        if keep:
            kept[names[0]] = gathered.detach().cpu().contiguous()
    return kept


def _load_rows(files: Sequence[Path], module: nn.Module) -> None:
    """Load a module's tensors, of sharded ones this rank's rows.

    Raises:
        RuntimeError: a tensor is missing, of another shape, or unknown to the module.
    """
    with opened_files(files) as stored, torch.no_grad():
        known = set(stored.names)
        for names, tensor in named_tensors(module):
            name = next((name for name in names if name in known), None)
            if name is None or stored.shape(name) != tuple(tensor.shape):
                raise RuntimeError(f"{names[0]!r} is missing or has another shape")
            known -= set(names)
            sharded = isinstance(tensor, DTensor)
            local(tensor).copy_(stored.read_rows(name, local_rows(tensor)) if sharded else stored.read(name))
        if known:
            raise RuntimeError(f"unknown tensors: {', '.join(sorted(known)[:3])}")


def _load_moments(files: Sequence[Path], module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Read an optimizer's state by the names of its parameters, of sharded ones this rank's rows.

    Raises:
        RuntimeError: a moment of another shape than its parameter.
    """
    parameters: dict[str, Any] = dict(module.named_parameters())
    moments: dict[str, Tensor] = {}
    with opened_files(files) as stored:
        for key in stored.names:
            name, _, what = key.rpartition("/")
            parameter = parameters.get(name)
            if what not in OF_EACH_WEIGHT or not isinstance(parameter, DTensor):
                moments[key] = stored.read(key).to(device)
            elif stored.shape(key) != tuple(parameter.shape):
                raise RuntimeError(f"{key!r} has another shape")
            else:
                moments[key] = sharded_like(parameter, stored.read_rows(key, local_rows(parameter)).to(device))
    return moments


def save_weights(file: Path, module: nn.Module, step: int | None = None) -> None:
    """Write a module's tensors, tied ones once, into an atomic file; the step goes into its header."""
    with atomic_file(file) as temporary:
        save_model(module, str(temporary), None if step is None else {"step": str(step)}, force_contiguous=True)


def load_weights(file: Path, module: nn.Module) -> None:
    """Load what ``save_weights`` wrote; of sharded tensors this rank's rows."""
    if has_shards(module):
        _load_rows([file], module)
    else:
        load_model(module, str(file))


def write_tensors(
    draft: Path, module: nn.Module, optimizer: torch.optim.Optimizer, rank: tuple[int, int] | None = None
) -> dict[str, str]:
    """Write weights and optimizer state, or a rank's part of them; return the files' SHA-256 by name."""
    model, state = (MODEL, OPTIMIZER) if rank is None else (_part(name, *rank) for name in (MODEL, OPTIMIZER))
    first = rank is None or rank[0] == 0
    if rank is None:
        save_weights(draft / model, module)
    else:
        save_file(_own_weights(module, first), draft / model)
    moments = _moments_of(optimizer, {parameter: name for name, parameter in module.named_parameters()}, first)
    save_file(moments, draft / state)
    return {name: sha256(draft / name) for name in (model, state)}


def _part(name: str, rank: int, ranks: int) -> str:
    """Name of a rank's file; in the order of names, ranks follow each other."""
    stem, _, kind = name.partition(".")
    return f"{stem}-{rank:05d}-of-{ranks:05d}.{kind}"


def read_tensors(path: Path, files: Sequence[str], module: nn.Module, device: torch.device) -> Mapping[str, Tensor]:
    """Load a checkpoint's weights into a module, and return the optimizer's state; of sharded ones this rank's rows."""
    if not has_shards(module) and MODEL in files:
        load_weights(path / MODEL, module)
        # Of several ranks on a CPU ``cpu:0``, which safetensors does not know.
        return load_file(path / OPTIMIZER, device="cpu" if device.type == "cpu" else str(device))
    models, states = ([path / name for name in files if name.startswith(stem)] for stem in ("model", "optimizer"))
    _load_rows(models, module)
    return _load_moments(states, module, device)


def _moments_of(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], first: bool = True) -> dict[str, Tensor]:
    """Return an optimizer's state by the names of parameters, each tensor with memory of its own, as files need it.

    Of sharded parameters it is this rank's part; other parameters' state is the first rank's.
    """
    moments: dict[str, Tensor] = {}
    known: set[int] = set()
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not (first or isinstance(value, DTensor)):
                continue
            kept = local(torch.as_tensor(value)).detach().cpu().contiguous()
            if kept.data_ptr() in known:  # a table of codes that all parameters share
                kept = kept.clone()
            known.add(kept.data_ptr())
            moments[f"{names[parameter]}/{key}"] = kept
    return moments
