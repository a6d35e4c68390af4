"""Baselines that no model should fall behind: the prompt again, and words drawn by how often they occur."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from kdalign.data.tasks.generation_cases import copy_baseline, normalise_spacing
from kdalign.evaluation import likelihood
from kdalign.evaluation.job import EvalJob, OutputPaths, empty_result, is_text_metric, with_texts
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.observer import Observer

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


@dataclass(frozen=True)
class Baseline:
    """What writes without a model: ``copy`` says the prompt again, ``unigram`` draws words by how often they occur."""

    name: str
    job: EvalJob
    default_metrics: tuple[str, ...] = field(default=())

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Perplexities are the unigram's alone, where there is text that it can learn from."""
        if is_text_metric(metric):
            return None
        if self.name != "unigram" or metric not in ("word_ppl", "byte_ppl", "bits_per_byte") or not self.job.continuing:
            return MissingMetric(metric, f"the baseline {self.name} has none")
        if not self.job.training_texts:
            return MissingMetric(metric, f"{self.job.task.source} has no split {self.job.task.train} to count words in")
        return None

    def measure(
        self, metrics: Sequence[str], place: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Texts and, of the unigram, the likelihood of words."""
        result, cases = empty_result(self.name, self.job, "baseline"), self.job.cases
        of_texts = [name for name in metrics if is_text_metric(name)]
        if self.name == "copy":
            how = "the prompt's last words again" if self.job.continuing else "the source"
            return with_texts(result, self.job, cases, [copy_baseline(case) for case in cases], of_texts, how, place)
        learnt = self.job.training_texts
        unigram = Unigram(normalise_spacing(learnt, self.job.language) or [case.prompt for case in cases])
        lengths = [case.words or len(case.references[0].split()) for case in cases]
        of = "of train" if learnt else "of the prompts"
        how = f"words {of} drawn by their frequency, as many as the reference has"
        texts = [case.cut(text) for case, text in zip(cases, unigram.write(lengths), strict=True)]
        result = with_texts(result, self.job, cases, texts, of_texts, how, place)
        others = [name for name in metrics if name not in of_texts]
        if others:
            texts, unigram = list(self.job.examples.texts[0]), Unigram(learnt)
            nll = np.array([unigram.nll(text) for text in texts])
            words = np.array([len(text.split()) for text in texts])
            size = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts])
            found = likelihood.word_perplexities(
                nll, words, size, "words of train by their frequency, new ones spelled"
            )
            result = replace(result, scores=(*found, *result.scores))
        return replace(result, scores=tuple(score for score in result.scores if score.metric in metrics))
