"""Sounds or images of a split, and the inputs that models take of some of its rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from kdalign.data.media.augmentation import ImageAugmentation
from kdalign.data.media.encodings import ENCODER_OUTPUTS, Encodings
from kdalign.data.media.grid import GRID, Grid
from kdalign.data.media.readers import MediaReader, fingerprint
from kdalign.data.media.rows import MediaRows

MEDIA_KEY = "media_key"
"""Input that names what is read in each row: equal for the same sound or image, changed alike."""


@dataclass(frozen=True)
class MediaBatch:
    """Inputs of some rows.

    Attributes:
        inputs: tensors by name, such as ``pixel_values`` or ``input_features``.
        real: (batch, positions), false for padding.
        teacher_inputs: those of a teacher that reads in its own way; None if it reads the student's.
    """

    inputs: dict[str, Tensor]
    real: Bool[Tensor, "batch positions"]
    teacher_inputs: dict[str, Tensor] | None


@dataclass(frozen=True)
class MediaInputs:
    """Sounds or images of a split: decoded when a batch reads them.

    Attributes:
        rows: the encoded ones.
        reader: the model's.
        lengths: (rows,), positions of each row that hold something.
        teacher: reader of a teacher that reads in its own way; None if it reads the student's inputs.
        grid: positions of images, on which features are compared.
        augmentation: random change of an image each time it is read, before both models read it.
        encodings: outputs of the encoder that both models share, which they read instead; None to encode every time.
    """

    rows: MediaRows
    reader: MediaReader
    lengths: np.ndarray[Any, Any]
    teacher: MediaReader | None = None
    grid: Grid | None = None
    augmentation: ImageAugmentation | None = None
    encodings: Encodings | None = None

    @classmethod
    def of(cls, rows: MediaRows, reader: MediaReader) -> "MediaInputs":
        """Measure the rows.

        Raises:
            UsageError: a row that cannot be read.
        """
        return cls(rows, reader, reader.lengths(rows))

    def for_both(self, teacher: MediaReader | None, grid: Grid | None) -> "MediaInputs":
        """Let a teacher read the rows, too, by a reader of its own unless None, and compare features on a grid."""
        return replace(self, teacher=teacher, grid=grid)

    @property
    def positions(self) -> np.ndarray[Any, Any]:
        """(rows,), positions of each row that a model reads."""
        if self.grid is not None:
            return np.full(len(self.rows), self.grid.positions)
        most = self.reader.most
        return self.lengths if most is None else np.minimum(self.lengths, most)

    def read(self, numbers: Sequence[int], draw: tuple[int, int]) -> MediaBatch:
        """Decode some rows, and return the models' inputs.

        Args:
            numbers: numbers of the rows.
            draw: (seed, epoch) of their random changes.
        """
        keys = {MEDIA_KEY: torch.tensor([self._key(row, draw) for row in numbers])}
        lengths = torch.from_numpy(self.positions[np.asarray(numbers, dtype=np.int64)])
        width = self.grid.positions if self.grid is not None else self.reader.width or int(lengths.max())
        real = torch.arange(width) < lengths[:, None]
        if self.encodings is not None:
            return MediaBatch({ENCODER_OUTPUTS: self.encodings.read(numbers)} | keys, real, None)
        decoded = [self.reader.decode(self.rows.read(row), self.rows.name(row)) for row in numbers]
        theirs = self.teacher
        if self.augmentation is not None:
            change = self.augmentation
            decoded = [
                change(each, np.random.default_rng([*draw, row])) for each, row in zip(decoded, numbers, strict=True)
            ]
        inputs, others = self.reader.inputs(decoded), None
        if theirs is not None:
            again = decoded
            if self.reader.modality == "audio":  # a decoded sound has the rate of its reader
                again = [theirs.decode(self.rows.read(row), self.rows.name(row)) for row in numbers]
            others = theirs.inputs(again)
        if self.grid is not None:
            grid = {GRID: self.grid.tensor(len(numbers))}
            inputs, others = inputs | grid, None if others is None else others | grid
        return MediaBatch(inputs | keys, real, None if others is None else others | keys)

    def _key(self, row: int, draw: tuple[int, int]) -> int:
        """Hash what is read in a row, in 63 bits; a cache knows its teacher's reader."""
        changed = None if self.augmentation is None else (repr(self.augmentation), *draw, row)
        content = (self.rows[row], changed)
        return int.from_bytes(hashlib.sha256(repr(content).encode()).digest()[:8], "little") >> 1

    def take(self, numbers: np.ndarray[Any, Any]) -> "MediaInputs":
        """Select rows, in this order."""
        encodings = None if self.encodings is None else self.encodings.take(numbers)
        return replace(self, rows=self.rows.take(numbers.tolist()), lengths=self.lengths[numbers], encodings=encodings)

    def joined(self, others: "MediaInputs") -> "MediaInputs":
        """Append rows that are read alike."""
        lengths = np.concatenate([self.lengths, others.lengths])
        return replace(self, rows=self.rows.joined(others.rows), lengths=lengths)

    def fingerprint(self) -> tuple[object, ...]:
        """Everything that models read."""
        theirs = None if self.teacher is None else fingerprint(self.teacher)
        return (list(self.rows), fingerprint(self.reader), theirs, str(self.grid), repr(self.augmentation))
