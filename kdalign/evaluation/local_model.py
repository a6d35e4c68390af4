"""What is scored: a local model or a baseline on a split, each asked for the same metrics."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.tasks import GLUE, ClassificationTask, LanguageTask, prompt_template, write_submission
from kdalign.data.tasks.generation_cases import prompted_cases
from kdalign.data.tokenization import special_frame, special_token_note
from kdalign.data.windows import tokenize_pseudo_windows
from kdalign.errors import UsageError
from kdalign.evaluation import likelihood, multiple_choice
from kdalign.evaluation.adapters.base import TaskAdapter
from kdalign.evaluation.generation import can_continue, describe_generation, generate
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
from kdalign.metrics.classification import METRICS
from kdalign.models import loading
from kdalign.models.architecture import count_parameters, layout_of
from kdalign.models.checkpoint_files import Checkpoint, max_positions
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, head_of
from kdalign.models.sentence_transformers import prompts_note
from kdalign.models.tokenizer import load_tokenizer
from kdalign.observer import Observer
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import write_likelihoods
from kdalign.runs.record import read_record

LONGEST_QUESTION = 2048
"""Tokens of a question with its solved examples, where nobody says."""


@dataclass(frozen=True)
class _Loaded:
    """A local model in memory, and where its answers go."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    place: OutputPaths
    observer: Observer


@dataclass(frozen=True)
class LocalTarget:
    """A checkpoint or a run's student, checked, its weights not yet loaded.

    Attributes:
        adapter: the task as models of its family do it; None where they only continue its texts.
        run: that the model comes from.
    """

    name: str
    checkpoint: Checkpoint
    job: EvalJob
    adapter: TaskAdapter | None
    run: RunFolder | None

    @property
    def family(self) -> str:
        """The model's."""
        return layout_of(self.checkpoint.config).family

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint says that it has the head that the task is answered by."""
        head = LANGUAGE_HEADS[self.family] if self.adapter is None else self.adapter.head
        return head in (HeadKind.NONE, head_of(self.checkpoint.config))

    def check(self, metrics: Sequence[str] | None) -> None:
        """Refuse weights and tokenizers that it cannot be scored with, before any model is.

        Args:
            metrics: that are asked for; its own where nobody says.

        Raises:
            UsageError: what is wrong with them, or two metrics that are called the same.
        """
        if isinstance(self.job.task, ClassificationTask):
            self._check_names(self.job.task, metrics or ())
        if self.submits or any(self.unsupported(metric) is None for metric in metrics or self.default_metrics):
            adapter = None if self.prompted else self.adapter
            loading.check_weights(self.checkpoint, LANGUAGE_HEADS[self.family] if adapter is None else adapter.head)
            tokenizer = load_tokenizer(self.checkpoint)
            if adapter is not None:
                adapter.check_tokenizer(tokenizer, self.checkpoint.name, scored=True)

    @staticmethod
    def _check_names(task: ClassificationTask, metrics: Sequence[str]) -> None:
        called: dict[str, str] = {}
        for given in metrics:
            if given in METRICS or (":" in given and not is_text_metric(given)):
                other = called.setdefault(task.metric(given).name, given)
                if other != given:
                    raise UsageError(f"metrics {other!r} and {given!r} have one name: give your own another")

    @property
    def prompted(self) -> bool:
        """Whether it has no head for classes, but can be asked which word stands for the class."""
        task = self.job.task
        head = head_of(self.checkpoint.config) is LANGUAGE_HEADS["causal"]
        return isinstance(task, ClassificationTask) and bool(task.labels) and self.family == "causal" and head

    @property
    def submits(self) -> bool:
        """Whether its answers are written as the leaderboard's file."""
        task = self.job.task
        asked_for = (
            isinstance(task, ClassificationTask) and bool(task.submission) and self.job.examples.split in task.test
        )
        return asked_for and self.has_head

    @cached_property
    def teachers_answers(self) -> Path | None:
        """The file in which a run kept its teacher's answers on this very split; None where there is none."""
        if self.run is None:
            return None
        record, split = read_record(self.run.path), self.job.examples.split
        kept = record.data["reported"].get(split)
        if record.teacher is None or kept is None or kept["fingerprint"] != self.job.examples.fingerprint():
            return None
        if record.scores[split]["agreement"] is None:  # answers to other tokens than the student's
            return None
        return self.run.predictions(split)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The task's, agreement where the teacher's answers are kept, and for pairs what texts are compared by."""
        task = self.job.task
        of_texts = task.text_metrics if isinstance(task, LanguageTask) else ()
        by_work = self.adapter.metrics if self.adapter is not None else ()
        return (*by_work, *((AGREEMENT,) if self.teachers_answers is not None else ()), *of_texts)

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Why the model cannot be scored by a metric; None where it can."""
        task, model, adapter, examples = self.job.task, self.checkpoint.name, self.adapter, self.job.examples
        alone = f"kdalign distill --teacher none --student {model}"
        if not self.has_head and not self.prompted:
            if isinstance(task, ClassificationTask):
                command = f"kdalign distill --teacher {model} --student layers=half --task {task.name}"
                reason = f"{model} has no head for {'classes' if task.labels else 'scores'}"
                return MissingMetric(metric, reason, command if self.family == "masked" else "")
            return MissingMetric(
                metric, f"{model} has no language-model head", f"{alone} --task {task.word}{task.source.flags}"
            )
        if metric == AGREEMENT:
            missing = "the teacher's answers on this split are not kept: only runs keep them, whole splits only"
            return None if self.teachers_answers is not None else MissingMetric(metric, missing)
        if isinstance(task, ClassificationTask):
            if is_text_metric(metric) or metric in (*PERPLEXITIES, MASKED):
                text = f"lm:{task.name}" if task.name in GLUE else "lm --data DIR"
                if self.prompted:
                    return MissingMetric(
                        metric, f"task {task.name} is of classes; its texts are scored by --task {text}"
                    )
                return MissingMetric(metric, f"{model} has no language-model head", f"{alone} --task {text}")
            if not task.fits(task.metric(metric)):
                kind = "a score" if task.regression else f"{len(task.labels)} classes"
                return MissingMetric(metric, f"task {task.name} has {kind}; its metrics are {', '.join(task.metrics)}")
            return (
                None if examples.labels is not None else MissingMetric(metric, f"split {examples.split} has no labels")
            )
        if is_text_metric(metric):
            return self._why_not_written(metric, task)
        if adapter is None:
            if task.pairs:
                return MissingMetric(metric, f"task {task.name} is not for a {self.family} model")
            return MissingMetric(metric, f"a {self.family} model gives the likelihood of a target given a source")
        if adapter.head is HeadKind.NONE and examples.labels is None:
            return MissingMetric(metric, f"split {examples.split} has no pairs with their likeness")
        known = dict.fromkeys((*adapter.metrics, *(PERPLEXITIES if adapter.head is not HeadKind.NONE else ())))
        if metric in known:
            return None
        return MissingMetric(metric, f"task {task.name} gives {model} {', '.join(known)}")

    def _why_not_written(self, metric: str, task: LanguageTask) -> MissingMetric | None:
        if not is_generation_task(task):
            return MissingMetric(metric, f"texts are not written for task {task.name}")
        if task.pairs and self.family not in ("seq2seq", "causal"):
            return MissingMetric(metric, f"a {self.family} model does not answer sources")
        if not task.pairs and self.family == "seq2seq" and not can_continue(load_tokenizer(self.checkpoint)):
            return MissingMetric(metric, f"{self.checkpoint.name} knows no mask to fill, so it does not continue texts")
        if not task.pairs and not self.job.cases:
            return MissingMetric(metric, f"split {self.job.examples.split} has no text of two words")
        return None

    def measure(
        self, metrics: Sequence[str], place: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Load the model once, and take its answers, its pseudo-likelihood and its texts as the metrics need them."""
        task = self.job.task
        result = empty_result(self.name, self.job)
        of_texts = [name for name in metrics if not isinstance(task, ClassificationTask) and is_text_metric(name)]
        pseudo = [name for name in metrics if self.family == "masked" and name in PERPLEXITIES]
        answered = [name for name in metrics if name not in (*of_texts, *pseudo)]
        if not (metrics or self.submits):
            return result
        if self.adapter is not None and not self.prompted:
            model = self.adapter.load_model(self.checkpoint, fresh_head=False, seed=0)
        else:
            model = loading.load_language_model(self.checkpoint)
        dtype = self.job.settings.dtype
        # XLNet computes its positions in float32, whatever its weights are in.
        cast = torch.float32 if self.family == "permutation" else dtype
        model = model.to(device, cast)
        tokenizer = load_tokenizer(self.checkpoint)
        tokens = None if self.run is None else int(read_record(self.run.path).training["tokens"])
        notes = (*result.notes, *self._notes(tokenizer, metrics))
        result = replace(result, parameters=count_parameters(model), trained_tokens=tokens, notes=notes)
        loaded = _Loaded(model, tokenizer, place, observer)
        with torch.autocast(device.type, dtype) if cast is not dtype else nullcontext():
            if answered and self.prompted:
                result = self._by_prompts(result, loaded, answered)
            elif answered or self.submits:
                result = self._by_answers(result, loaded, answered)
            if pseudo:
                result = self._by_pseudo_likelihood(result, loaded, pseudo)
            if of_texts:
                result = self._by_texts(result, loaded, of_texts)
        order = {name: number for number, name in enumerate(metrics)}
        scores = sorted(result.scores, key=lambda score: order.get(score.metric, len(order)))
        if dtype is not torch.float32:
            scores = [replace(score, signature=f"{score.signature}; model in bf16") for score in scores]
        return replace(result, scores=tuple(scores))

    def _notes(self, tokenizer: PreTrainedTokenizerBase, metrics: Sequence[str]) -> list[str]:
        """What must be known of how the model reads the texts, each with its name."""
        said = [special_token_note(self.job.examples, tokenizer)]
        documents = isinstance(self.job.task, LanguageTask) and not self.job.task.pairs and self.job.continuing
        if documents and self.family == "causal" and any(name in PERPLEXITIES for name in metrics):
            if not special_frame(tokenizer)[0] and tokenizer.bos_token_id is None:
                said.append(
                    f"no start token: a text's first one is predicted from its end token {tokenizer.eos_token!r}"
                )
        notes = [f"{self.name}: {note}" for note in said if note]
        if self.adapter is not None and self.adapter.head is HeadKind.NONE:
            notes += filter(None, [prompts_note(self.checkpoint)])
        if (
            isinstance(self.job.task, ClassificationTask)
            and not self.prompted
            and loading.has_several_labels(self.checkpoint.config)
        ):
            notes.append(
                f"{self.name}: its head is for several labels of a text at once; its outputs are taken for one choice "
                "(the greatest)"
            )
        return notes

    def _by_answers(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """By the head that the task is answered by: classes, cosines, or the likelihood of tokens."""
        adapter, examples = self.adapter, self.job.examples
        assert adapter is not None, "checked"
        encoded = adapter.tokenize(examples, loaded.tokenizer, self.checkpoint.config, scored=True)
        tell = loaded.observer.progress(f"{self.name}: reading")
        found = adapter.predict(loaded.model, encoded, tell)
        kept = self.teachers_answers
        answers = adapter.read_teacher(kept) if kept is not None else None
        predictions = loaded.place.file(self.job, ".parquet")
        adapter.write_predictions(predictions, found, encoded, answers)
        submission = None
        if self.submits and isinstance(adapter.task, ClassificationTask):
            submission = str(
                write_submission(adapter.task, examples.split, found.values, loaded.place.folder / loaded.place.word)
            )
        if encoded.truncated and not encoded.words:
            cut = [name for name in metrics if name in PERPLEXITIES and name != "ppl"]
            reason = "texts were cut, so their words and bytes are not known"
            result = replace(result, absent=(*result.absent, *(MissingMetric(name, reason) for name in cut)))
        measured = adapter.score(found, encoded, [name for name in metrics if name != AGREEMENT])
        if AGREEMENT in metrics and answers is not None:
            measured.append(adapter.agreement(found, answers))
        return replace(
            result,
            truncated=encoded.truncated,
            passed_over=encoded.passed_over,
            scores=(*result.scores, *measured),
            predictions=str(predictions),
            submission=submission,
        )

    def _by_prompts(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """Classes by the likelihood of the words that stand for them."""
        task, settings = self.job.task, self.job.settings
        assert isinstance(task, ClassificationTask), "checked"
        room = min(settings.max_length or LONGEST_QUESTION, max_positions(self.checkpoint.config))
        tell = loaded.observer.progress(f"{self.name}: asking")
        found = multiple_choice.label_scores(loaded.model, loaded.tokenizer, self.job.questions, room, tell)
        chosen = multiple_choice.choose(found.values, self.job.questions)
        return with_classes(
            replace(result, truncated=found.truncated),
            self.job,
            chosen,
            metrics,
            multiple_choice.signature(prompt_template(task).origin, settings.shots, settings.seed),
            loaded.place,
        )

    def _by_pseudo_likelihood(
        self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]
    ) -> EvaluationResult:
        assert self.adapter is not None, "masked models read documents"
        length, within = self.adapter.max_length, self.job.settings.within_words
        encoded = tokenize_pseudo_windows(self.job.examples.texts[0], loaded.tokenizer, length, within)
        answers = likelihood.predict_tokens(
            loaded.model, encoded, loaded.observer.progress(f"{self.name}: masking token by token")
        )
        how = likelihood.protocol("word-l2r" if within else "token", length)
        assert encoded.groups is not None, "rows of one text belong together"
        file = loaded.place.file(self.job, "-pseudo.parquet")
        write_likelihoods(file, encoded.groups, answers.nll, answers.tokens)
        found = likelihood.perplexities(answers, encoded, how, interval=True, mark="pseudo")
        return replace(result, scores=(*result.scores, *(score for score in found if score.metric in metrics)))

    def _by_texts(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        task, settings = self.job.task, self.job.settings
        assert isinstance(task, LanguageTask), "texts are of tasks of tokens"
        cases = prompted_cases(self.job.cases, task) if task.pairs and self.family == "causal" else self.job.cases
        texts, cut = generate(
            loaded.model, loaded.tokenizer, cases, settings.writing, loaded.observer.progress(f"{self.name}: writing")
        )
        result = replace(result, truncated=max(result.truncated, cut))
        how = describe_generation(self.family, self.job.continuing, settings.writing)
        if task.pairs and self.family == "causal":
            how += f", one line after the prompt {task.render_prompt({task.columns[0]: '...'})!r}"
        return with_texts(result, self.job, cases, texts, metrics, how, loaded.place)
