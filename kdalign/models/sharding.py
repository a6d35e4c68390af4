"""Models whose parameters are sharded over ranks."""

from torch import nn

from kdalign.ranks import rank_and_size


def needs_every_rank(*models: nn.Module) -> bool:
    """Return whether a model's parameters are shards, so that its forward waits for every rank's."""
    if rank_and_size()[1] == 1:
        return False
    from torch.distributed.tensor import DTensor  # which takes a second to load

    return any(isinstance(parameter, DTensor) for model in models for parameter in model.parameters())
