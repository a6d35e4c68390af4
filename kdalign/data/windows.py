"""Texts as the rows on which their likelihood is taken: every token asked for once, with the context that is stated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kdalign.data.batches import IGNORED, TokenizedSplit
from kdalign.data.tokenization import special_frame, start_token

FEW = 20
"""With fewer texts than this an interval resamples their rows: so few texts say nothing of the spread."""


def windows(inputs: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows over ``inputs`` positions: (first input, end, first position that is asked for).

    The first window asks for all its positions. Each later one goes on by ``stride`` and asks for what is new, so that
    nothing is predicted from fewer than ``length - stride`` tokens; the last is as long as the others, too, and
    reaches back for it. That is how lm-evaluation-harness rolls over a text.
    """
    end = 0
    while end < inputs:
        asked, end = end, min(end + (stride if end else length), inputs)
        yield max(0, end - length), end, asked


def tokenize_causal_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> TokenizedSplit:
    """Rows for a causal model: a text's first token is predicted from the start token, all others from what precedes.

    Args:
        texts: documents.
        tokenizer: the model's.
        length: tokens that a position may see, itself included.
        stride: positions between one window and the next; ``length`` where left out.
    """
    contents = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    start = special_frame(tokenizer)[0] or start_token(tokenizer)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "targets": []}
    origin = []
    for number, content in enumerate(contents):
        whole = [*start, *content]
        for begin, end, asked in windows(len(whole) - 1, length, stride or length):
            asked = max(asked, len(start) - 1)  # the start itself is given
            columns["input_ids"].append(whole[begin:end])
            columns["targets"].append([IGNORED] * (asked - begin) + whole[asked + 1 : end + 1])
            origin.append(number)
    return _scored(columns, tokenizer, texts, origin)


def tokenize_permuted_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None
) -> TokenizedSplit:
    """Rows for a permutation model, predicted from left to right; a text's first token is given, not asked for.

    Nothing leads to a text's first token: XLNet's mask would be empty there, and then sees everything. Its bytes, and
    its word where it is a whole one, do not count either. Every window begins with a token that is only read.
    """
    offsets = {"return_offsets_mapping": True, "add_special_tokens": False, "verbose": False}
    found = tokenizer(list(texts), **offsets)
    before, after = special_frame(tokenizer)
    room = length - len(before) - len(after)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "targets": [], "order": []}
    origin, given = [], []
    for number, (content, places) in enumerate(zip(found["input_ids"], found["offset_mapping"], strict=True)):
        # SentencePiece's blank, and the bytes of one character, share their place with the token that follows.
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
    return _scored(columns, tokenizer, texts, origin, given)


@dataclass(frozen=True)
class MaskSingleToken:
    """Mask the token that is asked for, and with it what follows in its word, where that is wanted."""

    mask: int

    def __call__(self, row: dict[str, list[int]], generator: np.random.Generator) -> dict[str, list[int]]:
        """The row with its mask and its one target."""
        position, end = row["asked"]
        ids, targets = list(row["input_ids"]), [IGNORED] * len(row["input_ids"])
        targets[position] = ids[position]
        ids[position:end] = [self.mask] * (end - position)
        return {"input_ids": ids, "targets": targets}


def tokenize_pseudo_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, within_words: bool = True
) -> TokenizedSplit:
    r"""Rows for the pseudo-log-likelihood of a masked model: a row for each token, in which it is masked.

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
    return _scored(columns, tokenizer, texts, origin, corrupt=mask, groups=np.array(origin))


def count_words_and_bytes(texts: Sequence[str], given: Sequence[str] = ()) -> tuple[int, int]:
    """The words and the bytes of texts, less those of the beginnings that are given: a word counts while any of it."""
    words = sum(len(text.split()) for text in texts)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for text, start in zip(texts, given, strict=False):
        ends = start != start.rstrip() or text[len(start) : len(start) + 1].strip() == ""  # with a word of its own
        words -= len(start.split()) if ends else len(start.split()[:-1])
        size -= len(start.encode("utf-8", "surrogatepass"))
    return words, size


def _word_ends(words: Sequence[int | None]) -> list[int]:
    """For each token, where its word ends; a token of no word is one by itself."""
    ends = [0] * len(words)
    for position in reversed(range(len(words))):
        goes_on = position + 1 < len(words) and words[position] is not None and words[position + 1] == words[position]
        ends[position] = ends[position + 1] if goes_on else position + 1
    return ends


def _scored(
    columns: dict[str, list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    origin: Sequence[int],
    given: Sequence[str] = (),
    groups: np.ndarray[Any, Any] | None = None,
    **more: Any,
) -> TokenizedSplit:
    """Rows with the words and bytes of what is asked for: all but what is given of each text."""
    pad = {"input_ids": int(tokenizer.pad_token_id), "targets": IGNORED, "order": -1, "asked": 0}
    words, size = count_words_and_bytes(texts, given)
    if groups is None and len(texts) >= FEW:
        groups = np.array(origin)
    return TokenizedSplit(columns, None, pad, words=words, bytes=size, groups=groups, **more)
