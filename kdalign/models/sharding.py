"""Shard a model over ranks, layer by layer, by torch's FSDP2.

Of each parameter a rank keeps some rows (ZeRO stage 3, Rajbhandari et al. 2020, arXiv:1910.02054, by
``torch.distributed.fsdp.fully_shard``). A layer's are gathered for its forward and again for its backward, after which
its gradients are averaged over ranks and each rank keeps those of its rows. What is in no layer (embeddings, the last
norm, the head) is gathered from the model's forward to the end of the backward, so that losses on the vocabulary read
its weights as they do without sharding.

Every forward of a sharded model is one of all ranks, which must run it equally often.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from kdalign.environment import map_buffers, trim_heap
from kdalign.errors import UsageError
from kdalign.models.architecture import blocks, meta_model
from kdalign.models.lm_head import LMHead
from kdalign.models.loading import without_storage
from kdalign.ranks import on_every_rank

_Loaded = TypeVar("_Loaded")


def check_sharding() -> None:
    """Refuse a version of torch in which a forward of a sharded model cannot end early.

    Raises:
        UsageError: the version.
    """
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise UsageError(f"train.sharding=fsdp2 needs torch 2.13 or newer (found: {torch.__version__})")


def check_divisible(config: PretrainedConfig) -> None:
    """Refuse a model with a parameter that has no rows to divide, such as CLIP's scale.

    Raises:
        UsageError: the parameter.
    """
    scalars = [name for name, parameter in meta_model(config).named_parameters() if parameter.ndim == 0]
    if scalars:
        raise UsageError(
            f"train.sharding=fsdp2 divides parameters by rows, and {scalars[0]} of a {config.model_type} model is a "
            f"single number (accepted: train.sharding=none)"
        )


def shard(
    model: PreTrainedModel, device: torch.device, fill: Callable[[Tensor], Tensor] | None = None
) -> PreTrainedModel:
    """Shard a model in place over all ranks.

    No more of it is on a device at a time than the rank's own rows and one layer, or what is in no layer.

    Args:
        model: the same on every rank, on any device; parameters that are trained have one type.
        device: the rank's device, to which its rows are moved.
        fill: gives the whole of a parameter or buffer on the device, for a model that a rank has as shapes alone; every
            rank calls it for the same tensors.
    """
    # Of outputs that are views. Nothing changes an output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    fill = fill or (lambda tensor: tensor.to(device))
    if device.type == "cpu":
        map_buffers()
    mesh, filled = init_device_mesh(device.type, (dist.get_world_size(),)), set[nn.Module]()
    for layer in dict.fromkeys(blocks(model).values()):
        fully_shard(_fill(layer, fill, filled), mesh=mesh)
    fully_shard(_fill(model, fill, filled), mesh=mesh)
    # Else whatever ran first, such as a model's body alone, would count as the whole.
    _parts(model)[0]._get_fsdp_state()._lazy_init()
    for part in _parts(model):  # memory that is first used in inference mode could not be used outside
        part.unshard()
        part.reshard()
    trim_heap()  # which held the whole model
    return model


def load_on_first_rank(load: Callable[[], _Loaded]) -> _Loaded:
    """Load models whole on the first rank, and as shapes alone on the others.

    Raises:
        UsageError: what cannot be loaded, on every rank.
    """
    found = list[_Loaded]()

    def load_here() -> None:
        with nullcontext() if dist.get_rank() == 0 else without_storage():
            found.append(load())

    on_every_rank(load_here)
    return found[0]


def shard_from_first_rank(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Shard a model in place that ``load_on_first_rank`` has loaded."""

    def fill(tensor: Tensor) -> Tensor:
        first, shape = dist.get_rank() == 0, tensor.shape
        sent = tensor.to(device).contiguous() if first else torch.empty(shape, dtype=tensor.dtype, device=device)
        if sent.numel():
            dist.broadcast(sent.reshape(-1).view(torch.uint8), 0)  # of all types, of which gloo knows a few
        return sent

    return shard(model, device, fill)


def shard_as(shapes: PreTrainedModel, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Shard shapes of a model in place, each filled with the weights of that model, sharded, at the shapes' types."""
    source = dict(_named_tensors(model))
    names = {id(tensor): name for name, tensor in _named_tensors(shapes)}

    def fill(tensor: Tensor) -> Tensor:
        return whole(source[names[id(tensor)]]).to(device, tensor.dtype, copy=True)

    return shard(shapes, device, fill)


def shapes_of(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model without its storage, onto the meta device."""
    shapes: dict[int, Any] = {}
    for _, tensor in _named_tensors(model):
        shape = tensor.detach().to("meta")
        shapes[id(tensor)] = nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
    return copy.deepcopy(model, shapes)


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _fill(part: nn.Module, fill: Callable[[Tensor], Tensor], filled: set[nn.Module]) -> nn.Module:
    """Replace parameters and buffers by what fills them, those that modules share once; modules are filled once."""
    known: dict[Tensor, Tensor] = {}

    def replacement(tensor: Tensor) -> Tensor:
        if tensor not in known:
            found = fill(tensor).detach().contiguous()  # a transposed one has no rows to share
            known[tensor] = nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found
        return known[tensor]

    for module in part.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables if module not in filled else ():
            table.update({name: replacement(tensor) for name, tensor in table.items() if tensor is not None})
    filled.update(part.modules())
    return part


def is_sharded(model: nn.Module) -> bool:
    """True if a model is sharded over ranks."""
    return isinstance(model, FSDPModule)


def needs_every_rank(*models: nn.Module) -> bool:
    """True if a forward of one of these models waits for every rank's."""
    return any(map(is_sharded, models))


def has_shards(module: nn.Module) -> bool:
    """True if a module has a parameter that is sharded over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather what is in no layer, so that parts of a model, too, may run inside: its body, its encoder.

    Layers are gathered one by one, so that all ranks run them equally often. A model that is not sharded stays as it
    is.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        reshard(model)


@contextmanager
def gathered_whole(model: nn.Module) -> Iterator[None]:
    """Gather all weights of a model, so that each rank may run it as often as it likes inside, without gradients."""
    layers = _parts(model)[1:]
    for layer in layers:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    try:
        with gathered(model):
            yield
    finally:
        for layer in layers:
            layer.reshard()
            layer.set_reshard_after_forward(True, recurse=False)


def reshard(model: nn.Module) -> None:
    """Free what is gathered of a model in no layer: what is loaded or read then are the shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


def end_forward(model: nn.Module) -> None:
    """Free all that is gathered of a model without gradients, whether its forward has ended or was left early."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()


def gather_head(head: LMHead) -> LMHead:
    """Gather a sharded head from all ranks into memory of its own."""
    return replace(head, weight=whole(head.weight), bias=None if head.bias is None else whole(head.bias))


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from all ranks, without a gradient; one that is not sharded is given back."""
    given: Any = tensor
    return given.detach().full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, in the same memory; one that is not sharded is given back."""
    given: Any = tensor
    return given.detach().to_local() if isinstance(tensor, DTensor) else tensor


def local_rows(tensor: Tensor) -> slice:
    """The numbers of this rank's rows: as by ``torch.chunk``, the last ranks may have fewer, or none."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    size = -(-len(tensor) // tensor.device_mesh.size())
    start = min(len(tensor), tensor.device_mesh.get_local_rank() * size)
    return slice(start, start + len(tensor.to_local()))


def sharded_like(parameter: DTensor, rows: Tensor) -> DTensor:
    """Make a tensor that is sharded as a parameter is, of this rank's rows."""
    made: DTensor = DTensor.from_local(
        rows,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return made


def make_whole(model: nn.Module, keep: bool) -> None:
    """Gather a sharded model's weights one by one in the memory of the host, in place, to be saved; it cannot run then.

    Args:
        model: the model.
        keep: false on a rank that only sends its rows.
    """
    reshard(model)
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in known:
                gathered_rows = whole(parameter)
                known[id(parameter)] = nn.Parameter(gathered_rows.cpu(), parameter.requires_grad) if keep else parameter
            module.register_parameter(name, known[id(parameter)])


def _parts(model: nn.Module) -> list[Any]:
    """The model and its layers."""
    return [part for part in model.modules() if isinstance(part, FSDPModule)]
