"""Distributions over the next token: dense, as features and a head, or the likeliest entries with the rest as one.

Shapes: ``batch`` rows, ``time`` positions, ``n`` selected positions, ``k`` entries kept of a vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kdalign.models.lm_head import LMHead, row_blocks

ABSENT = -1e4
"""Log-probability of an entry that is not there: 0 as a probability, and finite, so that no difference is NaN."""


@dataclass(frozen=True)
class TopEntries:
    """The likeliest entries of some positions, and all others together as one more entry.

    Attributes:
        entries: numbers of the kept entries; -1 for an entry that the student's vocabulary lacks.
        logs: log-probabilities of the kept entries, then of all others together, softened at some temperature.
        vocabulary: number of entries of the vocabulary that they were taken from.
    """

    entries: Int[Tensor, "n k"]
    logs: Float[Tensor, "n k1"]
    vocabulary: int

    @property
    def complete(self) -> bool:
        """True if the student's vocabulary has every kept entry."""
        return not bool((self.entries < 0).any())

    def renumbered(self, numbers: Int[Tensor, "entries"], vocabulary: int) -> "TopEntries":
        """Number the entries as another vocabulary does.

        Args:
            numbers: for each entry the other vocabulary's, or -1 if it has none; its probability joins the others'.
            vocabulary: number of the other vocabulary's entries.
        """
        entries = numbers.to(self.entries.device)[self.entries]
        lost = entries < 0
        kept, rest = self.logs[:, :-1], self.logs[:, -1:]
        gone = torch.where(lost, kept, -torch.inf)
        rest = torch.cat([gone, rest], dim=1).logsumexp(dim=1, keepdim=True)
        return TopEntries(entries, torch.cat([torch.where(lost, ABSENT, kept), rest], dim=1), vocabulary)

    def first(self, vocabulary: int) -> "TopEntries":
        """Leave out the entries from a number on, and their probability, as dense logits are cut."""
        lost = self.entries >= vocabulary
        kept = torch.where(lost, ABSENT, self.logs[:, :-1])
        logs = F.log_softmax(torch.cat([kept, self.logs[:, -1:]], dim=1), dim=1)
        return TopEntries(torch.where(lost, -1, self.entries), logs, vocabulary)

    def __getitem__(self, rows: slice | Tensor) -> "TopEntries":
        return replace(self, entries=self.entries[rows], logs=self.logs[rows])


@runtime_checkable
class TokenTargets(Protocol):
    """A teacher's distributions over the next token, at the positions of a batch or at those selected from it."""

    def select(self, positions: Bool[Tensor, "batch time"]) -> "TokenTargets":
        """Select positions of a batch; the result has one dimension of positions."""

    def prepared(self, dtype: torch.dtype | None, entries: int | None) -> "TokenTargets":
        """Prepare for ``block``: products in this precision (None: their own), over the first entries alone."""

    def block(self, rows: slice, temperature: float) -> Float[Tensor, "n entries"] | TopEntries:
        """Give some selected positions: logits that are not softened yet, or the top entries at the temperature."""


@dataclass(frozen=True)
class DenseTokens:
    """Features of positions, and the head that maps them to logits."""

    features: Float[Tensor, "*positions width"]
    head: LMHead

    @property
    def dtype(self) -> torch.dtype:
        """The wider precision of features and weight."""
        return torch.promote_types(self.features.dtype, self.head.weight.dtype)

    def select(self, positions: Bool[Tensor, "batch time"]) -> "DenseTokens":
        """Select positions of a batch."""
        return replace(self, features=self.features[positions])

    def prepared(self, dtype: torch.dtype | None, entries: int | None) -> "DenseTokens":
        """Detach the head from its graph, in the precision of the products."""
        return replace(self, head=self.head.detached(dtype or self.dtype, entries))

    def block(self, rows: slice, temperature: float) -> Float[Tensor, "n entries"]:
        """Compute the logits of some positions."""
        return self.head.logits(self.features[rows])


@dataclass(frozen=True)
class TopTokens:
    """The likeliest entries of positions, the rest as one, by the temperatures at which they were softened.

    Attributes:
        entries: numbers of the kept entries.
        logs: by temperature, log-probabilities of the kept entries, then of all others together.
        vocabulary: number of entries of the vocabulary.
    """

    entries: Int[Tensor, "*positions k"]
    logs: dict[float, Float[Tensor, "*positions k1"]]
    vocabulary: int

    def select(self, positions: Bool[Tensor, "batch time"]) -> "TopTokens":
        """Select positions of a batch."""
        logs = {temperature: kept[positions] for temperature, kept in self.logs.items()}
        return replace(self, entries=self.entries[positions], logs=logs)

    def prepared(self, dtype: torch.dtype | None, entries: int | None) -> "TopTokens":
        """Return the same: there is no product left to take, and entries are compared by number."""
        return self

    def block(self, rows: slice, temperature: float) -> TopEntries:
        """Give some positions at a temperature, one of those that are kept."""
        return TopEntries(self.entries[rows], self.logs[temperature][rows], self.vocabulary)


def top_tokens(tokens: DenseTokens, k: int, temperatures: tuple[float, ...], rows: int) -> TopTokens:
    """Reduce dense distributions to their k likeliest entries and one for the rest, without a graph.

    Args:
        tokens: selected positions, (n, width).
        k: number of entries kept, below the vocabulary's.
        temperatures: temperatures at which log-probabilities are taken; the entries are the same at each.
        rows: number of positions whose logits exist at a time.
    """
    numbers: list[Tensor] = []
    logs: dict[float, list[Tensor]] = {temperature: [] for temperature in temperatures}
    vocabulary = len(tokens.head.weight)
    with torch.no_grad(), torch.autocast(tokens.features.device.type, enabled=False):
        for block in row_blocks(len(tokens.features), rows):
            logits = tokens.head.logits(tokens.features[block])
            entries = logits.topk(k, dim=1).indices
            numbers.append(entries)
            for temperature, kept in logs.items():
                kept.append(top_log_probabilities(logits / temperature, entries))
    empty = tokens.features.new_zeros(0, k).long()
    return TopTokens(
        torch.cat([empty, *numbers]),
        {
            temperature: torch.cat([tokens.features.new_zeros(0, k + 1).float(), *kept])
            for temperature, kept in logs.items()
        },
        vocabulary,
    )


def top_log_probabilities(scores: Float[Tensor, "n vocabulary"], entries: Int[Tensor, "n k"]) -> Float[Tensor, "n k1"]:
    r"""Log-probabilities of some entries of each row, then of all others together.

    .. math:: \log\sigma(z)_{e_1}, \dots, \log\sigma(z)_{e_k}, \; \log \sum_{j \notin e} \sigma(z)_j

    The rest is a logsumexp over the others, never one minus the kept sum, whose gradient is NaN where the kept ones
    reach 1 in floating point. An entry of -1 is not there, and neither is a rest of no entries.
    """
    if bool((entries < 0).any()):
        scores = F.pad(scores, (0, 1), value=ABSENT)
        entries = torch.where(entries < 0, scores.size(1) - 1, entries)
    rest = scores.scatter(1, entries, -torch.inf).logsumexp(dim=1, keepdim=True).clamp_min(ABSENT)
    return F.log_softmax(torch.cat([scores.gather(1, entries), rest], dim=1), dim=1)


def label_log_probabilities(
    tokens: TokenTargets, labels: Int[Tensor, "n"], rows: int
) -> tuple[Float[Tensor, "n"], Bool[Tensor, "n"] | None]:
    """Log-probability of each selected position's label, in nats, block by block, without a graph.

    Args:
        tokens: selected positions.
        labels: an entry for each.
        rows: number of positions whose logits exist at a time.

    Returns:
        The log-probabilities, and which labels are outside of the kept entries, whose value is that of all others
        together; None if all entries are kept. They are at temperature 1, unless other temperatures alone are kept.
    """
    temperature = 1.0
    if isinstance(tokens, TopTokens) and temperature not in tokens.logs:
        temperature = min(tokens.logs)
    tokens = tokens.prepared(None, None)
    found: list[Tensor] = [torch.zeros(0, device=labels.device)]
    outside: list[Tensor] = []
    with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
        for block in row_blocks(len(labels), rows):
            target = tokens.block(block, temperature)
            if isinstance(target, TopEntries):
                kept = target.entries == labels[block, None]
                outside.append(~kept.any(dim=1))
                place = torch.where(outside[-1], kept.size(1), kept.long().argmax(dim=1))
                found.append(target.logs.gather(1, place[:, None]).squeeze(1))
            else:
                each = F.cross_entropy(target / temperature, labels[block], reduction="none")
                found.append(-each)
    return torch.cat(found), torch.cat(outside) if outside else None
