"""Gradients of a learner whose student is sharded over ranks, and what is trained next to it, which is not.

Projections, terms and balancers are few numbers beside a student's, some of which are read between steps. Each rank
keeps them whole, and their gradients are averaged once a step: as exact as sharding them, and simpler.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kdalign.models import architecture
from kdalign.models.sharding import has_shards, local
from kdalign.ranks import on_first_rank
from kdalign.training.checkpoint import TrainState


def clip_gradients(optimizer: torch.optim.Optimizer, clip: float, accelerator: Accelerator) -> Tensor:
    """Scale the gradients of a step down to a norm of ``clip`` over all parameters and ranks; return the norm before.

    Parameter groups with a ``rate`` other than 1 are not clipped. Gradients that are not averaged over ranks yet, those
    of parameters next to a sharded student, are averaged first.
    """
    clipped = [p for group in optimizer.param_groups if group.get("rate", 1) == 1 for p in group["params"]]
    if not any(isinstance(parameter, DTensor) for parameter in clipped):
        norm: Tensor = accelerator.clip_grad_norm_(clipped, clip)
        return norm
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= accelerator.num_processes
    sharded = [local(p.grad) for p in clipped if isinstance(p.grad, DTensor)]
    others = [p.grad for p in clipped if p.grad is not None and not isinstance(p.grad, DTensor)]
    square = _norm(sharded, accelerator.device).square()
    dist.all_reduce(square)
    total = (square + _norm(others, accelerator.device).square()).sqrt()
    scale = (clip / (total + 1e-6)).clamp(max=1.0)
    for gradient in (*sharded, *others):
        gradient.mul_(scale)
    return total


def _norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    filled = [gradient for gradient in gradients if gradient.numel()]
    return torch.nn.utils.get_total_norm(filled) if filled else torch.zeros((), device=device)


def first_non_finite(module: nn.Module) -> str:
    """Return the name of the first weight that is NaN or infinite on any rank; empty if all are finite.

    Every rank must call it for a learner whose student is sharded.
    """
    named = dict(module.named_parameters())
    if not has_shards(module):
        return architecture.first_non_finite(module)
    bad = torch.stack([~local(parameter).isfinite().all() for parameter in named.values()]).to(torch.int32)
    dist.all_reduce(bad, dist.ReduceOp.MAX)
    return next((name for name, wrong in zip(named, bad.tolist(), strict=True) if wrong), "")


def agree_on_best(progress: TrainState) -> None:
    """Give every rank the best step that the first one knows."""
    names = ("evaluations_without_gain", "best_score", "best_step", "best_hash")
    for name, value in on_first_rank(lambda: {each: getattr(progress, each) for each in names}).items():
        setattr(progress, name, value)
