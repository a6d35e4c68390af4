"""How a model reads sounds or images: by its feature extractor or image processor of Transformers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import SequenceFeatureExtractor
from transformers.image_processing_utils import BaseImageProcessor

from kdalign.data.media.audio import audio_seconds, decode_audio
from kdalign.data.media.images import decode_image
from kdalign.data.media.rows import MediaKind, MediaRows

INPUT_MASK = "input_mask"
"""Mask by which a model of sounds (by samples) or of images and texts (by tokens) attends."""
Decoded = np.ndarray[Any, Any]
"""Samples of a sound, or (height, width, 3) of an image."""


class MediaReader(Protocol):
    """How a model reads sounds or images."""

    @property
    def modality(self) -> MediaKind:
        """What it reads."""

    def decode(self, encoded: bytes, where: str) -> Decoded:
        """Decode a sound or an image.

        Raises:
            UsageError: it cannot be decoded; ``where`` names it.
        """

    def inputs(self, decoded: Sequence[Decoded]) -> dict[str, Tensor]:
        """Return the model's inputs for some decoded sounds or images."""

    def lengths(self, rows: MediaRows) -> np.ndarray[Any, Any]:
        """Return the number of positions that hold something of each row, (rows,)."""

    @property
    def width(self) -> int | None:
        """Positions of every row, where short ones are padded to it; None to pad a batch to its longest."""

    @property
    def most(self) -> int | None:
        """Positions from which on a row is cut; None if none is."""

    @property
    def facts(self) -> object:
        """Everything that decides the inputs, as JSON."""

    def save(self, folder: Path) -> None:
        """Save it beside a model, for Transformers to load."""


def fingerprint(reader: MediaReader) -> str:
    """Hash a reader: equal for readers that give the same inputs."""
    return hashlib.sha256(repr(reader.facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageReader:
    """Image processor of a model.

    Attributes:
        processor: of Transformers.
        channels: channels of the images that the model reads, 3, or 1 for grey ones.
    """

    processor: BaseImageProcessor
    channels: int
    modality: MediaKind = "image"
    width: int | None = 1
    most: int | None = None

    def decode(self, encoded: bytes, where: str) -> Decoded:
        """Decode an image to (height, width, 3), whatever its channels."""
        return decode_image(encoded, where)

    def inputs(self, decoded: Sequence[Decoded]) -> dict[str, Tensor]:
        """Return ``pixel_values``, (batch, channels, height, width)."""
        images = [image if self.channels == 3 else _grey(image) for image in decoded]
        read = self.processor(images, return_tensors="pt", input_data_format="channels_last")
        return {"pixel_values": read["pixel_values"]}

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of ``pixel_values``."""
        height, width = self.inputs([np.zeros((64, 64, 3), dtype=np.uint8)])["pixel_values"].shape[-2:]
        return int(height), int(width)

    def lengths(self, rows: MediaRows) -> np.ndarray[Any, Any]:
        """Return 1 for each row: positions of images are those of a grid."""
        return np.ones(len(rows), dtype=np.int64)

    @property
    def facts(self) -> object:
        """The processor's settings."""
        return [self.processor.to_json_string(), self.channels]

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.processor.save_pretrained(folder)


def _grey(image: Decoded) -> Decoded:
    """Luminance of an image (ITU-R 601-2, as Pillow takes it), (height, width, 1)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]


@dataclass(frozen=True)
class AudioReader:
    """Feature extractor of a model.

    Attributes:
        extractor: of Transformers.
        stride: samples of a position of the encoder's output.
        width: positions to which every row is padded; None to pad a batch to its longest.
    """

    extractor: SequenceFeatureExtractor
    stride: int
    width: int | None
    modality: MediaKind = "audio"

    @property
    def rate(self) -> int:
        """Samples a second."""
        return int(self.extractor.sampling_rate)

    @property
    def most(self) -> int | None:
        """Positions from which on a sound is cut."""
        return self.width

    def decode(self, encoded: bytes, where: str) -> Decoded:
        """Decode a sound at the model's rate."""
        return decode_audio(encoded, self.rate, where)

    def inputs(self, decoded: Sequence[Decoded]) -> dict[str, Tensor]:
        """Return ``input_features``, (batch, mel bins, frames)."""
        with torch.autocast("cpu", enabled=False):  # a spectrum in bfloat16 would be wrong by a hundredth
            read = self.extractor(list(decoded), sampling_rate=self.rate, return_tensors="pt", padding="max_length")
        return {"input_features": read["input_features"].to(torch.float32)}

    def lengths(self, rows: MediaRows) -> np.ndarray[Any, Any]:
        """Return the number of positions of each sound, whole ones and a last part, also beyond ``width``."""
        samples = [self.samples_in(rows.read(row), rows.name(row)) for row in range(len(rows))]
        return self.positions_of(np.array(samples, dtype=np.int64))

    def samples_in(self, encoded: bytes, where: str) -> int:
        """Return the number of samples of a sound at the model's rate, by its header."""
        return round(audio_seconds(encoded, where) * self.rate)

    def positions_of(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the number of positions of sounds of these numbers of samples."""
        positions: np.ndarray[Any, Any] = np.maximum(1, -(-samples // self.stride))
        return positions

    @property
    def facts(self) -> object:
        """The extractor's settings."""
        settings = {name: value for name, value in self.extractor.to_dict().items() if name != "mel_filters"}
        return [settings, self.stride, self.width]

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.extractor.save_pretrained(folder)
