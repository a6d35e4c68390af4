r"""Losses on a vocabulary, in blocks of rows: the matrix of all logits never exists.

Shapes: ``n`` counted positions, ``width`` features, ``vocabulary`` entries. A language model's logits are by
far its largest activation (4 sequences of 1,024 tokens over 49,152 entries: 0.8 GB in float32, and a plain
distillation loss holds several such matrices). Here the gradient is taken while a block's logits exist and only sums
are kept: the memory of one block, and no second pass over the rows. For cross-entropy alone the idea is that of
Wijmans et al. 2025, arXiv:2411.09009, and Hsu et al. 2024, arXiv:2410.10989.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdalign.data.token_matching import SharedVocabulary
from kdalign.models.lm_head import block_rows, row_blocks, wide_dtype
from kdalign.models.token_targets import DenseTokens, TokenTargets, TopEntries
from kdalign.objective import losses
from kdalign.objective.losses.fused import CLOSED, BlockLosses, fused_losses, fused_losses_of_top

PENDING_BYTES = 2**27
"""Bytes of bfloat16 gradients of logits that are put together for one product: 1,365 rows of 49,152 entries."""


@dataclass(frozen=True)
class TokenLoss:
    """Cross-entropy with the text's tokens and divergence from a teacher's, weighted.

    Attributes:
        hard: weight of the cross-entropy.
        soft: weight of the divergence.
        divergence: a key of ``losses.DIVERGENCES``.
        temperature: temperature of the divergence.
        skew: the teacher's share in the divergence ``skew``.
        dtype: precision of the matrix products; the wider of features and weight if None. Gradients are formed before
            any loss scaling, so float16, in which small probabilities vanish, is not for it; bfloat16 is.
        shared: entries that the two vocabularies have in common, if there are two.
    """

    hard: float
    soft: float
    divergence: str = "forward"
    temperature: float = 1.0
    skew: float = 0.1
    dtype: torch.dtype | None = None
    shared: SharedVocabulary | None = None


def vocabulary_losses(
    loss: TokenLoss,
    student: DenseTokens,
    labels: Int[Tensor, "n"],
    teacher: TokenTargets | None = None,
    *,
    answered: Bool[Tensor, "n"] | None = None,
    rows: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Cross-entropy and divergence from the teacher over a vocabulary, summed over rows, in nats, block by block.

    .. math:: h \sum_i -\log \sigma(z^s_i)_{y_i} + s \, \tau^2 \sum_i D(\sigma(z^t_i / \tau), \sigma(z^s_i / \tau))

    with ``hard`` h, ``soft`` s, ``temperature`` :math:`\tau`, and D as in ``losses.divergence``. Softmax and sums are
    in float32 or wider.

    Where the vocabularies are padded to different sizes, D is taken over the entries that both have, renormalised; the
    cross-entropy over all of the student's. Where they are two, D is that over the entries of ``loss.shared``, plus the
    distance of the rest (``losses.universal_logit_distance``), in the rows that ``answered`` names.

    Args:
        loss: weights, divergence and precision.
        student: gets gradients, by features, weight and bias.
        labels: the entry of each row.
        teacher: gets no gradient; without one the divergence is 0.
        answered: rows in which a teacher with another vocabulary predicts the same token; all if None.
        rows: number of rows in a block.

    Returns:
        The total, differentiable once, and the two unweighted sums, detached, in float32.
    """
    if teacher is not None:
        teacher = teacher.prepared(loss.dtype, None if loss.shared is not None else len(student.head.weight))
    dtype = loss.dtype or student.dtype
    wide, head = wide_dtype(dtype), student.head.detached(dtype)
    learned = student.features, student.head.weight, student.head.bias
    sums = _GradientSums(learned, head.weight)
    hard_sum, soft_sum = student.features.new_zeros(2, dtype=wide)
    with torch.no_grad(), torch.autocast(student.features.device.type, enabled=False):
        for block in row_blocks(len(labels), rows or block_rows(len(head.weight), student.features.device)):
            logits = head.logits(student.features[block].to(dtype))
            target = None if teacher is None else teacher.block(block, loss.temperature)
            same = slice(None) if answered is None else answered[block]
            found = _block_losses(loss, logits, target, labels[block], same, sums.needed)
            hard_sum += found.hard
            soft_sum += found.soft
            if found.slope is not None:
                if head.softcap is not None:
                    found.slope.mul_(1 - (logits / head.softcap).square())  # derivative of c tanh(z / c), by its value
                sums.add(found.slope)
        gradients = sums.finished()
    total = loss.hard * hard_sum + loss.soft * soft_sum
    if sums.needed:
        total = _KnownGradients.apply(total, gradients, *learned)  # type: ignore[no-untyped-call]
    return total, hard_sum.float(), soft_sum.float()


def _block_losses(
    loss: TokenLoss,
    logits: Tensor,
    target: Tensor | TopEntries | None,
    labels: Tensor,
    same: slice | Tensor,
    differentiated: bool,
) -> BlockLosses:
    """A block's losses and gradient: in closed form where there is one, else the divergence's by autograd."""
    weights, alike = (loss.hard, loss.soft), loss.shared is None and isinstance(same, slice)
    if alike and isinstance(target, Tensor) and target.shape == logits.shape and loss.divergence in CLOSED:
        target = target.to(logits.dtype)
        return fused_losses(logits, target, labels, weights, loss.divergence, loss.temperature, slope=differentiated)
    if alike and isinstance(target, TopEntries) and target.vocabulary == logits.shape[1] and target.complete:
        ways = loss.divergence, loss.temperature, loss.skew
        return fused_losses_of_top(logits, target, labels, weights, *ways, slope=differentiated)
    hard, slope = _cross_entropy(logits, labels, loss.hard if differentiated else None)
    given = slope if differentiated else None
    soft = hard.new_zeros(()) if target is None else _add_divergence(given, logits, target, same, loss)
    return BlockLosses(hard, soft, given)


def _cross_entropy(logits: Tensor, labels: Tensor, weight: float | None) -> tuple[Tensor, Tensor]:
    """A block's sum, and its gradient by the logits times the weight; without a weight no gradient."""
    here = torch.arange(len(logits), device=logits.device), labels
    slope = F.log_softmax(logits, dim=-1)
    total = -slope[here].sum()
    if weight is not None:  # in the same memory: probabilities, less one at the label
        slope = slope.exp_().mul_(weight)
        slope[here] -= weight
    return total, slope


def _add_divergence(
    slope: Tensor | None, logits: Tensor, target: Tensor | TopEntries, same: slice | Tensor, loss: TokenLoss
) -> Tensor:
    """A block's divergence from the teacher; adds its weighted gradient by the student's logits to the slope."""
    theirs = target.vocabulary if isinstance(target, TopEntries) else target.shape[1]
    ours = logits if loss.shared is not None else logits[:, :theirs]
    ours.requires_grad_(slope is not None)
    with torch.set_grad_enabled(slope is not None):
        if isinstance(target, TopEntries):
            total = _divergence_of_top(ours[same], target[same], loss)
        elif loss.shared is None:
            total = losses.divergence(ours, target, loss.divergence, loss.temperature, loss.skew)
        else:
            total = _divergence_across(ours[same], target[same], loss.shared, loss)
    if slope is not None:
        slope[:, : ours.shape[1]].add_(torch.autograd.grad(total, ours)[0], alpha=loss.soft)
    return total.detach()


def _divergence_of_top(student: Tensor, teacher: TopEntries, loss: TokenLoss) -> Tensor:
    """Compare the teacher's top entries one by one and the rest as one; entries of the student's vocabulary alone."""
    if loss.shared is not None:
        teacher = teacher.renumbered(loss.shared.numbers(teacher.vocabulary), student.size(1))
    elif teacher.vocabulary > student.size(1):
        teacher = teacher.first(student.size(1))
    return losses.divergence_of_top(
        student, teacher.entries, teacher.logs, loss.divergence, loss.temperature, loss.skew
    )


def _divergence_across(student: Tensor, teacher: Tensor, shared: SharedVocabulary, loss: TokenLoss) -> Tensor:
    """Compare two vocabularies: shared entries one by one, the rest by its sorted probabilities."""
    entries = shared.student.to(student.device), shared.teacher.to(student.device)
    alike = losses.divergence_of_shared(student, teacher, entries, loss.divergence, loss.temperature, loss.skew)
    return alike + losses.universal_logit_distance(student, teacher, entries, loss.temperature)


class _GradientSums:
    """Gradients of features, weight and bias, summed over blocks of rows.

    In bfloat16, blocks are put together until they take ``PENDING_BYTES``: each product of the weight's gradient walks
    through all of it, and the product of few rows is slow.

    Attributes:
        needed: True if any of the three gets a gradient.
    """

    def __init__(self, learned: tuple[Tensor, Tensor, Tensor | None], weight: Tensor) -> None:
        self._features, self._weight = learned[0], weight
        self._wide = wide_dtype(weight.dtype)
        self._rounded = weight.dtype != self._wide
        of_features, of_weight, of_bias = (
            tensor is not None and tensor.requires_grad and torch.is_grad_enabled() for tensor in learned
        )
        self.needed = of_features or of_weight or of_bias
        self._needs_weight = of_weight
        self._of_features = torch.zeros_like(learned[0], dtype=self._wide) if of_features else None
        self._of_weight: Tensor | None = None
        self._of_bias = weight.new_zeros(len(weight), dtype=self._wide) if of_bias else None
        self._pending: Tensor | None = None
        self._waiting = self._done = 0

    def add(self, slope: Tensor) -> None:
        """Add the next block, given the gradient of its logits."""
        if self._of_bias is not None:
            self._of_bias += slope.sum(dim=0)
        if not self._rounded:
            self._multiply(slope)
            return
        if self._pending is None:  # blocks have equally many rows, but for the last one
            blocks = max(1, -(-PENDING_BYTES // (slope.numel() * self._weight.element_size())))
            rows = min(blocks * len(slope), len(self._features))
            self._pending = slope.new_empty(rows, slope.size(1), dtype=self._weight.dtype)
        self._pending[self._waiting : self._waiting + len(slope)] = slope
        self._waiting += len(slope)
        if self._waiting == len(self._pending):
            self._multiply_pending()

    def finished(self) -> list[Tensor | None]:
        """Return the gradients of features, weight and bias, those that are needed."""
        if self._waiting:
            self._multiply_pending()
        if self._needs_weight and self._of_weight is None:
            self._of_weight = torch.zeros_like(self._weight)
        return [self._of_features, self._of_weight, self._of_bias]

    def _multiply_pending(self) -> None:
        assert self._pending is not None, "something waits"
        waiting, self._waiting = self._pending[: self._waiting], 0
        self._multiply(waiting)

    def _multiply(self, slopes: Tensor) -> None:
        rows = slice(self._done, self._done + len(slopes))
        self._done = rows.stop
        if self._of_features is not None:
            self._of_features[rows] = slopes @ self._weight
        if self._needs_weight:
            product = slopes.T, self._features.detach()[rows].to(self._weight.dtype)
            if self._of_weight is None:
                alone = self._done == len(self._features)
                self._of_weight = (product[0] @ product[1]).to(self._weight.dtype if alone else self._wide)
            elif self._rounded:
                self._of_weight.add_(product[0] @ product[1])
            else:
                self._of_weight.addmm_(*product)


class _KnownGradients(torch.autograd.Function):
    """A scalar whose gradients by some inputs are known already: backward only scales them."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *learned: Tensor | None) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in learned]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # New tensors, not in place: a graph that was kept may be walked again.
        return (
            None,
            None,
            *(None if known is None else known.to(dtype, copy=True).mul_(upstream) for known, dtype in pairs),
        )
