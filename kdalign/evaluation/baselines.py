"""Baselines for generated texts that need no model: the prompt again, and words drawn by their frequency."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch

from kdalign.data.tasks.generation_cases import copy_baseline, normalise_spacing
from kdalign.evaluation import likelihood
from kdalign.evaluation.job import EvalJob, OutputPaths, add_text_scores, empty_result
from kdalign.evaluation.metric_names import is_text_metric
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.metrics.classification import Score
from kdalign.observer import Observer

_END = 256
"""Symbol after a word's last byte."""


class Unigram:
    r"""A distribution over all words, by their frequency in training text.

    .. math:: p(w) = \frac{c(w) + T \, p_0(w)}{N + T}

    for N words of T kinds (Witten and Bell 1991, method C); :math:`p_0` spells a new word by the frequency of bytes,
    its end included. Any white space ends a word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._counts = Counter(word for text in texts for word in text.split())
        self._total = sum(self._counts.values())
        symbols = np.ones(_END + 1)
        for word, count in self._counts.items():
            np.add.at(symbols, [*word.encode("utf-8", "surrogatepass"), _END], count)
        self._spelled = np.log(symbols / symbols.sum())

    def nll(self, text: str) -> float:
        """Return the negative log-likelihood of a text's words, in nats."""
        return -sum(self._log(word) for word in text.split())

    def _log(self, word: str) -> float:
        kinds, count = len(self._counts), self._counts[word]
        spelled = self._spelled[[*word.encode("utf-8", "surrogatepass"), _END]].sum()  # its probability may underflow
        seen = math.log(count) if count else -math.inf
        return float(np.logaddexp(seen, math.log(kinds) + spelled)) - math.log(self._total + kinds)

    def write(self, lengths: Sequence[int], seed: int = 0) -> list[str]:
        """Draw texts of given numbers of words, each word by its frequency."""
        words = sorted(self._counts)
        share = np.array([self._counts[word] for word in words]) / self._total
        drawn = np.random.default_rng(seed).choice(len(words), size=sum(lengths), p=share)
        ends = np.cumsum([0, *lengths])
        return [" ".join(words[index] for index in drawn[start:end]) for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Baseline:
    """A baseline: ``copy`` repeats the prompt, ``unigram`` draws words by their frequency in train.

    Attributes:
        name: ``copy`` or ``unigram``.
        job: split and settings.
        default_metrics: metrics of the models in the same table.
    """

    name: str
    job: EvalJob
    default_metrics: tuple[str, ...] = field(default=())

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Return why the baseline has no such metric: only a unigram with a train split has perplexities of words."""
        if is_text_metric(metric):
            return None
        of_words = metric in ("word_ppl", "byte_ppl", "bits_per_byte") and self.job.is_continuation
        if self.name != "unigram" or not of_words:
            return MissingMetric(metric, f"the baseline {self.name} has none")
        if not self.job.training_texts:
            return MissingMetric(metric, f"{self.job.task.source} has no split {self.job.task.train} to count words in")
        return None

    def measure(
        self, metrics: Sequence[str], output: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Score the texts of the baseline, and the unigram's likelihood of words."""
        result = empty_result(self.name, self.job, "baseline")
        texts, signature = self._repeat_prompts() if self.name == "copy" else self._draw_words()
        of_texts = [name for name in metrics if is_text_metric(name)]
        result = add_text_scores(result, self.job, self.job.cases, texts, of_texts, signature, output)
        if len(of_texts) < len(metrics):
            scores = [score for score in self._word_perplexities() if score.metric in metrics]
            result = replace(result, scores=(*scores, *result.scores))
        return result

    def _repeat_prompts(self) -> tuple[list[str], str]:
        signature = "the prompt's last words again" if self.job.is_continuation else "the source"
        return [copy_baseline(case) for case in self.job.cases], signature

    def _draw_words(self) -> tuple[list[str], str]:
        cases, train = self.job.cases, self.job.training_texts
        unigram = Unigram(normalise_spacing(train, self.job.language) or [case.prompt for case in cases])
        lengths = [case.words or len(case.references[0].split()) for case in cases]
        texts = [case.trim(text) for case, text in zip(cases, unigram.write(lengths), strict=True)]
        source = "train" if train else "the prompts"
        return texts, f"words of {source} drawn by their frequency, as many as the reference has"

    def _word_perplexities(self) -> list[Score]:
        texts, unigram = self.job.examples.texts[0], Unigram(self.job.training_texts)
        nll = np.array([unigram.nll(text) for text in texts])
        words = np.array([len(text.split()) for text in texts])
        size = np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts])
        signature = "words of train by their frequency, new ones spelled"
        return likelihood.word_perplexities(nll, words, size, signature)
