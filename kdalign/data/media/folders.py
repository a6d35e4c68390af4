"""Splits that are folders of sounds or images: by class, with a table of metadata, or with transcripts beside."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdalign.data.media.rows import ENDINGS, NOUNS, MediaKind
from kdalign.data.tables import FORMATS, from_columns, read_table
from kdalign.errors import UsageError
from kdalign.files import read_text

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "file_name"
"""Column of a table of metadata that names the files, as in the audio and image folders of ``datasets``."""
_KINDS: dict[str, MediaKind] = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}


def holds_media(folder: Path) -> bool:
    """Return whether a folder, or one below it, has a sound or an image."""
    return next(_media_files(folder), None) is not None


def read_folder(folder: Path) -> "pd.DataFrame":
    """Read a folder of sounds or images as a table with their paths, relative to it, in ``audio`` or ``image``.

    The first of these that it is:

    - with ``metadata.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` in it: the table's rows, whose files are in its column
      ``file_name``;
    - with ``NAME.txt`` beside each ``NAME.wav``: its text is in the column ``text``;
    - of folders: each is a class, in the column ``label``, and holds its files at any depth;
    - of files: without any label.

    Files of other formats, and those whose name begins with a dot, are left out. Rows are in the order of their paths.

    Raises:
        UsageError: sounds and images in one folder, files beside class folders, a class without a file, a file
            without a transcript, or two tables.
    """
    metadata = [path for path in (folder / f"metadata.{kind}" for kind in FORMATS) if path.is_file()]
    if len(metadata) > 1:
        raise UsageError(f"{str(folder)!r} has {' and '.join(path.name for path in metadata)}: keep one")
    if metadata:
        return _of_metadata(metadata[0])
    files = sorted(_media_files(folder))
    kind = _kind_of([path.name for path in files], str(folder))
    columns: dict[str, Sequence[str]] = {kind: [str(path.relative_to(folder)) for path in files]}
    texts = [path.with_suffix(".txt") for path in files]
    there = [path.is_file() for path in texts]
    if any(there):
        if not all(there):
            raise UsageError(
                f"{str(files[there.index(False)])!r} has no transcript beside it, and other files have one"
            )
        columns["text"] = [" ".join(read_text(path).split()) for path in texts]
    elif any(path.parent != folder for path in files):
        columns["label"] = _classes(folder, files)
    return from_columns(columns)


def _media_files(folder: Path) -> Iterator[Path]:
    """Yield the sounds and images below a folder."""
    for above, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(above, name) for name in files if not name.startswith(".") and _ending(name) in _KINDS)


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _kind_of(names: Sequence[str], where: str) -> MediaKind:
    """Return what files are by their endings, which must agree."""
    kinds = [_KINDS[_ending(name)] for name in names]
    if len(set(kinds)) > 1:
        one, other = (names[kinds.index(kind)] for kind in NOUNS)
        raise UsageError(f"{where!r} has sounds and images ({one}, {other}): give each a folder of its own")
    return kinds[0]


def _of_metadata(file: Path) -> "pd.DataFrame":
    """Read a table of metadata, and call its column of files by what they are."""
    table = read_table(file)
    if FILE_NAME not in table.columns:
        raise UsageError(f"{str(file)!r} has no column {FILE_NAME!r} (it has: {', '.join(map(str, table.columns))})")
    names = [name for name in table[FILE_NAME] if isinstance(name, str) and _ending(name) in _KINDS]
    if not names:
        raise UsageError(f"{str(file)!r} names no file of sound or image in {FILE_NAME!r}")
    kind = _kind_of(names, str(file))
    if kind in table.columns:
        raise UsageError(f"{str(file)!r} has columns {FILE_NAME!r} and {kind!r}: keep one")
    return table.rename(columns={FILE_NAME: kind})


def _classes(folder: Path, files: Sequence[Path]) -> list[str]:
    """Name the class of each file: the folder that it is in, or below."""
    loose = next((path for path in files if path.parent == folder), None)
    if loose is not None:
        raise UsageError(f"{str(folder)!r} has folders by class, and {loose.name!r} in none of them")
    classes = [path.relative_to(folder).parts[0] for path in files]
    given = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    empty = next((name for name in given if name not in set(classes)), None)
    if empty is not None:
        raise UsageError(
            f"{str(folder / empty)!r} is a class without a file that is read (endings: {', '.join(_KINDS)})"
        )
    return classes
