"""Mixtures of several teachers' distributions: by weights, by confidence, or a teacher for each row.

Shapes: ``n`` rows or selected positions, ``classes`` classes or entries of a vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdalign.errors import UsageError
from kdalign.models.token_targets import TokenTargets, TopEntries


@dataclass(frozen=True)
class Mixing:
    r"""Weights of several teachers in the mixture of their distributions.

    Attributes:
        shares: one for each teacher, in sum 1.
        confidence: true to weigh each row by the teachers' certainty instead.
    """

    shares: tuple[float, ...]
    confidence: bool = False

    def weights(
        self, logits: Sequence[Float[Tensor, "n classes"]], labels: Int[Tensor, "n"] | None
    ) -> Float[Tensor, "teachers n"]:
        r"""Compute each teacher's weight in each row; over teachers they sum to 1.

        .. math:: w_k = \frac{1}{K - 1} \Big( 1 - \frac{\exp(c_k)}{\sum_j \exp(c_j)} \Big)

        with :math:`c_k` the teacher's cross-entropy with the label, at temperature 1 (CA-MKD, Zhang et al. 2022,
        arXiv:2201.00007). Of a row without a label (below 0) it is the entropy of the teacher's own
        distribution, which is the cross-entropy that it expects.

        Args:
            logits: for each teacher.
            labels: class or entry of each row; None if none is known.
        """
        first = logits[0]
        if not self.confidence:
            return first.new_tensor(self.shares, dtype=torch.float32)[:, None].expand(-1, len(first))
        costs = torch.stack([_uncertainty(F.log_softmax(each.float(), dim=1), labels) for each in logits])
        return (1 - costs.softmax(dim=0)) / (len(logits) - 1)


def _uncertainty(logs: Float[Tensor, "n classes"], labels: Int[Tensor, "n"] | None) -> Float[Tensor, "n"]:
    """Cross-entropy with the label; the entropy where there is none."""
    entropy = -(logs.exp() * logs).nan_to_num(0.0).sum(dim=1)
    if labels is None:
        return entropy
    known = -logs.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(labels >= 0, known, entropy)


def mixed_logits(
    logits: Sequence[Float[Tensor, "n classes"]], weights: Float[Tensor, "teachers n"], temperature: float
) -> Float[Tensor, "n classes"]:
    r"""Logits whose softened distribution is the mixture of several teachers' softened distributions.

    .. math:: z = \tau \log \sum_k w_k \, \sigma(z_k / \tau), \quad \sigma(z / \tau) = \sum_k w_k \, \sigma(z_k / \tau)

    With equal weights the mean of You et al. 2017 (Learning from Multiple Teacher Networks, KDD). Where
    all teachers but one have a weight of 0, the result is that teacher's log-probabilities times the temperature.
    """
    logs = torch.stack([F.log_softmax(each.float() / temperature, dim=1) for each in logits])
    return temperature * (logs + weights.to(logs.dtype).log()[:, :, None]).logsumexp(dim=0)


@dataclass(frozen=True)
class ClassMixture:
    """Several teachers' logits over classes, whose softened distributions are mixed row by row.

    Attributes:
        logits: (batch, classes), for each teacher, in the order of the task's labels.
        mixing: the teachers' weights.
        labels: (batch,), class of each row, below 0 if it is not known; None without labels.
    """

    logits: tuple[Float[Tensor, "batch classes"], ...]
    mixing: Mixing
    labels: Int[Tensor, "batch"] | None

    def logits_at(
        self, temperature: float, before: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Compute logits that give the mixture once they are softened at the temperature.

        Args:
            temperature: temperature of the mixed distributions.
            before: change of each teacher's logits first; their weights are of the logits as they are.
        """
        weights = self.mixing.weights(self.logits, self.labels)
        logits = self.logits if before is None else tuple(map(before, self.logits))
        return mixed_logits(logits, weights, temperature)

    @property
    def mean(self) -> Float[Tensor, "batch classes"]:
        """Weighted mean of the logits themselves."""
        weights = self.mixing.weights(self.logits, self.labels)
        return torch.einsum("kn,knc->nc", weights, torch.stack([each.float() for each in self.logits]))


@dataclass(frozen=True)
class MixedTokens:
    """Distributions of several teachers with one tokenizer, mixed position by position.

    Attributes:
        parts: one for each teacher, dense.
        mixing: the teachers' weights.
        targets: token to predict at each position, which confidence is measured by.
    """

    parts: tuple[TokenTargets, ...]
    mixing: Mixing
    targets: Int[Tensor, "*positions"]

    def select(self, positions: Bool[Tensor, "batch time"]) -> "MixedTokens":
        """Select positions of a batch."""
        parts = tuple(part.select(positions) for part in self.parts)
        return replace(self, parts=parts, targets=self.targets[positions])

    def prepared(self, dtype: torch.dtype | None, entries: int | None) -> "MixedTokens":
        """Prepare each teacher's distributions."""
        return replace(self, parts=tuple(part.prepared(dtype, entries) for part in self.parts))

    def block(self, rows: slice, temperature: float) -> Float[Tensor, "n entries"]:
        """Compute logits that give the mixture once they are softened at the temperature.

        Vocabularies that are padded to different sizes are cut to the smallest.
        """
        blocks = [_dense(part.block(rows, temperature)) for part in self.parts]
        entries = min(block.size(1) for block in blocks)
        logits = [block[:, :entries] for block in blocks]
        return mixed_logits(logits, self.mixing.weights(logits, self.targets[rows]), temperature)


@dataclass(frozen=True)
class RoutedTokens:
    """Distributions of several teachers with one tokenizer, each for rows of its own.

    Attributes:
        parts: for each teacher the distributions at its own positions, dense, in their order.
        taught_by: number of the teacher of each position, from 0.
    """

    parts: tuple[TokenTargets, ...]
    taught_by: Int[Tensor, "*positions"]

    def select(self, positions: Bool[Tensor, "batch time"]) -> "RoutedTokens":
        """Select positions of a batch; each part has the rows of its own teacher alone."""
        first = self.taught_by[:, 0] if self.taught_by.size(1) else self.taught_by.new_zeros(len(self.taught_by))
        none = torch.zeros_like(positions[:1])  # of the one row that stands in for a teacher without rows
        own = [positions[first == number] for number in range(len(self.parts))]
        parts = tuple(part.select(each if len(each) else none) for part, each in zip(self.parts, own, strict=True))
        return replace(self, parts=parts, taught_by=self.taught_by[positions])

    def prepared(self, dtype: torch.dtype | None, entries: int | None) -> "RoutedTokens":
        """Prepare each teacher's distributions."""
        return replace(self, parts=tuple(part.prepared(dtype, entries) for part in self.parts))

    def block(self, rows: slice, temperature: float) -> Float[Tensor, "n entries"]:
        """Compute the logits of some positions, each by its own teacher."""
        owner, before = self.taught_by[rows], self.taught_by[: rows.start]
        blocks = []
        for number, part in enumerate(self.parts):
            start = int((before == number).sum())
            blocks.append(_dense(part.block(slice(start, start + int((owner == number).sum())), temperature)))
        entries = min(block.size(1) for block in blocks)
        logits = blocks[0].new_empty(len(owner), entries)
        for number, block in enumerate(blocks):
            logits[owner == number] = block[:, :entries].to(logits.dtype)
        return logits


def _dense(block: Tensor | TopEntries) -> Tensor:
    if isinstance(block, TopEntries):
        raise UsageError(
            "of several teachers each must give every entry of its vocabulary: the likeliest ones alone, as a cache or "
            "a server gives them, have no exact mean (accepted: models that are loaded)"
        )
    return block
