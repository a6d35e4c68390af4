"""Embeddings: texts as vectors, scored by their similarity to the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.batches import TokenizedSplit
from kdalign.data.dual_tokenization import Tokenizers, tokenize_labelled_dual
from kdalign.data.tasks import ClassificationTask, Examples, LanguageTask, load_examples, load_texts
from kdalign.data.tokenization import tokenize_labelled
from kdalign.evaluation import predictions
from kdalign.evaluation.samples import Prompt
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.capture import check_read
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind
from kdalign.models.sentence_transformers import check_sentences
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import Predictions, read_teacher_predictions, write_predictions


@dataclass(frozen=True)
class EmbeddingAdapter:
    """Texts as vectors, by an encoder without a head."""

    task: LanguageTask
    scored: ClassificationTask
    max_length: int
    head: HeadKind = HeadKind.NONE
    predicts_tokens: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The correlations of cosines with likeness."""
        return self.scored.metrics

    def load_examples(self, split: str) -> Examples:
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

    def tokenize(
        self, examples: Examples, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, scored: bool
    ) -> TokenizedSplit:
        """Tokenize texts; to be scored, first texts and then second texts (each with its neighbour where unpaired)."""
        if scored:
            first, second = examples.texts if len(examples.texts) == 2 else (examples.texts[0], _turned(examples))
            labels = None if examples.labels is None else np.concatenate([examples.labels, examples.labels])
            examples = replace(examples, texts=((*first, *second),), labels=labels)
        return tokenize_labelled(examples, tokenizer, self.max_length)

    def check_dual(self) -> None:
        """Texts are matched by their characters."""

    def tokenize_dual(self, examples: Examples, tokenizers: Tokenizers) -> TokenizedSplit:
        """Tokenize a split by both."""
        return tokenize_labelled_dual(examples, tokenizers, self.max_length)

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load an encoder without a head."""
        return check_read(loading.load_body(checkpoint))

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """There is none to lose."""
        return True

    def output_order(self, model: PreTrainedModel) -> None:
        """A vector has no labels."""
        return

    def sample_prompts(self, examples: Examples, tokenizer: PreTrainedTokenizerBase, count: int) -> tuple[Prompt, ...]:
        """A vector says nothing."""
        return ()

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, tell: ProgressCallback = no_progress
    ) -> Predictions:
        """The cosines of pairs."""
        return predictions.compare_pairs(model, encoded, tell)

    def score(
        self,
        answers: Predictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
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

    def calibration(self, answers: Predictions, encoded: TokenizedSplit) -> Score | None:
        """None: a cosine is no confidence."""
        return None

    def write_predictions(
        self, file: Path, ours: Predictions, encoded: TokenizedSplit, theirs: Predictions | None
    ) -> None:
        """Write cosines and likeness."""
        write_predictions(file, self.scored, ours, _likeness(encoded), theirs)

    def read_teacher(self, file: Path) -> Predictions:
        """The teacher's cosines."""
        return read_teacher_predictions(file)


def _likeness(encoded: TokenizedSplit) -> np.ndarray[Any, Any] | None:
    """One number a pair, whose two rows both carry it."""
    return None if encoded.labels is None else np.split(encoded.labels, 2)[0]


def _turned(examples: Examples) -> tuple[str, ...]:
    texts = examples.texts[0]
    return (*texts[1:], texts[0])
