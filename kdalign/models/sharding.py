"""Models whose parameters are sharded over ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from kdalign.ranks import rank_and_size


def needs_every_rank(*models: nn.Module) -> bool:
    """Return whether a model's parameters are shards, so that its forward waits for every rank's."""
    if rank_and_size()[1] == 1:
        return False
    from torch.distributed.tensor import DTensor  # which takes a second to load

    return any(isinstance(parameter, DTensor) for model in models for parameter in model.parameters())


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather what is in no layer of a sharded model, so that parts of it, such as an encoder, may run by themselves."""
    if not needs_every_rank(model):
        yield
        return
    sharded: Any = model
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()
