"""Texts that a model wrote on a split, such as transcripts, and the parquet file that keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.errors import UsageError
from kdalign.metrics.arrays import Array
from kdalign.runs.prediction_table import LANGUAGE, OF_TEACHER, REFERENCES, WRITTEN, read_predictions, write_columns


@dataclass(frozen=True)
class WrittenTexts:
    """A model's text for each row of a split, in the split's order, as arrays.

    Attributes:
        letters: all texts in UTF-8, (bytes,).
        ends: end of each text there, (rows,).
    """

    letters: Array
    ends: Array

    @classmethod
    def of(cls, texts: Sequence[str]) -> "WrittenTexts":
        """Pack texts."""
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    @property
    def texts(self) -> list[str]:
        """The texts."""
        encoded = self.letters.tobytes()
        starts = [0, *self.ends[:-1].tolist()]
        return [encoded[start:end].decode() for start, end in zip(starts, self.ends.tolist(), strict=True)]


def write_texts(
    file: Path, student: WrittenTexts, references: Sequence[Sequence[str]], teacher: WrittenTexts | None, language: str
) -> None:
    """Write texts, their references and their language, of which all scores can be computed again."""
    columns: dict[str, Any] = {WRITTEN: student.texts, REFERENCES: [list(known) for known in references]}
    if teacher is not None:
        columns[OF_TEACHER + WRITTEN] = teacher.texts
    write_columns(file, columns | {LANGUAGE: [language] * len(references)})


def read_teacher_texts(file: Path) -> WrittenTexts:
    """Read the teacher's texts that ``write_texts`` kept.

    Raises:
        UsageError: there are none.
    """
    written = read_predictions(file).teacher.written
    if written is None:
        raise UsageError(f"{str(file)!r} does not keep the teacher's answers")
    return WrittenTexts.of(written)
