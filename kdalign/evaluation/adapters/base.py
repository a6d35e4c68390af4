"""The interface of a task adapter: everything that a kind of task (classes, tokens, embeddings) does in its own way.

A new kind of task, such as the detection of objects, is one class with the methods of ``TaskAdapter``, a branch in
``adapters.adapter_for`` that returns it, and a task type in ``kdalign.data.tasks`` whose splits it loads. Training,
evaluation and export call these methods only, in this order:

1. **Check**, before any weights load: ``check``, ``check_packing``, ``check_tokenizer`` and ``check_dual`` raise a
   ``UsageError`` if a checkpoint or tokenizer does not fit; ``has_head`` decides whether a student gets a new head.
2. **Read**: ``load_examples`` reads a split, and ``tokenize`` (or ``tokenize_dual``, for a teacher with another
   tokenizer) turns it into a ``TokenizedSplit``, whose columns are the model's inputs.
3. **Load**: ``load_model`` loads a checkpoint with the head for the task, and ``output_order`` maps the head's outputs
   to the task's labels, so that a student's and a teacher's are compared label by label.
4. **Predict**: ``predict`` runs a model over a tokenized split.
5. **Score**: ``score``, ``agreement`` and ``calibration`` compute metrics of predictions; ``unsupported`` says why a
   metric cannot be computed.
6. **Keep**: ``write_predictions`` writes a split's predictions, from which every score can be computed again, and
   ``read_teacher`` reads the teacher's.

Predictions are whatever ``predict`` returns: only the adapter's own methods read them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import Tokenizers
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import AnyTask, Examples
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.evaluation.samples import Prompt
from kdalign.metrics.classification import Score
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.observer import ProgressCallback, no_progress

TokenizedInParts = Literal["rows", "packed"]
"""Each example becomes a row, or documents are packed by ``pack_documents``."""
AnyPredictions = Any
"""A model's predictions on a split: ``Predictions`` of classes and cosines, ``TokenPredictions`` of language models."""


class TaskAdapter(Protocol):
    """A task with its longest input, for models of one family."""

    @property
    def task(self) -> AnyTask:
        """The task."""

    @property
    def head(self) -> HeadKind:
        """Kind of head that predicts; ``HeadKind.NONE`` if the body's output is the prediction."""

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the default metrics, the primary one first; models are selected by it."""

    @property
    def predicts_tokens(self) -> bool:
        """True if predictions are tokens, so that those of models with different tokenizers cannot be compared."""

    @property
    def in_parts(self) -> TokenizedInParts | None:
        """How one tokenizer can tokenize a training split in parts; None if it cannot."""

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint of another family, or with a head for something else.

        Raises:
            UsageError: what the checkpoint is, and what the task needs.
        """

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that cannot be trained on rows of several texts, if the task packs its rows."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse a tokenizer without a special token that training (or scoring, with ``scored``) needs.

        Args:
            tokenizer: the model's tokenizer.
            name: the model's name, for the error.
            scored: the model is scored, not trained.
        """

    def check_dual(self) -> None:
        """Refuse a teacher with another tokenizer, if its predictions cannot be matched with the student's."""

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint's own head fits the task; else a student gets a new one."""

    def load_examples(self, split: str) -> Examples:
        """Read and check a split.

        Raises:
            UsageError: there is no such split, or a row that the task cannot use.
        """

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Tokenize examples, for training or (with ``scored``) for evaluation.

        Args:
            examples: rows of one split.
            reader: how the model reads its inputs.
            scored: every target counts once, as evaluation needs it.
        """

    def tokenize_dual(
        self, examples: Examples, tokenizers: Tokenizers, configs: tuple[PretrainedConfig, PretrainedConfig]
    ) -> TokenizedSplit:
        """Tokenize examples for training by two tokenizers, with their matching.

        Args:
            examples: rows of train.
            tokenizers: the student's and the teacher's.
            configs: their models' configurations.
        """

    def sample_prompts(self, examples: Examples, reader: InputReader, count: int) -> tuple[Prompt, ...]:
        """Return a few prompts whose completions show the training's progress; empty for models that generate none."""

    def with_head(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return a new model's configuration with the task's head."""

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a checkpoint with the task's head, in float32.

        Args:
            checkpoint: checked by ``check``, or with ``fresh_head`` any of the family.
            fresh_head: initialise a new head.
            seed: seed of the new head.
        """

    def output_order(self, model: PreTrainedModel) -> tuple[int, ...] | None:
        """Return for each of the task's labels the index of the model's output; None if outputs are not labels."""

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> AnyPredictions:
        """Predict a split tokenized with ``scored``, in the model's own precision; all ranks call it, and share it.

        Raises:
            NotFinite: the model gives NaN.
        """

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why predictions on some examples cannot be scored by a metric; None if they can."""

    def score(
        self,
        predictions: AnyPredictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute metrics of predictions.

        Args:
            predictions: what ``predict`` returned for ``encoded``.
            encoded: the split, with its labels or targets.
            metrics: names of metrics; the default ones if None.
            interval: compute 95 % intervals as well.
        """

    def agreement(self, ours: AnyPredictions, theirs: AnyPredictions, *, interval: bool = True) -> Score:
        """Compute the agreement of a student's predictions with its teacher's."""

    def calibration(self, predictions: AnyPredictions, encoded: TokenizedSplit) -> Score | None:
        """Compute the calibration error of predictions; None if they have no confidence."""

    def write_predictions(
        self, file: Path, ours: AnyPredictions, encoded: TokenizedSplit, theirs: AnyPredictions | None
    ) -> None:
        """Write a split's predictions, and the teacher's if there is one, to a parquet file."""

    def read_teacher(self, file: Path) -> AnyPredictions:
        """Read the teacher's predictions from a file of ``write_predictions``.

        Raises:
            UsageError: the file has none.
        """


class RowAdapter:
    """The base of adapters whose rows are single examples and whose predictions are no classes.

    It has the methods of ``TaskAdapter`` that do nothing for them.
    """

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Do nothing: a row is one example."""

    def tokenize_dual(
        self, examples: Examples, tokenizers: Tokenizers, configs: tuple[PretrainedConfig, PretrainedConfig]
    ) -> TokenizedSplit:
        """Fail: ``check_dual`` has refused it."""
        raise AssertionError("checked: both models have one tokenizer")

    def with_head(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration, whose model has all that predicts."""
        return config

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Return True: the body has all that predicts."""
        return True

    def output_order(self, model: PreTrainedModel) -> None:
        """Return None: outputs are no labels of a task."""
        return

    def sample_prompts(self, examples: Examples, reader: InputReader, count: int) -> tuple[Prompt, ...]:
        """Return none: nothing is generated beside predictions."""
        return ()

    def calibration(self, predictions: AnyPredictions, encoded: TokenizedSplit) -> Score | None:
        """Return None: predictions have no confidence."""
        return None
