"""Corrupt token ids for training: masked tokens, masked spans, cut-off, permutations."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.media.augmentation import ImageAugmentation
from kdalign.data.tokenized_split import CUT, IGNORED, MASKED, Corruption, TokenizedSplit
from kdalign.recipe import AugmentSettings

MASKED_RATE = 0.15
"""Share of a row's tokens that are masked (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""


@dataclass(frozen=True)
class MaskTokens:
    """Mask 15 % of a row's tokens, at least one: 80 % as the mask, 10 % as another token, 10 % as they are.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """

    mask: int
    vocabulary: int
    special: np.ndarray[tuple[int], np.dtype[np.int64]]
    rate: float = MASKED_RATE

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Replace some tokens, and make them the row's targets."""
        ids = np.array(row["input_ids"])
        free = np.flatnonzero(~np.isin(ids, self.special))
        chosen = generator.permutation(free)[: max(1, round(self.rate * len(free)))]
        targets = np.full(len(ids), IGNORED)
        targets[chosen] = ids[chosen]
        fate = generator.random(len(chosen))
        ids[chosen[fate < 0.8]] = self.mask
        other = chosen[(fate >= 0.8) & (fate < 0.9)]
        ids[other] = generator.integers(0, self.vocabulary, len(other))
        return {**row, "input_ids": ids.tolist(), "targets": targets.tolist()}


SPAN_CHANCE, LONGEST_SPAN = 0.2, 10
"""Parameter and limit of a span's geometric length (Joshi et al. 2020, arXiv:1907.10529, section 3.1): mean 3.8."""


@dataclass(frozen=True)
class MaskSpans:
    """Mask runs of tokens of random lengths up to a share of the row, in some of the rows.

    Lengths as in SpanBERT (Joshi et al. 2020, arXiv:1907.10529, section 3.1), but runs may begin inside a word, and all
    of their tokens become the mask. Special tokens are never touched, nor does a run pass over one.
    """

    mask: int
    special: np.ndarray[tuple[int], np.dtype[np.int64]]
    rate: float
    share: float

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Mask some runs, or return the row as it is."""
        if generator.random() >= self.share:
            return row
        ids = np.array(row["input_ids"])
        free = ~np.isin(ids, self.special)
        left = max(1, round(self.rate * int(free.sum())))
        while left > 0 and free.any():
            length = min(int(generator.geometric(SPAN_CHANCE)), LONGEST_SPAN, left)
            begin = int(generator.choice(np.flatnonzero(free)))
            taken = free[begin : begin + length]
            end = begin + (length if taken.all() else int(taken.argmin()))
            ids[begin:end], free[begin:end] = self.mask, False
            left -= end - begin
        return {**row, "input_ids": ids.tolist()}


@dataclass(frozen=True)
class TokenCutoff:
    """Cut off a share of a row's tokens, which are then neither attended to nor counted, in some of the rows.

    Token cut-off, Shen et al. 2020, arXiv:2009.13818, section 3: a token's content is removed, and its position kept.
    Every row has the column ``CUT``, 1 for a token that is cut off. Special tokens are never touched.
    """

    special: np.ndarray[tuple[int], np.dtype[np.int64]]
    rate: float
    share: float

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Cut off some tokens, or none."""
        cut = np.zeros(len(row["input_ids"]), dtype=np.int64)
        free = np.flatnonzero(~np.isin(row["input_ids"], self.special))
        if generator.random() < self.share and len(free) > 1:  # nothing would be left of a single word
            cut[generator.permutation(free)[: max(1, round(self.rate * len(free)))]] = 1
        return {**row, CUT: cut.tolist()}


@dataclass(frozen=True)
class MaskedCopy:
    """Add a masked copy of a row with its targets; the row itself may be changed, too."""

    masking: MaskTokens
    before: Corruption | None

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Add masked ids and targets; a token that is cut off is not a target."""
        row = row if self.before is None else self.before(row, generator)
        masked = self.masking(row, generator)
        cut = row.get(CUT, [0] * len(row["input_ids"]))
        targets = [IGNORED if gone else target for target, gone in zip(masked["targets"], cut, strict=True)]
        return {**row, MASKED + "input_ids": masked["input_ids"], MASKED + "targets": targets}


def with_corruption(
    encoded: TokenizedSplit, augment: AugmentSettings, tokenizer: PreTrainedTokenizerBase, masked: bool = False
) -> TokenizedSplit:
    """Corrupt rows as the recipe's augmentation and ``masked_lm`` say, freshly each time that they are read."""
    special = np.array(sorted(tokenizer.all_special_ids))
    match augment.by:
        case "spans":
            how = MaskSpans(int(tokenizer.mask_token_id), special, augment.rate_used, augment.share)
            encoded = replace(encoded, corrupt=how)
        case "crop":
            assert encoded.media is not None, "checked: the task has images"
            change = ImageAugmentation(augment.rate_used, augment.flip)
            encoded = replace(encoded, media=replace(encoded.media, augmentation=change))
        case "cutoff":
            cut = TokenCutoff(special, augment.rate_used, augment.share)
            encoded = replace(encoded, corrupt=cut, pad={**encoded.pad, CUT: 0})
    if not masked:
        return encoded
    masking = MaskTokens(int(tokenizer.mask_token_id), len(tokenizer), special)
    pad = {**encoded.pad, MASKED + "input_ids": encoded.pad["input_ids"], MASKED + "targets": IGNORED}
    return replace(encoded, corrupt=MaskedCopy(masking, encoded.corrupt), pad=pad)


@dataclass(frozen=True)
class PermuteOrder:
    """Add the order in which a row's tokens are predicted: random, or left to right.

    Yang et al. 2019, arXiv:1906.08237, section 2.2. The first in the order has nothing to be predicted from: its row of
    XLNet's mask is empty, which lets it see everything, so it is never a target. Special tokens come last.
    """

    special: np.ndarray[tuple[int], np.dtype[np.int64]]
    left_to_right: bool = False

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Add order and targets."""
        ids = np.array(row["input_ids"])
        free = np.flatnonzero(~np.isin(ids, self.special))
        sequence = free if self.left_to_right else generator.permutation(free)
        order = np.arange(len(ids)) + len(free)
        order[sequence] = np.arange(len(free))
        targets = np.full(len(ids), IGNORED)
        targets[sequence[1:]] = ids[sequence[1:]]
        return {**row, "order": order.tolist(), "targets": targets.tolist()}
