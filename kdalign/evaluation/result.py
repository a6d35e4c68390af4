"""What scoring a model on a split gives: its scores, what is missing and why, and the files that keep its answers."""

from dataclasses import asdict, dataclass
from typing import Any

from kdalign.metrics.classification import Score


@dataclass(frozen=True)
class MissingMetric:
    """A metric that a model cannot be scored on: why, and the command that would make it possible (or nothing)."""

    metric: str
    reason: str
    command: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """One model's scores on one split.

    Attributes:
        scores: what was measured.
        absent: what was asked for and could not be.
        truncated: examples cut to ``max_length``.
        passed_over: examples of which nothing that is asked for lies within ``max_length``.
        predictions: the file that keeps the model's answers; None where there are none.
        submission: the leaderboard's file, for test splits.
        texts: the file that keeps what was written, with each text's own scores; None where nothing was.
        kind: ``model``, ``served`` or ``baseline``.
        parameters: tied ones once; None where they are not known.
        trained_tokens: that the run which made the model trained on; None where it is no run.
        notes: what must be known to read the scores.
        served: how a served model was asked and what was paid for.
    """

    model: str
    task: str
    split: str
    source: str
    n: int
    truncated: int
    scores: tuple[Score, ...]
    absent: tuple[MissingMetric, ...] = ()
    passed_over: int = 0
    predictions: str | None = None
    submission: str | None = None
    texts: str | None = None
    kind: str = "model"
    parameters: int | None = None
    trained_tokens: int | None = None
    notes: tuple[str, ...] = ()
    served: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)
