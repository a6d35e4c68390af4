"""A local model as a target: a checkpoint or a run's student, scored in the four ways that models answer.

==================  =====================================  ==================================================
way                 metrics                                models
==================  =====================================  ==================================================
predictions         of classes, cosines and tokens         all with the task's head, by the task's adapter
label words         of classes                             causal language models without a classification head
pseudo-likelihood   ``PERPLEXITIES``                       masked language models
generated texts     of texts                               all language models
==================  =====================================  ==================================================
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.conversations import SourcePrompts
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import prompt_template, write_submission
from kdalign.data.tokenization import special_frame, special_token_note
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.data.windows import tokenize_pseudo_windows
from kdalign.errors import UsageError
from kdalign.evaluation import likelihood, multiple_choice
from kdalign.evaluation.adapters.base import AnyPredictions, TaskAdapter
from kdalign.evaluation.adapters.classification import language_modeling_flags
from kdalign.evaluation.generation import can_continue, describe_generation, generate
from kdalign.evaluation.job import EvalJob, OutputPaths, add_class_scores, add_text_scores, empty_result
from kdalign.evaluation.metric_names import AGREEMENT, MASKED_PPL, PERPLEXITIES, is_text_metric
from kdalign.evaluation.result import EvaluationResult, MissingMetric
from kdalign.evaluation.transcription import sound_seconds
from kdalign.evaluation.zero_shot import captions_of, classify_by_captions
from kdalign.metrics.classification import METRICS
from kdalign.models import loading
from kdalign.models.architecture import count_parameters, layout_of
from kdalign.models.checkpoint_files import Checkpoint, max_positions
from kdalign.models.heads import LANGUAGE_HEADS, OWN_HEADS, HeadKind, head_of
from kdalign.models.media_reader import load_reader
from kdalign.models.sentence_transformers import prompts_note
from kdalign.models.tokenizer import load_tokenizer
from kdalign.observer import Observer
from kdalign.ranks import on_first_rank
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import write_likelihoods
from kdalign.runs.record import read_record

_ANSWERING = ("seq2seq", "causal", "masked", "permutation")
"""Families that answer a source: encoder-decoders read it, the others go on after it in the task's prompt."""
LONGEST_QUESTION = 2048
"""Default limit in tokens of a question with its solved examples."""


@dataclass(frozen=True)
class _Loaded:
    """A local model in memory, and the paths of its files."""

    model: PreTrainedModel
    reader: InputReader
    output: OutputPaths
    observer: Observer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.reader.tokenizer


_Scorer = Callable[[EvaluationResult, _Loaded, Sequence[str]], EvaluationResult]
"""Adds the scores by some metrics to a result."""


@dataclass(frozen=True)
class LocalTarget:
    """A checkpoint or a run's student, checked, its weights not yet loaded.

    Attributes:
        name: name as the user gave it.
        checkpoint: the checkpoint.
        job: split and settings.
        adapter: the task's adapter for the model's family; None if the model can only generate the task's texts.
        run: the run that made the model, if one did.
    """

    name: str
    checkpoint: Checkpoint
    job: EvalJob
    adapter: TaskAdapter | None
    run: RunFolder | None

    @property
    def family(self) -> str:
        """The model's family."""
        return layout_of(self.checkpoint.config).family

    @property
    def _head(self) -> HeadKind:
        """The head that the task needs."""
        return LANGUAGE_HEADS[self.family] if self.adapter is None else self.adapter.head

    @property
    def has_head(self) -> bool:
        """True if the checkpoint has the head that the task needs."""
        return self._head in (HeadKind.NONE, head_of(self.checkpoint.config))

    @property
    def prompted(self) -> bool:
        """True for a language model without a classification head that can answer classes by their words."""
        is_causal = self.family == "causal" and head_of(self.checkpoint.config) is LANGUAGE_HEADS["causal"]
        return self.job.has_labels and (is_causal or self.zero_shot)

    @property
    def zero_shot(self) -> bool:
        """True for a dual encoder that classifies images by captions of their classes."""
        return self.family == "dual" and self.job.has_labels and self.job.task.modality == "image"

    @property
    def reads_windows(self) -> bool:
        """True if texts are scored from left to right in windows, which a stride can make overlap."""
        is_text = not self.job.is_classification and not self.job.has_pairs
        return is_text and self.family in ("causal", "permutation")

    @property
    def submits(self) -> bool:
        """True if its predictions are written as a leaderboard's file."""
        return self.job.is_test_submission and self.has_head

    @cached_property
    def teacher_file(self) -> Path | None:
        """File in which a run kept its teacher's predictions on this very split; None if there is none."""
        if self.run is None:
            return None
        record, split = read_record(self.run.path), self.job.examples.split
        reported = record.data["reported"].get(split)
        if record.teacher is None or reported is None or reported["fingerprint"] != self.job.examples.fingerprint():
            return None
        if record.scores[split]["agreement"] is None:  # predictions of other tokens than the student's
            return None
        return self.run.predictions(split)

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The adapter's metrics, agreement if the teacher's predictions are kept, and those of texts."""
        of_adapter = self.adapter.metrics if self.adapter is not None else ()
        agreement = (AGREEMENT,) if self.teacher_file is not None else ()
        return tuple(dict.fromkeys((*of_adapter, *agreement, *self.job.text_metrics)))

    def check(self, metrics: Sequence[str] | None) -> None:
        """Refuse weights and tokenizers that the model cannot be scored with, before any model is loaded.

        Args:
            metrics: names of metrics; the default ones if None.

        Raises:
            UsageError: weights or a tokenizer do not fit, or two metrics have one name.
        """
        if self.job.is_classification:
            self._check_names(metrics or ())
        if self.submits or any(self.unsupported(metric) is None for metric in metrics or self.default_metrics):
            loading.check_weights(self.checkpoint, OWN_HEADS[self.family] if self.prompted else self._head)
            tokenizer = load_reader(self.checkpoint).tokenizer
            if self.adapter is not None and not self.prompted:
                self.adapter.check_tokenizer(tokenizer, self.checkpoint.name, scored=True)

    def _check_names(self, metrics: Sequence[str]) -> None:
        first: dict[str, str] = {}
        for metric in metrics:
            if metric in METRICS or (":" in metric and not is_text_metric(metric)):
                other = first.setdefault(self.job.classification.metric(metric).name, metric)
                if other != metric:
                    raise UsageError(f"metrics {other!r} and {metric!r} have one name: give your own another")

    def unsupported(self, metric: str) -> MissingMetric | None:
        """Return why the model cannot be scored by a metric, and what would help; None if it can."""
        reason, command = next(self._obstacles(metric), ("", ""))
        return MissingMetric(metric, reason, command) if reason else None

    def _obstacles(self, metric: str) -> Iterator[tuple[str, str]]:
        """Why the model cannot be scored by a metric, each reason with a command that would help, or none."""
        task, model, family = self.job.task, self.checkpoint.name, self.family
        train = f"kdalign distill --teacher none --student {model} --task"
        of_texts = is_text_metric(metric)
        if not (self.has_head or self.prompted):
            yield self._missing_head(train)
        elif metric == AGREEMENT:
            if self.teacher_file is None:
                yield "the teacher's predictions on this split are not kept: only runs keep them, whole splits only", ""
        elif self.job.is_classification and not self.prompted and (of_texts or metric in (*PERPLEXITIES, MASKED_PPL)):
            yield f"{model} has no language-model head", f"{train} {language_modeling_flags(self.job.classification)}"
        elif self._generates(metric):
            yield from ((reason, "") for reason in self._generation_obstacles())
        elif self.adapter is not None:
            reason = self.adapter.unsupported(metric, self.job.examples)
            if reason is not None:
                yield reason, ""
        elif self.job.has_pairs:
            yield f"task {task.name} is not for a {family} model", ""
        else:
            yield f"a {family} model gives the likelihood of a target given a source", ""

    def _missing_head(self, train: str) -> tuple[str, str]:
        """Why a model without the head cannot be scored, and the command that trains one."""
        model = self.checkpoint.name
        if not self.job.is_classification:
            task = self.job.language_task
            return f"{model} has no language-model head", f"{train} {task.word}{task.source.flags}"
        command = f"kdalign distill --teacher {model} --student layers=half --task {self.job.task.name}"
        reason = f"{model} has no head for {'classes' if self.job.has_labels else 'scores'}"
        return reason, command if self.family == "masked" else ""

    def _generation_obstacles(self) -> Iterator[str]:
        """Why the model cannot generate texts for the job."""
        family, model = self.family, self.checkpoint.name
        if not self.job.is_generation:
            yield f"no texts are generated for task {self.job.task.name}"
        elif self.job.has_pairs:
            if family not in _ANSWERING:
                yield f"a {family} model does not answer sources"
        elif family == "seq2seq" and not can_continue(load_tokenizer(self.checkpoint)):
            yield f"{model} knows no mask to fill, so it does not continue texts"
        elif not self.job.cases:
            yield f"split {self.job.examples.split} has no text of two words"

    def measure(
        self, metrics: Sequence[str], output: OutputPaths, device: torch.device, observer: Observer
    ) -> EvaluationResult:
        """Load the model once, and score it in each way that the metrics need; ranks share what the model reads."""
        result = empty_result(self.name, self.job)
        if not (metrics or self.submits):
            return result
        dtype = self.job.settings.dtype
        # XLNet computes its positions in float32, whatever its weights are in.
        weights = torch.float32 if self.family == "permutation" else dtype
        model = loading.round_weights(self._load(), weights).to(device)
        reader = load_reader(self.checkpoint)
        record = None if self.run is None else read_record(self.run.path)
        result = replace(
            result,
            parameters=count_parameters(model),
            trained_tokens=None if record is None or reader.media is not None else int(record.training["tokens"]),
            run="" if record is None else record.identity,
            notes=(*result.notes, *self._notes(reader.tokenizer, metrics)),
        )
        loaded = _Loaded(model, reader, output, observer)
        with torch.autocast(device.type, dtype) if weights is not dtype else nullcontext():
            for scorer, names in self._scorers(metrics):
                result = scorer(result, loaded, names)
        order = {name: number for number, name in enumerate(metrics)}
        scores = sorted(result.scores, key=lambda score: order.get(score.metric, len(order)))
        if dtype is not torch.float32:
            scores = [replace(score, signature=f"{score.signature}; model in bf16") for score in scores]
        return replace(result, scores=tuple(scores))

    def _load(self) -> PreTrainedModel:
        if self.adapter is not None and not self.prompted:
            return self.adapter.load_model(self.checkpoint, fresh_head=False, seed=0)
        if self.zero_shot:
            return loading.load_body(self.checkpoint)
        return loading.load_language_model(self.checkpoint)

    def _scorers(self, metrics: Sequence[str]) -> Iterator[tuple[_Scorer, list[str]]]:
        """The ways in which the model answers, each with its metrics."""
        texts = [name for name in metrics if self._generates(name)]
        pseudo = [name for name in metrics if self.family == "masked" and name in PERPLEXITIES]
        others = [name for name in metrics if name not in (*texts, *pseudo)]
        if others or self.submits:
            yield self._score_label_words if self.prompted else self._score_predictions, others
        if pseudo:
            yield self._score_pseudo_likelihood, pseudo
        if texts:
            yield self._score_texts, texts

    def _generates(self, metric: str) -> bool:
        """Return whether a metric is of texts that the model generates; transcripts by frames are predictions."""
        return is_text_metric(metric) and not self.job.is_classification and self._head is not HeadKind.CTC

    def _notes(self, tokenizer: PreTrainedTokenizerBase, metrics: Sequence[str]) -> Iterator[str]:
        """Notes on how the model reads the texts."""
        special = special_token_note(self.job.examples, tokenizer)
        if special:
            yield f"{self.name}: {special}"
        in_windows = self.job.is_continuation and self.family == "causal"
        perplexities = in_windows and any(name in PERPLEXITIES for name in metrics)
        if perplexities and not (special_frame(tokenizer)[0] or tokenizer.bos_token_id is not None):
            yield (
                f"{self.name}: no start token: a text's first one is predicted from its end token "
                f"{tokenizer.eos_token!r}"
            )
        if self._head is HeadKind.NONE:
            yield from filter(None, [prompts_note(self.checkpoint)])
        by_head = self.job.is_classification and not self.prompted
        if by_head and loading.has_several_labels(self.checkpoint.config):
            yield (
                f"{self.name}: its head is for several labels of a text at once; its outputs are taken for one choice "
                "(the greatest)"
            )

    def _score_predictions(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """Score classes, cosines or the likelihood of tokens, as the task's adapter predicts them."""
        adapter, examples, output = self.adapter, self.job.examples, loaded.output
        assert adapter is not None, "checked"
        encoded = adapter.tokenize(examples, loaded.reader, scored=True)
        ours = adapter.predict(loaded.model, encoded, loaded.observer.progress(f"{self.name}: reading"))
        return on_first_rank(lambda: self._score_predicted(result, output, metrics, encoded, ours))

    def _score_predicted(
        self,
        result: EvaluationResult,
        output: OutputPaths,
        metrics: Sequence[str],
        encoded: TokenizedSplit,
        ours: AnyPredictions,
    ) -> EvaluationResult:
        adapter, examples = self.adapter, self.job.examples
        assert adapter is not None, "checked"
        theirs = adapter.read_teacher(self.teacher_file) if self.teacher_file is not None else None
        file = output.file(self.job, ".parquet")
        adapter.write_predictions(file, ours, encoded, theirs)
        submission = None
        if self.submits:
            stem = output.folder / output.stem
            submission = str(write_submission(self.job.classification, examples.split, ours.values, stem))
        absent: list[MissingMetric] = []
        if encoded.truncated and not encoded.words:
            reason = "texts were cut, so their words and bytes are not known"
            absent = [MissingMetric(name, reason) for name in metrics if name in PERPLEXITIES and name != "ppl"]
        scores = adapter.score(ours, encoded, [name for name in metrics if name != AGREEMENT])
        if AGREEMENT in metrics and theirs is not None:
            scores.append(adapter.agreement(ours, theirs))
        return replace(
            result,
            truncated=encoded.truncated,
            passed_over=encoded.passed_over,
            scores=(*result.scores, *scores),
            absent=(*result.absent, *absent),
            predictions=str(file),
            submission=submission,
        )

    def _score_label_words(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """Score classes by the likelihood of the words that stand for them, or by captions of images."""
        if self.zero_shot:
            return self._score_captions(result, loaded, metrics)
        questions, settings = self.job.questions, self.job.settings
        limit = min(settings.max_length or LONGEST_QUESTION, max_positions(self.checkpoint.config))
        progress = loaded.observer.progress(f"{self.name}: choosing")
        scores = multiple_choice.label_scores(loaded.model, loaded.tokenizer, questions, limit, progress)
        chosen = multiple_choice.choose(scores.values, questions)
        origin = prompt_template(self.job.classification).origin
        signature = multiple_choice.signature(origin, settings.shots, settings.seed)
        result = replace(result, truncated=scores.truncated)
        return on_first_rank(lambda: add_class_scores(result, self.job, chosen, metrics, signature, loaded.output))

    def _score_captions(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """Score classes by the similarity of images with a caption of each class."""
        task, progress = self.job.classification, loaded.observer.progress(f"{self.name}: choosing")
        chosen = classify_by_captions(loaded.model, loaded.reader, self.job.examples, task, progress)
        signature = f"zero-shot, the class whose caption is most similar, as {captions_of(task)[0]!r}"
        return on_first_rank(lambda: add_class_scores(result, self.job, chosen, metrics, signature, loaded.output))

    def _score_pseudo_likelihood(
        self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]
    ) -> EvaluationResult:
        """Score the likelihood of texts to a masked model, each token masked in turn."""
        assert self.adapter is not None, "masked models read documents"
        length, within_words = self.adapter.max_length, self.job.settings.within_words
        encoded = tokenize_pseudo_windows(self.job.examples.texts[0], loaded.tokenizer, length, within_words)
        progress = loaded.observer.progress(f"{self.name}: masking token by token")
        predictions = likelihood.predict_tokens(loaded.model, encoded, progress)
        groups = encoded.groups
        assert groups is not None, "rows of one text belong together"

        def score() -> EvaluationResult:
            file = loaded.output.file(self.job, "-pseudo.parquet")
            write_likelihoods(file, groups, predictions.nll, predictions.tokens)
            signature = likelihood.protocol("word-l2r" if within_words else "token", length)
            scores = likelihood.perplexities(predictions, encoded, signature, interval=True, mark="pseudo")
            return replace(result, scores=(*result.scores, *(score for score in scores if score.metric in metrics)))

        return on_first_rank(score)

    def _score_texts(self, result: EvaluationResult, loaded: _Loaded, metrics: Sequence[str]) -> EvaluationResult:
        """Score texts that the model generates."""
        generation, cases = self.job.settings.generation, self.job.cases
        if self.family == "causal" and self.job.has_pairs:
            prompts = SourcePrompts(self.job.language_task, loaded.tokenizer)
            generation = replace(generation, prompts=prompts, prompt_length=self.job.settings.max_length)
            cases = [replace(case, stop=prompts.stop) for case in cases]
        elif self.family in ("masked", "permutation"):  # no prompts' template: the task's prompt as it is
            cases = self.job.prompted_cases
        generation = replace(generation, media=loaded.reader.media, language=self.job.language)
        progress = loaded.observer.progress(f"{self.name}: writing")
        begun = time.perf_counter()
        texts, cut = generate(loaded.model, loaded.tokenizer, cases, generation, progress)
        spent = time.perf_counter() - begun
        signature = describe_generation(self.family, self.job.is_continuation, generation)
        if self.family in ("masked", "permutation"):
            signature += self.job.prompt_note
        if generation.prompts is not None:
            cases = [replace(case, prompt=generation.prompts.render(case.prompt)) for case in cases]  # as kept in files
        result = replace(result, truncated=max(result.truncated, cut))
        if loaded.reader.media is not None:
            place = _describe_device(loaded.model.device)
            note = f"{self.name} transcribes on {place}, {generation.rows} chunks at a time"
            result = replace(result, real_time_factor=spent / sound_seconds(cases), notes=(*result.notes, note))
        return on_first_rank(lambda: add_text_scores(result, self.job, cases, texts, metrics, signature, loaded.output))


def _describe_device(device: torch.device) -> str:
    """Say on what a model computes, for a note on its speed."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    threads = torch.get_num_threads()
    return f"{device.type} by {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type
