"""The adapter of classification and regression: labelled texts, a classifier's head, metrics of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import Tokenizers, tokenize_labelled_dual
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import GLUE, ClassificationTask, Examples, load_examples
from kdalign.data.tokenization import read_images, tokenize_labelled
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import TokenizedInParts
from kdalign.evaluation.metric_names import MASKED_PPL, PERPLEXITIES, is_text_metric
from kdalign.evaluation.predictions import agreement, predict, score_all
from kdalign.evaluation.samples import Prompt
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.media_reader import check_modality
from kdalign.models.read_check import check_read
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions, read_teacher_predictions, write_predictions


@dataclass(frozen=True)
class ClassificationAdapter:
    """Classes or scores, predicted by a sequence-classification head."""

    task: ClassificationTask
    max_length: int
    head: HeadKind = HeadKind.CLASSIFIER
    predicts_tokens: bool = False
    in_parts: TokenizedInParts | None = "rows"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's metrics."""
        return self.task.metrics

    def load_examples(self, split: str) -> Examples:
        """Read and check a split."""
        return load_examples(self.task, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a family other than encoders, and a head for other labels."""
        check_modality(checkpoint.name, checkpoint.config.model_type, self.task)
        family, images = layout_of(checkpoint.config).family, self.task.modality == "image"
        if family != ("vision" if images else "masked"):
            fitting = "vision models" if images else "encoders"
            raise UsageError(f"{checkpoint.name!r} is a {family} model; task {self.task.name!r} is for {fitting}")
        if checkpoint.has_classifier:
            loading.check_head(checkpoint, self.task)

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Do nothing: a row is one example."""

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Do nothing: every tokenizer will do."""

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Tokenize texts, or read the images, with their labels."""
        if reader.media is not None:
            return read_images(examples, reader.media)
        return tokenize_labelled(examples, reader.tokenizer, self.max_length)

    def check_dual(self) -> None:
        """Do nothing: texts are matched by their characters."""

    def tokenize_dual(
        self, examples: Examples, tokenizers: Tokenizers, configs: tuple[PretrainedConfig, PretrainedConfig]
    ) -> TokenizedSplit:
        """Tokenize texts with their labels by both tokenizers."""
        return tokenize_labelled_dual(examples, tokenizers, self.max_length)

    def with_head(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration with an output for each label."""
        return loading.with_task_head(config, self.task)

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a classifier."""
        return check_read(loading.load_classifier(checkpoint, self.task, fresh_head=fresh_head, seed=seed))

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Return whether the head's labels are the task's."""
        return checkpoint.has_classifier and loading.output_order(checkpoint.config, self.task) is not None

    def output_order(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Return for each of the task's labels the index of the model's output."""
        order = loading.output_order(model.config, self.task)
        assert order is not None, "heads were checked, or are fresh"
        return order

    def sample_prompts(self, examples: Examples, reader: InputReader, count: int) -> tuple[Prompt, ...]:
        """Return none: a classifier generates no text."""
        return ()

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> Predictions:
        """Predict class numbers or scores, with their logits."""
        return predict(model, self.output_order(model), encoded, self.task, progress=progress)

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why classes or scores of some examples cannot be scored by a metric; None if they can."""
        return unsupported_class_metric(self.task, metric, examples)

    def score(
        self,
        predictions: Predictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute metrics of classes or scores."""
        names = self.metrics if metrics is None else metrics
        if not names:
            return []
        assert encoded.labels is not None, "a split that is scored has labels"
        return score_all(self.task, predictions.values, encoded.labels, names, interval, predictions.logits)

    def agreement(self, ours: Predictions, theirs: Predictions, *, interval: bool = True) -> Score:
        """Compute the share of equal classes, or the correlation of scores."""
        return agreement(ours.values, theirs.values, interval)

    def calibration(self, predictions: Predictions, encoded: TokenizedSplit) -> Score | None:
        """Compute the expected calibration error of classes."""
        if self.task.regression or encoded.labels is None:
            return None
        return score_all(self.task, predictions.values, encoded.labels, ("ece",), logits=predictions.logits)[0]

    def write_predictions(
        self, file: Path, ours: Predictions, encoded: TokenizedSplit, theirs: Predictions | None
    ) -> None:
        """Write classes or scores, labels and logits."""
        write_predictions(file, self.task, ours, encoded.labels, theirs)

    def read_teacher(self, file: Path) -> Predictions:
        """Read the teacher's classes or scores."""
        return read_teacher_predictions(file)


def unsupported_class_metric(task: ClassificationTask, metric: str, examples: Examples) -> str | None:
    """Return why classes or scores of some examples cannot be scored by a metric; None if they can."""
    if is_text_metric(metric) or metric in (*PERPLEXITIES, MASKED_PPL):
        return f"task {task.name} is of classes; its texts are scored by --task {language_modeling_flags(task)}"
    if not task.fits(task.metric(metric)):
        kind = "a score" if task.regression else f"{len(task.labels)} classes"
        return f"task {task.name} has {kind}; its metrics are {', '.join(task.metrics)}"
    return None if examples.labels is not None else f"split {examples.split} has no labels"


def language_modeling_flags(task: ClassificationTask) -> str:
    """Return the value of ``--task`` for language modelling of a classification's texts."""
    return f"lm:{task.name}" if task.name in GLUE else "lm --data DIR"
