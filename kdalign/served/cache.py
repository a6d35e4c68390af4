"""The file of what a server answered: a line for each answer, appended at once."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from kdalign.errors import RunError
from kdalign.served.protocol import Constraint, Dialect, Way


class AnswerCache:
    """The answers and manners of a file, which need not be there; it is made with the first line.

    A line that is not whole was being written when a run was killed: it is passed over, and asked again. A dialect is
    written with the next answer, so that a server which answers nothing leaves no file.

    Attributes:
        file: where they are.
        answers: what is known of each answer, by its key.
        manners: how the server wants to be asked, by what is asked of it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.dialects: dict[str, Dialect] = {}
        self._writing = threading.Lock()
        self._waiting: list[Mapping[str, Any]] = []
        for raw in file.read_bytes().split(b"\n") if file.is_file() else []:
            try:
                line = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            match line:
                case {"key": str(key)} if _is_answer(line):
                    self.answers[key] = line
                case {"manner": str(key), "way": way, "constraint": constraint, "refused": [*refused]}:
                    if way in get_args(Way) and constraint in get_args(Constraint):
                        self.dialects[key] = Dialect(way, constraint, tuple(map(str, refused)))

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write an answer, then know it.

        Raises:
            RunError: the disk does not take it.
        """
        self._append({"key": key, **answer})
        self.answers[key] = answer

    def keep_dialect(self, key: str, dialect: Dialect) -> None:
        """Know a dialect, and write it: at once where there are answers, else before the first.

        Raises:
            RunError: the disk does not take it.
        """
        line = {"manner": key, "way": dialect.way, "constraint": dialect.constraint, "refused": list(dialect.refused)}
        if self.answers:
            self._append(line)
        else:
            self._waiting.append(line)
        self.dialects[key] = dialect

    def _append(self, line: Mapping[str, Any]) -> None:
        """Add a line in one write, after what waits for it and the end of a half-written one."""
        try:
            with self._writing:
                lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in (*self._waiting, line)]
                text = "".join(lines).encode("utf-8", "surrogatepass")
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a+b", buffering=0) as file:
                    size = file.seek(0, os.SEEK_END)
                    if size:
                        file.seek(size - 1)
                        text = text if file.read(1) == b"\n" else b"\n" + text
                    file.write(text)
                self._waiting.clear()
        except OSError as error:
            raise RunError(f"cannot keep an answer in {self.file}: {error.strerror}") from None


def _is_answer(line: Mapping[str, Any]) -> bool:
    """Whether a line has what is read of an answer: a text, the tokens of one, or why there are none."""
    match line:
        case {"text": str()} | {"reason": str()} | {"tokens": [*_], "logprobs": [*_], "offsets": [*_]}:
            return True
    return False
