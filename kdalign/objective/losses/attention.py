"""Losses on attention: maps, and relations between positions."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdalign.objective.losses.precision import to_float32

RELATIONS_AT_ONCE = 2**24
"""Relations that are computed at once, 64 MiB of each kind in float32."""


def attention_distance(
    student: Float[Tensor, "batch heads time keys"],
    teacher: Float[Tensor, "batch heads time keys"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""Squared distance between two attention maps, summed over keys and counted queries, averaged over heads.

    .. math:: \frac{1}{H} \sum_{b,h,i} m_{bi} \sum_j (A^s_{bhij} - A^t_{bhij})^2

    The maps are probabilities over keys (each row sums to 1, before dropout), so a row's distance is in 0..2 and
    does not shrink with the length, as a mean over keys would. Padded keys have probability 0 in both.
    L_attn of arXiv:2412.19449.
    """
    each = (to_float32(student) - to_float32(teacher)).square().sum(dim=-1).mean(dim=1)  # (batch, time)
    return torch.where(mask, each, 0).sum()


def attention_divergence(
    student: Float[Tensor, "batch heads time keys"],
    teacher: Float[Tensor, "batch heads time keys"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""KL of two attention maps, summed over counted queries, averaged over heads, in nats.

    .. math:: \frac{1}{H} \sum_{b,h,i} m_{bi}\, KL(A^t_{bhi} \,\|\, A^s_{bhi})

    The attention transfer of MiniLM (Wang et al. 2020, arXiv:2002.10957, section 3.1). Keys that the teacher does not
    see do not count; the student's probability is clamped at the smallest normal number.
    """
    ours, theirs = to_float32(student), to_float32(teacher)
    smallest = torch.finfo(ours.dtype).tiny
    # Not xlogy: if a teacher's map is a learned mixture, its gradient at 0 would be NaN.
    apart = theirs.clamp_min(smallest).log() - ours.clamp_min(smallest).log()
    each = (theirs * apart).sum(dim=-1).mean(dim=1)
    return torch.where(mask, each, 0).sum()


def relation_divergence(
    student: Float[Tensor, "batch heads time student_width"],
    teacher: Float[Tensor, "batch heads time teacher_width"],
    visible: Bool[Tensor, "batch time time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""KL divergence of attention relations, summed over counted positions, averaged over heads, in nats.

    .. math:: \frac{1}{R} \sum_{b,r,i} m_{bi}\, KL\big(\rho(t)_{bri} \,\|\, \rho(s)_{bri}\big), \quad
        \rho(x)_{bri} = \mathrm{softmax}_j \big(x_{bri} \cdot x_{brj} / \sqrt{d}\big)

    over visible positions j, with x the queries, the keys or the values of one layer, split into R relation heads of
    width d. With values and the models' own heads this is the value relation of MiniLM (Wang et al. 2020,
    arXiv:2002.10957, section 3.2); with other numbers of heads, a relation of MiniLMv2 (Wang et al. 2021,
    arXiv:2012.15828, section 3.1). Widths may differ. The teacher gets no gradient.

    Memory grows with the length, not with its square: relations are computed for a block of positions at a time, with
    the gradient :math:`\partial KL / \partial (x_i \cdot x_j) = (\rho(s)_{ij} - \rho(t)_{ij}) / \sqrt{d}`.
    """
    divergence: Tensor = _RelationDivergence.apply(student, teacher.detach(), visible, mask)  # type: ignore[no-untyped-call]
    return divergence


class _RelationDivergence(torch.autograd.Function):
    """``relation_divergence`` with the student's gradient, which the forward computes, as it has the relations."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, visible: Tensor, mask: Tensor) -> Tensor:
        """Sum the divergences of all blocks."""
        ours, theirs = to_float32(student).contiguous(), to_float32(teacher).contiguous()
        heads, time = ours.shape[1:3]
        gradient = torch.zeros_like(ours) if ctx.needs_input_grad[0] else None
        total = ours.new_zeros(())
        counted = mask[:, None, :, None].to(ours.dtype) / heads
        size = max(1, RELATIONS_AT_ONCE // max(1, ours[..., 0].numel()))
        for start in range(0, time, size):
            block = slice(start, start + size)
            hidden = ~visible[:, None, block]
            our_log, their_log = (_relations(each, block, hidden) for each in (ours, theirs))
            gap, probabilities = their_log - our_log, their_log.exp_()
            each = gap.mul_(probabilities).sum(dim=-1).mean(dim=1)
            total += torch.where(mask[:, block], each, 0).sum()
            if gradient is not None:
                slope = our_log.exp_().sub_(probabilities).mul_(counted[:, :, block] / math.sqrt(ours.size(-1)))
                gradient[:, :, block] += slope @ ours
                gradient += slope.transpose(-1, -2) @ ours[:, :, block]
        if gradient is not None:
            ctx.save_for_backward(gradient.to(student.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the gradient that is at hand."""
        [gradient] = ctx.saved_tensors
        return (to_float32(gradient) * scale).to(gradient.dtype), None, None, None


def _relations(x: Tensor, block: slice, hidden: Tensor) -> Tensor:
    """(batch, heads, block, time), log-softmax of relations of a block of positions to those that are not hidden."""
    scores = x[:, :, block] @ x.transpose(-1, -2) / math.sqrt(x.size(-1))
    return F.log_softmax(scores.masked_fill_(hidden, torch.finfo(scores.dtype).min), dim=-1)
