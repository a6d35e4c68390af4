r"""Cross-entropy, divergence and their gradient on a block of logits, in closed form and in few passes over it.

Shapes: ``n`` rows, ``vocabulary`` entries. Autograd walks through a vocabulary about thirty times for what nine passes
give: a distribution each, their distance, and

.. math:: \frac{\partial}{\partial z^s} \Big( h \cdot \mathrm{CE} + s \tau^2 D \Big) = h (p_1 - y) + s \tau \, g, \quad
    g = p - q \text{ (forward KL)}, \quad g = p \odot (\log p - \log q - D) \text{ (reverse KL)}

with p and q student's and teacher's softened probabilities, :math:`p_1` the student's at temperature 1, y the label.

Where the teacher's k likeliest entries are known and all others as one, any divergence D is one of k + 1 numbers
:math:`\ell_i = \log P_i`, whose gradient autograd takes; through the vocabulary it goes in closed form:

.. math:: \tau \frac{\partial D}{\partial z_j} = \frac{p_j}{P_{i(j)}} \Big( \frac{\partial D}{\partial \ell_{i(j)}}
    - P_{i(j)} \sum_i \frac{\partial D}{\partial \ell_i} \Big)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kdalign.models.token_targets import ABSENT, TopEntries
from kdalign.objective.losses.logits import DIVERGENCES

CLOSED = ("forward", "reverse")
"""Divergences whose gradient is known in closed form, names of ``DIVERGENCES``."""


@dataclass(frozen=True)
class BlockLosses:
    """Losses of a block of rows, and their gradient.

    Attributes:
        hard: cross-entropy, summed over rows, in nats.
        soft: divergence times the temperature's square, summed over rows, in nats; 0 without a teacher.
        slope: (n, vocabulary), gradient of the weighted sum by the student's logits; None if it was not asked for.
    """

    hard: Tensor
    soft: Tensor
    slope: Tensor | None


def fused_losses(
    student: Float[Tensor, "n vocabulary"],
    teacher: Float[Tensor, "n vocabulary"],
    labels: Int[Tensor, "n"],
    weights: tuple[float, float],
    kind: str,
    temperature: float,
    *,
    slope: bool = True,
) -> BlockLosses:
    """Compute cross-entropy with labels, divergence from a teacher, and the gradient of their weighted sum.

    Args:
        student: logits, finite, in float32 or wider; left as they are.
        teacher: logits of the same entries, which are overwritten.
        labels: the entry of each row.
        weights: of the cross-entropy and of the divergence.
        kind: one of ``CLOSED``.
        temperature: temperature of the divergence.
        slope: compute the gradient, too.
    """
    hard, soft = weights
    here = torch.arange(len(student), device=student.device), labels
    plain = F.log_softmax(student, dim=-1)
    hard_sum = -plain[here].sum()
    softened = temperature != 1
    ours = F.log_softmax(student / temperature, dim=-1) if softened else plain
    theirs = F.log_softmax(teacher.div_(temperature) if softened else teacher, dim=-1)
    # The teacher's logits are of no further use: their memory holds what follows.
    gap = torch.sub(theirs, ours, out=teacher) if kind == "forward" else torch.sub(ours, theirs, out=teacher)
    if kind == "forward":
        theirs.exp_()
        soft_sum = temperature**2 * gap.mul_(theirs).sum()
        if not slope:
            return BlockLosses(hard_sum, soft_sum, None)
        probabilities = ours.exp_()
        if softened:
            plain.exp_().mul_(hard).add_(probabilities, alpha=soft * temperature)
        else:
            plain.mul_(hard + soft)
        plain.add_(theirs, alpha=-soft * temperature)
    else:
        probabilities = torch.exp(ours, out=theirs)
        distances = torch.mul(probabilities, gap).sum(dim=-1, keepdim=True)
        soft_sum = temperature**2 * distances.sum()
        if not slope:
            return BlockLosses(hard_sum, soft_sum, None)
        plain.exp_().mul_(hard).addcmul_(probabilities, gap.sub_(distances), value=soft * temperature)
    plain[here] -= hard
    return BlockLosses(hard_sum, soft_sum, plain)


def fused_losses_of_top(
    student: Float[Tensor, "n vocabulary"],
    teacher: TopEntries,
    labels: Int[Tensor, "n"],
    weights: tuple[float, float],
    kind: str,
    temperature: float,
    skew: float = 0.1,
    *,
    slope: bool = True,
) -> BlockLosses:
    """Compute the losses of ``fused_losses`` for a teacher whose likeliest entries alone are known.

    Args:
        student: logits, finite, in float32 or wider; left as they are.
        teacher: entries of the student's vocabulary, each a number of it.
        labels: the entry of each row.
        weights: of the cross-entropy and of the divergence.
        kind: a key of ``DIVERGENCES``.
        temperature: temperature of the divergence, at which the teacher's are.
        skew: the teacher's share in the divergence ``skew``.
        slope: compute the gradient, too.
    """
    hard, soft = weights
    here = torch.arange(len(student), device=student.device), labels
    plain = F.log_softmax(student, dim=-1)
    hard_sum = -plain[here].sum()
    ours = plain if temperature == 1 else F.log_softmax(student / temperature, dim=-1)
    kept = ours.gather(1, teacher.entries)
    # From here on ``ours`` holds the distribution among the others alone: at least one has exp(0), if there is any.
    ours.scatter_(1, teacher.entries, -torch.inf)
    peak = ours.amax(dim=1, keepdim=True).clamp_min(ABSENT)
    total = ours.sub_(peak).exp_().sum(dim=1, keepdim=True).clamp_min(1)
    rest = (peak + total.log()).clamp_min(ABSENT)
    with torch.enable_grad():
        logs = torch.cat([kept, rest], dim=1).requires_grad_()
        distance = temperature**2 * DIVERGENCES[kind](logs, teacher.logs.to(logs.dtype), skew)
    if not slope:
        return BlockLosses(hard_sum, distance.detach(), None)
    (by_log,) = torch.autograd.grad(distance, logs)
    shares = logs.detach().exp()
    steps = (soft / temperature) * (by_log - shares * by_log.sum(dim=1, keepdim=True))
    if temperature == 1:
        steps.add_(shares, alpha=hard)
    ours.mul_(steps[:, -1:] / total).scatter_(1, teacher.entries, steps[:, :-1])
    found = ours if temperature == 1 else plain.exp_().mul_(hard).add_(ours)
    found[here] -= hard
    return BlockLosses(hard_sum, distance.detach(), found)
