r"""Align two tokenizations of one text by the character spans of their tokens.

A token's *span* is (start, end) in characters of its text; it is empty for padding and tokens without text. Special
tokens have spans below 0, one for each position around texts, so that they are aligned as well.

Shapes: ``time`` positions of the student, ``theirs`` positions of the teacher.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Spans = np.ndarray[tuple[int, int], np.dtype[np.int64]]
"""(tokens, 2): start and end of each token."""

CLASSES, BEFORE, BETWEEN, AFTER = (-2, -1), (-8, -7), (-6, -5), (-4, -3)
"""Spans of special tokens: the one that stands for the whole text, and those before, between and after texts."""


@dataclass(frozen=True)
class TokenAlignment:
    """Alignment of a teacher's positions with its student's.

    Attributes:
        shares: (batch, time, theirs), weights of teacher positions in the mean that a student position is compared
            with; a row sums to 1, or to 0 without a counterpart.
        spread: (batch, theirs, time), weights by which a teacher position's attention is divided over student
            positions.
        answers: (batch, time), the teacher position that predicts the same token as the student's; -1 if there is none.
        decoder: alignment of a decoder's positions, where these are of the encoder; None in models of one stack.
    """

    shares: Float[Tensor, "batch time theirs"]
    spread: Float[Tensor, "batch theirs time"]
    answers: Int[Tensor, "batch time"]
    decoder: "TokenAlignment | None" = None

    @property
    def output(self) -> "TokenAlignment":
        """The alignment of the positions that predict."""
        return self if self.decoder is None else self.decoder

    def of_stack(self, stack: str) -> "TokenAlignment":
        """Return the alignment of a stack's positions; those of the queries where a decoder looks at an encoder."""
        return self if stack == "encoder" else self.output

    @cached_property
    def compared(self) -> Bool[Tensor, "batch time"]:
        """Student positions with a counterpart."""
        return self.shares.sum(dim=-1) > 0

    def align_features(
        self, states: Float[Tensor, "batch *heads theirs width"]
    ) -> Float[Tensor, "batch *heads time width"]:
        """Map the teacher's features to the student's positions, in float32."""
        shares = self.shares if states.ndim == 3 else self.shares[:, None]
        return shares @ states.float()

    def align_maps(
        self, maps: Float[Tensor, "batch heads theirs theirs_keys"], keys: "TokenAlignment"
    ) -> Float[Tensor, "batch heads time keys"]:
        """Map the teacher's attention to the student's positions, renormalised over the keys that both have.

        Args:
            maps: probabilities over keys.
            keys: alignment of the keys' positions.
        """
        between = self.shares[:, None] @ maps.float()
        moved = between @ keys.spread[:, None]
        lost = (between * ~(keys.spread.sum(dim=-1) > 0)[:, None, None]).sum(dim=-1, keepdim=True)
        # Not 1 - lost: nearly all of a position's weight may be on a prompt, whose keys the student lacks.
        kept = moved.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(moved.dtype).tiny)
        return moved / torch.where(lost > 0, kept, 1)

    def align_predictions(self, features: Float[Tensor, "batch theirs width"]) -> Float[Tensor, "batch time width"]:
        """Pick the teacher's features that predict the student's token; arbitrary ones if no position does."""
        index = self.output.answers.clamp_min(0)[..., None].expand(-1, -1, features.size(-1))
        return features.gather(1, index)

    def select(self, rows: Int[Tensor, "rows"]) -> "TokenAlignment":
        """Select rows of the batch."""
        decoder = None if self.decoder is None else self.decoder.select(rows)
        return TokenAlignment(self.shares[rows], self.spread[rows], self.answers[rows], decoder)

    def to(self, device: torch.device) -> "TokenAlignment":
        """Move the alignment to a device."""
        decoder = None if self.decoder is None else self.decoder.to(device)
        return TokenAlignment(self.shares.to(device), self.spread.to(device), self.answers.to(device), decoder)


def align_tokens(
    ours: Int[Tensor, "batch time 2"], theirs: Int[Tensor, "batch theirs 2"], left_to_right: bool
) -> TokenAlignment:
    """Align positions by their spans.

    In models that see the whole text, a student position is compared with the mean of the teacher positions that share
    characters with it, weighted by their number; both predict the same token if neither shares with another. In models
    that read left to right, two positions are aligned only after the same text: if their tokens end at the same
    character (of several tokens of one character, bytes, only the last).
    """
    shared = _shared_characters(ours, theirs)
    spread = shared.transpose(1, 2)
    if left_to_right:
        shares = (_token_ends(ours)[:, :, None] == _token_ends(theirs)[:, None, :]) & (_token_ends(ours) != _OPEN)[
            :, :, None
        ]
        alone = shares
    else:
        shares = shared
        touching = shared > 0
        alone = touching & (touching.sum(dim=2, keepdim=True) == 1) & (touching.sum(dim=1, keepdim=True) == 1)
    answers = torch.where(alone.any(dim=-1), alone.int().argmax(dim=-1), -1)
    return TokenAlignment(_normalise_rows(shares.float()), _normalise_rows(spread.float()), answers)


def _shared_characters(ours: Tensor, theirs: Tensor) -> Int[Tensor, "batch time theirs"]:
    """Number of characters that two tokens share."""
    start = torch.maximum(ours[:, :, None, 0], theirs[:, None, :, 0])
    end = torch.minimum(ours[:, :, None, 1], theirs[:, None, :, 1])
    return (end - start).clamp_min(0)


_OPEN = torch.iinfo(torch.long).min


def _token_ends(spans: Tensor) -> Int[Tensor, "batch time"]:
    """End of each token's text; ``_OPEN`` for a token without text, and for all but the last that end together."""
    start, end = spans.unbind(dim=-1)
    goes_on = torch.zeros_like(end, dtype=torch.bool)
    goes_on[:, :-1] = (end[:, 1:] == end[:, :-1]) & (start[:, 1:] < end[:, 1:])
    return torch.where((start < end) & ~goes_on, end, _OPEN)


def _normalise_rows(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)


def token_spans(tokenizer: PreTrainedTokenizerBase, encoding: Any, row: int, shift: int) -> list[tuple[int, int]]:
    """List the spans of a row's tokens; those of a second text are shifted past the first."""
    places: list[tuple[int, int]] = []
    texts = encoding.sequence_ids(row)
    last = max((number for number, text in enumerate(texts) if text is not None), default=-1)
    seen = False
    columns = zip(encoding["input_ids"][row], texts, encoding["offset_mapping"][row], strict=True)
    for number, (token, text, (start, end)) in enumerate(columns):
        seen = seen or text is not None
        if text is not None:
            places.append((start + shift * text, end + shift * text))
        elif token == tokenizer.cls_token_id:
            places.append(CLASSES)
        else:
            places.append(BEFORE if not seen else AFTER if number > last else BETWEEN)
    return places


def coverage(text: str, ours: tuple[Sequence[int], ...], theirs: tuple[Sequence[int], ...]) -> tuple[int, int]:
    """Count the characters in tokens of both sides, and all characters, white space aside.

    Args:
        text: a text.
        ours: starts and ends of one side's tokens; special tokens do not count.
        theirs: starts and ends of the other side's.
    """
    written = np.array([not character.isspace() for character in text], dtype=bool)
    both = _inside_tokens(len(text), *ours) & _inside_tokens(len(text), *theirs) & written
    return int(both.sum()), int(written.sum())


def _inside_tokens(length: int, starts: Sequence[int], ends: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(length,), true for characters in a token."""
    steps = np.zeros(length + 1, dtype=int)
    real = np.array(starts, dtype=int) >= 0
    np.add.at(steps, np.array(starts, dtype=int)[real], 1)
    np.add.at(steps, np.array(ends, dtype=int)[real], -1)
    held: np.ndarray[Any, np.dtype[np.bool_]] = np.cumsum(steps)[:length] > 0
    return held


def dual_windows(ours: Spans, theirs: Spans, room: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Divide two tokenizations of a text into rows of at most ``room`` tokens of each, at boundaries of both.

    A segment without a common boundary that is longer than a row is truncated.
    """
    ends = [{int(end): number for number, end in enumerate(spans[:, 1])} for spans in (ours, theirs)]
    common = sorted(ends[0].keys() & ends[1].keys())
    places = [(ends[0][end] + 1, ends[1][end] + 1) for end in common]
    begun, last = (0, 0), (0, 0)
    for place in places:
        if any(here - start > most for here, start, most in zip(place, begun, room, strict=True)):
            if last > begun:
                yield slice(begun[0], last[0]), slice(begun[1], last[1])
                begun = last
            if any(here - start > most for here, start, most in zip(place, begun, room, strict=True)):
                cut = [min(start + most, here) for here, start, most in zip(place, begun, room, strict=True)]
                yield slice(begun[0], cut[0]), slice(begun[1], cut[1])
                begun = place
        last = place
    if last > begun:
        yield slice(begun[0], last[0]), slice(begun[1], last[1])


def common_segments(ours: Spans, theirs: Spans) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Number, for each token of both, the smallest segment of text that consists of whole tokens of both."""
    spans = np.concatenate([ours, theirs])
    order = np.lexsort((spans[:, 1], spans[:, 0]))
    ends = np.maximum.accumulate(spans[order, 1])
    begins = np.concatenate([[False], spans[order[1:], 0] >= ends[:-1]])
    numbers = np.empty(len(spans), dtype=int)
    numbers[order] = np.cumsum(begins)
    return numbers[: len(ours)], numbers[len(ours) :]


@dataclass(frozen=True)
class SharedVocabulary:
    """Entries of two vocabularies with the same text or role, side by side."""

    student: Int[Tensor, "entries"]
    teacher: Int[Tensor, "entries"]

    def __len__(self) -> int:
        return len(self.student)

    def with_pair(self, student: int, teacher: int) -> "SharedVocabulary":
        """Return the entries with this pair in place of others of the same entries."""
        kept = (self.student != student) & (self.teacher != teacher)
        ours = torch.cat([self.student[kept], torch.tensor([student])])
        order = ours.argsort()
        return SharedVocabulary(ours[order], torch.cat([self.teacher[kept], torch.tensor([teacher])])[order])

    def numbers(self, vocabulary: int) -> Int[Tensor, "vocabulary"]:
        """Return the student's number of each entry of the teacher's vocabulary; -1 for those that it lacks.

        Args:
            vocabulary: number of the teacher's entries.
        """
        numbers = torch.full((vocabulary,), -1)
        return numbers.index_copy(0, self.teacher.cpu(), self.student.cpu())


def shared_vocabulary(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> SharedVocabulary:
    """Find the entries that both vocabularies have, by their text and not by their spelling.

    ``Ġthe`` of a byte-level tokenizer, ``▁the`` of SentencePiece and ``the`` of WordPiece all stand for " the".
    """
    theirs_by = _meanings(theirs)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for meaning, number in _meanings(ours).items():
        other = theirs_by.get(meaning)
        if other is not None and number not in pairs and other not in taken:  # one token may have two roles
            pairs[number] = other
            taken.add(other)
    student, teacher = torch.tensor(sorted(pairs.items()), dtype=torch.long).reshape(-1, 2).unbind(dim=1)
    return SharedVocabulary(student, teacher)


_ROLES = ("cls_token", "sep_token", "mask_token", "eos_token", "bos_token")


def _meanings(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str] = _ROLES) -> dict[bytes | str, int]:
    """Entry of each text in bytes, with a space before the beginning of a word, and of each special token's role.

    WordPiece isolates punctuation and Chinese characters, with or without a space: their space is left out.
    """
    settings = _settings(tokenizer)
    prefix = settings["model"].get("continuing_subword_prefix") or ""
    byte_level = any('"ByteLevel"' in json.dumps(settings[part]) for part in ("pre_tokenizer", "decoder"))
    special = set(tokenizer.all_special_ids)
    numbers = {role: getattr(tokenizer, f"{role}_id") for role in roles}
    found: dict[bytes | str, int] = {role: int(number) for role, number in numbers.items() if number is not None}
    # Bytes come last: if a character has an entry of its own, its byte does not stand for it.
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: (_is_byte(entry[0]), entry[1])):
        if number not in special and not (
            prefix and token.startswith(prefix) and _is_isolated(token.removeprefix(prefix))
        ):
            found.setdefault(_bytes_of(token, prefix, byte_level), number)
    return found


def source_pieces(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> list[list[int]]:
    """Find, for each entry of our vocabulary, the entries of theirs that spell its text; none for one without text.

    An entry with the same text is taken by itself, and a special token for one of the same role.
    """
    roles = ("pad_token", "unk_token", *_ROLES)  # one token may have several: the last counts
    theirs_by = _meanings(theirs, roles)
    (first, *_) = theirs("a", add_special_tokens=False)["input_ids"]
    adds_space = theirs_by.get(b" a") == first
    pieces: list[list[int]] = [[] for _ in range(len(ours))]
    for meaning, number in _meanings(ours, roles).items():
        if meaning in theirs_by:
            pieces[number] = [theirs_by[meaning]]
        elif isinstance(meaning, bytes):
            text = meaning.decode(errors="ignore")
            text = text.removeprefix(" ") if adds_space else text
            pieces[number] = list(theirs(text, add_special_tokens=False)["input_ids"]) if text else []
    return pieces


def entry_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes of each entry but special tokens, with a space before the beginning of a word."""
    settings = _settings(tokenizer)
    prefix = settings["model"].get("continuing_subword_prefix") or ""
    byte_level = any('"ByteLevel"' in json.dumps(settings[part]) for part in ("pre_tokenizer", "decoder"))
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    return {
        number: _bytes_of(token, prefix, byte_level)
        for token, number in tokenizer.get_vocab().items()
        if number not in special
    }


def _settings(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
    settings: Mapping[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return settings


def _is_isolated(token: str) -> bool:
    """True if WordPiece splits texts around a token, which then tells nothing about a space before it."""
    if len(token) != 1:
        return False
    punctuation = unicodedata.category(token).startswith("P") or (token.isascii() and not token.isalnum())
    return punctuation or "CJK" in unicodedata.name(token, "")


def _is_byte(token: str) -> bool:
    """True if a token is SentencePiece's spelling of a byte."""
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def _bytes_of(token: str, prefix: str, byte_level: bool) -> bytes:
    if prefix:
        if token.startswith(prefix) or _is_isolated(token):
            return token.removeprefix(prefix).encode()
        return b" " + token.encode()
    if byte_level and all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    if _is_byte(token):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """Characters for bytes in byte-level tokenizers: printable ones themselves, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_characters()
