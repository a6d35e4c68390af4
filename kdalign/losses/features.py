"""Losses on features: hidden states of layers, embeddings of tokens and of texts."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kdalign.losses.precision import wide


def cosine_distance(
    student: Float[Tensor, "batch time width"],
    teacher: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""One minus the cosine of the angle between two features, summed over counted positions; each lies in 0..2.

    .. math:: \sum_{b,i} m_{bi} (1 - \cos(h^s_{bi}, h^t_{bi}))

    L_feat of arXiv:2412.19449. It sees direction only; length is the Euclidean term's.
    """
    each = 1 - F.cosine_similarity(wide(student), wide(teacher), dim=-1)
    return torch.where(mask, each, 0).sum()


def scaled_euclid(
    student: Float[Tensor, "batch time width"],
    teacher: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
    variance: float,
) -> Float[Tensor, ""]:
    r"""Squared Euclidean distance in units of the teacher's own spread, summed over counted positions.

    .. math:: \sum_{b,i} m_{bi} \frac{\|h^s_{bi} - h^t_{bi}\|^2}{d\,\sigma^2}

    ``variance`` is :math:`\sigma^2`, the teacher layer's mean feature variance over real tokens: a student that
    answers the teacher's mean everywhere scores 1 a position. L_dist of arXiv:2412.19449; never on
    normalised vectors, where it would be the cosine loss again (:math:`|u-v|^2 = 2 - 2\cos`).
    """
    each = (wide(student) - wide(teacher)).square().mean(dim=-1) / variance
    return torch.where(mask, each, 0).sum()


def relative_squared_error(
    student: Float[Tensor, "batch time width"],
    teacher: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""Squared distance in units of the teacher's own squared length, position by position; summed over counted ones.

    .. math:: \sum_{b,i} m_{bi} \frac{\|h^s_{bi} - h^t_{bi}\|^2}{\|h^t_{bi}\|^2}

    The normalised mean squared error. A student that answers 0 scores 1 a position; unlike in ``scaled_euclid``, a
    position with large features counts no more than others. Direction and length both count.
    """
    ours, theirs = wide(student), wide(teacher)
    each = (ours - theirs).square().sum(dim=-1) / theirs.square().sum(dim=-1).clamp_min(1e-12)
    return torch.where(mask, each, 0).sum()


def patient_distance(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Squared distance of what a text is summed up in, each of length 1; summed over counted texts, each in 0..4.

    .. math:: \sum_b m_b \Big\| \frac{c^s_b}{\|c^s_b\|} - \frac{c^t_b}{\|c^t_b\|} \Big\|^2

    with c a layer's features of the first token. Patient KD, Sun et al. 2019, arXiv:1908.09355, equation 7. It is twice
    the cosine distance.
    """
    ours, theirs = (F.normalize(wide(each), dim=-1) for each in (student, teacher))
    return torch.where(mask, (ours - theirs).square().sum(dim=-1), 0).sum()


def attended_euclid(
    student: Float[Tensor, "batch time width"],
    teacher: Float[Tensor, "batch time width"],
    attention: Float[Tensor, "batch heads time time"],
    mask: Bool[Tensor, "batch time"],
    variance: float,
) -> Float[Tensor, ""]:
    r"""``scaled_euclid`` in which a position counts by how much the teacher attends to it.

    .. math:: \sum_{b,j} a_{bj} \frac{\|h^s_{bj} - h^t_{bj}\|^2}{d\,\sigma^2}, \quad
        a_{bj} = m_{bj} \frac{1}{H} \sum_{h,i} m_{bi} A^t_{bhij}

    Each counted query spreads one unit over positions, so that the weights of a text sum to its positions, where all
    count. Feature reconstruction from attention, which arXiv:2412.19449 names; the weights are ours.
    """
    received = torch.where(mask[:, None, :, None], wide(attention), 0).sum(dim=2).mean(dim=1)  # (batch, time)
    each = received * (wide(student) - wide(teacher)).square().mean(dim=-1) / variance
    return torch.where(mask, each, 0).sum()


def embedding_distance(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""One minus the cosine of the angle between two embeddings of a text, summed over counted texts; each in 0..2.

    .. math:: \sum_b m_b (1 - \cos(e^s_b, e^t_b))

    The teacher's embedding as target, as in Reimers & Gurevych 2020, arXiv:2004.09813, section 2, but by direction
    alone, which is all that a comparison by cosines sees.
    """
    each = 1 - F.cosine_similarity(wide(student), wide(teacher), dim=-1)
    return torch.where(mask, each, 0).sum()
