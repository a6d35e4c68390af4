"""Training and evaluation mode of a model's modules, and batch norm, whose mode also decides what it normalises by.

In training mode batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1) normalises by the means and variances
of the rows that are read at once, so that no row's output is its own, and moves its running statistics towards them; in
evaluation mode it normalises by these.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn

from kdalign.ranks import rank_and_size

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and each of its modules back into its own afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Return a model's batch norms."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def keep_statistics(model: nn.Module) -> None:
    """Let a model's batch norms normalise by their running statistics, and leave these as they are.

    Until the model's mode is set again. Their weights and biases are still trained.
    """
    for norm in batch_norms(model):
        norm.eval()


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are in the forwards inside, which compute what they would without this."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in batch_norms(model)]
    for norm, _, _ in before:
        # By track_running_stats, fewer tensors would be kept for the backward, which recomputation does not allow.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def share_statistics(model: nn.Module) -> None:
    """Give every rank the first one's running statistics: each has moved its own by its own rows."""
    if rank_and_size()[1] > 1:
        for norm in batch_norms(model):
            for statistic in norm.buffers():
                dist.broadcast(statistic, 0)
