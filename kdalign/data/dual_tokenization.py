"""Tokenize texts by the student's and the teacher's tokenizers at once, with each token's character span."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.corruption import MASKED_RATE
from kdalign.data.tasks import Examples
from kdalign.data.token_matching import AFTER, BEFORE, CLASSES, common_segments, coverage, dual_windows
from kdalign.data.tokenization import special_frame, start_token, tokenize_labelled
from kdalign.data.tokenized_split import IGNORED, TEACHER, TokenizedSplit
from kdalign.errors import UsageError

Tokenizers = tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]
"""The student's tokenizer and the teacher's."""
Columns = Mapping[str, Sequence[list[int]]]


def check_spans(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that gives no character offsets.

    Raises:
        UsageError: it gives none; the line names the model.
    """
    if not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer of {name!r} cannot say which characters its tokens stand for, so it cannot be matched with "
            f"another (accepted: a fast tokenizer, or models with one tokenizer)"
        )


def tokenize_labelled_dual(
    examples: Examples, tokenizers: Tokenizers, max_length: int, left_to_right: bool = False
) -> TokenizedSplit:
    """Tokenize a split with labels by both tokenizers; each truncates to ``max_length`` of its own tokens."""
    ours, theirs = (tokenize_labelled(examples, tokenizer, max_length, spans=True) for tokenizer in tokenizers)
    texts = [" ".join(each) for each in zip(*examples.texts, strict=True)]
    both = _join(ours, theirs, left_to_right)
    return replace(both, covered=_coverage(texts, ours.columns, theirs.columns))


def tokenize_labelled_several(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    readers: Sequence[PreTrainedTokenizerBase | None],
    max_length: int,
) -> TokenizedSplit:
    """Tokenize a split with labels for several teachers with tokenizers of their own.

    Args:
        examples: rows of train.
        tokenizer: the student's.
        readers: each teacher's tokenizer; None for one that reads the student's tokens. Equal ones are one object.
        max_length: most tokens of each.
    """
    joined = tokenize_labelled(examples, tokenizer, max_length, spans=True)
    texts = [" ".join(each) for each in zip(*examples.texts, strict=True)]
    prefixes: dict[int, str] = {}
    covered: list[int] = []
    for number, reader in enumerate(readers):
        if reader is not None and id(reader) not in prefixes:
            prefixes[id(reader)] = prefix = f"teacher {number + 1} "
            theirs = tokenize_labelled(examples, reader, max_length, spans=True)
            common, characters = _coverage(texts, joined.columns, theirs.columns)
            covered.append(common)
            joined = _join(joined, theirs, left_to_right=False, prefix=prefix)
    own = tuple(None if reader is None else prefixes[id(reader)] for reader in readers)
    return replace(joined, readers=own, covered=(*covered, characters))


def tokenize_documents_dual(examples: Examples, tokenizers: Tokenizers, family: str, max_length: int) -> TokenizedSplit:
    """Tokenize documents by both tokenizers, to train a language model (``masked`` or ``causal``) of a family.

    A long document becomes several rows, divided at boundaries of both, so that a row is the same text to both. Each
    row holds one document: packed rows could not end together.
    """
    texts = list(examples.texts[0])
    whole = [_tokens(texts, tokenizer) for tokenizer in tokenizers]
    frames = [_frame(tokenizer, family) for tokenizer in tokenizers]
    classes = [None if family == "causal" else tokenizer.cls_token_id for tokenizer in tokenizers]
    room = [max_length - len(before) - len(after) for before, after in frames]
    rows: list[dict[str, list[list[int]]]] = [{"input_ids": [], "start": [], "end": []} for _ in tokenizers]
    targets: list[list[int]] = []
    for document in range(len(texts)):
        spans = [np.stack([side["start"][document], side["end"][document]], axis=1) for side in whole]
        for parts in dual_windows(spans[0], spans[1], (room[0], room[1])):
            for side, part in enumerate(parts):
                for name, (before, after) in _special_spans(frames[side], classes[side]).items():
                    rows[side][name].append([*before, *whole[side][name][document][part], *after])
            ids = whole[0]["input_ids"][document]
            ends = family == "causal" and parts[0].stop == len(ids)
            last = int(tokenizers[0].eos_token_id) if ends else IGNORED
            targets.append([*[IGNORED] * (len(frames[0][0]) - 1), *ids[parts[0]], last])
    if family == "causal":
        rows[0]["targets"] = targets
    ours, theirs = (
        TokenizedSplit(columns, None, {**dict.fromkeys(columns, 0), "input_ids": int(tokenizer.pad_token_id)})
        for columns, tokenizer in zip(rows, tokenizers, strict=True)
    )
    both = _join(ours, theirs, family == "causal")
    words = sum(len(text.split()) for text in texts)
    both = replace(both, covered=_coverage(texts, whole[0], whole[1]), words=words)
    both.pad["targets"] = IGNORED
    if family == "causal":
        return both
    masks, sizes = zip(*[(int(each.mask_token_id), len(each)) for each in tokenizers], strict=True)
    return replace(both, corrupt=MaskAlignedSpans(masks, sizes, np.array(sorted(tokenizers[0].all_special_ids))))


def _tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = found["offset_mapping"]
    sides = {name: [[place[side] for place in row] for row in places] for side, name in enumerate(("start", "end"))}
    return {"input_ids": found["input_ids"], **sides}


def _frame(tokenizer: PreTrainedTokenizerBase, family: str) -> tuple[list[int], list[int]]:
    before, after = special_frame(tokenizer)
    return (before or start_token(tokenizer), []) if family == "causal" else (before, after)


def _special_spans(frame: tuple[list[int], list[int]], classes: int | None) -> dict[str, tuple[list[int], list[int]]]:
    """Ids and spans of the special tokens before and after a text; ``classes`` is the token that stands for it all."""
    places = [
        [CLASSES if token == classes else place for token in tokens]
        for tokens, place in zip(frame, (BEFORE, AFTER), strict=True)
    ]
    before, after = places
    starts = [start for start, _ in before], [start for start, _ in after]
    return {"input_ids": frame, "start": starts, "end": ([end for _, end in before], [end for _, end in after])}


def _join(ours: TokenizedSplit, theirs: TokenizedSplit, left_to_right: bool, prefix: str = TEACHER) -> TokenizedSplit:
    """Join both encodings of the same rows."""
    columns = {**ours.columns, **{prefix + name: column for name, column in theirs.columns.items()}}
    pad = ours.pad | {prefix + name: value for name, value in theirs.pad.items()}
    truncated = max(ours.truncated, theirs.truncated)
    return replace(ours, columns=columns, pad=pad, truncated=truncated, left_to_right=left_to_right)


def _coverage(texts: Sequence[str], ours: Columns, theirs: Columns) -> tuple[int, int]:
    """Number of characters that are in tokens of both, and of all."""
    spans = [zip(side["start"], side["end"], strict=True) for side in (ours, theirs)]
    counts = np.array([coverage(text, *each) for text, *each in zip(texts, *spans, strict=True)]).reshape(-1, 2)
    return int(counts[:, 0].sum()), int(counts[:, 1].sum())


@dataclass(frozen=True)
class MaskAlignedSpans:
    """Mask the same text for both: segments of whole tokens of both, 15 % of the student's tokens.

    The replacement of a segment is drawn as in ``MaskTokens``, once for both.
    """

    masks: tuple[int, ...]
    vocabularies: tuple[int, ...]
    special: np.ndarray[tuple[int], np.dtype[np.int64]]

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Replace some segments; the student's tokens in them become its targets."""
        ids = [np.array(row[side + "input_ids"]) for side in ("", TEACHER)]
        spans = [np.stack([row[side + "start"], row[side + "end"]], axis=1) for side in ("", TEACHER)]
        stretches = common_segments(spans[0], spans[1])
        free = (spans[0][:, 0] >= 0) & ~np.isin(ids[0], self.special)
        sizes = np.bincount(stretches[0][free])
        drawn = generator.permutation(np.flatnonzero(sizes))
        enough = np.searchsorted(np.cumsum(sizes[drawn]), max(1, round(MASKED_RATE * int(free.sum()))))
        chosen = drawn[: int(enough) + 1]
        fate = np.ones(1 + max(int(each.max()) for each in stretches))
        fate[chosen] = generator.random(len(chosen))
        asked = np.isin(stretches[0], chosen) & free
        targets = np.where(asked, ids[0], IGNORED)
        for side, tokens in enumerate(ids):
            here = np.where(spans[side][:, 0] >= 0, fate[stretches[side]], 1.0)
            tokens[here < 0.8] = self.masks[side]
            other = (here >= 0.8) & (here < 0.9)
            tokens[other] = generator.integers(0, self.vocabularies[side], int(other.sum()))
        changed = {"input_ids": ids[0].tolist(), TEACHER + "input_ids": ids[1].tolist(), "targets": targets.tolist()}
        return {**row, **changed}
