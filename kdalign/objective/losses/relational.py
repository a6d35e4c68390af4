"""Relational losses, which compare the rows of a group with one another: one number per group.

Rows are counted texts or tokens; a group is a micro-batch, over all ranks.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from kdalign.objective.losses.precision import to_float32

LEAST_GROUP = 3
"""Least number of rows with a spread of similarities."""
_LEAST_SPREAD = 0.05


def similarity_distance(
    student: Float[Tensor, "n student_width"], teacher: Float[Tensor, "n teacher_width"]
) -> Float[Tensor, ""]:
    r"""Distance of two models' similarity matrices over a group of texts, in units of the teacher's spread.

    .. math:: \frac{\sum_{a \neq b} (S^s_{ab} - S^t_{ab})^2}{\sum_{a \neq b} (S^t_{ab} - \bar S^t)^2},
        \quad S_{ab} = \cos(e_a, e_b)

    over pairs of texts; 0 for fewer than three. A student with one constant
    similarity, the teacher's mean, has loss 1. Widths may differ. After the similarity-preserving loss of
    Tung & Mori 2019, arXiv:1907.09682; the scale is ours. A spread below 0.05 counts as 0.05.
    """
    if len(student) < LEAST_GROUP:
        return 0.0 * student.sum()
    ours, theirs = (F.normalize(to_float32(each), dim=-1) for each in (student, teacher))
    pairs = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    ours, theirs = (ours @ ours.T)[pairs], (theirs @ theirs.T)[pairs]
    spread = theirs.var(correction=0).clamp_min(_LEAST_SPREAD**2)
    return (ours - theirs).square().mean() / spread


def similarity_preserving(
    student: Float[Tensor, "n student_width"], teacher: Float[Tensor, "n teacher_width"]
) -> Float[Tensor, ""]:
    r"""Mean squared difference of two similarity matrices whose rows have length 1.

    .. math:: \frac{1}{n^2} \| \tilde G^s - \tilde G^t \|_F^2, \quad
        \tilde G_{a:} = (X X^\top)_{a:} / \| (X X^\top)_{a:} \|

    Tung & Mori 2019, arXiv:1907.09682, equations 1 to 4, as published; widths may differ.
    """
    ours, theirs = (F.normalize(x @ x.T, dim=1) for x in (to_float32(student), to_float32(teacher)))
    return (ours - theirs).square().mean()


def linear_cka_distance(
    student: Float[Tensor, "n student_width"], teacher: Float[Tensor, "n teacher_width"]
) -> Float[Tensor, ""]:
    r"""One minus the linear CKA of two features over rows, in 0..1.

    .. math:: 1 - \frac{\|Y^\top X\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    with X and Y centred. Kornblith et al. 2019, arXiv:1905.00414, section 3. Invariant to rotations and
    scale; widths may differ. With fewer rows than features it is always near 0: rows should be many, such as tokens.
    """
    x, y = (each - each.mean(dim=0) for each in (to_float32(student), to_float32(teacher)))
    own: Tensor = (x.T @ x).norm() * (y.T @ y).norm()
    distance: Tensor = 1 - (y.T @ x).square().sum() / own.clamp_min(torch.finfo(own.dtype).tiny)
    return distance


def relational_distance(
    student: Float[Tensor, "n student_width"], teacher: Float[Tensor, "n teacher_width"]
) -> Float[Tensor, ""]:
    r"""Mean Huber loss of pairwise distances, in units of their mean.

    .. math:: \frac{1}{n (n-1)} \sum_{a \ne b} \ell\Big(\frac{\|s_a - s_b\|}{\mu^s}, \frac{\|t_a - t_b\|}{\mu^t}\Big)

    RKD-D, Park et al. 2019, arXiv:1904.05068, equations 4 to 7; widths may differ.
    """
    pairs = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    ours, theirs = (_distances(to_float32(each))[pairs] for each in (student, teacher))
    smallest = torch.finfo(ours.dtype).tiny
    return F.smooth_l1_loss(ours / ours.mean().clamp_min(smallest), theirs / theirs.mean().clamp_min(smallest))


def _distances(x: Tensor) -> Tensor:
    """(n, n), Euclidean distances with gradient 0, not infinite, between equal rows."""
    squares = (x[:, None] - x[None]).square().sum(dim=-1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


def relational_angle(
    student: Float[Tensor, "n student_width"], teacher: Float[Tensor, "n teacher_width"]
) -> Float[Tensor, ""]:
    r"""Mean Huber loss of the cosines of angles between triples of rows.

    .. math:: \frac{1}{n^3} \sum_{a,b,c} \ell(\cos \angle s_a s_b s_c, \cos \angle t_a t_b t_c)

    RKD-A, Park et al. 2019, arXiv:1904.05068, equations 8 to 10, over all triples, as there in code; widths may differ.
    Its memory grows with :math:`n^2` times the width, and with :math:`n^3`.
    """
    ours, theirs = (_angles(to_float32(each)) for each in (student, teacher))
    return F.smooth_l1_loss(ours, theirs)


def _angles(x: Tensor) -> Tensor:
    """(n, n, n), for each middle row the cosines between the directions to all others; 0 to itself."""
    to_others = x[None] - x[:, None]
    squares = to_others.square().sum(dim=-1, keepdim=True)
    apart = squares > 0
    directions = torch.where(apart, to_others, 0) / torch.where(apart, squares, 1).sqrt()
    return directions @ directions.transpose(1, 2)


def info_nce(
    student: Float[Tensor, "n width"],
    teacher: Float[Tensor, "n width"],
    temperature: float,
    others: Float[Tensor, "k width"] | None = None,
    alike: Bool[Tensor, "n n"] | None = None,
    left_out: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, ""]:
    r"""InfoNCE: mean cross-entropy of finding the teacher's row of the same input among all rows, in nats.

    .. math:: \frac{1}{n} \sum_i -\frac{1}{|P_i|} \sum_{p \in P_i} \log
        \frac{\exp(\cos(s_i, t_p) / \tau)}{\sum_{j} \exp(\cos(s_i, t_j) / \tau)}

    with j over the teacher's rows of the group and those of ``others`` (a queue, as in MoCo, He et al. 2020,
    arXiv:1911.05722). :math:`P_i` is i
    alone (van den Oord et al. 2018, arXiv:1807.03748, equation 4), or the rows of the group that ``alike`` marks, such
    as inputs of its label (Khosla et al. 2020, arXiv:2004.11362, equation 2). ``left_out`` marks others that do not
    count. For n rows without others, chance is log n.
    """
    ours = F.normalize(to_float32(student), dim=-1)
    keys = F.normalize(to_float32(teacher if others is None else torch.cat([teacher, others.to(teacher)])), dim=-1)
    scores = ours @ keys.T / temperature
    if left_out is not None:
        scores[:, len(teacher) :] = scores[:, len(teacher) :].masked_fill(left_out, -math.inf)
    found = F.log_softmax(scores, dim=1)
    if alike is None:
        return -found.diagonal().mean()
    return -(torch.where(alike, found[:, : len(teacher)], 0).sum(dim=1) / alike.sum(dim=1)).mean()


def memory_nce(
    student: Float[Tensor, "n width"],
    teacher: Float[Tensor, "n width"],
    others: Float[Tensor, "n k width"],
    temperature: float,
    level: Float[Tensor, ""] | float,
) -> Float[Tensor, ""]:
    r"""NCE with a memory: tell the teacher's row of the same input from k sampled ones, each judged alone; the mean.

    .. math:: \frac{1}{n} \sum_i \Big( -\log h(s_i, t_i) - \sum_{k} \log (1 - h(s_i, t_k)) \Big), \quad
        h(s, t) = \frac{e^{\cos(s, t)/\tau}}{e^{\cos(s, t)/\tau} + K e^z}

    with K sampled rows and z (``level``) the logarithm of the mean of :math:`e^{\cos / \tau}` over negatives at the
    start, without which every row would count as positive. CRD, Tian et al. 2020, arXiv:1910.10699, equations 18 and
    19, and the normaliser Z = M e^z of their code, from which the memory's size M drops out.
    """
    ours = F.normalize(to_float32(student), dim=-1)
    right = (ours * F.normalize(to_float32(teacher), dim=-1)).sum(dim=-1) / temperature
    wrong = torch.einsum("nw,nkw->nk", ours, F.normalize(others.to(ours), dim=-1)) / temperature
    noise = math.log(others.size(1)) + level
    each = F.softplus(noise - right) + F.softplus(wrong - noise).sum(dim=1)
    return each.mean()
