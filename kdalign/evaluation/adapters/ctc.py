"""The adapter of speech recognition by CTC: characters as labels of frames, greedy transcripts, error rates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Wav2Vec2CTCTokenizer

from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import Examples, LanguageTask, load_texts
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.data.transcripts import tokenize_transcripts
from kdalign.errors import UsageError
from kdalign.evaluation.adapters.base import RowAdapter, TokenizedInParts
from kdalign.evaluation.frame_labels import transcribe_frames
from kdalign.evaluation.metric_names import is_text_metric
from kdalign.metrics.classification import Score
from kdalign.metrics.text import score_texts
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import HeadKind, head_of
from kdalign.models.read_check import check_read
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.written_texts import WrittenTexts, read_teacher_texts, write_texts

_HOW = "CTC, likeliest label of each frame"


@dataclass(frozen=True)
class CTCAdapter(RowAdapter):
    """Transcripts of sounds, by a head that labels their frames.

    Sounds are read whole, whatever ``max_length`` says.
    """

    task: LanguageTask
    max_length: int
    head: HeadKind = HeadKind.CTC
    predicts_tokens: bool = False
    in_parts: TokenizedInParts | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's error rates."""
        return self.task.text_metrics

    def load_examples(self, split: str) -> Examples:
        """Read sounds and transcripts."""
        return load_texts(self.task, split)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse another family, and a checkpoint without a CTC head."""
        self.task.check(layout_of(checkpoint.config).family, checkpoint.name)
        if head_of(checkpoint.config) is not self.head:
            raise UsageError(f"{checkpoint.name!r} has no CTC head (accepted: a checkpoint of a model ...ForCTC)")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase, name: str, *, scored: bool) -> None:
        """Refuse a tokenizer that is not one of characters."""
        if not isinstance(tokenizer, Wav2Vec2CTCTokenizer):
            raise UsageError(
                f"task {self.task.name!r} with a ctc model needs a tokenizer of characters; that of {name!r} is a "
                f"{type(tokenizer).__name__} (accepted: Wav2Vec2CTCTokenizer, or --tokenizer train:chars)"
            )

    def check_dual(self) -> None:
        """Refuse a teacher with another tokenizer, whose frames have other labels."""
        raise UsageError("frames of ctc models with two tokenizers have other labels (accepted: the same tokenizer)")

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Spell transcripts."""
        return tokenize_transcripts(examples, reader.tokenizer, reader, scored=scored)

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a model with its CTC head; a teacher of another family with its own, as it teaches features alone."""
        return check_read(loading.load_language_model(checkpoint, fresh_head=fresh_head, seed=seed))

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint has a CTC head."""
        return head_of(checkpoint.config) is self.head

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> WrittenTexts:
        """Transcribe the sounds of a split."""
        return transcribe_frames(model, encoded, progress)

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why transcripts cannot be scored by a metric; None if they can."""
        return None if is_text_metric(metric) else f"task {self.task.name} has {', '.join(self.metrics)}"

    def score(
        self,
        predictions: WrittenTexts,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute error rates against the transcripts as they are in the data."""
        assert encoded.transcripts is not None, "a task of speech has transcripts"
        names = self.metrics if metrics is None else metrics
        scores, _ = score_texts(names, predictions.texts, encoded.transcripts.references, self.task.language)
        scores = [replace(score, signature=f"{score.signature}; {_HOW}") for score in scores]
        return scores if interval else [replace(score, low=None, high=None) for score in scores]

    def agreement(self, ours: WrittenTexts, theirs: WrittenTexts, *, interval: bool = True) -> Score:
        """Compute the share of sounds with the same transcript."""
        [score], _ = score_texts(["exact_match"], ours.texts, [(text,) for text in theirs.texts])
        score = replace(score, metric="agreement", signature="same transcript")
        return score if interval else replace(score, low=None, high=None)

    def write_predictions(
        self, file: Path, ours: WrittenTexts, encoded: TokenizedSplit, theirs: WrittenTexts | None
    ) -> None:
        """Write transcripts and what they are compared with."""
        assert encoded.transcripts is not None, "a task of speech has transcripts"
        write_texts(file, ours, encoded.transcripts.references, theirs, self.task.language)

    def read_teacher(self, file: Path) -> WrittenTexts:
        """Read the teacher's transcripts."""
        return read_teacher_texts(file)
