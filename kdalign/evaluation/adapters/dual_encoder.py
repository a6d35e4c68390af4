"""The adapter of pairs of image and text: a dual encoder finds an image's text, and a text's image, among all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import ClassificationTask, Examples, LanguageTask, load_texts
from kdalign.data.tokenization import tokenize_captions
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import RowAdapter, TokenizedInParts
from kdalign.evaluation.predictions import agreement, retrieve, score_all
from kdalign.evaluation.zero_shot import check_text_end
from kdalign.metrics.classification import Score
from kdalign.metrics.retrieval import describe_ranks
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.inputs import padded_length
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions, read_teacher_predictions, write_predictions


@dataclass(frozen=True)
class DualEncoderAdapter(RowAdapter):
    """Pairs of image and text, predicted as ranks (``kdalign.metrics.retrieval``).

    Attributes:
        scored: the task as one of scores, whose metrics are recalls.
    """

    task: LanguageTask
    scored: ClassificationTask
    max_length: int
    head: HeadKind = HeadKind.DUAL
    predicts_tokens: bool = False
    in_parts: TokenizedInParts | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Recall at 1, 5 and 10, both ways."""
        return self.scored.metrics

    def load_examples(self, split: str) -> Examples:
        """Read the pairs of a split."""
        return load_texts(self.task, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse other models than dual encoders."""
        self.task.check(layout_of(checkpoint.config).family, checkpoint.name)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse a tokenizer without an end token, at which a CLIP takes a text's embedding."""
        if tokenizer.eos_token_id is None:
            raise UsageError(f"the tokenizer of {name!r} has no end token, which texts of a dual encoder end with")

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Tokenize texts, beside images that are decoded when a batch reads them."""
        assert reader.media is not None, "a dual encoder reads images"
        check_text_end(reader)
        padded = padded_length(reader.config)
        split = tokenize_captions(examples, reader.tokenizer, reader.media, self.max_length, padded)
        return replace(split, labels=np.zeros(len(split))) if scored else split

    def check_dual(self) -> None:
        """Refuse a teacher with another tokenizer."""
        raise UsageError(
            f"task {self.task.name!r} with a teacher of another tokenizer is not supported (accepted: the same one)"
        )

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load both towers."""
        return loading.load_body(checkpoint)

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> Predictions:
        """Predict the ranks of each pair."""
        return retrieve(model, encoded, progress)

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why ranks cannot be scored by a metric; None if they can."""
        return None if metric in self.metrics else f"task {self.task.name} has {', '.join(self.metrics)}"

    def score(
        self,
        predictions: Predictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute recalls."""
        names, right = self.metrics if metrics is None else metrics, np.zeros(len(predictions.values))
        scores = score_all(self.scored, predictions.values, right, names, interval)
        how = describe_ranks(len(right))
        return [replace(score, signature=f"{how}; {score.signature}") for score in scores]

    def agreement(self, ours: Predictions, theirs: Predictions, *, interval: bool = True) -> Score:
        """Compute the share of queries, of both directions, that both models answer right or both wrong."""
        return agreement(ours.values, theirs.values, interval, describe_ranks(len(ours.values)))

    def write_predictions(
        self, file: Path, ours: Predictions, encoded: TokenizedSplit, theirs: Predictions | None
    ) -> None:
        """Write packed ranks."""
        write_predictions(file, self.scored, ours, np.zeros(len(ours.values)), theirs)

    def read_teacher(self, file: Path) -> Predictions:
        """Read the teacher's ranks."""
        return read_teacher_predictions(file)
