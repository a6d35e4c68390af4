r"""The map to the vocabulary and the losses on it, in blocks of rows: the matrix of all logits never exists.

Shapes: ``n`` positions that all count, ``width`` features, ``vocabulary`` entries. A language model's logits are by
far its largest activation (4 sequences of 1,024 tokens over 49,152 entries: 0.8 GB in float32, and a plain
distillation loss holds several such matrices). Here the gradient is taken while a block's logits exist and only sums
are kept: the memory of one block, and no second pass over the rows. For cross-entropy alone the idea is that of
Wijmans et al. 2025, arXiv:2411.09009, and Hsu et al. 2024, arXiv:2410.10989.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdalign.data.token_matching import SharedVocabulary
from kdalign.models.lm_head import LMHead, block_rows, row_blocks, wide_dtype
from kdalign.objective import losses


def vocabulary_losses(
    student: Float[Tensor, "n width"],
    student_head: LMHead,
    labels: Int[Tensor, "n"],
    *,
    hard: float,
    soft: float,
    teacher: Float[Tensor, "n teacher_width"] | None = None,
    teacher_head: LMHead | None = None,
    divergence: str = "forward",
    temperature: float = 1.0,
    skew: float = 0.1,
    rows: int | None = None,
    dtype: torch.dtype | None = None,
    shared: SharedVocabulary | None = None,
    answered: Bool[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Cross-entropy and divergence from the teacher over a vocabulary, summed over rows, in nats, block by block.

    .. math:: h \sum_i -\log \sigma(z^s_i)_{y_i} + s \, \tau^2 \sum_i D(\sigma(z^t_i / \tau), \sigma(z^s_i / \tau))

    with ``hard`` h, ``soft`` s, ``temperature`` :math:`\tau`, and D as in ``losses.divergence``. Returns that total,
    differentiable (once) in the student's features, weight and bias, and the two unweighted sums, detached, in float32.
    Without a teacher the second is 0. Teacher and teacher's head get no gradient.

    Where the vocabularies are padded to different sizes, D is taken over the entries that both have, renormalised; the
    cross-entropy over all of the student's. Where they are two, ``shared`` names the entries that both have: D is then
    that over what they share, plus the distance of the rest (``losses.universal_logit_distance``), in the rows in which
    the teacher has ``answered`` the same. ``dtype`` is the precision of the matrix products (default: the wider of
    features and weight); softmax and sums are in float32 or wider. Gradients are formed before any loss scaling, so
    float16, in which small probabilities vanish, is not for ``dtype``; bfloat16 is.
    """
    assert (teacher is None) == (teacher_head is None)
    if teacher is not None and teacher_head is not None:
        precision = dtype or torch.promote_types(teacher.dtype, teacher_head.weight.dtype)
        teacher_head = teacher_head.detached(precision, None if shared is not None else len(student_head.weight))
    dtype = dtype or torch.promote_types(student.dtype, student_head.weight.dtype)
    wide, head = wide_dtype(dtype), student_head.detached(dtype)
    learned = student, student_head.weight, student_head.bias
    slopes = [
        torch.zeros_like(one, dtype=wide) if one is not None and one.requires_grad and torch.is_grad_enabled() else None
        for one in learned
    ]
    of_student, of_weight, of_bias = slopes
    sloped = any(slope is not None for slope in slopes)
    hard_sum, soft_sum = student.new_zeros(2, dtype=wide)
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        for block in row_blocks(len(student), rows or block_rows(len(head.weight), student.device)):
            features = student[block].to(dtype)
            logits = head.logits(features)
            here = torch.arange(len(logits), device=logits.device), labels[block]
            slope = F.log_softmax(logits, dim=-1)
            hard_sum -= slope[here].sum()
            if sloped:  # in the same memory: probabilities, less one at the label
                slope = slope.exp_().mul_(hard)
                slope[here] -= hard
            if teacher is not None and teacher_head is not None:
                target = teacher_head.logits(teacher[block])
                ours = (logits if shared is not None else logits[:, : target.shape[1]]).requires_grad_(sloped)
                with torch.set_grad_enabled(sloped):
                    if shared is None:
                        each = losses.divergence(ours, target, divergence, temperature, skew)
                    else:
                        same = slice(None) if answered is None else answered[block]
                        each = _across(ours[same], target[same], shared, divergence, temperature, skew)
                soft_sum += each.detach()
                if sloped:
                    slope[:, : ours.shape[1]].add_(torch.autograd.grad(each, ours)[0], alpha=soft)
            if sloped and head.softcap is not None:
                slope *= 1 - (logits / head.softcap).square()  # the derivative of c tanh(z / c), by its value
            if of_bias is not None:
                of_bias += slope.sum(dim=0)
            if of_student is not None:
                of_student[block] = slope.to(dtype) @ head.weight
            if of_weight is not None and (dtype == wide or of_weight.device.type == "cpu"):
                # On a CPU for bfloat16 too: the product in place beats a faster one that must then be added.
                of_weight.addmm_(slope.T, features.to(wide))
            elif of_weight is not None:
                of_weight += slope.to(dtype).T @ features
    total = hard * hard_sum + soft * soft_sum
    if sloped:
        total = _Sloped.apply(total, slopes, *learned)  # type: ignore[no-untyped-call]
    return total, hard_sum.float(), soft_sum.float()


def _across(
    student: Tensor, teacher: Tensor, shared: SharedVocabulary, divergence: str, temperature: float, skew: float
) -> Tensor:
    """Two vocabularies: what they share by its meaning, the rest by how its probability is spread."""
    entries = shared.student.to(student.device), shared.teacher.to(student.device)
    alike = losses.divergence_of_shared(student, teacher, entries, divergence, temperature, skew)
    return alike + losses.universal_logit_distance(student, teacher, entries, temperature)


class _Sloped(torch.autograd.Function):
    """A scalar whose gradients by some inputs are known already: backward only scales them."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, slopes: list[Tensor | None], *learned: Tensor | None) -> Tensor:
        ctx.save_for_backward(*slopes)
        ctx.dtypes = [None if one is None else one.dtype for one in learned]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # New tensors, not in place: a graph that was kept may be walked again.
        return None, None, *(None if slope is None else (upstream * slope).to(dtype) for slope, dtype in pairs)
