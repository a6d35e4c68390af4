"""Find the files of a split in a folder: SPLIT.FORMAT, shards named as on the hub, or a folder of sounds or images."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdalign.data.media.folders import holds_media
from kdalign.data.tables import FORMATS, file_format
from kdalign.errors import UsageError, did_you_mean

ALIASES: Mapping[str, tuple[str, ...]] = {"validation": ("valid", "dev", "val")}

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]{16})?")
"""Such as ``train-00000-of-00001.parquet``; older names end with a hash."""
_SPLITS = {"train", "test", *ALIASES, *ALIASES["validation"]}
_MENDS = {
    "json": "save it as jsonl, one object a line",
    "ndjson": "call it .jsonl",
    "gz": "unpack it",
    "zip": "unpack it",
    "bz2": "unpack it",
    "xz": "unpack it",
    "zst": "unpack it",
    "xlsx": "save it as csv",
    "xls": "save it as csv",
    "ods": "save it as csv",
    "arrow": "save it as parquet",
    "feather": "save it as parquet",
    "pq": "call it .parquet",
    "txt": "it holds text without labels, one a line",
}
"""Advice for files of other formats."""


@dataclass(frozen=True)
class _File:
    """A file of a split: split, part and number of parts by its name; 0 of 0 for a split in one file."""

    path: Path
    split: str
    number: int = 0
    count: int = 0

    @property
    def group(self) -> tuple[str, str, int]:
        """Key that all shards of one split share."""
        return self.split, file_format(self.path), self.count


def split_files(folder: Path, split: str, formats: Sequence[str]) -> list[Path]:
    """List the files of a split in order; empty if the folder has no such split.

    If a folder itself has no splits, its subfolder ``data`` is read, as on the hub. A split without a file may be a
    folder of sounds or images, which is then the only one that is listed.

    Raises:
        UsageError: several files or folders could be the split, or shards are missing.
    """
    names = (split, *ALIASES.get(split, ()))
    found = [file for file in _files(folder, formats) if file.split in names]
    found = found or _media_folders(folder, names)
    groups: dict[tuple[str, str, int], list[_File]] = {}
    for file in found:
        groups.setdefault(file.group, []).append(file)
    if len(groups) > 1 or any(not file.count for file in found[1:]):
        several = ", ".join(f"{group[0].path.name!r}" for group in groups.values())
        raise UsageError(
            f"split {split!r} has several files in {str(folder)!r}: {several}; keep one, and move the others away"
        )
    if found and found[0].count:
        there = [file.number for file in found]
        lacking = sorted(set(range(found[0].count)) - set(there))
        if lacking or len(there) != found[0].count:
            raise UsageError(
                f"split {split!r} in {str(folder)!r} has {len(there)} files of {found[0].count}: "
                + (f"number {lacking[0]:05d} is missing" if lacking else "one is there twice")
            )
    return [file.path for file in found]


def require_files(folder: Path, split: str, formats: Sequence[str]) -> list[Path]:
    """List the files of a split in order.

    Raises:
        UsageError: there are none, several files could be the split, or shards are missing.
    """
    if not folder.is_dir():
        raise UsageError(f"no data folder {str(folder)!r}")
    files = split_files(folder, split, formats)
    if not files:
        has = available_splits(folder, formats)
        raise UsageError(
            f"no split {split!r} in {str(folder)!r}{did_you_mean(split, has)} "
            f"(it has: {', '.join(has) or f'no file named SPLIT.{chr(124).join(formats)}'})"
            f"{unreadable_files(folder, split, formats)}"
        )
    return files


def available_splits(folder: Path, formats: Sequence[str] = FORMATS) -> list[str]:
    """List the splits of a folder, by the names of its files, or without any of its folders of sounds or images."""
    return sorted({file.split for file in _files(folder, formats) or _media_folders(folder)})


def unreadable_files(folder: Path, split: str, formats: Sequence[str]) -> str:
    """Name files of a split in a format that is not read, as a clause; empty if there are none."""
    names = (split, *ALIASES.get(split, ()))
    for path in sorted(folder.iterdir()):
        if path.name.split(".")[0] not in names:
            continue
        if path.is_dir():
            return f"; {path.name!r} is a folder, not a file, and has no sounds or images to read"
        ending = file_format(path)
        if ending in formats:
            return f"; {path.name!r} is {'a broken link' if not path.exists() else 'not a regular file'}"
        mend = _MENDS.get(ending.rpartition(".")[2], "")
        return f"; {path.name!r} is not one of the formats read here: {', '.join(formats)}{f' ({mend})' * bool(mend)}"
    return ""


def _files(folder: Path, formats: Sequence[str]) -> list[_File]:
    """List the files of splits in a folder, or in its subfolder ``data`` if it has none."""
    found = _files_in(folder, formats)
    if any(file.split in _SPLITS or file.count for file in found) or not (folder / "data").is_dir():
        return found
    return _files_in(folder / "data", formats) or found


def _media_folders(folder: Path, names: Sequence[str] | None = None) -> list[_File]:
    """List the folders of sounds or images in a folder, or in its subfolder ``data`` if it has none.

    Args:
        folder: folder to look in.
        names: names of folders that are looked into; None for all.
    """
    for above in (folder, folder / "data"):
        folders = sorted(path for path in above.iterdir() if path.is_dir()) if above.is_dir() else []
        wanted = (path for path in folders if (path.name in names if names is not None else path.name != "data"))
        found = [_File(path, path.name) for path in wanted if holds_media(path)]
        if found:
            return found
    return []


def _files_in(folder: Path, formats: Sequence[str]) -> list[_File]:
    files = []
    for path in sorted(folder.iterdir()):
        ending = file_format(path)
        if ending in formats and path.is_file():
            name = path.name[: -len(ending) - 1]
            shard = _SHARD.fullmatch(name)
            if shard:
                files.append(_File(path, shard["split"], int(shard["number"]), int(shard["count"])))
            else:
                files.append(_File(path, name))
    return files
