"""Baselines that no model should fall behind: the prompt again, and words drawn by how often they occur."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_END = 256
"""The symbol after a word's last byte."""


class Unigram:
    r"""A distribution over all words, from how often each occurs in training text.

    .. math:: p(w) = \frac{c(w) + T \, p_0(w)}{N + T}

    for N words of T kinds (Witten and Bell 1991, method C); :math:`p_0` spells a word that may be new by the frequency
    of bytes, its end included. White space is one end of a word, whatever it is.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._counts = Counter(word for text in texts for word in text.split())
        self._total = sum(self._counts.values())
        symbols = np.ones(_END + 1)
        for word, count in self._counts.items():
            np.add.at(symbols, [*word.encode("utf-8", "surrogatepass"), _END], count)
        self._spelled = np.log(symbols / symbols.sum())

    def nll(self, text: str) -> float:
        """The negative log-likelihood of a text's words, in nats."""
        return -sum(self._log(word) for word in text.split())

    def _log(self, word: str) -> float:
        kinds, count = len(self._counts), self._counts[word]
        spelled = self._spelled[[*word.encode("utf-8", "surrogatepass"), _END]].sum()  # its probability may underflow
        seen = math.log(count) if count else -math.inf
        return float(np.logaddexp(seen, math.log(kinds) + spelled)) - math.log(self._total + kinds)

    def write(self, lengths: Sequence[int], seed: int = 0) -> list[str]:
        """Texts of so many words, each drawn by its frequency."""
        words = sorted(self._counts)
        share = np.array([self._counts[word] for word in words]) / self._total
        drawn = np.random.default_rng(seed).choice(len(words), size=sum(lengths), p=share)
        ends = np.cumsum([0, *lengths])
        return [" ".join(words[index] for index in drawn[start:end]) for start, end in pairwise(ends)]
