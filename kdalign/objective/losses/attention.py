"""Losses on attention: maps, and relations between positions."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kdalign.objective.losses.precision import to_float32


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
    arXiv:2012.15828, section 3.1). Widths may differ.
    """
    student_log, teacher_log = (_relations(to_float32(each), visible) for each in (student, teacher))
    each = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean(dim=1)  # (batch, time)
    return torch.where(mask, each, 0).sum()


def _relations(x: Tensor, visible: Tensor) -> Tensor:
    """(batch, heads, time, time), log-softmax of each position's relation to visible positions."""
    scores = x @ x.transpose(-1, -2) / math.sqrt(x.size(-1))
    return F.log_softmax(scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min), dim=-1)
