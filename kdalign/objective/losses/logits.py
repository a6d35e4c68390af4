"""Losses on a model's answers: logits over classes or entries of a vocabulary, and scores."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdalign.models.token_targets import top_log_probabilities
from kdalign.objective.losses.precision import to_float32


def hard_label_cross_entropy(
    student: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Cross-entropy with the labels, summed over counted examples, in nats.

    .. math:: -\sum_b m_b \log \sigma(z^s_b)_{y_b}
    """
    each = F.cross_entropy(to_float32(student), labels, reduction="none")
    return torch.where(mask, each, 0).sum()


def squared_error(
    student: Float[Tensor, "batch 1"], target: Float[Tensor, "batch"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Squared error of a regression output, summed over counted examples, in squared label units.

    .. math:: \sum_b m_b (z^s_b - y_b)^2

    For tasks with a score instead of classes (STS-B) this is the hard-label loss, and with the teacher's output as
    target the soft one: a single output has no distribution to soften.
    """
    each = (to_float32(student).squeeze(-1) - to_float32(target)).square()
    return torch.where(mask, each, 0).sum()


def soft_target_kl(
    student: Float[Tensor, "*unit classes"],
    teacher: Float[Tensor, "*unit classes"],
    mask: Bool[Tensor, "*unit"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""KL divergence from the teacher's softened distribution to the student's, summed over counted units, in nats.

    .. math:: \tau^2 \sum_u m_u\, KL(\sigma(z^t_u / \tau) \,\|\, \sigma(z^s_u / \tau))

    The factor :math:`\tau^2` keeps the gradient's size independent of the temperature (Hinton et al. 2015,
    arXiv:1503.02531, section 2). L_soft of arXiv:2412.19449.
    """
    student_log = F.log_softmax(to_float32(student) / temperature, dim=-1)
    teacher_log = F.log_softmax(to_float32(teacher) / temperature, dim=-1)
    each = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * torch.where(mask, each, 0).sum()


def logit_squared_error(
    student: Float[Tensor, "*unit classes"], teacher: Float[Tensor, "*unit classes"], mask: Bool[Tensor, "*unit"]
) -> Float[Tensor, ""]:
    r"""Squared distance of logits, averaged over classes, summed over counted units, in squared logit units.

    .. math:: \sum_u m_u \frac{1}{C} \sum_c (z^s_{uc} - z^t_{uc})^2

    Ba & Caruana 2014, arXiv:1312.6184, section 2.2. It also matches a constant that is added to all logits, which
    changes no probability.
    """
    each = (to_float32(student) - to_float32(teacher)).square().mean(dim=-1)
    return torch.where(mask, each, 0).sum()


def decoupled_kl(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    labels: Int[Tensor, "batch"],
    mask: Bool[Tensor, "batch"],
    temperature: float,
    other: float = 8.0,
) -> Float[Tensor, ""]:
    r"""KL of label against all others, and KL among the others, weighted apart; summed over counted examples.

    .. math:: \tau^2 \sum_b m_b \big( KL(b^t \,\|\, b^s) + \omega\, KL(\hat p^t \,\|\, \hat p^s) \big)

    with :math:`b = (p_y, 1 - p_y)` and :math:`\hat p` the distribution over all classes but the label, which plain KL
    weighs by :math:`1 - p^t_y`. ``other`` is :math:`\omega`. DKD, Zhao et al. 2022, arXiv:2203.08679, equation 7
    (there :math:`\alpha = 1`, :math:`\beta = \omega`). Of two classes there is one other, and the second part is 0.
    """
    other_than_label = torch.ones_like(student, dtype=torch.bool).scatter_(1, labels[:, None], False)
    logs = []
    for logits in (to_float32(student) / temperature, to_float32(teacher) / temperature):
        others = logits[other_than_label].view(len(logits), -1)
        binary = torch.stack([logits.gather(1, labels[:, None]).squeeze(1), others.logsumexp(dim=1)], dim=1)
        logs.append((F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)))
    (binary_s, others_s), (binary_t, others_t) = logs
    each = _kl_of_rows(binary_t, binary_s) + other * _kl_of_rows(others_t, others_s)
    return temperature**2 * torch.where(mask, each, 0).sum()


def correlation_distance(
    student: Float[Tensor, "n classes"], teacher: Float[Tensor, "n classes"], temperature: float
) -> Float[Tensor, ""]:
    r"""One minus the correlation of probabilities, over classes and over examples; one number for the group.

    .. math:: \tau^2 \Big( \frac{1}{n} \sum_i \big(1 - \rho(p^s_{i:}, p^t_{i:})\big)
        + \frac{1}{C} \sum_c \big(1 - \rho(p^s_{:c}, p^t_{:c})\big) \Big)

    with Pearson's :math:`\rho`: within an example over classes, and within a class over examples. DIST, Huang et al.
    2022, arXiv:2205.10536, equations 6 to 9. With two classes the first correlation is always 1 or -1.
    """
    ours, theirs = (F.softmax(to_float32(each) / temperature, dim=-1) for each in (student, teacher))
    return temperature**2 * (_decorrelation(ours, theirs) + _decorrelation(ours.T, theirs.T))


def _decorrelation(x: Tensor, y: Tensor) -> Tensor:
    """Mean over rows of one minus Pearson's correlation; 1 for a row without spread, 0 if both have none."""
    x, y = (each - each.mean(1, keepdim=True) for each in (x, y))
    tops = [each.detach().abs().amax(1, keepdim=True) for each in (x, y)]
    x, y = (each / torch.where(top > 0, top, 1) for each, top in zip((x, y), tops, strict=True))  # however small
    apart = (tops[0] > 0) | (tops[1] > 0)
    return torch.where(apart[:, 0], 1 - F.cosine_similarity(x, y, dim=1), 0).mean()


def standardise_logits(logits: Float[Tensor, "*unit classes"]) -> Float[Tensor, "*unit classes"]:
    r"""Standardise logits over classes, which frees a student from its teacher's scale.

    .. math:: (z_c - \bar z) / (\mathrm{std}_c(z) + 10^{-7})

    Sun et al. 2024, arXiv:2403.01427, algorithm 1, before a divergence at some temperature. With two classes only
    their order is left: the result is always the same two numbers.
    """
    logits = to_float32(logits)
    return (logits - logits.mean(dim=-1, keepdim=True)) / (logits.std(dim=-1, keepdim=True) + 1e-7)


def divergence(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n classes"],
    kind: str,
    temperature: float,
    skew: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Divergence between the softened distributions of teacher and student, summed over rows, in nats.

    .. math:: \tau^2 \sum_i D(\sigma(z^t_i / \tau), \sigma(z^s_i / \tau))

    ``kind`` names :math:`D` in ``DIVERGENCES``; ``skew``, strictly between 0 and 1, is the teacher's share in the
    mixture of ``"skew"``. The factor :math:`\tau^2` is that of ``soft_target_kl``, which equals ``"forward"`` if every
    row counts. Logits are finite; probabilities may underflow, since all arithmetic is on logarithms.
    """
    student_log = F.log_softmax(to_float32(student) / temperature, dim=-1)
    teacher_log = F.log_softmax(to_float32(teacher) / temperature, dim=-1)
    return temperature**2 * DIVERGENCES[kind](student_log, teacher_log, skew)


def divergence_of_shared(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n other_classes"],
    shared: tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]],
    kind: str,
    temperature: float,
    skew: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Divergence of softened distributions over the entries that two vocabularies share, summed over rows, in nats.

    .. math:: \tau^2 \sum_i D(\bar p^t_i, \bar p^s_i), \quad
        \bar p_i = \big(p_{i k_1}, \dots, p_{i k_m},\, \textstyle\sum_{k \notin \{k_j\}} p_{ik}\big)

    Each shared entry stands for itself, and all others together for one: a coarser view of both distributions, so that
    the divergence is 0 if they agree, and for one vocabulary never above that of all entries. If one vocabulary
    contains the other, only shared entries are compared, renormalised. ``shared`` names the entries of student and
    teacher, side by side; with all entries shared it is ``divergence``.
    """
    logs = []
    rest = all(len(entries) < logits.size(1) for logits, entries in zip((student, teacher), shared, strict=True))
    for logits, entries in zip((student, teacher), shared, strict=True):
        scores = to_float32(logits) / temperature
        parts = [scores[:, entries]]
        if rest:
            parts.append(scores.index_fill(1, entries, -math.inf).logsumexp(dim=1, keepdim=True))
        logs.append(F.log_softmax(torch.cat(parts, dim=1), dim=-1))
    student_log, teacher_log = logs
    return temperature**2 * DIVERGENCES[kind](student_log, teacher_log, skew)


def divergence_of_top(
    student: Float[Tensor, "n classes"],
    entries: Int[Tensor, "n k"],
    teacher: Float[Tensor, "n k1"],
    kind: str,
    temperature: float,
    skew: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Divergence over the teacher's k likeliest entries and all others together as one, summed over rows, in nats.

    .. math:: \tau^2 \sum_i D(\bar p^t_i, \bar p^s_i), \quad
        \bar p_i = \big(p_{i e_{i1}}, \dots, p_{i e_{ik}},\, 1 - \textstyle\sum_j p_{i e_{ij}}\big)

    ``teacher`` holds log-probabilities of a softened distribution, the rest last. A coarser view of both, as
    ``divergence_of_shared``: 0 if the distributions agree, never negative, and for forward and reverse KL never above
    the divergence over all entries. Without the rest, a student that leaves the kept entries is rewarded (truncated) or
    not seen (renormalised).
    """
    student_log = top_log_probabilities(to_float32(student) / temperature, entries)
    return temperature**2 * DIVERGENCES[kind](student_log, to_float32(teacher), skew)


def universal_logit_distance(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n other_classes"],
    shared: tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Distance of sorted probabilities of entries that are not shared, summed over rows; each in 0..2.

    .. math:: \sum_i \sum_j \big| p^t_{i (j)} - p^s_{i (j)} \big|

    with :math:`p_{(1)} \ge p_{(2)} \ge \dots` the softened probabilities of the entries outside ``shared``, the
    shorter list filled with zeros: the universal logit distillation of Boizard et al. 2024, arXiv:2402.12030, section
    3.2, which compares the shapes of two distributions over different entries.
    """
    kept = []
    for logits, entries in zip((student, teacher), shared, strict=True):
        probabilities = F.softmax(to_float32(logits) / temperature, dim=-1)
        others = torch.ones(logits.size(1), dtype=torch.bool, device=logits.device)
        others[entries] = False
        kept.append(probabilities[:, others])
    both = min(each.size(1) for each in kept)
    # Probabilities without a counterpart need no sorting: all of them count.
    ours, theirs = (each.topk(both, dim=1).values for each in kept)
    left = sum((each.sum() - top.sum() for each, top in zip(kept, (ours, theirs), strict=True)), student.new_zeros(()))
    return (theirs - ours).abs().sum() + left


def _kl(p_log: Tensor, q_log: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities: a p that underflows to 0 meets a finite difference, never 0 * inf."""
    return (p_log.exp() * (p_log - q_log)).sum()


def _kl_of_rows(p_log: Tensor, q_log: Tensor) -> Tensor:
    """KL(p || q), row by row."""
    return (p_log.exp() * (p_log - q_log)).sum(dim=-1)


def _forward(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """KL(t || s): Hinton et al. 2015, arXiv:1503.02531, section 2."""
    return _kl(teacher, student)


def _reverse(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """KL(s || t): MiniLLM, Gu et al. 2024, arXiv:2306.08543, section 2.1, taken token by token in closed form."""
    return _kl(student, teacher)


def _jensen_shannon(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """KL(t || m) / 2 + KL(s || m) / 2 with m = (t + s) / 2: GKD, Agarwal et al. 2024, arXiv:2306.13649, at beta 1/2."""
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return (_kl(teacher, middle) + _kl(student, middle)) / 2


def _skew(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """KL(t || a t + (1 - a) s): the skew KL of DistiLLM, Ko et al. 2024, arXiv:2402.03898, section 3.1."""
    return _kl(teacher, torch.logaddexp(teacher + math.log(skew), student + math.log1p(-skew)))


HEAD = 0.5
"""Share of the teacher's probability in the head of its distribution."""


def _adaptive(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    r"""A mean of KL(t || s) and KL(s || t), the first by the share of \|t - s\| on the teacher's likeliest entries.

    Forward KL first fits where the teacher's probability is high, reverse KL where it is low: AKL, Wu et al. 2024,
    arXiv:2404.02657, section 4. The shares get no gradient.
    """
    with torch.no_grad():
        gap = (teacher.exp() - student.exp()).abs()
        ordered, order = teacher.exp().sort(dim=-1, descending=True)
        head = ordered.cumsum(dim=-1) - ordered < HEAD  # the fewest entries that reach it together
        on_head = torch.where(head, gap.gather(-1, order), 0).sum(dim=-1)
        share = torch.where(gap.sum(dim=-1) > 0, on_head / gap.sum(dim=-1), 0.5)
    return (share * _kl_of_rows(teacher, student) + (1 - share) * _kl_of_rows(student, teacher)).sum()


# By name: functions of the student's and the teacher's log-probabilities and the skew; each returns a sum in nats.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward": _forward,
    "reverse": _reverse,
    "js": _jensen_shannon,
    "skew": _skew,
    "adaptive": _adaptive,
}
