"""The cache of a server's answers: a JSON Lines file to which every answer is appended as it arrives."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_args

from kdalign.errors import RunError
from kdalign.files import line_of, read_line
from kdalign.served.protocol import Constraint, Dialect, Endpoint


class KeptAnswers(Protocol):
    """Answers by key that outlast the process."""

    @property
    def file(self) -> Path:
        """File that holds them."""

    @property
    def answers(self) -> Mapping[str, Mapping[str, Any]]:
        """The answers so far."""

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Add an answer, and write it.

        Raises:
            RunError: it cannot be written.
        """


class AnswerCache:
    """Answers and dialects in a file, which is made with the first answer.

    An incomplete line was being written when a run was killed, and one whose checksum does not fit was changed since:
    it is skipped, and its request sent again. The first
    dialect is written with the first answer, so that a server which answers nothing leaves no file.

    Attributes:
        file: path of the file.
        answers: lines of the answers, by key.
        dialects: dialects of the server, by key of a purpose.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, Mapping[str, Any]] = {}
        self.dialects: dict[str, Dialect] = {}
        self._writing = threading.Lock()
        self._waiting: list[Mapping[str, Any]] = []
        for raw in file.read_bytes().split(b"\n") if file.is_file() else []:
            try:
                line = read_line(raw)
            except (ValueError, RecursionError):
                continue
            match line:
                case {"key": str(key)} if _is_answer(line):
                    self.answers[key] = line
                case {"manner": str(key), "way": endpoint, "constraint": constraint, "refused": [*refused]}:
                    if endpoint in get_args(Endpoint) and constraint in get_args(Constraint):
                        self.dialects[key] = Dialect(endpoint, constraint, tuple(map(str, refused)))

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write an answer to the file, then add it to ``answers``.

        Raises:
            RunError: the file cannot be written.
        """
        self._append({"key": key, **answer})
        self.answers[key] = answer

    def keep_dialect(self, key: str, dialect: Dialect) -> None:
        """Add a dialect, and write it: at once if there are answers, else before the first.

        Raises:
            RunError: the file cannot be written.
        """
        line = {
            "manner": key,
            "way": dialect.endpoint,
            "constraint": dialect.constraint,
            "refused": list(dialect.refused),
        }
        if self.answers:
            self._append(line)
        else:
            self._waiting.append(line)
        self.dialects[key] = dialect

    def _append(self, line: Mapping[str, Any]) -> None:
        """Append a line in one write, after waiting dialects and the end of an incomplete line."""
        try:
            with self._writing:
                text = "".join(map(line_of, (*self._waiting, line))).encode()
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
    """True if a line has an answer's fields: a text, its tokens, or the reason why there are none."""
    match line:
        case {"text": str()} | {"reason": str()} | {"tokens": [*_], "logprobs": [*_], "offsets": [*_]}:
            return True
    return False
