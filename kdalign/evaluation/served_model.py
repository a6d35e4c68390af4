"""A served model as a target: it generates texts, chooses labels, and gives likelihoods where its server can."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdalign.data.tasks import prompt_template
from kdalign.data.windows import count_words_and_bytes
from kdalign.evaluation import likelihood, multiple_choice
from kdalign.evaluation.adapters.classification import unsupported_class_metric
from kdalign.evaluation.job import EvalJob, OutputPaths, add_class_scores, add_text_scores, empty_result
from kdalign.evaluation.metric_names import AGREEMENT, MASKED_PPL, PERPLEXITIES, is_text_metric
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.observer import Observer
from kdalign.runs.prediction_table import Predictions
from kdalign.served import ApiModel, ServedSettings, TokenLogprob, Unavailable, label_in_answer

GO_ON = "Continue this text with the next {words} words. Answer with the continuation alone.\n\n{prompt}"
"""Prompt by which a model that only chats continues a text."""


@dataclass(frozen=True)
class _Opened:
    """A served model with its connection open, and the paths of its files."""

    api: ApiModel
    output: OutputPaths
    observer: Observer


@dataclass(frozen=True)
class ServedTarget:
    """A model at a URL.

    Attributes:
        name: name of its row.
        model: ``openai:NAME``.
        url: URL of the API.
        job: split and settings.
        folder: folder of its answers; every command reads known answers from there.
        settings: concurrency, budget and time limits.
    """

    name: str
    model: str
    url: str
    job: EvalJob
    folder: Path
    settings: ServedSettings

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The task's metrics, those of texts, or perplexities."""
        if self.job.is_classification:
            return self.job.classification.metrics
        return self.job.text_metrics or ("ppl", "word_ppl", "bits_per_byte")

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Return why the model cannot be scored by a metric, as far as that is known before the first request."""
        reason = self._obstacle(metric)
        return None if reason is None else MissingMetric(metric, reason)

    def _obstacle(self, metric: str) -> str | None:
        task = self.job.task
        if metric in (AGREEMENT, MASKED_PPL):
            return "a served model has no teacher's predictions and masks nothing"
        if self.job.is_classification:
            if not self.job.has_labels:
                return f"no word stands for the scores of task {task.name}"
            return unsupported_class_metric(self.job.classification, metric, self.job.examples)
        if not self.job.is_generation:
            return f"a served model cannot be scored on task {task.name}"
        if metric in PERPLEXITIES:
            return "a served model gives the likelihood of whole texts, not of answers" if self.job.has_pairs else None
        return None if is_text_metric(metric) else "it is of classes"

    def measure(
        self, metrics: Sequence[str], output: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Request the answers that are not kept yet, and score all of them."""
        result = empty_result(self.name, self.job, "served")
        if not metrics:
            return result
        with ApiModel(self.model, self.url, self.folder, self.settings) as api:
            opened = _Opened(api, output, observer)
            if self.job.is_classification:
                result = self._score_labels(result, opened, metrics)
            else:
                of_texts = [name for name in metrics if is_text_metric(name)]
                others = [name for name in metrics if name not in of_texts]
                if others:
                    result = self._score_likelihood(result, opened, others)
                if of_texts:
                    result = self._score_texts(result, opened, of_texts)
            record = api.record()
        version = f", answered by {', '.join(record['answered_by'])}" if record["answered_by"] else ""
        notes = [f"{self.name}: at {self.url}{version}; {record['requests']:,} requests paid for in this run"]
        if api.miscounted:
            notes.append(f"{self.name}: its counts of tokens are not numbers of tokens, and were not counted")
        if api.without_text:
            notes.append(f"{self.name}: {api.without_text:,} answers have no text (null), and count as empty")
        return replace(result, served=record, notes=(*result.notes, *notes))

    def _score_texts(self, result: EvaluationResult, opened: _Opened, metrics: Sequence[str]) -> EvaluationResult:
        """Score texts that the model generates."""
        api, cases = opened.api, self.job.prompted_cases
        limits = [case.token_budget or self.job.settings.generation.new_tokens for case in cases]
        stop = [cases[0].stop] if cases[0].stop else None
        api.complete([cases[0].prompt], limits[:1], stop)  # shows whether the server completes raw text or only chats
        signature = f"greedy{self.job.prompt_note}"
        prompts = [case.prompt for case in cases]
        if api.endpoint == "chat" and self.job.is_continuation:
            prompts = [GO_ON.format(words=case.words, prompt=case.prompt) for case in cases]
            signature += f", prompted by {GO_ON!r}"
        answers = api.complete(prompts, limits, stop, opened.observer.progress(f"{self.name}: writing"))
        if self.job.is_continuation:
            signature += ", ends after as many words as the reference"
        signature += f"; {api.endpoint} of the API"
        if api.dropped:
            signature += f", which refuses {', '.join(api.dropped)}"
        texts = [case.trim(answer) for case, answer in zip(cases, answers, strict=True)]
        if api.cut_empty:
            signature += f"; {api.cut_empty:,} answers are empty because their tokens ran out"
        return add_text_scores(result, self.job, cases, texts, metrics, signature, opened.output)

    def _score_likelihood(self, result: EvaluationResult, opened: _Opened, metrics: Sequence[str]) -> EvaluationResult:
        """Score the likelihood of texts from the log-probabilities that the server returns."""
        texts = self.job.examples.texts[0]
        rows = opened.api.prompt_logprobs(texts, opened.observer.progress(f"{self.name}: reading"))
        if isinstance(rows, Unavailable):
            return replace(result, absent=(*result.absent, *(MissingMetric(name, rows.reason) for name in metrics)))
        logprobs = [[token.logprob for token in row if token.logprob is not None] for row in rows]
        nll = np.array([-sum(row) for row in logprobs], dtype=np.float64)
        tokens = np.array([len(row) for row in logprobs], dtype=np.int64)
        contexts = [_unscored_beginning(text, row) for text, row in zip(texts, rows, strict=True)]
        words, size = count_words_and_bytes(texts, contexts)
        signature = likelihood.protocol("served", 0)
        scores = likelihood.token_perplexities(likelihood.TokenLikelihoods(nll, tokens, words, size), signature)
        return replace(result, scores=(*result.scores, *(score for score in scores if score.metric in metrics)))

    def _score_labels(self, result: EvaluationResult, opened: _Opened, metrics: Sequence[str]) -> EvaluationResult:
        """Score classes by the likelihood of their words where the server returns it, else by the model's answers."""
        questions, settings, api = self.job.questions, self.job.settings, opened.api
        progress = opened.observer.progress(f"{self.name}: choosing")
        wholes = [question.context + answer for question in questions for answer in question.answers]
        rows = api.prompt_logprobs(wholes, progress)
        if isinstance(rows, Unavailable):
            return self._score_answers(result, opened, metrics)
        starts = [len(question.context) for question in questions for _ in question.answers]
        values = np.array([_answer_logprob(row, start) for row, start in zip(rows, starts, strict=True)])
        chosen = multiple_choice.choose(values.reshape(len(questions), -1), questions)
        origin = prompt_template(self.job.classification).origin
        signature = multiple_choice.signature(origin, settings.shots, settings.seed)
        return add_class_scores(result, self.job, chosen, metrics, signature, opened.output)

    def _score_answers(self, result: EvaluationResult, opened: _Opened, metrics: Sequence[str]) -> EvaluationResult:
        """Score classes by the labels that the model's answers name; an answer that names none is wrong."""
        task, questions, truth = self.job.classification, self.job.questions, self.job.examples.labels
        assert truth is not None, "a split that is scored has labels"
        labels = [answer.strip() for answer in questions[0].answers]
        progress = opened.observer.progress(f"{self.name}: choosing")
        contexts = [question.context for question in questions]
        choices = opened.api.choose(contexts, labels, stop=["\n"], progress=progress)
        named = [label_in_answer(text, labels) for text in choices.texts]
        numbers = [
            (int(right) + 1) % len(labels) if label is None else label
            for label, right in zip(named, truth, strict=True)
        ]
        logits = np.eye(len(labels), dtype=np.float32)[numbers]
        of_logits = [name for name in metrics if task.metric(name).of_logits]
        absent = (MissingMetric(name, "answers in words do not say how sure they are") for name in of_logits)
        result = replace(result, absent=(*result.absent, *absent))
        form = (
            "free answers"
            if choices.constraint == "none"
            else f"answers constrained to the labels by {choices.constraint}"
        )
        signature = (
            f"{form}, {named.count(None):,} of {len(named):,} name no label and count as wrong; "
            f"{prompt_template(task).origin}"
        )
        metrics = [name for name in metrics if name not in of_logits]
        chosen = Predictions(logits, np.array(numbers))
        return add_class_scores(result, self.job, chosen, metrics, signature, opened.output)


def _unscored_beginning(text: str, row: Sequence[TokenLogprob]) -> str:
    """Return a text up to the first token that has a log-probability."""
    first = next((token for token in row if token.logprob is not None), None)
    if first is not None and first.offset is not None:
        return text[: first.offset]
    start = "".join(token.token for token in row if token.logprob is None)
    return start if text.startswith(start) else ""


def _answer_logprob(row: Sequence[TokenLogprob], start: int) -> float:
    """Return the log-probability of what follows a text's first ``start`` characters: of tokens that end after them."""
    total, end = 0.0, 0
    for token in row:
        begin = end if token.offset is None else token.offset
        end = begin + len(token.token)
        if end > start:
            total += token.logprob or 0.0
    return total
