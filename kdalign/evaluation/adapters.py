"""What a kind of task asks of a run: how text becomes tokens, which head answers, what is minimised and what scored.

``Classifying`` is for classes and scores, ``Modelling`` for tokens, ``Embedding`` for texts as vectors; the pipeline
knows none of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Encoded
from kdalign.data.dual_tokenization import Tokenizers, encode_documents_across, encode_labelled_across
from kdalign.data.tasks import AnyTask, Examples, LanguageTask, Task, load_examples, load_texts
from kdalign.data.token_matching import Shared
from kdalign.data.tokenization import check_roles, encode_chats, encode_documents, encode_labelled, encode_pairs
from kdalign.data.windows import encode_causal, encode_permuted
from kdalign.errors import UsageError
from kdalign.evaluation import likelihood, predictions
from kdalign.evaluation.likelihood import TokenAnswers
from kdalign.evaluation.predictions import Predictions
from kdalign.evaluation.samples import Prompt, beginnings, questions, sources
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import LANGUAGE_HEADS, HeadKind, head_of, layout_of
from kdalign.models.capture import check_read
from kdalign.models.loading import Checkpoint
from kdalign.models.sentence_transformers import check_sentences
from kdalign.objective.objective import Objective, build_embedding_objective, build_language_objective, build_objective
from kdalign.observer import Tell, untold
from kdalign.recipe import Objective as Weights

Answers = Any
"""A model's answers on a split: ``Predictions`` of classifiers, ``TokenAnswers`` of language models."""


class Work(Protocol):
    """A task, as the pipeline works on it."""

    @property
    def task(self) -> AnyTask:
        """The task."""

    @property
    def head(self) -> HeadKind:
        """The head that answers it."""

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names, the primary one first."""

    def examples(self, split: str) -> Examples:
        """Read and check a split."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint whose family or head is for something else."""

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that cannot be trained on rows which several texts fill, where they are so filled."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse the tokenizer of a model that lacks what training on it, or being scored on it, needs."""

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> Encoded:
        """Tokenize a split, for training or to be scored, for models like the one of this configuration."""

    @property
    def token_by_token(self) -> bool:
        """Whether answers are to tokens, so that those of models with different tokenizers do not compare."""

    def check_across(self) -> None:
        """Refuse a teacher with another tokenizer, where its tokens cannot be matched with the student's."""

    def encode_across(self, examples: Examples, tokenizers: Tokenizers) -> Encoded:
        """Tokenize a split for training by the student's tokenizer and the teacher's."""

    def load(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a checkpoint with the head, in float32."""

    def keeps_head(self, checkpoint: Checkpoint) -> bool:
        """Whether a student's own head fits the task; else it gets a new one."""

    def order(self, model: PreTrainedModel) -> tuple[int, ...] | None:
        """For each label, the number of the model's output; None for a language model."""

    def objective(
        self, weights: Weights, plan: Plan | None, dtype: torch.dtype | None, shared: Shared | None = None
    ) -> Objective:
        """What is minimised.

        Args:
            weights: of its terms.
            plan: what aligns layers; None without a teacher.
            dtype: the precision of the largest matrix products.
            shared: what the vocabularies share, where the teacher has another tokenizer.
        """

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """What models are asked to go on from, to be looked at; none where they say nothing."""

    def answer(self, model: PreTrainedModel, encoded: Encoded, tell: Tell = untold) -> Answers:
        """A model's answers on a split."""

    def scores(
        self, answers: Answers, encoded: Encoded, metrics: Sequence[str] | None = None, *, interval: bool = True
    ) -> list[Score]:
        """The metrics of answers, with their 95 % intervals."""

    def agreement(self, ours: Answers, theirs: Answers, *, interval: bool = True) -> Score:
        """How far two models answer alike."""

    def calibration(self, answers: Answers, encoded: Encoded) -> Score | None:
        """How far confidence is from being right; None where answers have none."""

    def keep(self, file: Path, ours: Answers, encoded: Encoded, theirs: Answers | None) -> None:
        """Write answers into a file."""

    def kept(self, file: Path) -> Answers:
        """The teacher's answers that were kept in a file."""


@dataclass(frozen=True)
class Classifying:
    """Classes or scores, by a sequence-classification head."""

    task: Task
    max_length: int
    head: HeadKind = HeadKind.CLASSIFIER
    token_by_token: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names, the primary one first."""
        return self.task.metrics

    def examples(self, split: str) -> Examples:
        """Read and check a split."""
        return load_examples(self.task, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a family other than encoders, and a head for other labels."""
        family = layout_of(checkpoint.config).family
        if family != "masked":
            raise UsageError(f"{checkpoint.name!r} is a {family} model; task {self.task.name!r} is for encoders")
        if checkpoint.has_classifier:
            loading.check_head(checkpoint, self.task)

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """A row is one text."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Any will do."""

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> Encoded:
        """Tokenize a split."""
        return encode_labelled(examples, tokenizer, self.max_length)

    def check_across(self) -> None:
        """Texts are matched by their characters."""

    def encode_across(self, examples: Examples, tokenizers: Tokenizers) -> Encoded:
        """Tokenize a split by both."""
        return encode_labelled_across(examples, tokenizers, self.max_length)

    def load(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a classifier."""
        return check_read(loading.load_classifier(checkpoint, self.task, fresh_head=fresh_head, seed=seed))

    def keeps_head(self, checkpoint: Checkpoint) -> bool:
        """Whether its labels are the task's."""
        return checkpoint.has_classifier and loading.output_order(checkpoint.config, self.task) is not None

    def order(self, model: PreTrainedModel) -> tuple[int, ...]:
        """For each of the task's outputs, the number of the model's."""
        order = loading.output_order(model.config, self.task)
        assert order is not None, "heads were checked, or are fresh"
        return order

    def objective(
        self, weights: Weights, plan: Plan | None, dtype: torch.dtype | None, shared: Shared | None = None
    ) -> Objective:
        """What is minimised."""
        return build_objective(weights, plan, self.task.regression, len(self.task.labels))

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """A class says nothing."""
        return ()

    def answer(self, model: PreTrainedModel, encoded: Encoded, tell: Tell = untold) -> Predictions:
        """Class numbers or scores, and logits."""
        return predictions.predict(model, self.order(model), encoded, self.task, tell=tell)

    def scores(
        self, answers: Predictions, encoded: Encoded, metrics: Sequence[str] | None = None, *, interval: bool = True
    ) -> list[Score]:
        """The metrics of answers."""
        names = self.metrics if metrics is None else metrics
        if not names:
            return []
        assert encoded.labels is not None, "a split that is scored has labels"
        return predictions.score_all(self.task, answers.values, encoded.labels, names, interval, answers.logits)

    def agreement(self, ours: Predictions, theirs: Predictions, *, interval: bool = True) -> Score:
        """The share of equal classes, or the scores' correlation."""
        return predictions.agreement(self.task, ours.values, theirs.values, interval)

    def calibration(self, answers: Predictions, encoded: Encoded) -> Score | None:
        """The expected calibration error of classes."""
        if self.task.regression or encoded.labels is None:
            return None
        return predictions.score_all(self.task, answers.values, encoded.labels, ("ece",), logits=answers.logits)[0]

    def keep(self, file: Path, ours: Predictions, encoded: Encoded, theirs: Predictions | None) -> None:
        """Write predictions, labels and logits."""
        predictions.write_predictions(file, self.task, ours, encoded.labels, theirs)

    def kept(self, file: Path) -> Predictions:
        """The teacher's classes or scores."""
        return predictions.read_teacher(file)


@dataclass(frozen=True)
class Modelling:
    """Tokens, by a language-model head of a family."""

    task: LanguageTask
    family: str
    max_length: int
    asked_in: str = "drawn"
    stride: int | None = None
    token_by_token: bool = True

    @property
    def head(self) -> HeadKind:
        """The family's language-model head."""
        return LANGUAGE_HEADS[self.family]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The family's perplexities; a conversation's words are not counted."""
        return ("ppl",) if self.task.kind == "chat" else likelihood.metrics_of(self.family)

    def examples(self, split: str) -> Examples:
        """Read documents or pairs."""
        return load_texts(self.task, split)

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Refuse a model that looks back less far than a row is long: packed documents would be seen whole."""
        window = getattr(checkpoint.config, "sliding_window", None)
        packed = self.family == "causal" and self.task.kind != "chat"
        if packed and window is not None and window < self.max_length:
            raise UsageError(
                f"--max-length {self.max_length} is more than the {window} tokens that {checkpoint.name!r} looks back: "
                f"packed documents would be seen whole"
            )

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse another family, and a checkpoint that says it has no language-model head."""
        family = layout_of(checkpoint.config).family
        self.task.check(family, checkpoint.name)
        if family != self.family:
            raise UsageError(f"{checkpoint.name!r} is a {family} model, the other one {self.family}")
        if family == "seq2seq" and checkpoint.config.decoder_start_token_id is None:
            raise UsageError(
                f"the configuration of {checkpoint.name!r} does not say by which token its targets begin: "
                "set decoder_start_token_id in config.json"
            )
        if head_of(checkpoint.config) is not self.head:
            raise UsageError(
                f"{checkpoint.name!r} has no language-model head; `kdalign distill --teacher none --student "
                f"{checkpoint.name} --task {self.task.word}{self.task.source.flags}` trains one"
            )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse one without the tokens that begin and end a text or stand for a gap, where the family needs them."""
        if self.task.kind == "chat":
            needed: tuple[str, ...] = ("places",)
        elif self.family == "causal":
            needed = ("start",) if scored else ("start", "end")
        else:
            needed = {"masked": ("mask",), "permutation": ("places",), "seq2seq": ("end",)}[self.family]
        check_roles(tokenizer, name, self.task.name, needed)

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> Encoded:
        """Tokenize documents or pairs."""
        if self.task.kind == "chat":
            return encode_chats(examples, tokenizer, self.max_length)
        if self.family == "seq2seq":
            return encode_pairs(examples, tokenizer, int(config.decoder_start_token_id), self.max_length)
        if scored and self.family != "masked":
            encode = encode_causal if self.family == "causal" else encode_permuted
            return encode(examples.texts[0], tokenizer, self.max_length, self.stride)
        ordered = self.asked_in == "left-to-right"
        return encode_documents(examples, tokenizer, self.family, self.max_length, ordered)

    def check_across(self) -> None:
        """Refuse conversations, and families other than ``masked`` and ``causal``."""
        if self.task.kind == "chat" or self.family not in ("masked", "causal"):
            what = "conversations" if self.task.kind == "chat" else f"{self.family} models"
            raise UsageError(f"{what} with a teacher of another tokenizer are not supported (accepted: the same one)")

    def encode_across(self, examples: Examples, tokenizers: Tokenizers) -> Encoded:
        """Tokenize documents by both."""
        return encode_documents_across(examples, tokenizers, self.family, self.max_length)

    def load(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a language model."""
        return check_read(loading.load_language_model(checkpoint, fresh_head=fresh_head, seed=seed))

    def keeps_head(self, checkpoint: Checkpoint) -> bool:
        """Whether it says that it has a language-model head."""
        return head_of(checkpoint.config) is self.head

    def order(self, model: PreTrainedModel) -> None:
        """A language model has no labels."""
        return

    def objective(
        self, weights: Weights, plan: Plan | None, dtype: torch.dtype | None, shared: Shared | None = None
    ) -> Objective:
        """What is minimised."""
        return build_language_objective(weights, plan, dtype, shared)

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """Beginnings, questions or sources; none for models that do not go left to right."""
        if self.task.kind == "chat":
            return questions(examples, tokenizer, count)
        if self.family == "seq2seq":
            return sources(examples, tokenizer, count, self.max_length)
        return beginnings(examples, tokenizer, count) if self.family == "causal" else ()

    def answer(self, model: PreTrainedModel, encoded: Encoded, tell: Tell = untold) -> TokenAnswers:
        """Likelihoods and likeliest tokens."""
        return likelihood.answer(model, encoded, tell)

    def scores(
        self, answers: TokenAnswers, encoded: Encoded, metrics: Sequence[str] | None = None, *, interval: bool = True
    ) -> list[Score]:
        """The perplexities of answers."""
        way = "chat" if self.task.kind == "chat" else self.family
        how = likelihood.protocol(way, self.max_length, self.stride)
        found = likelihood.perplexities(answers, encoded, how, interval, masked=way == "masked")
        return [score for score in found if metrics is None or score.metric in metrics]

    def agreement(self, ours: TokenAnswers, theirs: TokenAnswers, *, interval: bool = True) -> Score:
        """The share of target tokens with the same likeliest token."""
        return likelihood.token_agreement(ours, theirs, interval)

    def calibration(self, answers: TokenAnswers, encoded: Encoded) -> Score | None:
        """None: a perplexity says it all."""
        return None

    def keep(self, file: Path, ours: TokenAnswers, encoded: Encoded, theirs: TokenAnswers | None) -> None:
        """Write likelihoods and likeliest tokens, row by row."""
        likelihood.write_answers(file, ours, theirs)

    def kept(self, file: Path) -> TokenAnswers:
        """The teacher's likelihoods and likeliest tokens."""
        return likelihood.read_teacher(file)


@dataclass(frozen=True)
class Embedding:
    """Texts as vectors, by an encoder without a head."""

    task: LanguageTask
    scored: Task
    max_length: int
    head: HeadKind = HeadKind.NONE
    token_by_token: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The correlations of cosines with likeness."""
        return self.scored.metrics

    def examples(self, split: str) -> Examples:
        """Read texts, or in the splits that are scored, pairs with their likeness."""
        return load_texts(self.task, split) if split == self.task.train else load_examples(self.scored, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a family other than encoders, and vectors that are not the mean over tokens."""
        self.task.check(layout_of(checkpoint.config).family, checkpoint.name)
        check_sentences(checkpoint)

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """A row is one text."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Any will do."""

    def encode(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> Encoded:
        """Tokenize texts; to be scored, first texts and then second texts (each with its neighbour where unpaired)."""
        if scored:
            first, second = examples.texts if len(examples.texts) == 2 else (examples.texts[0], _turned(examples))
            labels = None if examples.labels is None else np.concatenate([examples.labels, examples.labels])
            examples = replace(examples, texts=((*first, *second),), labels=labels)
        return encode_labelled(examples, tokenizer, self.max_length)

    def check_across(self) -> None:
        """Texts are matched by their characters."""

    def encode_across(self, examples: Examples, tokenizers: Tokenizers) -> Encoded:
        """Tokenize a split by both."""
        return encode_labelled_across(examples, tokenizers, self.max_length)

    def load(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load an encoder without a head."""
        return check_read(loading.load_body(checkpoint))

    def keeps_head(self, checkpoint: Checkpoint) -> bool:
        """There is none to lose."""
        return True

    def order(self, model: PreTrainedModel) -> None:
        """A vector has no labels."""
        return

    def objective(
        self, weights: Weights, plan: Plan | None, dtype: torch.dtype | None, shared: Shared | None = None
    ) -> Objective:
        """What is minimised."""
        assert plan is not None, "embeddings are learnt from a teacher"
        return build_embedding_objective(weights, plan)

    def prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """A vector says nothing."""
        return ()

    def answer(self, model: PreTrainedModel, encoded: Encoded, tell: Tell = untold) -> Predictions:
        """The cosines of pairs."""
        return predictions.compare_pairs(model, encoded, tell)

    def scores(
        self, answers: Predictions, encoded: Encoded, metrics: Sequence[str] | None = None, *, interval: bool = True
    ) -> list[Score]:
        """The correlations of cosines with likeness; none where pairs have no likeness."""
        labels = _likeness(encoded)
        if labels is None:
            return []
        names = self.metrics if metrics is None else metrics
        found = predictions.score_all(self.scored, answers.values, labels, names, interval)
        return [replace(score, signature=f"cosines of mean-pooled tokens; {score.signature}") for score in found]

    def agreement(self, ours: Predictions, theirs: Predictions, *, interval: bool = True) -> Score:
        """The correlation of both models' cosines."""
        return predictions.agreement(self.scored, ours.values, theirs.values, interval)

    def calibration(self, answers: Predictions, encoded: Encoded) -> Score | None:
        """None: a cosine is no confidence."""
        return None

    def keep(self, file: Path, ours: Predictions, encoded: Encoded, theirs: Predictions | None) -> None:
        """Write cosines and likeness."""
        predictions.write_predictions(file, self.scored, ours, _likeness(encoded), theirs)

    def kept(self, file: Path) -> Predictions:
        """The teacher's cosines."""
        return predictions.read_teacher(file)


def _likeness(encoded: Encoded) -> np.ndarray[Any, Any] | None:
    """One number a pair, whose two rows both carry it."""
    return None if encoded.labels is None else np.split(encoded.labels, 2)[0]


def _turned(examples: Examples) -> tuple[str, ...]:
    texts = examples.texts[0]
    return (*texts[1:], texts[0])


def work_on(
    task: AnyTask, family: str, max_length: int, model: str, asked_in: str = "drawn", stride: int | None = None
) -> Work:
    """The work of a task for models of a family.

    Args:
        task: what is learnt or scored.
        family: of the models.
        max_length: longest input in tokens.
        model: its name, for the error line.
        asked_in: the order in which a permutation model is trained to predict tokens.
        stride: positions between one window and the next, where a text is scored from left to right.

    Raises:
        UsageError: the family cannot do this task.
    """
    if isinstance(task, Task):
        return Classifying(task, max_length)
    task.check(family, model)
    if task.scored is not None:
        return Embedding(task, task.scored, max_length)
    return Modelling(task, family, max_length, asked_in, stride)
