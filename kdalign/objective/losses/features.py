"""Losses on features: hidden states of layers, embeddings of tokens and of texts."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kdalign.objective.losses.precision import to_float32

_SMALLEST = 1e-16
"""Squared length below which a feature counts as 0."""


@dataclass(frozen=True)
class PairDistances:
    """Squared lengths, inner product and distance of two features for each position or text, in float32 or wider.

    Attributes:
        width: width of the features.
        ours: (batch, time) or (batch), the student's squared length.
        theirs: the teacher's squared length.
        inner: inner product.
        squared: squared distance.
    """

    width: int
    ours: Tensor
    theirs: Tensor
    inner: Tensor
    squared: Tensor

    @staticmethod
    def of(student: Float[Tensor, "*batch width"], teacher: Float[Tensor, "*batch width"]) -> "PairDistances":
        """Compute them once for all losses on features."""
        return PairDistances(student.size(-1), *_PairDistancesFunction.apply(student, teacher))  # type: ignore[no-untyped-call]


class _PairDistancesFunction(torch.autograd.Function):
    """Numbers of ``PairDistances``, with a gradient of one scaled sum of features per position.

    Autograd's own gradient takes a pass over the features for each operation, and rounds to their precision for each
    loss.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(student, teacher)
        ours, theirs = to_float32(student), to_float32(teacher)
        lengths = (torch.linalg.vector_norm(each, dim=-1) for each in (ours, theirs, ours - theirs))
        of_ours, of_theirs, squared = (length.square() for length in lengths)
        return of_ours, of_theirs, (ours * theirs).sum(dim=-1), squared

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        of_ours, of_theirs, of_inner, of_squared = (each[..., None] for each in gradients)

        def gradient(one: Tensor, other: Tensor, of_length: Tensor) -> Tensor:
            # By their difference, not by each scaled: this is exact for nearly equal features.
            one_wide, between = to_float32(one), to_float32(other) - to_float32(one)
            whole = torch.addcmul((2 * of_length + of_inner) * one_wide, of_inner - 2 * of_squared, between)
            return whole.to(one.dtype)

        ours, theirs = ctx.needs_input_grad
        return (
            gradient(student, teacher, of_ours) if ours else None,
            gradient(teacher, student, of_theirs) if theirs else None,
        )


def cosine_distance(features: PairDistances, mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    r"""Cosine distance of two features, summed over counted positions; each in 0..2.

    .. math:: \sum_{b,i} m_{bi} (1 - \cos(h^s_{bi}, h^t_{bi}))

    L_feat of arXiv:2412.19449. It compares direction only; length is left to the Euclidean term. A feature of
    length 0 has cosine 0.
    """
    ours, theirs = (squared.clamp_min(_SMALLEST).rsqrt() for squared in (features.ours, features.theirs))
    each = 1 - features.inner * ours * theirs
    return torch.where(mask, each, 0).sum()


def scaled_euclid(features: PairDistances, mask: Bool[Tensor, "batch time"], variance: float) -> Float[Tensor, ""]:
    r"""Squared Euclidean distance in units of the teacher's variance, summed over counted positions.

    .. math:: \sum_{b,i} m_{bi} \frac{\|h^s_{bi} - h^t_{bi}\|^2}{d\,\sigma^2}

    ``variance`` is :math:`\sigma^2`, the teacher layer's mean feature variance over real tokens: a student that
    gives the teacher's mean everywhere has loss 1 per position. L_dist of arXiv:2412.19449; never on
    normalised vectors, where it would be the cosine loss again (:math:`|u-v|^2 = 2 - 2\cos`).
    """
    return torch.where(mask, features.squared / (features.width * variance), 0).sum()


def relative_squared_error(features: PairDistances, mask: Bool[Tensor, "batch time"]) -> Float[Tensor, ""]:
    r"""Squared distance in units of the teacher's squared length, summed over counted positions.

    .. math:: \sum_{b,i} m_{bi} \frac{\|h^s_{bi} - h^t_{bi}\|^2}{\|h^t_{bi}\|^2}

    The normalised mean squared error. A student that gives 0 has loss 1 per position; unlike in ``scaled_euclid``, a
    position with large features counts no more than others. Both direction and length count.
    """
    return torch.where(mask, features.squared / features.theirs.clamp_min(1e-12), 0).sum()


def attended_euclid(
    features: PairDistances,
    attention: Float[Tensor, "batch heads time time"],
    mask: Bool[Tensor, "batch time"],
    variance: float,
) -> Float[Tensor, ""]:
    r"""``scaled_euclid`` with positions weighted by the attention that the teacher gives them.

    .. math:: \sum_{b,j} a_{bj} \frac{\|h^s_{bj} - h^t_{bj}\|^2}{d\,\sigma^2}, \quad
        a_{bj} = m_{bj} \frac{1}{H} \sum_{h,i} m_{bi} A^t_{bhij}

    Each counted query divides one unit over positions, so that the weights of a text sum to its number of positions
    if all count. Feature reconstruction from attention, which arXiv:2412.19449 names; the weights are ours.
    """
    received = torch.where(mask[:, None, :, None], to_float32(attention), 0).sum(dim=2).mean(dim=1)  # (batch, time)
    return torch.where(mask, received * features.squared / (features.width * variance), 0).sum()


def patient_distance(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Squared distance of normalised first-token features, summed over counted texts; each in 0..4.

    .. math:: \sum_b m_b \Big\| \frac{c^s_b}{\|c^s_b\|} - \frac{c^t_b}{\|c^t_b\|} \Big\|^2

    with c a layer's features of the first token. Patient KD, Sun et al. 2019, arXiv:1908.09355, equation 7. It is twice
    the cosine distance.
    """
    ours, theirs = (F.normalize(to_float32(each), dim=-1) for each in (student, teacher))
    return torch.where(mask, (ours - theirs).square().sum(dim=-1), 0).sum()


def embedding_distance(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Cosine distance of two embeddings of a text, summed over counted texts; each in 0..2.

    .. math:: \sum_b m_b (1 - \cos(e^s_b, e^t_b))

    The teacher's embedding as target, as in Reimers & Gurevych 2020, arXiv:2004.09813, section 2, but by direction
    alone, since embeddings are compared by cosines.
    """
    return cosine_distance(PairDistances.of(student, teacher), mask)
