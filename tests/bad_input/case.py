"""One bad input: the files that it needs, the command that reads them, and whether it must be refused."""

import base64
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdalign.runs.seal import seal_of

ANY, REFUSED = "any", "refused"
"""What is expected: one line or a result, or exit code 2 alone."""


@dataclass(frozen=True)
class Case:
    """A command on bad input.

    Attributes:
        kind: row of the table in which it is counted.
        why: what is bad about it.
        words: the command's words; ``@name`` is the path of a good input, ``@url`` a hostile server's.
        files: content by path in the working folder; None removes a file that was copied.
        copies: good inputs that are copied into the working folder, to be damaged, by their new names.
        expect: ``refused`` where the input is nonsense without a doubt.
        answer: how the server's answers are changed (``served.Hostile``).
    """

    kind: str
    why: str
    words: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    expect: str = ANY
    answer: Mapping[str, Any] | None = None

    def lay_out(self, place: Path, work: Path, url: str = "") -> list[str]:
        """Write the files into the working folder, and return the words of the command."""
        for name, source in self.copies.items():
            if (place / source).is_dir():
                shutil.copytree(place / source, work / name)
            else:
                shutil.copy(place / source, work / name)
        for name, content in self.files.items():
            file = work / name
            if content is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return [_filled(word, place, url) for word in self.words]


def _filled(word: str, place: Path, url: str) -> str:
    if word.startswith("@url"):
        return url
    return str(place / word[1:]) if word.startswith("@") and (place / word[1:]).exists() else word


def read_corpus(file: Path, place: Path) -> list[Case]:
    """Read kept cases from a file of YAML: defaults (``kind``, ``words``, ``copies``) and a list of ``cases``.

    A file's content is a text, or a mapping: ``repeat: [text, times, text, times]``, ``base64``, ``latin-1``,
    ``json`` (a value), ``changed: {file: NAME, set: {dotted.key: value}}`` (a good input with other values, and with
    its seal made again where it has one), or ``cut: {file: NAME, bytes: N}``.
    """
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = {key: value for key, value in tree.items() if key != "cases"}
    return [_case({**defaults, **case}, place) for case in tree["cases"]]


def _case(tree: dict[str, Any], place: Path) -> Case:
    files = {name: _content(content, place) for name, content in (tree.get("files") or {}).items()}
    return Case(
        tree["kind"],
        str(tree["why"]),
        tuple(str(word) for word in (*tree["words"], *tree.get("more", ()))),
        files,
        tree.get("copies") or {},
        tree.get("expect", ANY),
        tree.get("answer"),
    )


def _content(content: Any, place: Path) -> bytes | None:
    if content is None or isinstance(content, str):
        return content if content is None else content.encode()
    ((how, value),) = content.items()
    if how == "repeat":
        return b"".join(text.encode() * times for text, times in zip(value[::2], value[1::2], strict=True))
    if how == "base64":
        return base64.b64decode(value)
    if how == "latin-1":
        return str(value).encode("latin-1")
    if how == "json":
        return json.dumps(value).encode()
    if how == "cut":
        return (place / value["file"]).read_bytes()[: value["bytes"]]
    assert how == "changed"
    tree = json.loads((place / value["file"]).read_text())
    for key, new in value["set"].items():
        set_in(tree, [int(part) if part.isdigit() else part for part in key.split(".")], new)
    return json.dumps(sealed(tree)).encode()


def sealed(tree: Any) -> Any:
    """Seal a record again, as anybody can."""
    if isinstance(tree, dict) and "seal" in tree:
        return {**tree, "seal": seal_of(tree)}
    return tree


def set_in(tree: Any, path: list[Any], value: Any) -> None:
    """Set the value at a path of keys and indexes, in place."""
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = value
