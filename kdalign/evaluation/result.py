"""The result of an evaluation: a model's scores on a split, missing metrics with reasons, and files of predictions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kdalign.metrics.classification import Score


@dataclass(frozen=True)
class MissingMetric:
    """A metric that a model cannot be scored by.

    Attributes:
        metric: name of the metric.
        reason: why it cannot be computed.
        command: a command that would make it possible, or nothing.
    """

    metric: str
    reason: str
    command: str = ""


@dataclass(frozen=True)
class EvaluationResult:
    """One model's scores on one split.

    Attributes:
        model: name of the model as the user gave it.
        task: name of the task.
        split: name of the split.
        source: folder or data set of the data.
        n: number of examples.
        truncated: number of examples cut to ``max_length``.
        scores: the scores.
        absent: metrics that could not be computed.
        passed_over: number of examples without a target within ``max_length``.
        predictions: file of the model's predictions; None if there are none.
        submission: file for the leaderboard, of test splits.
        texts: file of generated texts with each text's own scores; None if there are none.
        kind: ``model``, ``served``, ``baseline`` or ``file``.
        parameters: number of parameters, tied ones once; None if it is unknown.
        trained_tokens: number of tokens that a run trained the model on; None for other models.
        notes: notes for the reader of the scores.
        served: a served model's endpoint, requests and tokens.
        run: identity of the run whose student was scored; empty for other models.
        examples: fingerprint of the examples.
        language: language of the texts; empty if none is named.
        writing: how texts were generated; empty without any.
        real_time_factor: seconds that transcribing took for each second of sound; None for other tasks.
        row: name of the table's row that it is a part of; empty if it is a row of its own.
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
    run: str = ""
    examples: str = ""
    language: str = ""
    writing: str = ""
    real_time_factor: float | None = None
    row: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)

    @staticmethod
    def from_json(tree: Mapping[str, Any]) -> "EvaluationResult":
        """Read what ``to_json`` returned."""
        scores, absent = map(Score.from_json, tree["scores"]), (MissingMetric(**one) for one in tree["absent"])
        return EvaluationResult(
            **{**tree, "scores": tuple(scores), "absent": tuple(absent), "notes": tuple(tree["notes"])}
        )
