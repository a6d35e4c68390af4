"""An evaluation job: a split of a task and how models answer it; and the scores of their classes and texts."""

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
    prompted_cases,
    source_cases,
)
from kdalign.data.tasks.loading import split_exists
from kdalign.errors import UsageError
from kdalign.evaluation.decoding import GenerationSettings
from kdalign.evaluation.predictions import score_all
from kdalign.evaluation.result import EvaluationResult
from kdalign.files import atomic_file
from kdalign.metrics.text import score_texts
from kdalign.metrics.text_notes import notes_on_words
from kdalign.runs.prediction_table import Predictions, write_predictions

MOST_TRAINING_TEXTS = 20_000
"""Texts of train that a unigram learns from; more change little."""


@dataclass(frozen=True)
class EvalSettings:
    """Settings by which every model answers.

    Attributes:
        generation: settings of generated texts.
        language: language code of the texts; empty for the task's.
        within_words: a masked model's pseudo-likelihood masks the rest of a word with each of its tokens.
        dtype: type of a local model's weights and activations.
        shots: solved examples before each question to a model that answers classes in words.
        seed: seed of random draws, such as those examples.
        max_length: longest input in tokens, if the user gave it.
    """

    generation: GenerationSettings = field(default_factory=GenerationSettings)
    language: str = ""
    within_words: bool = True
    dtype: torch.dtype = torch.float32
    shots: int = 0
    seed: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class EvalJob:
    """A split of a task, and how models answer it.

    Attributes:
        task: the task.
        examples: examples of the split, their inputs with noise.
        settings: how models answer.
        noise: noise of the inputs; references have none.
    """

    task: AnyTask
    examples: Examples
    settings: EvalSettings
    noise: TextNoise | None = None

    def with_noise(self, noise: TextNoise) -> "EvalJob":
        """Return the job with noise in its inputs."""
        texts = self.examples.texts
        if isinstance(self.task, ClassificationTask):
            texts = tuple(noise(column, number) for number, column in enumerate(texts))
        elif self.task.pairs:
            texts = (noise(texts[0]), *texts[1:])
        return replace(self, examples=replace(self.examples, texts=texts), noise=noise)

    @property
    def is_classification(self) -> bool:
        """True for classes and scores, False for texts and embeddings."""
        return isinstance(self.task, ClassificationTask)

    @property
    def classification(self) -> ClassificationTask:
        """The task, if it is of classes or scores."""
        assert isinstance(self.task, ClassificationTask), "a task of classes or scores"
        return self.task

    @property
    def language_task(self) -> LanguageTask:
        """The task, if it is of texts or embeddings."""
        assert isinstance(self.task, LanguageTask), "a task of texts"
        return self.task

    @property
    def has_labels(self) -> bool:
        """True if the answers are classes, which words can stand for."""
        return isinstance(self.task, ClassificationTask) and bool(self.task.labels)

    @property
    def is_test_submission(self) -> bool:
        """True if the split's predictions are written as a leaderboard's file."""
        if not isinstance(self.task, ClassificationTask):
            return False
        return bool(self.task.submission) and self.examples.split in self.task.test

    @property
    def has_pairs(self) -> bool:
        """True if an example is a source and a target text."""
        return isinstance(self.task, LanguageTask) and self.task.pairs

    @property
    def is_generation(self) -> bool:
        """True if models can generate texts for the task."""
        return isinstance(self.task, LanguageTask) and self.task.kind not in UNWRITTEN

    @property
    def is_continuation(self) -> bool:
        """True if generated texts continue the examples, instead of answering them."""
        return self.is_generation and not self.has_pairs

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """Default metrics of generated texts; none for classes."""
        return self.task.text_metrics if isinstance(self.task, LanguageTask) else ()

    @property
    def language(self) -> str:
        """Language code of the texts; empty if neither the user nor the task gives one."""
        return self.settings.language or (self.task.language if isinstance(self.task, LanguageTask) else "")

    @cached_property
    def cases(self) -> list[GenerationCase]:
        """Prompts with their references.

        Raises:
            UsageError: texts are to be continued, and none has two words.
        """
        if not self.is_continuation:
            return source_cases(self.examples)
        cases = continuation_cases(self.examples, self.language)[0]
        if not cases:
            raise UsageError(
                f"{self.task.source}, split {self.examples.split!r}: no text has two words with white space between, "
                "so that none can be continued; ask for ppl and bits_per_byte alone"
            )
        if self.noise is None:
            return cases
        prompts = self.noise([case.prompt for case in cases])
        return [replace(case, prompt=prompt) for case, prompt in zip(cases, prompts, strict=True)]

    @cached_property
    def prompted_cases(self) -> list[GenerationCase]:
        """Prompts with their references for models without an encoder: sources stand in the task's prompt."""
        return prompted_cases(self.cases, self.language_task) if self.has_pairs else self.cases

    @property
    def prompt_note(self) -> str:
        """The prompt in which sources stand, for a score's signature; empty if there are none."""
        if not self.has_pairs:
            return ""
        task = self.language_task
        return f", one line after the prompt {task.render_prompt({task.columns[0]: '...'})!r}"

    @cached_property
    def training_texts(self) -> Sequence[str]:
        """Documents or targets of train, which a baseline learns from; empty if there is no such split."""
        if not isinstance(self.task, LanguageTask) or not split_exists(self.task.source, self.task.train):
            return ()
        return load_texts(self.task, self.task.train).texts[-1][:MOST_TRAINING_TEXTS]

    @cached_property
    def questions(self) -> list[PromptedExample]:
        """Examples of a classification as text, each with its possible answers."""
        task = self.classification
        shots = load_examples(task, task.train) if self.settings.shots else None
        return prompt_examples(task, self.examples, shots, self.settings.shots, self.settings.seed)

    @property
    def protocol(self) -> str:
        """Sentence on how texts are continued and compared; empty if they are not."""
        if not self.is_continuation:
            return ""
        skipped = len(self.examples) - len(self.cases)
        return (
            f"continuation: the first half of each text is given, at most {PREFIX_WORDS} words, and the next ones, at "
            f"most {SPAN_WORDS}, are held out; prompts, references and answers in one spacing"
            + (f"; {skipped:,} texts of one word are left out" if skipped else "")
        )


UNWRITTEN = ("chat", "embedding", "image-text")
"""Kinds of tasks for which no text is generated."""


@dataclass(frozen=True)
class OutputPaths:
    """Paths of a target's files.

    Attributes:
        folder: their folder.
        stem: beginning of their names.
    """

    folder: Path
    stem: str

    def file(self, job: EvalJob, end: str) -> Path:
        """Return the path of a job's file with a given end."""
        noise = f"-{job.noise}" if job.noise is not None else ""
        return self.folder / f"{self.stem}-{job.task.name}-{job.examples.split}{noise}{end}"


def empty_result(name: str, job: EvalJob, kind: str = "model") -> EvaluationResult:
    """Return the result of a model before anything is measured."""
    examples = job.examples
    wordless = f"{examples.split}: {examples.passed_over:,} documents without a word were left out"
    blank = f"{examples.split}: {examples.blank:,} rows have a text without a character to read"
    return EvaluationResult(
        model=name,
        task=job.task.name,
        split=job.examples.split,
        source=str(job.task.source),
        n=len(job.examples),
        truncated=0,
        scores=(),
        kind=kind,
        examples=examples.fingerprint(),
        language=job.language,
        notes=tuple(note for count, note in ((examples.passed_over, wordless), (examples.blank, blank)) if count),
    )


def add_class_scores(
    result: EvaluationResult,
    job: EvalJob,
    chosen: Predictions,
    metrics: Sequence[str],
    signature: str,
    output: OutputPaths,
) -> EvaluationResult:
    """Score and keep classes that a model chose by their words, and add them to its result."""
    task, labels = job.classification, job.examples.labels
    assert labels is not None, "a split that is scored has labels"
    file = output.file(job, ".parquet")
    write_predictions(file, task, chosen, labels, None)
    scores = score_all(task, chosen.values, labels, metrics, logits=chosen.logits)
    note = f"{result.model} chooses: {signature}"
    return replace(result, scores=(*result.scores, *scores), predictions=str(file), notes=(*result.notes, note))


def add_text_scores(
    result: EvaluationResult,
    job: EvalJob,
    cases: Sequence[GenerationCase],
    texts: Sequence[str],
    metrics: Sequence[str],
    signature: str,
    output: OutputPaths,
) -> EvaluationResult:
    """Score and keep generated texts, one for each case, and add them to the result."""
    import pandas as pd

    references = [case.references for case in cases]
    scores, by_text = score_texts(metrics, texts, references, job.language)
    columns: dict[str, Any] = {
        "prompt": [case.prompt for case in cases],
        "references": [list(case.references) for case in cases],
        "prediction": list(texts),
    }
    file = output.file(job, "-texts.parquet")
    with atomic_file(file) as temporary:
        pd.DataFrame(columns | by_text).to_parquet(temporary, index=False)
    word_notes = notes_on_words(metrics, texts, references, job.language)
    notes = (
        *([job.protocol] if job.protocol else []),
        *[f"{result.model} writes: {signature}", *_notes_on_lines(result.model, cases), *word_notes],
    )
    scores, notes = [*result.scores, *scores], (*result.notes, *notes)
    return replace(result, scores=tuple(scores), texts=str(file), writing=signature, notes=notes)


def _notes_on_lines(model: str, cases: Sequence[GenerationCase]) -> list[str]:
    """Note references of several lines, since the first line of a generated answer is all that counts."""
    longer = sum(bool(case.stop) and all(case.stop in known.strip() for known in case.references) for case in cases)
    if not longer:
        return []
    return [f"{model}: {longer:,} of {len(cases):,} references have several lines; of an answer the first one counts"]
