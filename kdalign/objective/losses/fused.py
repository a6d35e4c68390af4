r"""Cross-entropy, divergence and their gradient on a block of logits, in closed form and in few passes over it.

Shapes: ``n`` rows, ``vocabulary`` entries. Autograd walks through a vocabulary about thirty times for what nine passes
give: a distribution each, their distance, and

.. math:: \frac{\partial}{\partial z^s} \Big( h \cdot \mathrm{CE} + s \tau^2 D \Big) = h (p_1 - y) + s \tau \, g, \quad
    g = p - q \text{ (forward KL)}, \quad g = p \odot (\log p - \log q - D) \text{ (reverse KL)}

with p and q student's and teacher's softened probabilities, :math:`p_1` the student's at temperature 1, y the label.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

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
