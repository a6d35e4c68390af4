"""Typing mistakes in texts, to measure how far a model's scores fall."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdalign.data.media.rows import NOUNS, MediaRows
from kdalign.errors import UsageError, unknown


def _mistype(word: str, generator: np.random.Generator) -> str:
    """Make one mistake in a word: drop, double, swap or replace a character."""
    place = int(generator.integers(len(word)))
    match int(generator.integers(4)):
        case 0 if len(word) > 1:
            return word[:place] + word[place + 1 :]
        case 1:
            return word[: place + 1] + word[place:]
        case 2 if len(word) > 1:
            place = min(place, len(word) - 2)
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        case _:
            other = string.ascii_lowercase[int(generator.integers(26))]
            return word[:place] + other + word[place + 1 :]


NOISES: Mapping[str, Callable[[str, np.random.Generator], str]] = {"typos": _mistype}
"""Changes of a word, by name."""


@dataclass(frozen=True)
class TextNoise:
    """Put one mistake into each of a share ``rate`` of the words, drawn by the seed and the text's number."""

    kind: str
    rate: float
    seed: int = 0

    @classmethod
    def parse(cls, given: str, seed: int = 0) -> "TextNoise":
        """Read ``typos=0.1``.

        Raises:
            UsageError: another kind, or no share between 0 and 1.
        """
        kind, _, rate = given.partition("=")
        if kind not in NOISES:
            raise unknown("noise", kind, [f"{name}=0.1" for name in NOISES])
        try:
            share = float(rate)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise UsageError(f"noise {given!r}: give the share of changed words, as in {kind}=0.1")
        return cls(kind, share, seed)

    def __str__(self) -> str:
        return f"{self.kind}={self.rate:g}"

    def __call__(self, texts: Sequence[str], column: int = 0) -> tuple[str, ...]:
        """Put mistakes into texts and keep their white space; the columns of a pair have different draws.

        Raises:
            UsageError: sounds or images in place of texts.
        """
        if isinstance(texts, MediaRows):
            raise UsageError(f"noise {str(self)!r} changes words, and a column of {NOUNS[texts.modality]}s has none")
        return tuple(self._noisy(column, number, text) for number, text in enumerate(texts))

    def _noisy(self, column: int, number: int, text: str) -> str:
        generator = np.random.default_rng([self.seed, column, number])
        change = NOISES[self.kind]
        parts = _words_and_blanks(text)
        return "".join(
            change(part, generator) if not part.isspace() and generator.random() < self.rate else part for part in parts
        )


def _words_and_blanks(text: str) -> list[str]:
    parts: list[str] = []
    for character in text:
        if parts and parts[-1][-1].isspace() == character.isspace():
            parts[-1] += character
        else:
            parts.append(character)
    return parts
