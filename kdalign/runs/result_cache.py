"""Results that many runs need, such as a teacher's predictions: computed once, and read from kdalign's cache then."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from kdalign.environment import cache_folder, code_fingerprint
from kdalign.errors import UsageError
from kdalign.files import atomic_file, read_bytes
from kdalign.metrics.arrays import Array

_DIGEST = 64
"""Hexadecimal digits of a SHA-256, by which a file begins."""
_LARGEST = 2**30
"""Limit of a file's bytes; a larger result is not kept."""


def keep_result(
    kind: str, content: Mapping[str, object], compute: Callable[[], dict[str, Array]]
) -> tuple[dict[str, Array], bool]:
    """Return a result and whether it was read: from the cache if it is there and undamaged, else computed and kept.

    The code of this package is part of every key, so that no result of another version is read. A folder that cannot
    be written keeps nothing, and a damaged file is computed again.

    Args:
        kind: folder of results of one kind, such as ``predictions``.
        content: everything that decides the result, as JSON or with an unambiguous ``str``.
        compute: computes the result, arrays by name.
    """
    from safetensors.numpy import save

    named = json.dumps({**content, "code": code_fingerprint()}, sort_keys=True, default=str)
    file = cache_folder() / kind / hashlib.sha256(named.encode()).hexdigest()[:32]
    known = _read(file)
    if known is not None:
        return known, True
    result = compute()
    data = save(result)
    if len(data) <= _LARGEST:
        _write(file, hashlib.sha256(data).hexdigest().encode() + data)
    return result, False


def _read(file: Path) -> dict[str, Array] | None:
    """Read a kept result; None if there is none, or it is damaged."""
    from safetensors.numpy import load

    if not file.is_file():
        return None
    try:
        data = read_bytes(file, _LARGEST + _DIGEST)
    except UsageError:
        return None
    digest, rest = data[:_DIGEST], data[_DIGEST:]
    return load(rest) if hashlib.sha256(rest).hexdigest().encode() == digest else None


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            temporary.write_bytes(data)
    except (OSError, UsageError):  # the result itself is there
        return
