"""Results that many runs need, such as tokens or a teacher's predictions: computed once, then read from files.

::

    $KDALIGN_CACHE/KIND/  KEY.safetensors  arrays, mapped into memory when they are read
                          KEY.sha256       their digest; without it, or with another, they are computed again
"""

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from kdalign.environment import cache_folder
from kdalign.errors import KdalignError
from kdalign.files import atomic_file, draft_of, read_text, sha256, write_text, writing
from kdalign.version import __version__

Arrays = Mapping[str, np.ndarray[Any, Any]]

MOST_BYTES = 8 * 2**30
"""Bytes that results of one kind may take; those that were not read for longest go first. One that is written in parts
may be larger, and is then alone."""
_DRAFT_SECONDS = 24 * 3600
"""Age from which on a file that is being written belongs to a process that was killed."""
_CODES = {"U16": "<u2", "F64": "f8", "F32": "f4", "I64": "i8", "I32": "i4", "U8": "u1"}
_TYPES = {name: np.dtype(code) for name, code in _CODES.items()}


def keep_result(kind: str, content: Mapping[str, object], compute: Callable[[], Arrays]) -> tuple[Arrays, bool]:
    """Return a result and whether it was read: from the cache if it is there and undamaged, else computed and kept.

    The code of this package is part of every key, so that no result of another version is read. A folder that cannot
    be written keeps nothing.

    Args:
        kind: folder of results of one kind, such as ``predictions``.
        content: everything that decides the result, as JSON or with an unambiguous ``str``.
        compute: computes the result, arrays by name.
    """
    kept = find_result(kind, content)
    known = kept.read()
    if known is not None:
        return known, True
    result = compute()
    kept.write(result)
    return result, False


def find_result(kind: str, content: Mapping[str, object]) -> "KeptResult":
    """Return the place of a result, whether it is there or not; arguments as for ``keep_result``."""
    named = json.dumps({**content, "code": code_fingerprint()}, sort_keys=True, default=str)
    return KeptResult(cache_folder() / kind / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.safetensors")


@dataclass(frozen=True)
class KeptResult:
    """A result in the cache, by the file of its arrays."""

    file: Path

    def read(self) -> Arrays | None:
        """Map the result into memory; None if there is none, or it is damaged."""
        try:
            if not self.file.is_file() or read_text(self._digest).strip() != sha256(self.file):
                return None
            with suppress(OSError):  # a cache that others fill may be read-only
                os.utime(self.file)  # read last now
            return _map(self.file)
        except (OSError, KdalignError):  # removed meanwhile
            return None

    def write(self, result: Arrays) -> None:
        """Write the result, unless it is too large or the folder cannot be written."""
        from safetensors.numpy import save_file

        assert all(values.dtype in _TYPES.values() for values in result.values()), "types that are read again"
        size = sum(values.nbytes for values in result.values())
        if size > MOST_BYTES:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _make_room(self.file, MOST_BYTES - size)
            with atomic_file(self.file) as temporary:
                save_file({name: np.ascontiguousarray(values) for name, values in result.items()}, temporary)
                digest = sha256(temporary)
            write_text(self._digest, digest + "\n")
        except (OSError, KdalignError):  # the result itself is there
            return

    @contextmanager
    def write_in_parts(self) -> Iterator["Draft"]:
        """Write a result that is too large for memory: its arrays grow in files, which become one at the end.

        Raises:
            Unwritten: the folder cannot be written, or the disk is full.
        """
        with writing(self.file), ExitStack() as opened:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft = Draft(self.file, opened)
            yield draft
            _make_room(self.file, MOST_BYTES - draft.size)
            with atomic_file(self.file) as temporary:
                digest = draft.join(temporary)
            write_text(self._digest, digest + "\n")

    def keep_in_parts(self, write: Callable[["Draft"], None]) -> Arrays | None:
        """Return the result, written in parts first if it is not there; others that need it meanwhile wait.

        Args:
            write: writes the arrays.

        Returns:
            None if another process has made room for its own since it was written.

        Raises:
            Unwritten: as of ``write_in_parts``.
        """
        known = self.read()
        if known is not None:
            return known
        with self._locked():
            known = self.read()  # the process that held the lock has written it
            if known is None:
                with self.write_in_parts() as draft:
                    write(draft)
                known = self.read()
        return known

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the result's lock; where none can be had, processes do the same work side by side."""
        lock = FileLock(self.file.with_suffix(".lock"))
        with suppress(OSError, NotImplementedError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            yield
        finally:
            if lock.is_locked:
                Path(lock.lock_file).unlink(missing_ok=True)  # a waiting process checks whether it still exists
                lock.release()

    @property
    def _digest(self) -> Path:
        return self.file.with_suffix(".sha256")


class Draft:
    """Arrays of one dimension that grow, each in a file of its own.

    Attributes:
        size: bytes of all arrays so far.
    """

    def __init__(self, file: Path, opened: ExitStack) -> None:
        """Begin without arrays.

        Args:
            file: file of the result.
            opened: closes and removes the files of the arrays.
        """
        self._file, self._opened = file, opened
        self._parts: dict[str, tuple[Path, IO[bytes], np.dtype[Any]]] = {}

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(part.tell() for _, part, _ in self._parts.values())

    def append(self, name: str, values: np.ndarray[Any, Any]) -> None:
        """Append to an array; the first values decide its type."""
        if name not in self._parts:
            path = draft_of(self._file)
            self._opened.callback(path.unlink, missing_ok=True)
            self._parts[name] = path, self._opened.enter_context(path.open("wb")), values.dtype
        _, part, kind = self._parts[name]
        assert values.dtype == kind, "one type an array"
        assert kind in _TYPES.values(), "types that are read again"
        part.write(np.ascontiguousarray(values).data)

    def last(self, name: str) -> np.generic | None:
        """Return the last value of an array; None if it has none."""
        values = self.read(name) if name in self._parts else np.zeros(0)
        return values[-1] if len(values) else None

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Map what an array has so far."""
        path, part, kind = self._parts[name]
        part.flush()
        length = part.tell() // kind.itemsize
        return np.memmap(path, kind, "r", 0, (length,)) if length else np.zeros(0, kind)

    def remove(self, name: str) -> None:
        """Remove an array."""
        path, part, _ = self._parts.pop(name)
        part.close()
        path.unlink()

    def join(self, file: Path) -> str:
        """Write all arrays into one safetensors file, the widest numbers first, and return its SHA-256."""
        header, begin = dict[str, object](), 0
        parts = sorted(self._parts.items(), key=lambda part: -part[1][2].itemsize)
        names = {kind: name for name, kind in _TYPES.items()}
        for name, (_, part, kind) in parts:
            end = begin + part.tell()
            shape = [part.tell() // kind.itemsize]
            header[name] = {"dtype": names[kind], "shape": shape, "data_offsets": [begin, end]}
            begin = end
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with file.open("wb") as joined:
            joined.write(len(head).to_bytes(8, "little") + head)
            for path, part, _ in (part for _, part in parts):
                part.close()
                with path.open("rb") as again:
                    shutil.copyfileobj(again, joined, 1 << 20)
                path.unlink()
        return sha256(file)


def release_pages(*arrays: np.ndarray[Any, Any]) -> None:
    """Give the memory of mapped arrays back; a page that is read again comes from the system's cache of the file.

    A pass over a mapped file would otherwise leave all of it in the process's resident memory.
    """
    for values in arrays:
        base: object = values
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def _map(file: Path) -> Arrays:
    """Map the arrays of a safetensors file: 8 bytes of the header's length, a JSON header, the data."""
    arrays = {}
    with file.open("rb") as opened:  # once: another process may replace the file
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        for name, facts in header.items():
            kind, shape, (start, end) = _TYPES[facts["dtype"]], tuple(facts["shape"]), facts["data_offsets"]
            mapped = end > start  # no file can be mapped to an empty array
            arrays[name] = np.memmap(opened, kind, "r", 8 + length + start, shape) if mapped else np.zeros(shape, kind)
    return arrays


def _make_room(file: Path, most: int) -> None:
    """Remove the least recently read results until the rest take at most ``most`` bytes, and old drafts.

    What another process has written under the file's own name stays: that process may be reading it.
    """
    sizes: dict[Path, tuple[float, int]] = {}
    for each in file.parent.iterdir():
        with suppress(FileNotFoundError):  # removed or renamed meanwhile
            sizes[each] = each.stat().st_mtime, each.stat().st_size
    for each, (changed, _) in sizes.items():
        if each.name.startswith(".") and each.suffix == ".tmp" and time.time() - changed > _DRAFT_SECONDS:
            each.unlink(missing_ok=True)  # of a process that was killed
    kept = sorted((*facts, each) for each, facts in sizes.items() if each.suffix == ".safetensors" and each != file)
    total = sum(size for _, size, _ in kept)
    for _, size, each in kept:
        if total <= most:
            return
        each.unlink(missing_ok=True)
        each.with_suffix(".sha256").unlink(missing_ok=True)
        total -= size


@cache
def code_fingerprint() -> str:
    """Hash the source of this package: results of other code are not mistaken for its own."""
    package = Path(__file__).parent
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
