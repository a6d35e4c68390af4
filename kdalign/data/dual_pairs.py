"""Tokenize pairs for encoder-decoders with two tokenizers: sources and targets, each matched by its characters."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import Tokenizers
from kdalign.data.tasks import Examples
from kdalign.data.token_matching import AFTER, coverage, token_spans
from kdalign.data.tokenization import special_frame, tokenize_pairs
from kdalign.data.tokenized_split import DECODER, TEACHER, TokenizedSplit

_NOWHERE = (0, 0)
"""Span of a target's position that is matched with none."""
_Spans = list[tuple[int, int]]


def tokenize_pairs_dual(
    examples: Examples, tokenizers: Tokenizers, decoder_starts: tuple[int, int], max_length: int
) -> TokenizedSplit:
    """Tokenize sources and targets by both tokenizers, for a student and a teacher with an encoder and a decoder.

    Positions of the encoder are matched as in models that see the whole text, those of the decoder after the same text
    of the target: both predict its first character after their own beginnings, and its end after its last one.

    Args:
        examples: pairs.
        tokenizers: the student's and the teacher's.
        decoder_starts: tokens by which targets begin for the student and for the teacher.
        max_length: longest source and longest target in tokens, for each by its own.
    """
    sides = [
        _tokenize_side(examples, tokenizer, start, max_length)
        for tokenizer, start in zip(tokenizers, decoder_starts, strict=True)
    ]
    ours, theirs = (side.split for side in sides)
    columns, pad = dict(ours.columns), dict(ours.pad)
    for prefix, side in zip(("", TEACHER), sides, strict=True):
        columns |= {f"{prefix}{name}": column for name, column in side.spans().items()}
        columns |= {f"{prefix}{name}": side.split.columns[name] for name in ("input_ids", "decoder_input_ids")}
        pad |= {f"{prefix}{name}": 0 for name in side.spans()}
        pad |= {f"{prefix}{name}": side.split.pad[name] for name in ("input_ids", "decoder_input_ids")}
    known = np.array([_covered(examples, row, sides[0], sides[1]) for row in range(len(examples))]).sum(axis=0)
    ends = tuple(int(tokenizer.eos_token_id) for tokenizer in tokenizers)
    return replace(
        ours,
        columns=columns,
        pad=pad,
        truncated=max(ours.truncated, theirs.truncated),
        covered=(int(known[0]), int(known[1])),
        ends=(ends[0], ends[1]),
    )


@dataclass(frozen=True)
class _Side:
    """Pairs as one model reads them: tokens, and the characters of those that its encoder and its decoder read."""

    split: TokenizedSplit
    sources: list[_Spans]
    targets: list[_Spans]

    def spans(self) -> dict[str, list[list[int]]]:
        """Return the columns of the spans."""
        parts = {"": self.sources, DECODER: self.targets}
        return {
            f"{part}{name}": [[span[number] for span in row] for row in rows]
            for part, rows in parts.items()
            for number, name in enumerate(("start", "end"))
        }


def _tokenize_side(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, decoder_start: int, max_length: int
) -> _Side:
    split = tokenize_pairs(examples, tokenizer, decoder_start, max_length)
    sources, targets = (list(column) for column in examples.texts)
    read = tokenizer(sources, return_offsets_mapping=True, verbose=False)
    asked = tokenizer(text_target=targets, return_offsets_mapping=True, verbose=False)
    added = [] if special_frame(tokenizer)[1] else [AFTER]
    of_sources, of_targets = [], []
    for row, ids in enumerate(split.columns["input_ids"]):
        spans = [*token_spans(tokenizer, read, row, 0), *added]
        of_sources.append(spans if len(spans) == len(ids) else [*spans[: len(ids) - 1], AFTER])
        texts = asked.sequence_ids(row)
        inner = [
            place if text is not None else _NOWHERE
            for text, place in zip(texts, asked["offset_mapping"][row], strict=True)
        ]
        of_targets.append(_decoder_spans(inner, len(split.columns["targets"][row])))
    return _Side(split, of_sources, of_targets)


def _decoder_spans(places: _Spans, length: int) -> _Spans:
    """Return the spans of a decoder's positions; a position reads the token before the one that it predicts.

    A target's character takes up the place after its number; the position before the first takes up place 0.
    """
    shifted = [(start + 1, end + 1) if start < end else _NOWHERE for start, end in places]
    first = next((number for number, span in enumerate(shifted) if span != _NOWHERE), None)
    spans = [_NOWHERE, *shifted]
    if first is not None:
        spans[first] = (0, 1)
    return [*spans, *[_NOWHERE] * length][:length]


def _covered(examples: Examples, row: int, ours: _Side, theirs: _Side) -> tuple[int, int]:
    """Count the characters of a pair in tokens of both, and all of them."""
    counts = np.zeros(2, dtype=int)
    for text, spans, shift in (
        (examples.texts[0][row], (ours.sources[row], theirs.sources[row]), 0),
        (examples.texts[1][row], (ours.targets[row], theirs.targets[row]), 1),
    ):
        sides = ([(start - shift, end - shift) for start, end in side if start >= shift] for side in spans)
        both = (([start for start, _ in side], [end for _, end in side]) for side in sides)
        counts += coverage(text, *both)
    return int(counts[0]), int(counts[1])
