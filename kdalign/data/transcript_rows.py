"""Reference transcripts of a split's rows, and how a model's labels are written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Transcripts:
    """Reference transcripts of a split's rows, and how a model's labels are written.

    Attributes:
        references: of each row, one or several.
        writes: what each entry of the model's tokenizer writes.
        blank: entry of a frame without a label.
    """

    references: tuple[tuple[str, ...], ...]
    writes: tuple[str, ...]
    blank: int

    def take(self, rows: Sequence[int]) -> "Transcripts":
        """Select rows, in this order."""
        return replace(self, references=tuple(self.references[row] for row in rows))

    def write(self, labels: Sequence[int]) -> str:
        """Write a row's labels, with one space between words."""
        return " ".join("".join(self.writes[label] if label < len(self.writes) else "" for label in labels).split())
