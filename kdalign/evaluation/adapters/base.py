"""The interface of a task adapter: how text is tokenized, which head answers, what is scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.batches import TokenizedSplit
from kdalign.data.dual_tokenization import Tokenizers
from kdalign.data.tasks import AnyTask, Examples
from kdalign.evaluation.samples import Prompt
from kdalign.metrics.classification import Score
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.observer import ProgressCallback, no_progress

Answers = Any
"""A model's answers on a split: ``Predictions`` of classifiers, ``TokenAnswers`` of language models."""


class TaskAdapter(Protocol):
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

    def load_examples(self, split: str) -> Examples:
        """Read and check a split."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint whose family or head is for something else."""

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that cannot be trained on rows which several texts fill, where they are so filled."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse the tokenizer of a model that lacks what training on it, or being scored on it, needs."""

    def tokenize(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> TokenizedSplit:
        """Tokenize a split, for training or to be scored, for models like the one of this configuration."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether answers are to tokens, so that those of models with different tokenizers do not compare."""

    def check_dual(self) -> None:
        """Refuse a teacher with another tokenizer, where its tokens cannot be matched with the student's."""

    def tokenize_dual(self, examples: Examples, tokenizers: Tokenizers) -> TokenizedSplit:
        """Tokenize a split for training by the student's tokenizer and the teacher's."""

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a checkpoint with the head, in float32."""

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Whether a student's own head fits the task; else it gets a new one."""

    def output_order(self, model: PreTrainedModel) -> tuple[int, ...] | None:
        """For each label, the number of the model's output; None for a language model."""

    def sample_prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """What models are asked to go on from, to be looked at; none where they say nothing."""

    def predict(self, model: PreTrainedModel, encoded: TokenizedSplit, tell: ProgressCallback = no_progress) -> Answers:
        """A model's answers on a split."""

    def score(
        self, answers: Answers, encoded: TokenizedSplit, metrics: Sequence[str] | None = None, *, interval: bool = True
    ) -> list[Score]:
        """The metrics of answers, with their 95 % intervals."""

    def agreement(self, ours: Answers, theirs: Answers, *, interval: bool = True) -> Score:
        """How far two models answer alike."""

    def calibration(self, answers: Answers, encoded: TokenizedSplit) -> Score | None:
        """How far confidence is from being right; None where answers have none."""

    def write_predictions(self, file: Path, ours: Answers, encoded: TokenizedSplit, theirs: Answers | None) -> None:
        """Write answers into a file."""

    def read_teacher(self, file: Path) -> Answers:
        """The teacher's answers that were kept in a file."""
