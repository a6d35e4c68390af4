"""Classification and regression: labelled text, a classifier's head, metrics of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.batches import TokenizedSplit
from kdalign.data.dual_tokenization import Tokenizers, tokenize_labelled_dual
from kdalign.data.tasks import ClassificationTask, Examples, load_examples
from kdalign.data.tokenization import tokenize_labelled
from kdalign.errors import UsageError
from kdalign.evaluation import predictions
from kdalign.evaluation.samples import Prompt
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.capture import check_read
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions, read_teacher_predictions, write_predictions


@dataclass(frozen=True)
class ClassificationAdapter:
    """Classes or scores, by a sequence-classification head."""

    task: ClassificationTask
    max_length: int
    head: HeadKind = HeadKind.CLASSIFIER
    predicts_tokens: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names, the primary one first."""
        return self.task.metrics

    def load_examples(self, split: str) -> Examples:
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

    def tokenize(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> TokenizedSplit:
        """Tokenize a split."""
        return tokenize_labelled(examples, tokenizer, self.max_length)

    def check_dual(self) -> None:
        """Texts are matched by their characters."""

    def tokenize_dual(self, examples: Examples, tokenizers: Tokenizers) -> TokenizedSplit:
        """Tokenize a split by both."""
        return tokenize_labelled_dual(examples, tokenizers, self.max_length)

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a classifier."""
        return check_read(loading.load_classifier(checkpoint, self.task, fresh_head=fresh_head, seed=seed))

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Whether its labels are the task's."""
        return checkpoint.has_classifier and loading.output_order(checkpoint.config, self.task) is not None

    def output_order(self, model: PreTrainedModel) -> tuple[int, ...]:
        """For each of the task's outputs, the number of the model's."""
        order = loading.output_order(model.config, self.task)
        assert order is not None, "heads were checked, or are fresh"
        return order

    def sample_prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """A class says nothing."""
        return ()

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, tell: ProgressCallback = no_progress
    ) -> Predictions:
        """Class numbers or scores, and logits."""
        return predictions.predict(model, self.output_order(model), encoded, self.task, tell=tell)

    def score(
        self,
        answers: Predictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
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

    def calibration(self, answers: Predictions, encoded: TokenizedSplit) -> Score | None:
        """The expected calibration error of classes."""
        if self.task.regression or encoded.labels is None:
            return None
        return predictions.score_all(self.task, answers.values, encoded.labels, ("ece",), logits=answers.logits)[0]

    def write_predictions(
        self, file: Path, ours: Predictions, encoded: TokenizedSplit, theirs: Predictions | None
    ) -> None:
        """Write predictions, labels and logits."""
        write_predictions(file, self.task, ours, encoded.labels, theirs)

    def read_teacher(self, file: Path) -> Predictions:
        """The teacher's classes or scores."""
        return read_teacher_predictions(file)
