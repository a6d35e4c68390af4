"""The version, read from the installed package, and a fingerprint of its code."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

__version__ = version("kdalign")


@cache
def code_digest() -> str:
    """Return the first digits of a SHA-256 of the package's files: two checkouts of one version may differ."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(file for ending in ("py", "yaml") for file in root.rglob(f"*.{ending}")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]
