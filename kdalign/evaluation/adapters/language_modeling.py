"""The adapter of language modelling: tokens as targets, a vocabulary head, perplexity and generated text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.data.conversations import SourcePrompts, tokenize_chats, tokenize_prompted
from kdalign.data.dual_answers import tokenize_chats_dual, tokenize_prompted_dual
from kdalign.data.dual_pairs import tokenize_pairs_dual
from kdalign.data.dual_tokenization import Tokenizers, tokenize_documents_dual
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import Examples, LanguageTask, load_texts
from kdalign.data.tokenization import check_roles, tokenize_documents, tokenize_pairs, tokenize_speech
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.data.windows import tokenize_causal_windows, tokenize_permuted_windows
from kdalign.errors import UsageError
from kdalign.evaluation import likelihood
from kdalign.evaluation.adapters.base import TokenizedInParts
from kdalign.evaluation.metric_names import PERPLEXITIES
from kdalign.evaluation.samples import (
    Prompt,
    chat_prompts,
    continuation_prompts,
    prompted_sources,
    source_prompts,
    speech_prompts,
)
from kdalign.metrics.classification import Score
from kdalign.models import loading
from kdalign.models.architecture import layout_of
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, head_of
from kdalign.models.media_reader import check_modality
from kdalign.models.read_check import check_read
from kdalign.observer import ProgressCallback, no_progress
from kdalign.runs.prediction_table import TokenPredictions, read_teacher_tokens, write_token_predictions


@dataclass(frozen=True)
class LanguageModelingAdapter:
    """Tokens, predicted by a language-model head of a family.

    Attributes:
        task: the task.
        family: the models' family.
        max_length: longest row in tokens.
        prediction_order: order in which a permutation model is trained to predict tokens.
        stride: tokens from the start of a window to that of the next; windows do not overlap if None.
    """

    task: LanguageTask
    family: str
    max_length: int
    prediction_order: str = "drawn"
    stride: int | None = None
    predicts_tokens: bool = True

    @property
    def head(self) -> HeadKind:
        """The family's language-model head."""
        return LANGUAGE_HEADS[self.family]

    @property
    def _answers(self) -> bool:
        """True if a causal model answers conversations or sources."""
        return self.family == "causal" and (self.task.kind == "chat" or self.task.pairs)

    @property
    def _packs(self) -> bool:
        """True if documents are packed."""
        return self.family == "causal" and not self._answers

    @property
    def in_parts(self) -> TokenizedInParts | None:
        """Documents that are packed."""
        return "packed" if self._packs else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The family's perplexities; words of conversations are not counted."""
        return ("ppl",) if self.task.kind == "chat" else likelihood.token_metrics(self.family)

    def load_examples(self, split: str) -> Examples:
        """Read documents or pairs."""
        return load_texts(self.task, split)

    def check_packing(self, checkpoint: Checkpoint) -> None:
        """Refuse a model with a sliding window shorter than a row: the mask of packed documents would replace it."""
        window = getattr(checkpoint.config, "sliding_window", None)
        if self._packs and window is not None and window < self.max_length:
            raise UsageError(
                f"--max-length {self.max_length} is more than the {window} tokens that {checkpoint.name!r} looks back: "
                f"packed documents would be seen whole"
            )

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse another family, and a checkpoint without a language-model head."""
        check_modality(checkpoint.name, checkpoint.config.model_type, self.task)
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
        """Refuse a tokenizer without a start, end or mask token that the family needs."""
        if self.task.kind == "chat":
            needed: tuple[str, ...] = ()
        elif self.task.pairs:
            needed = ("end",)
        elif self.family == "causal":
            needed = ("start",) if scored else ("start", "end")
        else:
            needed = {"masked": ("mask",), "permutation": ("places",)}[self.family]
        check_roles(tokenizer, name, self.task.name, needed)

    def tokenize(self, examples: Examples, reader: InputReader, *, scored: bool) -> TokenizedSplit:
        """Tokenize documents or pairs; of speech, the transcripts."""
        tokenizer = reader.tokenizer
        if self.task.kind == "chat":
            return tokenize_chats(examples, tokenizer, self.max_length)
        if self.family == "seq2seq":
            if reader.media is not None:
                return tokenize_speech(examples, reader, self.max_length, self.task.language)
            start = int(reader.config.decoder_start_token_id)
            return tokenize_pairs(examples, tokenizer, start, self.max_length)
        if self.task.pairs:
            return tokenize_prompted(examples, SourcePrompts(self.task, tokenizer), self.max_length)
        if scored and self.family != "masked":
            encode = tokenize_causal_windows if self.family == "causal" else tokenize_permuted_windows
            return encode(examples.texts[0], tokenizer, self.max_length, self.stride)
        ordered = self.prediction_order == "left-to-right"
        return tokenize_documents(examples, tokenizer, self.family, self.max_length, ordered)

    def check_dual(self) -> None:
        """Refuse permutation models, whose targets depend on the order of their own tokens."""
        if self.family == "permutation":
            raise UsageError(
                f"{self.family} models with a teacher of another tokenizer are not supported (accepted: the same one)"
            )

    def tokenize_dual(
        self, examples: Examples, tokenizers: Tokenizers, configs: tuple[PretrainedConfig, PretrainedConfig]
    ) -> TokenizedSplit:
        """Tokenize documents, conversations or pairs by both tokenizers."""
        if self.family == "seq2seq":
            ours, theirs = (int(config.decoder_start_token_id) for config in configs)
            return tokenize_pairs_dual(examples, tokenizers, (ours, theirs), self.max_length)
        if self.task.kind == "chat":
            return tokenize_chats_dual(examples, tokenizers, self.max_length)
        if self.task.pairs:
            prompts = SourcePrompts(self.task, tokenizers[0]), SourcePrompts(self.task, tokenizers[1])
            return tokenize_prompted_dual(examples, prompts, self.max_length)
        return tokenize_documents_dual(examples, tokenizers, self.family, self.max_length)

    def with_head(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the configuration, which is of a language model."""
        return config

    def load_model(self, checkpoint: Checkpoint, *, fresh_head: bool, seed: int) -> PreTrainedModel:
        """Load a language model."""
        return check_read(loading.load_language_model(checkpoint, fresh_head=fresh_head, seed=seed))

    def has_head(self, checkpoint: Checkpoint) -> bool:
        """Return whether the checkpoint has the family's language-model head."""
        return head_of(checkpoint.config) is self.head

    def output_order(self, model: PreTrainedModel) -> None:
        """Return None: a language model has no labels."""
        return

    def sample_prompts(self, examples: Examples, reader: InputReader, count: int) -> tuple[Prompt, ...]:
        """Return beginnings, questions or sources; none for models that do not generate from left to right."""
        tokenizer = reader.tokenizer
        if reader.media is not None:
            return speech_prompts(examples, reader.media, count)
        if self.task.kind == "chat":
            return chat_prompts(examples, tokenizer, count)
        if self.family == "seq2seq":
            return source_prompts(examples, tokenizer, count, self.max_length)
        if self.task.pairs:
            return prompted_sources(examples, SourcePrompts(self.task, tokenizer), count, self.max_length)
        return continuation_prompts(examples, tokenizer, count) if self.family == "causal" else ()

    def predict(
        self, model: PreTrainedModel, encoded: TokenizedSplit, progress: ProgressCallback = no_progress
    ) -> TokenPredictions:
        """Predict each row's likelihood and likeliest tokens."""
        return likelihood.predict_tokens(model, encoded, progress)

    def unsupported(self, metric: str, examples: Examples) -> str | None:
        """Return why the task's tokens cannot be scored by a metric; None if they can."""
        known = tuple(dict.fromkeys((*self.metrics, *PERPLEXITIES)))
        return None if metric in known else f"task {self.task.name} has {', '.join(known)}"

    def score(
        self,
        predictions: TokenPredictions,
        encoded: TokenizedSplit,
        metrics: Sequence[str] | None = None,
        *,
        interval: bool = True,
    ) -> list[Score]:
        """Compute perplexities."""
        way = "prompted" if encoded.form else self.family
        if self.task.kind == "chat":
            way = "chat" if encoded.groups is None else "answers"
        signature = likelihood.protocol(way, self.max_length, self.stride, encoded.form)
        scores = likelihood.perplexities(predictions, encoded, signature, interval, masked=way == "masked")
        return [score for score in scores if metrics is None or score.metric in metrics]

    def agreement(self, ours: TokenPredictions, theirs: TokenPredictions, *, interval: bool = True) -> Score:
        """Compute the share of target tokens with the same likeliest token."""
        return likelihood.token_agreement(ours, theirs, interval)

    def calibration(self, predictions: TokenPredictions, encoded: TokenizedSplit) -> Score | None:
        """Return None: a perplexity contains it."""
        return None

    def write_predictions(
        self, file: Path, ours: TokenPredictions, encoded: TokenizedSplit, theirs: TokenPredictions | None
    ) -> None:
        """Write likelihoods and likeliest tokens, row by row."""
        write_token_predictions(file, ours, theirs)

    def read_teacher(self, file: Path) -> TokenPredictions:
        """Read the teacher's likelihoods and likeliest tokens."""
        return read_teacher_tokens(file)
