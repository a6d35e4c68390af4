"""Sliding windows for the likelihood of texts: every token is predicted once, with a known context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.tokenization import special_frame, start_token
from kdalign.data.tokenized_split import IGNORED, TokenizedSplit

FEW = 20
"""With fewer texts than this an interval resamples rows instead: so few texts tell nothing about the spread."""


def windows(inputs: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Divide ``inputs`` positions into windows: (first input, end, first predicted position).

    The first window predicts all its positions. Each later one starts ``stride`` further and predicts what is new, so
    that nothing is predicted from fewer than ``length - stride`` tokens; the last is as long as the others and starts
    earlier for it. lm-evaluation-harness rolls over a text in the same way.
    """
    end = 0
    while end < inputs:
        asked, end = end, min(end + (stride if end else length), inputs)
        yield max(0, end - length), end, asked


def tokenize_causal_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> TokenizedSplit:
    """Tokenize texts in windows for a causal model; the first token is predicted from the start token.

    Args:
        texts: documents.
        tokenizer: the model's.
        length: number of tokens that a position may see, itself included.
        stride: positions between one window and the next; ``length`` if left out.
    """
    contents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    start = special_frame(tokenizer)[0] or start_token(tokenizer)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "targets": []}
    origin = []
    for number, content in enumerate(contents):
        whole = [*start, *content]
        for begin, end, asked in windows(len(whole) - 1, length, stride or length):
            asked = max(asked, len(start) - 1)  # the start itself is not predicted
            columns["input_ids"].append(whole[begin:end])
            columns["targets"].append([IGNORED] * (asked - begin) + whole[asked + 1 : end + 1])
            origin.append(number)
    return _scored_split(columns, tokenizer, texts, origin)


def tokenize_permuted_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> TokenizedSplit:
    """Tokenize texts in windows for a permutation model, left to right; a text's first token is not predicted.

    Nothing precedes a text's first token: XLNet's mask would be empty there, and then it sees everything. Its bytes,
    and its word if it is a whole one, do not count either. Every window begins with a token that is only read.
    """
    offsets = {"return_offsets_mapping": True, "add_special_tokens": False, "verbose": False}
    found = tokenizer(list(texts), **offsets)
    before, after = special_frame(tokenizer)
    room = length - len(before) - len(after)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "targets": [], "order": []}
    origin, given = [], []
    for number, (content, places) in enumerate(zip(found["input_ids"], found["offset_mapping"], strict=True)):
        # SentencePiece's space, and the bytes of one character, share their span with the token that follows.
        given.append(texts[number][: places[1][0]] if len(places) > 1 else texts[number])
        for begin, end, asked in windows(len(content) - 1, room - 1, min(stride or length, room - 1)):
            inner = content[begin : end + 1]
            free = np.arange(len(inner))
            columns["input_ids"].append([*before, *inner, *after])
            new = [IGNORED] * (asked + 1 - begin) + content[asked + 1 : end + 1]
            columns["targets"].append([IGNORED] * len(before) + new + [IGNORED] * len(after))
            last = len(inner) + np.arange(len(before) + len(after))  # special tokens come after all others
            columns["order"].append([*last[: len(before)].tolist(), *free.tolist(), *last[len(before) :].tolist()])
            origin.append(number)
    return _scored_split(columns, tokenizer, texts, origin, given)


@dataclass(frozen=True)
class MaskSingleToken:
    """Mask one token, the target, and on request the rest of its word."""

    mask: int

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """Mask the row, and keep its one target."""
        position, end = row["asked"]
        ids, targets = list(row["input_ids"]), [IGNORED] * len(row["input_ids"])
        targets[position] = ids[position]
        ids[position:end] = [self.mask] * (end - position)
        return {"input_ids": ids, "targets": targets}


def tokenize_pseudo_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, within_words: bool = True
) -> TokenizedSplit:
    r"""Tokenize texts for a masked model's pseudo-log-likelihood: one row for each token, in which it is masked.

    .. math:: \mathrm{PLL}(x) = \sum_t \log p(x_t \mid x_{\setminus t})

    Salazar et al. 2020, arXiv:1910.14659, equation 1. With ``within_words`` the tokens that follow in its word are
    masked, too, since they would give it away: PLL-word-l2r, Kauf and Ivanova 2023, arXiv:2305.10588. A text longer
    than ``length`` is cut into parts that do not see each other.
    """
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    before, after = special_frame(tokenizer)
    room = length - len(before) - len(after)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "asked": []}
    origin, part = [], 0
    for number, content in enumerate(found["input_ids"]):
        words = found.word_ids(number)
        for begin in range(0, len(content), room):
            inner = content[begin : begin + room]
            row = [*before, *inner, *after]  # one list for all its rows
            ends = _word_ends(words[begin : begin + room]) if within_words else range(1, len(inner) + 1)
            for position, end in enumerate(ends):
                columns["input_ids"].append(row)
                columns["asked"].append([len(before) + position, len(before) + end])
                origin.append(number if len(texts) >= FEW else part)
            part += 1
    mask = MaskSingleToken(int(tokenizer.mask_token_id))
    return _scored_split(columns, tokenizer, texts, origin, corrupt=mask, groups=np.array(origin))


def count_words_and_bytes(texts: Sequence[str], given: Sequence[str] = ()) -> tuple[int, int]:
    """Count words and bytes of texts without their given beginnings; a partly given word counts."""
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for text, start in zip(texts, given, strict=False):
        ends = start != start.rstrip() or text[len(start) : len(start) + 1].strip() == ""  # with a word of its own
        words -= len(start.split()) if ends else len(start.split()[:-1])
        size -= len(start.encode("utf-8", "surrogatepass"))
    return words, size


def _word_ends(words: Sequence[int | None]) -> list[int]:
    """End of each token's word; a token outside words is one by itself."""
    ends = [0] * len(words)
    for position in reversed(range(len(words))):
        goes_on = position + 1 < len(words) and words[position] is not None and words[position + 1] == words[position]
        ends[position] = ends[position + 1] if goes_on else position + 1
    return ends


def _scored_split(
    columns: dict[str, list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    origin: Sequence[int],
    given: Sequence[str] = (),
    groups: np.ndarray[Any, Any] | None = None,
    **more: Any,
) -> TokenizedSplit:
    """Make a split of rows, with the words and bytes of all predicted text."""
    pad = {"input_ids": int(tokenizer.pad_token_id), "targets": IGNORED, "order": -1, "asked": 0}
    words, size = count_words_and_bytes(texts, given)
    if groups is None and len(texts) >= FEW:
        groups = np.array(origin)
    return TokenizedSplit(columns, None, pad, words=words, bytes=size, groups=groups, **more)
