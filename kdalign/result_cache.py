"""Results that many runs need, such as tokens or a teacher's predictions: computed once, then read from files.

::

    $KDALIGN_CACHE/KIND/  KEY.safetensors  arrays, mapped into memory when they are read
                          KEY.sha256       their digest; without it, or with another, they are computed again
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.environment import cache_folder
from kdalign.errors import KdalignError
from kdalign.files import atomic_file, read_text, sha256, write_text
from kdalign.version import __version__

Arrays = Mapping[str, np.ndarray[Any, Any]]

MOST_BYTES = 8 * 2**30
"""Bytes that results of one kind may take; those that were not read for longest go first."""
_DRAFT_SECONDS = 24 * 3600
"""Age from which on a file that is being written belongs to a process that was killed."""
_CODES = {"F64": "f8", "F32": "f4", "I64": "i8", "I32": "i4", "U8": "u1"}
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
            _make_room(self.file.parent, MOST_BYTES - size)
            with atomic_file(self.file) as temporary:
                save_file({name: np.ascontiguousarray(values) for name, values in result.items()}, temporary)
                digest = sha256(temporary)
            write_text(self._digest, digest + "\n")
        except (OSError, KdalignError):  # the result itself is there
            return

    @property
    def _digest(self) -> Path:
        return self.file.with_suffix(".sha256")


def _map(file: Path) -> Arrays:
    """Map the arrays of a safetensors file: 8 bytes of the header's length, a JSON header, the data."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    arrays = {}
    for name, facts in header.items():
        kind, shape, (start, end) = _TYPES[facts["dtype"]], tuple(facts["shape"]), facts["data_offsets"]
        empty = np.zeros(shape, kind)  # which no file can be mapped to
        arrays[name] = empty if start == end else np.memmap(file, kind, "r", 8 + length + start, shape)
    return arrays


def _make_room(folder: Path, most: int) -> None:
    """Remove the least recently read results until the rest take at most ``most`` bytes, and old drafts."""
    for draft in folder.glob(".*.tmp"):  # of processes that were killed
        if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS:
            draft.unlink(missing_ok=True)
    kept = sorted((each.stat().st_mtime, each.stat().st_size, each) for each in folder.glob("*.safetensors"))
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
