"""Read a column of encoded sounds or images: bytes, files, or objects as data sets on the hub hold them."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.media.audio import check_sound
from kdalign.data.media.images import check_image
from kdalign.data.media.rows import ENDINGS, NOUNS, MediaKind, MediaRows, media_digest
from kdalign.data.tasks.columns import column_cells, describe_cell, is_blank, is_missing
from kdalign.errors import UsageError, did_you_mean, shorten
from kdalign.files import check_name, is_file, read_bytes

if TYPE_CHECKING:
    import pandas as pd

_USUAL: Mapping[MediaKind, tuple[str, ...]] = {
    "audio": ("audio", "sound", "wav", "speech", "recording"),
    "image": ("image", "img", "picture", "photo"),
}
"""Usual names of columns."""
_CHECKS: Mapping[MediaKind, Callable[[bytes, str], None]] = {"audio": check_sound, "image": check_image}


def find_media_column(table: "pd.DataFrame", modality: MediaKind, where: str) -> str:
    """Find the column of sounds or images by its cells, and by its name if there are several.

    Raises:
        UsageError: none, or several.
    """
    found = [str(name) for name in table.columns if _may_hold(column_cells(table, name), modality)]
    named = [name for name in found if name.strip().lower() in _USUAL[modality]]
    if len(named or found) != 1:
        several = f"which column has the {NOUNS[modality]}s, {' or '.join(map(repr, named or found))}?"
        raise UsageError(
            f"{where}: {several if found else f'no column of {NOUNS[modality]}s'} "
            f"(columns: {', '.join(map(str, table.columns))}; accepted: bytes, files ending in "
            f"{', '.join(ENDINGS[modality])}, or objects with bytes or path); name it in a task file"
        )
    return (named or found)[0]


def _may_hold(cells: Sequence[Any], modality: MediaKind) -> bool:
    """Return whether the first cell that is not missing can be a sound or an image."""
    first = next((cell for cell in cells if not is_missing(cell)), None)
    if isinstance(first, dict):
        return bool({"bytes", "path"} & set(first)) or (modality == "audio" and _is_array(first))
    if isinstance(first, str):
        return first.rpartition(".")[2].lower() in ENDINGS[modality]
    return isinstance(first, bytes)


def read_media(
    table: "pd.DataFrame", column: str, modality: MediaKind, where: str, folder: Path | None = None, first: int = 0
) -> MediaRows:
    """Read a column of encoded sounds or images, and check the header of each.

    A cell is one of:

    - bytes of a file;
    - a file's path, relative to ``folder``. What a table says as text was written by its author, as in manifests of
      speech, and may lead out of the folder; what an object says may not, since ``datasets`` writes it;
    - an object with ``bytes``, or without them with ``path``, as ``datasets`` stores Audio and Image;
    - an object with ``array`` and ``sampling_rate``: samples of one channel between -1 and 1, as it decodes Audio.

    Args:
        table: table to read from.
        column: its name.
        modality: ``audio`` or ``image``.
        where: name of the table, for error lines.
        folder: folder of the table's file; None for a data set on the hub, whose cells hold their bytes.
        first: number of the table's first row in the split.

    Raises:
        UsageError: a missing cell, one of another kind than the first, a file that is not there, or bytes that are no
            sound or image; the line names the row.
    """
    cells = column_cells(table, column)
    encoded: list[bytes | Path] = []
    names, digests = list[str](), list[str]()
    for row, cell in enumerate(cells, first):
        if _is_nothing(cell):
            raise UsageError(f"{where}: row {row} has no {NOUNS[modality]} in column {column!r}")
        if _kind(cell) != _kind(cells[0]):
            raise UsageError(
                f"{where}: row {row} has {describe_cell(cell)} in column {column!r}, and row {first} "
                f"{describe_cell(cells[0])}: {NOUNS[modality]}s are all bytes, all files, or all objects"
            )
        found, name = _encoded(cell, f"{where}: row {row}", column, modality, folder)
        names.append(name or f"row {row} of {where}")
        data = found if isinstance(found, bytes) else read_bytes(found, largest=None)
        _CHECKS[modality](data, names[-1])
        digests.append(media_digest(data))
        encoded.append(found)
    return MediaRows(modality, encoded, names, digests)


def _is_nothing(cell: Any) -> bool:
    if isinstance(cell, dict):
        return all(is_missing(value) for value in cell.values())
    return is_missing(cell) or (isinstance(cell, str) and is_blank(cell))


def _kind(cell: Any) -> str:
    return "bytes" if isinstance(cell, bytes) else "path" if isinstance(cell, str) else type(cell).__name__


def _is_array(cell: Mapping[str, Any]) -> bool:
    return {"array", "sampling_rate"} <= set(cell)


def _encoded(cell: Any, where: str, column: str, modality: MediaKind, folder: Path | None) -> tuple[bytes | Path, str]:
    """Return the bytes of a cell, or its file and the file's name."""
    match cell:
        case bytes():
            return cell, ""
        case str():
            return _file_of(cell, where, column, folder), cell
        case {"bytes": bytes(data)}:
            return data, ""
        case dict() if modality == "audio" and _is_array(cell):
            return _as_wav(cell, where, column), ""
        case {"path": str(path)}:
            return _file_of(path, where, column, folder, inside=True), path
    raise UsageError(
        f"{where} has {describe_cell(cell)} in column {column!r}, where {NOUNS[modality]}s are expected (accepted: "
        "bytes, a file's path, or an object with bytes or path)"
    )


def _file_of(path: str, where: str, column: str, folder: Path | None, inside: bool = False) -> Path:
    """Return the file that a cell names, which must be there, and where it must be ``inside`` the folder, in it."""
    shown = repr(shorten(path, 120))
    if folder is None:
        raise UsageError(
            f"{where} names a file in column {column!r}, {shown}, and a data set on the hub has bytes in its cells"
        )
    check_name(path, f"{where}: the file in column {column!r}")
    file = folder / path
    if inside and not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):
        raise UsageError(
            f"{where} has an object in column {column!r} whose path leads out of {str(folder)!r}: {shown}; write such "
            "paths as text"
        )
    if not is_file(file):
        beside = [each.name for each in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UsageError(
            f"{where} names {shown} in column {column!r}, and {str(folder)!r} has no such file"
            f"{did_you_mean(file.name, beside)}"
        )
    return file


def _as_wav(cell: Mapping[str, Any], where: str, column: str) -> bytes:
    """Encode samples as a wav file of 32-bit floats."""
    from scipy.io import wavfile

    samples, rate = np.asarray(cell["array"]), cell["sampling_rate"]
    if samples.ndim != 1 or samples.dtype.kind != "f" or not isinstance(rate, int | np.integer) or rate <= 0:
        raise UsageError(
            f"{where}: an object with an array in column {column!r} needs samples of one channel between -1 and 1, and "
            f"a whole number as sampling_rate; it has {describe_cell(cell)}"
        )
    written = io.BytesIO()
    wavfile.write(written, int(rate), samples.astype(np.float32))
    return written.getvalue()
