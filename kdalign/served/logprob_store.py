"""A file of the log-probabilities that a server returned, so that no run, seed or arm pays for them again."""

import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kdalign.errors import RunError, UsageError
from kdalign.served.top_logprobs import PromptForm, TopLogprobs

_TABLES = (
    """CREATE TABLE IF NOT EXISTS answers (
        key TEXT PRIMARY KEY, model TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, checksum INTEGER,
        tensors BLOB
    )""",
    "CREATE TABLE IF NOT EXISTS forms (number INTEGER PRIMARY KEY, form TEXT)",
)
_WAIT = 60.0
"""Seconds to wait for another process that writes."""


class LogprobStore(Mapping[str, Mapping[str, Any]]):
    """Answers by key in an SQLite file, which is made with the first answer; several processes may share it.

    Each answer is written whole or not at all, so that a killed run loses none that it was told of.

    Attributes:
        file: path of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def answers(self) -> "LogprobStore":
        """The answers by key."""
        return self

    def keep_answer(self, key: str, answer: Mapping[str, Any]) -> None:
        """Write an answer.

        Raises:
            RunError: the file cannot be written.
        """
        data = answer["top"].to_bytes()
        counts = answer.get("prompt_tokens", 0), answer.get("completion_tokens", 0)
        row = key, answer.get("model"), *counts, zlib.crc32(data), data
        self._write("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", *row)

    def __contains__(self, key: object) -> bool:
        return bool(self._select("SELECT 1 FROM answers WHERE key = ?", str(key)))

    def __getitem__(self, key: str) -> Mapping[str, Any]:
        """Read an answer.

        Raises:
            KeyError: there is none.
            UsageError: the file is damaged.
        """
        found = self._select(
            "SELECT model, prompt_tokens, completion_tokens, checksum, tensors FROM answers WHERE key = ?", key
        )
        if not found:
            raise KeyError(key)
        model, prompt_tokens, completion_tokens, checksum, data = found[0]
        try:
            if zlib.crc32(data) != checksum:
                raise ValueError("its checksum is another")
            top = TopLogprobs.from_bytes(data)
        except (TypeError, ValueError) as error:
            raise UsageError(f"an answer in {str(self.file)!r} is damaged ({error}): {self._mend}") from None
        return {
            "top": top,
            "model": model,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }

    def __iter__(self) -> Iterator[str]:
        return (key for (key,) in self._select("SELECT key FROM answers"))

    def __len__(self) -> int:
        counted = self._select("SELECT COUNT(*) FROM answers")
        return int(counted[0][0]) if counted else 0

    @property
    def models(self) -> tuple[str, ...]:
        """Names under which the server answered; OpenAI names the dated version."""
        return tuple(sorted(model for (model,) in self._select("SELECT DISTINCT model FROM answers") if model))

    @property
    def form(self) -> PromptForm | None:
        """Form of request that the server answered; None before the first answer."""
        found = self._select("SELECT form FROM forms")
        return None if not found else PromptForm.from_json(str(found[0][0]))

    def keep_form(self, form: PromptForm) -> None:
        """Write the form of request that the server answers.

        Raises:
            RunError: the file cannot be written.
        """
        self._write("INSERT OR REPLACE INTO forms VALUES (1, ?)", form.to_json())

    @property
    def _mend(self) -> str:
        return "remove the file; what is in it is asked again"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one statement, from any thread, and commit what it changes."""
        with closing(sqlite3.connect(self.file, timeout=_WAIT)) as connection, connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection

    def _write(self, statement: str, *values: Any) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(statement, values)
        except (OSError, sqlite3.Error) as error:
            raise RunError(f"cannot keep an answer in {self.file}: {error}") from None

    def _select(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """Run a query; nothing is found where there is no file yet.

        Raises:
            UsageError: the file is damaged, or of something else.
        """
        if not self.file.is_file():
            return []
        try:
            with self._open() as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise RunError(f"cannot read {self.file}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{str(self.file)!r} is not a file of answers ({error}): {self._mend}") from None
