"""Seals: a hash of a record, so that a later change is found."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest_of(text: str) -> str:
    """Compute the SHA-256 of a text as it is written to a file."""
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()  # as ``write_text`` encodes it


def sealed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary as it is read again from JSON, with its seal."""
    read = json.loads(json.dumps(tree))
    return {**read, "seal": seal_of(read)}


def is_changed(tree: dict[str, Any]) -> bool:
    """Take the seal out of a dictionary, and return whether it does not fit; older versions wrote none."""
    return "seal" in tree and tree.pop("seal") != seal_of(tree)


def seal_of(tree: Mapping[str, Any]) -> str:
    """Compute a seal: the SHA-256 of a dictionary as JSON without its seal, with sorted keys, no white space, ASCII."""
    rest = {key: value for key, value in tree.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
