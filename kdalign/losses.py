r"""The losses, as pure functions on tensors that return **sums** over the units that count.

Shapes: ``batch`` examples, ``time`` positions, ``classes`` labels, ``width`` features, ``heads`` attention heads.
A mask is true where a unit counts. Nothing here divides by the number of units: the objective does that once,
by the units of the whole optimizer step. All arithmetic is in float32 or wider, whatever the inputs' precision.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def hard_label_cross_entropy(
    student: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Cross-entropy with the labels, summed over counted examples, in nats.

    .. math:: -\sum_b m_b \log \sigma(z^s_b)_{y_b}
    """
    each = F.cross_entropy(_wide(student), labels, reduction="none")
    return torch.where(mask, each, 0).sum()


def squared_error(
    student: Float[Tensor, "batch 1"], target: Float[Tensor, "batch"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""Squared error of a regression output, summed over counted examples, in squared label units.

    .. math:: \sum_b m_b (z^s_b - y_b)^2

    For tasks with a score instead of classes (STS-B) this is the hard-label loss, and with the teacher's output as
    target the soft one: a single output has no distribution to soften.
    """
    each = (_wide(student).squeeze(-1) - _wide(target)).square()
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
    student_log = F.log_softmax(_wide(student) / temperature, dim=-1)
    teacher_log = F.log_softmax(_wide(teacher) / temperature, dim=-1)
    each = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * torch.where(mask, each, 0).sum()


def cosine_distance(
    student: Float[Tensor, "batch time width"],
    teacher: Float[Tensor, "batch time width"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""One minus the cosine of the angle between two features, summed over counted positions; each lies in 0..2.

    .. math:: \sum_{b,i} m_{bi} (1 - \cos(h^s_{bi}, h^t_{bi}))

    L_feat of arXiv:2412.19449. It sees direction only; length is the Euclidean term's.
    """
    each = 1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1)
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
    each = (_wide(student) - _wide(teacher)).square().mean(dim=-1) / variance
    return torch.where(mask, each, 0).sum()


def attention_distance(
    student: Float[Tensor, "batch heads time keys"],
    teacher: Float[Tensor, "batch heads time keys"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""Squared distance between two attention maps, summed over keys and counted queries, averaged over heads.

    .. math:: \frac{1}{H} \sum_{b,h,i} m_{bi} \sum_j (A^s_{bhij} - A^t_{bhij})^2

    The maps are probabilities over keys (each row sums to 1, before dropout), so a row's distance lies in 0..2 and
    does not shrink with the length, as a mean over keys would. Padded keys have probability 0 in both.
    L_attn of arXiv:2412.19449.
    """
    each = (_wide(student) - _wide(teacher)).square().sum(dim=-1).mean(dim=1)  # (batch, time)
    return torch.where(mask, each, 0).sum()


def relation_divergence(
    student: Float[Tensor, "batch heads time student_width"],
    teacher: Float[Tensor, "batch heads time teacher_width"],
    visible: Bool[Tensor, "batch time time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    r"""KL between how positions relate to one another, summed over counted positions, averaged over heads, in nats.

    .. math:: \frac{1}{R} \sum_{b,r,i} m_{bi}\, KL\big(\rho(t)_{bri} \,\|\, \rho(s)_{bri}\big), \quad
        \rho(x)_{bri} = \mathrm{softmax}_j \big(x_{bri} \cdot x_{brj} / \sqrt{d}\big)

    over visible positions j, with x the queries, the keys or the values of one layer, split into R relation heads of
    width d. With values and the models' own heads this is the value relation of MiniLM (Wang et al. 2020,
    arXiv:2002.10957, section 3.2); with other numbers of heads, a relation of MiniLMv2 (Wang et al. 2021,
    arXiv:2012.15828, section 3.1). Widths may differ.
    """
    student_log, teacher_log = (_relations(_wide(each), visible) for each in (student, teacher))
    each = (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1).mean(dim=1)  # (batch, time)
    return torch.where(mask, each, 0).sum()


def _relations(x: Tensor, visible: Tensor) -> Tensor:
    """(batch, heads, time, time): logarithms of how much each position relates to each visible one."""
    scores = x @ x.transpose(-1, -2) / math.sqrt(x.size(-1))
    return F.log_softmax(scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min), dim=-1)


def embedding_distance(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], mask: Bool[Tensor, "batch"]
) -> Float[Tensor, ""]:
    r"""One minus the cosine of the angle between two embeddings of a text, summed over counted texts; each in 0..2.

    .. math:: \sum_b m_b (1 - \cos(e^s_b, e^t_b))

    The teacher's embedding as target, as in Reimers & Gurevych 2020, arXiv:2004.09813, section 2, but by direction
    alone, which is all that a comparison by cosines sees.
    """
    each = 1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1)
    return torch.where(mask, each, 0).sum()


LEAST_GROUP = 3
"""Fewer texts have no spread of similarities."""
_LEAST_SPREAD = 0.05


def similarity_distance(
    student: Float[Tensor, "batch student_width"],
    teacher: Float[Tensor, "batch teacher_width"],
    mask: Bool[Tensor, "batch"],
) -> Float[Tensor, ""]:
    r"""Distance of two models' similarity matrices over a group of texts, in units of the teacher's own spread.

    .. math:: \frac{\sum_{a \neq b} (S^s_{ab} - S^t_{ab})^2}{\sum_{a \neq b} (S^t_{ab} - \bar S^t)^2},
        \quad S_{ab} = \cos(e_a, e_b)

    over pairs of counted texts; one number for the whole group, 0 for fewer than three texts. A student for whom all
    texts are alike to the same, right degree scores 1. Widths may differ. After the similarity-preserving loss of
    Tung & Mori 2019, arXiv:1907.09682; the scale is ours. A spread below 0.05 counts as 0.05.
    """
    if int(mask.sum()) < LEAST_GROUP:
        return 0.0 * student.sum()
    ours, theirs = (F.normalize(_wide(each[mask]), dim=-1) for each in (student, teacher))
    pairs = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    ours, theirs = (ours @ ours.T)[pairs], (theirs @ theirs.T)[pairs]
    spread = theirs.var(correction=0).clamp_min(_LEAST_SPREAD**2)
    return (ours - theirs).square().mean() / spread


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
    mixture of ``"skew"``. The factor :math:`\tau^2` is that of ``soft_target_kl``, of which ``"forward"`` with every
    row counted is the same number. Logits are finite; probabilities may underflow, since all is done on logarithms.
    """
    student_log = F.log_softmax(_wide(student) / temperature, dim=-1)
    teacher_log = F.log_softmax(_wide(teacher) / temperature, dim=-1)
    return temperature**2 * DIVERGENCES[kind](student_log, teacher_log, skew)


def divergence_of_shared(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n other_classes"],
    shared: tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]],
    kind: str,
    temperature: float,
    skew: float = 0.1,
) -> Float[Tensor, ""]:
    r"""Divergence of two softened distributions over what two vocabularies share, summed over rows, in nats.

    .. math:: \tau^2 \sum_i D(\bar p^t_i, \bar p^s_i), \quad
        \bar p_i = \big(p_{i k_1}, \dots, p_{i k_m},\, \textstyle\sum_{k \notin \{k_j\}} p_{ik}\big)

    Each shared entry stands for itself, and all others for one: a coarser view of both distributions, so that the
    divergence is 0 where they agree, and never above that of the whole where the vocabularies are one. Where one
    vocabulary holds the other whole, only what is shared is compared, renormalised. ``shared`` names the entries of
    student and teacher, side by side; with all entries shared it is ``divergence``.
    """
    logs = []
    rest = all(len(entries) < logits.size(1) for logits, entries in zip((student, teacher), shared, strict=True))
    for logits, entries in zip((student, teacher), shared, strict=True):
        scores = _wide(logits) / temperature
        parts = [scores[:, entries]]
        if rest:
            parts.append(scores.index_fill(1, entries, -math.inf).logsumexp(dim=1, keepdim=True))
        logs.append(F.log_softmax(torch.cat(parts, dim=1), dim=-1))
    student_log, teacher_log = logs
    return temperature**2 * DIVERGENCES[kind](student_log, teacher_log, skew)


def universal_logit_distance(
    student: Float[Tensor, "n classes"],
    teacher: Float[Tensor, "n other_classes"],
    shared: tuple[Int[Tensor, "entries"], Int[Tensor, "entries"]],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Distance of the probabilities of what is not shared, largest to largest, summed over rows; each in 0..2.

    .. math:: \sum_i \sum_j \big| p^t_{i (j)} - p^s_{i (j)} \big|

    with :math:`p_{(1)} \ge p_{(2)} \ge \dots` the softened probabilities of the entries outside ``shared``, the
    shorter list filled with zeros: the universal logit distillation of Boizard et al. 2024, arXiv:2402.12030, section
    3.2, which compares how probability is spread where it cannot be told over what.
    """
    kept = []
    for logits, entries in zip((student, teacher), shared, strict=True):
        probabilities = F.softmax(_wide(logits) / temperature, dim=-1)
        others = torch.ones(logits.size(1), dtype=torch.bool, device=logits.device)
        others[entries] = False
        kept.append(probabilities[:, others])
    both = min(each.size(1) for each in kept)
    # What has no counterpart need not be sorted: all of it counts.
    ours, theirs = (each.topk(both, dim=1).values for each in kept)
    left = sum((each.sum() - top.sum() for each, top in zip(kept, (ours, theirs), strict=True)), student.new_zeros(()))
    return (theirs - ours).abs().sum() + left


def _kl(p_log: Tensor, q_log: Tensor) -> Tensor:
    """KL(p || q) of logarithms of probabilities: a p that underflows to 0 meets a finite difference, never 0 * inf."""
    return (p_log.exp() * (p_log - q_log)).sum()


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


# By name: functions of the student's and the teacher's log-probabilities and the skew; each returns a sum in nats.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "forward": _forward,
    "reverse": _reverse,
    "js": _jensen_shannon,
    "skew": _skew,
}


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: sums over classes or features in bfloat16 lose most of their digits."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
