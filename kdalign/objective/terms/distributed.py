"""Gather rows and sum values over all ranks, so that nothing depends on their number."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor


def all_gather_with_grad(rows: Shaped[Tensor, "n *width"]) -> Shaped[Tensor, "all_rows *width"]:
    """Gather all ranks' rows, in the order of ranks; each row's gradient goes back to its rank.

    Every rank must call it equally often. A single process gets its own rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum values over all ranks, without a gradient."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        sizes = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor(len(rows), device=rows.device))
        counts = [int(size) for size in sizes]
        padded = F.pad(rows, (*(0, 0) * (rows.ndim - 1), 0, max(counts) - len(rows))).contiguous()
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        ctx.start, ctx.count = sum(counts[: dist.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        whole = upstream.contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.start : ctx.start + ctx.count]
