"""Rows of encoded sounds or images: each row's string names its content, and its bytes are read when asked for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from kdalign.errors import UsageError
from kdalign.files import read_bytes

MediaKind = Literal["audio", "image"]
Modality = Literal["text", "audio", "image"]
"""What a model, or the first column of a task, reads."""
ENDINGS: Mapping[MediaKind, tuple[str, ...]] = {
    "audio": ("wav", "flac", "mp3", "ogg", "oga", "opus", "aiff", "aif"),
    "image": ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"),
}
"""Endings of files, in lower case."""
NOUNS: Mapping[MediaKind, str] = {"audio": "sound", "image": "image"}


def describe_input(modality: Modality, tokens: int | str) -> str:
    """Describe one example that a model reads when it is timed: tokens, tokens after a sound, or an image."""
    return {"text": f"{tokens} tokens", "audio": f"{tokens} tokens after a sound", "image": "one image"}[modality]


def media_digest(encoded: bytes) -> str:
    """Return the first 64 bits of the SHA-256 hash of an encoded sound or image, in hexadecimal digits."""
    return hashlib.sha256(encoded).hexdigest()[:16]


@dataclass(frozen=True)
class MediaItem:
    """One row of encoded sounds or images."""

    rows: "MediaRows"
    row: int

    @property
    def name(self) -> str:
        """What a person would call it."""
        return self.rows.name(self.row)

    def read(self) -> bytes:
        """Return its encoded bytes."""
        return self.rows.read(self.row)


class MediaRows(Sequence[str]):
    """A column of encoded sounds or images.

    As a sequence of strings, such as ``audio 3f2a9c0d1e4b5a67``, it is compared, hashed and held out as texts are: two
    rows are equal if their bytes are.

    Attributes:
        modality: ``audio`` or ``image``.
        cells: encoded bytes, or the file that holds them.
        names: name of each row for people and error lines, such as the file's.
        digests: ``media_digest`` of each row.
    """

    def __init__(
        self, modality: MediaKind, cells: Sequence[bytes | Path], names: Sequence[str], digests: Sequence[str]
    ) -> None:
        self.modality: MediaKind = modality
        self.cells, self.names, self.digests = cells, tuple(names), tuple(digests)

    def read(self, row: int) -> bytes:
        """Return the encoded bytes of a row.

        Raises:
            UsageError: its file cannot be read, or has other bytes than when the split was loaded.
        """
        cell = self.cells[row]
        if isinstance(cell, bytes):
            return cell
        encoded = read_bytes(cell, largest=None)
        if media_digest(encoded) != self.digests[row]:
            raise UsageError(f"{str(cell)!r} is not as it was when the split was loaded: its bytes changed")
        return encoded

    def name(self, row: int) -> str:
        """Return what a person would call a row: its file, or its number in the split."""
        return self.names[row]

    def take(self, rows: Sequence[int]) -> "MediaRows":
        """Select rows, in this order."""
        return MediaRows(
            self.modality,
            [self.cells[row] for row in rows],
            [self.names[row] for row in rows],
            [self.digests[row] for row in rows],
        )

    def joined(self, others: "MediaRows") -> "MediaRows":
        """Append rows of the same modality."""
        names, digests = (*self.names, *others.names), (*self.digests, *others.digests)
        return MediaRows(self.modality, (*self.cells, *others.cells), names, digests)

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> "MediaRows": ...

    def __getitem__(self, row: int | slice) -> "str | MediaRows":
        if isinstance(row, slice):
            return self.take(range(*row.indices(len(self))))
        return f"{self.modality} {self.digests[row]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"MediaRows({list(self.names[:3])!r}{', ...' if len(self) > 3 else ''}, {len(self):,} rows)"
