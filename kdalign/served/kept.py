"""The file of what a server answered: a line for each answer, appended at once."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdalign.errors import RunError
from kdalign.served.asking import Manner


class Kept:
    """The answers and manners of a file, which need not be there; it is made with the first line.

    A line that is not whole was being written when a run was killed: it is passed over, and asked again.

    Attributes:
        file: where they are.
        answers: what is known of each answer, by its key.
        manners: how the server wants to be asked, by what is asked of it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.manners: dict[str, Manner] = {}
        self._writing = threading.Lock()
        for raw in file.read_bytes().split(b"\n") if file.is_file() else []:
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            match line:
                case {"key": str(key)}:
                    self.answers[key] = line
                case {"manner": str(key), "way": way, "constraint": constraint, "refused": refused}:
                    self.manners[key] = Manner(way, constraint, tuple(refused))

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write an answer, then know it.

        Raises:
            RunError: the disk does not take it.
        """
        self._append({"key": key, **answer})
        self.answers[key] = answer

    def keep_manner(self, key: str, manner: Manner) -> None:
        """Write a manner, then know it.

        Raises:
            RunError: the disk does not take it.
        """
        told = {"way": manner.way, "constraint": manner.constraint, "refused": list(manner.refused)}
        self._append({"manner": key, **told})
        self.manners[key] = manner

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line in one write, after ending a half-written one."""
        text = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            with self._writing:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a+b", buffering=0) as file:
                    size = file.seek(0, os.SEEK_END)
                    if size:
                        file.seek(size - 1)
                        text = text if file.read(1) == b"\n" else b"\n" + text
                    file.write(text)
        except OSError as error:
            raise RunError(f"cannot keep an answer in {self.file}: {error.strerror}") from None
