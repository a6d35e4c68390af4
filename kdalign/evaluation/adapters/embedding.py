"""The adapter of embeddings: texts as vectors, scored by the cosines of pairs with a known similarity."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.dual_tokenization import Tokenizers, tokenize_labelled_dual
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import ClassificationTask, Examples, LanguageTask, load_examples, load_texts
from kdalign.data.tokenization import tokenize_labelled
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.evaluation.adapters.base import RowAdapter, TokenizedInParts
from kdalign.evaluation.predictions import agreement, compare_pairs, score_all
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.read_check import check_read
from kdalign.models.sentence_transformers import check_sentences
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions, read_teacher_predictions, write_predictions


@dataclass(frozen=True)
class EmbeddingAdapter(RowAdapter):
    """Texts as vectors, from an encoder without a head.

    Attributes:
        task: the texts to train on.
        scored: the pairs of texts with a similarity.
        max_length: longest text in tokens.
    """

    task: LanguageTask
    scored: ClassificationTask
    max_length: int
    head: HeadKind = HeadKind.NONE
    predicts_tokens: bool = False
    in_parts: TokenizedInParts | None = "rows"

    @property
    def metrics(self) -> tuple[str, ...]:
        """The pairs' metrics, correlations of cosines with similarity."""
        return self.scored.metrics

    def load_examples(self, split: str) -> Examples:
        """Read the texts of train, or the pairs of another split."""
        return load_texts(self.task, split) if split == self.task.train else load_examples(self.scored, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a family other than encoders, and vectors that are not the mean over tokens."""
        self.task.check(layout_of(checkpoint.config).family, checkpoint.name)
        check_sentences(checkpoint)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Do nothing: every tokenizer will do."""

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Tokenize texts; with ``scored`` first texts, then second ones (the next text if there are no pairs)."""
        if scored:
            first, second = examples.texts if len(examples.texts) == 2 else (examples.texts[0], _next_texts(examples))
            labels = None if examples.labels is None else np.concatenate([examples.labels, examples.labels])
            examples = replace(examples, texts=((*first, *second),), labels=labels)
        return tokenize_labelled(examples, reader.tokenizer, self.max_length)

    def check_dual(self) -> None:
        """Do nothing: texts are matched by their characters."""

    def tokenize_dual(
        self, examples: Examples, tokenizers: Tokenizers, configs: tuple[PretrainedConfig, PretrainedConfig]
    ) -> TokenizedSplit:
        """Tokenize texts by both tokenizers."""
        return tokenize_labelled_dual(examples, tokenizers, self.max_length)

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load an encoder without a head."""
        return check_read(loading.load_body(checkpoint))

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> Predictions:
        """Predict the cosines of pairs."""
        return compare_pairs(model, encoded, progress)

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why cosines of some examples cannot be scored by a metric; None if they can."""
        if examples.labels is None:
            return f"split {examples.split} has no pairs with a similarity"
        return None if metric in self.metrics else f"task {self.task.name} has {', '.join(self.metrics)}"

    def score(
        self,
        predictions: Predictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute the correlations of cosines with similarity; none if pairs have none."""
        labels = _likeness(encoded)
        if labels is None:
            return []
        names = self.metrics if metrics is None else metrics
        scores = score_all(self.scored, predictions.values, labels, names, interval)
        return [replace(score, signature=f"cosines of mean-pooled tokens; {score.signature}") for score in scores]

    def agreement(self, ours: Predictions, theirs: Predictions, *, interval: bool = True) -> Score:
        """Compute the correlation of both models' cosines."""
        return agreement(ours.values, theirs.values, interval)

    def write_predictions(
        self, file: Path, ours: Predictions, encoded: TokenizedSplit, theirs: Predictions | None
    ) -> None:
        """Write cosines and similarities."""
        write_predictions(file, self.scored, ours, _likeness(encoded), theirs)

    def read_teacher(self, file: Path) -> Predictions:
        """Read the teacher's cosines."""
        return read_teacher_predictions(file)


def _likeness(encoded: TokenizedSplit) -> np.ndarray[Any, Any] | None:
    """Return one number a pair, whose two rows both carry it."""
    return None if encoded.labels is None else np.split(encoded.labels, 2)[0]


def _next_texts(examples: Examples) -> tuple[str, ...]:
    """Return for each text the next one, and for the last the first."""
    texts = examples.texts[0]
    return (*texts[1:], texts[0])
