"""What a model is asked on a split, and what becomes of its answers, whoever gives them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from kdalign.data.noise import TextNoise
from kdalign.data.tasks import (
    AnyTask,
    ClassificationTask,
    Examples,
    LanguageTask,
    PromptedExample,
    load_examples,
    load_texts,
    prompt_examples,
)
from kdalign.data.tasks.generation_cases import (
    PREFIX_WORDS,
    SPAN_WORDS,
    GenerationCase,
    continuation_cases,
    source_cases,
)
from kdalign.data.tasks.loading import split_exists
from kdalign.errors import UsageError
from kdalign.evaluation.generation import GenerationSettings
from kdalign.evaluation.predictions import score_all
from kdalign.evaluation.result import EvaluationResult
from kdalign.files import atomic_file
from kdalign.metrics.classification import METRICS
from kdalign.metrics.text import TEXT_METRICS, TextMetric, notes_on_words, score_texts
from kdalign.registry import resolve
from kdalign.runs.prediction_table import Predictions, write_predictions

MOST_TRAINING_TEXTS = 20_000
"""So many texts of train are enough for a unigram."""


@dataclass(frozen=True)
class EvalSettings:
    """How models are made to answer, whichever they are.

    Attributes:
        writing: of texts.
        language: of texts, a code; empty where the task says it, or nobody does.
        within_words: whether a masked model's pseudo-likelihood masks what follows in a word.
        dtype: of a local model's weights and activations.
        shots: solved examples before each question to a model that answers classes in words.
        seed: of what is drawn, such as those examples.
        max_length: of inputs, where the user said it.
    """

    writing: GenerationSettings = field(default_factory=GenerationSettings)
    language: str = ""
    within_words: bool = True
    dtype: torch.dtype = torch.float32
    shots: int = 0
    seed: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class EvalJob:
    """A split of a task, and how it is answered. Noise is in what is asked, not in what is right."""

    task: AnyTask
    examples: Examples
    settings: EvalSettings
    noise: TextNoise | None = None

    def with_noise(self, noise: TextNoise) -> "EvalJob":
        """The same split, what is read of it with noise."""
        texts = self.examples.texts
        if isinstance(self.task, ClassificationTask):
            texts = tuple(noise(column, number) for number, column in enumerate(texts))
        elif self.task.pairs:
            texts = (noise(texts[0]), *texts[1:])
        return replace(self, examples=replace(self.examples, texts=texts), noise=noise)

    @property
    def language(self) -> str:
        """The code of the texts' language; empty where nobody says it."""
        own = self.task.language if isinstance(self.task, LanguageTask) else ""
        return self.settings.language or own

    @property
    def continuing(self) -> bool:
        """Whether texts are continued, not answered."""
        return isinstance(self.task, LanguageTask) and not self.task.pairs and is_generation_task(self.task)

    @cached_property
    def cases(self) -> list[GenerationCase]:
        """What is to be written.

        Raises:
            UsageError: texts are to be continued, and none has two words.
        """
        if not self.continuing:
            return source_cases(self.examples)
        found = continuation_cases(self.examples, self.language)[0]
        if not found:
            raise UsageError(
                f"{self.task.source}, split {self.examples.split!r}: no text has two words with white space between, "
                "so that none can be continued; ask for ppl and bits_per_byte alone"
            )
        if self.noise is None:
            return found
        prompts = self.noise([case.prompt for case in found])
        return [replace(case, prompt=prompt) for case, prompt in zip(found, prompts, strict=True)]

    @cached_property
    def training_texts(self) -> Sequence[str]:
        """What a baseline learns from: documents or targets of train; nothing where there is no train."""
        if not isinstance(self.task, LanguageTask) or not split_exists(self.task.source, self.task.train):
            return ()
        return load_texts(self.task, self.task.train).texts[-1][:MOST_TRAINING_TEXTS]

    @cached_property
    def questions(self) -> list[PromptedExample]:
        """A classification's examples as text, each with its answers."""
        assert isinstance(self.task, ClassificationTask), "questions are of classes"
        shots = load_examples(self.task, self.task.train) if self.settings.shots else None
        return prompt_examples(self.task, self.examples, shots, self.settings.shots, self.settings.seed)

    @property
    def protocol(self) -> str:
        """What is written and how it is compared, in one sentence."""
        if not self.continuing:
            return ""
        alone = len(self.examples) - len(self.cases)
        return (
            f"continuation: of each text the first half is given, at most {PREFIX_WORDS} words, and the next ones, at "
            f"most {SPAN_WORDS}, are held out; prompts, references and answers in one spacing"
            + (f"; {alone:,} texts of one word are passed over" if alone else "")
        )


UNWRITTEN = ("chat", "embedding")
"""Kinds of tasks for which no text is written."""


def is_generation_task(task: LanguageTask) -> bool:
    """Whether models are asked to write texts for a task."""
    return task.kind not in UNWRITTEN


@dataclass(frozen=True)
class OutputPaths:
    """Where a target's files go: a folder, and the beginning of their names."""

    folder: Path
    word: str

    def file(self, job: EvalJob, end: str) -> Path:
        """A file of a job."""
        noise = f"-{job.noise}" if job.noise is not None else ""
        return self.folder / f"{self.word}-{job.task.name}-{job.examples.split}{noise}{end}"


def is_text_metric(name: str) -> bool:
    """Whether a metric is of texts: a shipped one, or the user's own."""
    return name in TEXT_METRICS or (
        ":" in name and name not in METRICS and isinstance(resolve(name, {}, "metric"), TextMetric)
    )


def empty_result(name: str, job: EvalJob, kind: str = "model") -> EvaluationResult:
    """An evaluation of a model before anything is measured."""
    examples = job.examples
    left_out = f"{examples.split}: {examples.passed_over:,} documents without a word were passed over"
    nothing = f"{examples.split}: {examples.blank:,} rows have a text without a character to read"
    said = [note for count, note in ((examples.passed_over, left_out), (examples.blank, nothing)) if count]
    return EvaluationResult(
        model=name,
        task=job.task.name,
        split=job.examples.split,
        source=str(job.task.source),
        n=len(job.examples),
        truncated=0,
        scores=(),
        kind=kind,
        notes=tuple(said),
    )


def with_classes(
    result: EvaluationResult, job: EvalJob, chosen: Predictions, metrics: Sequence[str], how: str, place: OutputPaths
) -> EvaluationResult:
    """An evaluation with the scores of classes that were chosen by words, which are kept."""
    task, labels = job.task, job.examples.labels
    assert isinstance(task, ClassificationTask), "classes"
    assert labels is not None, "a split that is scored has labels"
    file = place.file(job, ".parquet")
    write_predictions(file, task, chosen, labels, None)
    scores = score_all(task, chosen.values, labels, metrics, logits=chosen.logits)
    note = f"{result.model} is asked: {how}"
    return replace(result, scores=(*result.scores, *scores), predictions=str(file), notes=(*result.notes, note))


def with_texts(
    result: EvaluationResult,
    job: EvalJob,
    cases: Sequence[GenerationCase],
    texts: Sequence[str],
    metrics: Sequence[str],
    how: str,
    place: OutputPaths,
) -> EvaluationResult:
    """An evaluation with the scores of texts, which are kept with each one's own scores."""
    import pandas as pd

    references = [case.references for case in cases]
    scores, each = score_texts(metrics, texts, references, job.language)
    kept: dict[str, Any] = {
        "prompt": [case.prompt for case in cases],
        "references": [list(case.references) for case in cases],
        "prediction": list(texts),
    }
    file = place.file(job, "-texts.parquet")
    with atomic_file(file) as temporary:
        pd.DataFrame(kept | each).to_parquet(temporary, index=False)
    unfit = notes_on_words(metrics, texts, references, job.language)
    notes = (*([job.protocol] if job.protocol else []), f"{result.model} writes: {how}", *unfit)
    return replace(result, scores=(*result.scores, *scores), texts=str(file), notes=(*result.notes, *notes))
