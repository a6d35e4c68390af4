"""A model behind an API as a target: it writes texts, chooses labels, and tells likelihoods where its server does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdalign.data.tasks import ClassificationTask, LanguageTask, prompt_template
from kdalign.data.tasks.generation_cases import prompted_cases
from kdalign.data.windows import count_words_and_bytes
from kdalign.evaluation import likelihood, multiple_choice
from kdalign.evaluation.job import (
    EvalJob,
    OutputPaths,
    empty_result,
    is_generation_task,
    is_text_metric,
    with_classes,
    with_texts,
)
from kdalign.evaluation.likelihood import PERPLEXITIES
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.evaluation.target import AGREEMENT, MASKED
from kdalign.observer import Observer
from kdalign.runs.prediction_table import Predictions
from kdalign.served import ApiModel, ServedSettings, TokenLogprob, Unavailable, label_in_answer

GO_ON = "Continue this text with the next {words} words. Answer with the continuation alone.\n\n{prompt}"
"""How a model that only chats is asked to continue a text."""


@dataclass(frozen=True)
class ServedTarget:
    """A model at a URL.

    Attributes:
        name: ``openai:NAME``.
        url: of the API.
        folder: where its answers are kept; what is asked again, by whatever command, is read there.
    """

    name: str
    url: str
    job: EvalJob
    folder: Path
    settings: ServedSettings

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The task's, or what texts are compared by."""
        task = self.job.task
        if isinstance(task, ClassificationTask):
            return task.metrics
        return task.text_metrics or ("ppl", "word_ppl", "bits_per_byte")

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Why it cannot be scored by a metric, as far as that is known before it is asked."""
        task = self.job.task
        if metric in (AGREEMENT, MASKED):
            return MissingMetric(metric, "a served model has no teacher's answers and masks nothing")
        if isinstance(task, ClassificationTask):
            if is_text_metric(metric) or metric in PERPLEXITIES:
                return MissingMetric(
                    metric, f"task {task.name} is of classes; a text's is asked by --task lm:{task.name}"
                )
            if not task.labels or not task.fits(task.metric(metric)):
                return MissingMetric(metric, f"no word stands for the scores of task {task.name}")
            return None if self.job.examples.labels is not None else MissingMetric(metric, "the split has no labels")
        if not is_generation_task(task):
            return MissingMetric(metric, f"a served model is not asked for task {task.name}")
        if metric in PERPLEXITIES and task.pairs:
            return MissingMetric(metric, "of a served model the likelihood of whole texts is asked, not of answers")
        return None if is_text_metric(metric) or metric in PERPLEXITIES else MissingMetric(metric, "it is of classes")

    def measure(
        self, metrics: Sequence[str], place: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Ask what is not kept yet, and score it."""
        task = self.job.task
        result = empty_result(self.name, self.job, "served")
        if not metrics:
            return result
        with ApiModel(self.name, self.url, self.folder, self.settings) as served:
            if isinstance(task, ClassificationTask):
                result = self._by_labels(result, served, task, metrics, place, observer)
            else:
                of_texts = [name for name in metrics if is_text_metric(name)]
                others = [name for name in metrics if name not in of_texts]
                if others:
                    result = self._by_likelihood(result, served, others, observer)
                if of_texts:
                    result = self._by_texts(result, served, task, of_texts, place, observer)
            record = served.record()
        version = f", answered by {', '.join(record['answered_by'])}" if record["answered_by"] else ""
        note = f"{self.name}: at {self.url}{version}; {record['requests']:,} requests paid for in this run"
        notes = [note]
        if served.miscounted:
            notes.append(f"{self.name}: its counts of tokens are no numbers of tokens, and were not counted")
        if served.without_text:
            notes.append(f"{self.name}: {served.without_text:,} answers have no text (null), and count as empty")
        return replace(result, served=record, notes=(*result.notes, *notes))

    def _by_texts(
        self,
        result: EvaluationResult,
        served: ApiModel,
        task: LanguageTask,
        metrics: Sequence[str],
        place: OutputPaths,
        observer: Observer,
    ) -> EvaluationResult:
        cases = prompted_cases(self.job.cases, task) if task.pairs else self.job.cases
        most = [case.room or self.job.settings.writing.new_tokens for case in cases]
        stop = [cases[0].stop] if cases[0].stop else None
        served.complete([cases[0].prompt], most[:1], stop)  # tells whether raw text is completed, or only chat answered
        how = "greedy"
        prompts = [case.prompt for case in cases]
        if served.endpoint == "chat" and self.job.continuing:
            prompts = [GO_ON.format(words=case.words, prompt=case.prompt) for case in cases]
            how += f", asked by {GO_ON!r}"
        elif task.pairs:
            how += f", one line after the prompt {task.render_prompt({task.columns[0]: '...'})!r}"
        texts = served.complete(prompts, most, stop, observer.progress(f"{self.name}: writing"))
        if self.job.continuing:
            how += ", ends after as many words as the reference"
        how += f"; {served.endpoint} of the API"
        if served.dropped:
            how += f", which refuses {', '.join(served.dropped)}"
        written = [case.cut(text) for case, text in zip(cases, texts, strict=True)]
        if served.cut_empty:
            how += f"; {served.cut_empty:,} answers are empty because their tokens ran out"
        return with_texts(result, self.job, cases, written, metrics, how, place)

    def _by_likelihood(
        self, result: EvaluationResult, served: ApiModel, metrics: Sequence[str], observer: Observer
    ) -> EvaluationResult:
        texts = self.job.examples.texts[0]
        found = served.prompt_logprobs(texts, observer.progress(f"{self.name}: reading"))
        if isinstance(found, Unavailable):
            return replace(result, absent=(*result.absent, *(MissingMetric(name, found.reason) for name in metrics)))
        given, nll, tokens = [], np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        for number, row in enumerate(found):
            known = [token.logprob for token in row if token.logprob is not None]
            nll[number], tokens[number] = -sum(known), len(known)
            given.append(_given(texts[number], row))
        words, size = count_words_and_bytes(texts, given)
        how = likelihood.protocol("served", 0)
        scores = likelihood.token_perplexities(nll, tokens, words, size, how)
        return replace(result, scores=(*result.scores, *(score for score in scores if score.metric in metrics)))

    def _by_labels(
        self,
        result: EvaluationResult,
        served: ApiModel,
        task: ClassificationTask,
        metrics: Sequence[str],
        place: OutputPaths,
        observer: Observer,
    ) -> EvaluationResult:
        """By the likelihood of the answers where the server tells it, else by what the model answers."""
        questions, settings = self.job.questions, self.job.settings
        contexts = [question.context for question in questions]
        wholes = [question.context + answer for question in questions for answer in question.answers]
        found = served.prompt_logprobs(wholes, observer.progress(f"{self.name}: asking"))
        if not isinstance(found, Unavailable):
            starts = [len(question.context) for question in questions for _ in question.answers]
            values = np.array([_answer_log(row, start) for row, start in zip(found, starts, strict=True)])
            chosen = multiple_choice.choose(values.reshape(len(questions), -1), questions)
            how = multiple_choice.signature(prompt_template(task).origin, settings.shots, settings.seed)
            return with_classes(result, self.job, chosen, metrics, how, place)
        labels = [answer.strip() for answer in questions[0].answers]
        tell = observer.progress(f"{self.name}: asking")
        chosen_texts = served.choose(contexts, labels, stop=["\n"], progress=tell)
        said = [label_in_answer(text, labels) for text in chosen_texts.texts]
        truth = self.job.examples.labels
        assert truth is not None, "a split that is scored has labels"
        # An answer that names no label is wrong, whatever is right.
        numbers = [
            (int(right) + 1) % len(labels) if one is None else one for one, right in zip(said, truth, strict=True)
        ]
        logits = np.eye(len(labels), dtype=np.float32)[numbers]
        unsure = [name for name in metrics if task.metric(name).of_logits]
        lacks = (MissingMetric(name, "answers that are read say nothing of how sure they are") for name in unsure)
        result = replace(result, absent=(*result.absent, *lacks))
        metrics = [name for name in metrics if name not in unsure]
        held = (
            "free answers"
            if chosen_texts.constraint == "none"
            else f"answers held to the labels by {chosen_texts.constraint}"
        )
        missing = sum(one is None for one in said)
        how = f"{held}, {missing:,} of {len(said):,} name no label and count as wrong; {prompt_template(task).origin}"
        return with_classes(result, self.job, Predictions(logits, np.array(numbers)), metrics, how, place)


def _given(text: str, row: Sequence[TokenLogprob]) -> str:
    """A text's beginning up to the first token that has a log-probability."""
    told = next((token for token in row if token.logprob is not None), None)
    if told is not None and told.offset is not None:
        return text[: told.offset]
    start = "".join(token.token for token in row if token.logprob is None)
    return start if text.startswith(start) else ""


def _answer_log(row: Sequence[TokenLogprob], start: int) -> float:
    """The log-probability of what follows a text's first ``start`` characters: tokens that end after them."""
    total, end = 0.0, 0
    for token in row:
        begin = end if token.offset is None else token.offset
        end = begin + len(token.token)
        if end > start:
            total += token.logprob or 0.0
    return total
