"""How a model reads its inputs."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kdalign.data.media.readers import MediaReader
from kdalign.data.transcript_reader import TranscriptReader


@dataclass(frozen=True)
class InputReader:
    """How a model reads its inputs.

    Attributes:
        tokenizer: of its texts.
        config: its configuration.
        media: of its sounds or images; None for a model of text.
        transcripts: how a teacher of text reads the transcripts of its sounds in training; None without one.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    media: MediaReader | None = None
    transcripts: TranscriptReader | None = None

    def save(self, folder: Path) -> None:
        """Save the tokenizer, feature extractor or image processor beside a model."""
        self.tokenizer.save_pretrained(folder)
        if self.media is not None:
            self.media.save(folder)
