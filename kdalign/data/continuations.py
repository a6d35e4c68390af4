"""Continuations of training rows: a prompt, the text that follows it in the data, and another one in its place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from kdalign.data.tokenized_split import IGNORED, TokenizedSplit

Tokens = list[int]


@dataclass(frozen=True)
class Continuation:
    """A row's prompt and what follows it.

    Attributes:
        prompt: tokens that are read: of a source, of a conversation up to its answer, or of a text's beginning.
        rest: tokens that follow in the data, the end token included if it is in the row; none if nothing is predicted.
        followed: true if other text follows in the row, so that the end of this one is in it.
    """

    prompt: Tokens
    rest: Tokens
    followed: bool = False


def continuation_of(encoded: TokenizedSplit, row: int, prompt_tokens: int) -> Continuation:
    """Divide a row of a causal model or an encoder-decoder into a prompt and what follows.

    If only a part of the row is predicted, as in a conversation, the prompt reaches up to the first answer. If all of
    it is, the prompt is the beginning of its longest document. It always reaches up to a token to predict, and is all
    of a text without any.

    Args:
        encoded: tokenized rows.
        row: the row's number.
        prompt_tokens: most tokens of a document's beginning, with the token before it; at most half are taken.
    """
    ids, targets = encoded.columns["input_ids"][row], encoded.columns["targets"][row]
    if "decoder_input_ids" in encoded.columns:
        return Continuation(ids, targets)
    if "document" not in encoded.columns:
        return _divide(ids, targets, range(len(ids)), 1)
    documents = [
        list(places) for _, places in groupby(range(len(ids)), key=encoded.columns["document"][row].__getitem__)
    ]
    longest = max(documents, key=len)
    return _divide(ids, targets, range(longest[0], longest[-1] + 1), max(1, min(prompt_tokens, len(longest) // 2)))


def _divide(ids: Tokens, targets: Tokens, text: range, least: int) -> Continuation:
    """Split a text of a row into a prompt, up to the first target after `least` tokens, and the targets from there."""
    first = next((place for place in text[least - 1 :] if targets[place] != IGNORED), None)
    if first is None:
        return Continuation(ids[text.start : text.stop], [], text.stop < len(ids))
    last = next((place for place in range(first, text.stop) if targets[place] == IGNORED), text.stop)
    return Continuation(ids[text.start : first + 1], targets[first:last], last < len(ids))


def with_samples(
    encoded: TokenizedSplit, continuations: Sequence[Continuation], samples: Sequence[Tokens], rows: Sequence[int]
) -> TokenizedSplit:
    """Make rows of prompts and samples, in which the samples' tokens alone are predicted, their ends included.

    Args:
        encoded: the split of the prompts, for its padding and the token by which a decoder begins.
        continuations: prompts.
        samples: tokens in place of what follows the prompts, one at least.
        rows: numbers of the prompts' rows.
    """
    columns: dict[str, list[Tokens]]
    if "decoder_input_ids" in encoded.columns:
        starts = [encoded.columns["decoder_input_ids"][row][0] for row in rows]
        columns = {
            "input_ids": [one.prompt for one in continuations],
            "decoder_input_ids": [[start, *sample[:-1]] for start, sample in zip(starts, samples, strict=True)],
            "targets": [list(sample) for sample in samples],
        }
    else:
        pairs = list(zip(continuations, samples, strict=True))
        columns = {
            "input_ids": [[*one.prompt, *sample[:-1]] for one, sample in pairs],
            "targets": [[*[IGNORED] * (len(one.prompt) - 1), *sample] for one, sample in pairs],
        }
    empty = replace(encoded.take([]), labels=None, labelled=None, corrupt=None, groups=None, truncated=0, passed_over=0)
    return replace(empty, columns=columns, taught_by=None)
