"""Classification and regression tasks, and their prompt templates."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdalign.data.media.rows import Modality
from kdalign.errors import UsageError, unknown
from kdalign.metrics.classification import METRICS, Metric
from kdalign.metrics.retrieval import RECALLS
from kdalign.registry import names_code, resolve, trust


@dataclass(frozen=True)
class DataSource:
    """Source of data: a folder with a file per split, or a data set on the hub.

    Attributes:
        folder: None for the hub.
        dataset: data set on the hub.
        config: its configuration.
        by: column that says where each row is from; None for rows that are not told apart.
        streamed: split that is read as a stream; empty for none.
        held: rows of that split that are held at a time, of which loading it gives the first ones.
    """

    folder: Path | None = None
    dataset: str | None = None
    config: str | None = None
    by: str | None = None
    streamed: str = ""
    held: int = 0

    @property
    def flags(self) -> str:
        """Flags that name the source, with a space before; empty for a task with a source of its own."""
        return f" --data {self.folder}" if self.folder is not None else ""

    def __str__(self) -> str:
        if self.folder is not None:  # a name that is not UTF-8 must be one in records and cards
            return str(self.folder).encode("utf-8", "backslashreplace").decode()
        return f"{self.dataset} ({self.config})" if self.config else str(self.dataset)


@dataclass(frozen=True)
class PromptTemplate:
    r"""Prompt template of a classification task for language models.

    Attributes:
        template: question with a place ``{column}`` for each column's text; ``{{`` and ``}}`` are braces.
        answers: word for each label, in the task's order.
        separator: text between a question and its answer.
        between: text between a solved example and the next question.
        sentences: columns whose text is stripped and ended with a full stop.
        origin: source of the template, for a score's signature.
    """

    template: str
    answers: tuple[str, ...]
    separator: str = " "
    between: str = "\n\n"
    sentences: tuple[str, ...] = ()
    origin: str = "prompt of its own"

    def fill(self, columns: Sequence[str], texts: Sequence[str]) -> str:
        """Fill in the texts of an example, one per column."""
        at = {f"{{{column}}}": text for column, text in zip(columns, texts, strict=True)} | {"{{": "{", "}}": "}"}
        for column in self.sentences:
            text = at[f"{{{column}}}"].strip()
            at[f"{{{column}}}"] = text if text.endswith(".") else f"{text}."
        return "".join(at.get(part, part) for part in _parts(self.template))

    def check(self, name: str, columns: Sequence[str], labels: Sequence[str]) -> None:
        """Refuse a template that does not fit the task of this name.

        Raises:
            UsageError: a place without a column, a column without a place, a lone brace, or two labels with the same
                answer.
        """
        if not labels:
            raise UsageError(f"task {name!r} has a score: a prompt and answers need 'labels' to choose from")
        parts = _parts(self.template)
        if any("{" in part or "}" in part for part in parts[::2]):  # between places and doubled braces
            raise UsageError(f"task {name!r}: the prompt has a brace that belongs to no place; write it twice")
        places = [part[1:-1] for part in parts if part.startswith("{") and part != "{{" and part.endswith("}")]
        for place in places:
            if place not in columns:
                raise unknown(f"place in the prompt of task {name!r}:", place, columns)
        for column in columns:
            if column not in places:
                raise UsageError(f"task {name!r}: the prompt has no place for column {column!r}; write {{{column}}}")
        if len(self.answers) != len(labels):
            raise UsageError(
                f"task {name!r}: {len(self.answers)} answers ({', '.join(self.answers)}) for {len(labels)} labels "
                f"(one each for {', '.join(labels)})"
            )
        words = [answer.strip() for answer in self.answers]
        if not all(words) or len(set(words)) < len(words):
            raise UsageError(f"task {name!r}: answers must be different words, given {', '.join(map(repr, words))}")


def _parts(template: str) -> list[str]:
    """Split a template at its places and doubled braces, which are every second part."""
    return re.split(r"(\{\{|\}\}|\{[^{}]*\})", template)


@dataclass(frozen=True)
class ClassificationTask:
    """Classification or regression of one text, a pair of texts, or an image.

    Attributes:
        name: name in flags and tables.
        columns: the text column, the two of a pair, or the column of images.
        labels: class names in the order of their numbers in the data; empty for regression.
        metrics: names of metrics; the first is the primary one.
        source: source of the data.
        label: name of the label column.
        evaluation: reported splits; those after the first only if they exist.
        test: splits of the leaderboard, usually without labels.
        submission: file names of the leaderboard for the test splits.
        order_unknown: true if the labels were sorted by name, so their numbers tell nothing about a model's outputs.
        found: sentence on what was inferred from the data; empty if everything was given.
        wording: prompt template; None for the default one (``prompts.default_template``).
        modality: what the columns hold.
        captions: for images, a text for each label, which a dual encoder compares them with; empty for usual ones.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    source: DataSource
    label: str = "label"
    train: str = "train"
    evaluation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    submission: tuple[str, ...] = ()
    found: str = ""
    order_unknown: bool = False
    wording: PromptTemplate | None = None
    modality: Modality = "text"
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.columns) not in (1, 2):
            raise UsageError(f"task {self.name!r}: one or two text columns, given {len(self.columns)}")
        if self.modality != "text" and (len(self.columns) != 1 or self.wording is not None):
            raise UsageError(f"task {self.name!r} reads one column of {self.modality} data, and no prompt or answers")
        if len(self.labels) == 1 or len({normalise_label(label) for label in self.labels}) < len(self.labels):
            raise UsageError(f"task {self.name!r}: labels must be two or more different names")
        if not self.metrics:
            raise UsageError(f"task {self.name!r}: name at least one metric")
        for metric in self.metrics:
            if names_code(metric) and not trust().allows(metric):
                continue  # whoever computes it says so; texts and labels can be read without it
            if not self.fits(self.metric(metric)):
                kind = "regression" if self.regression else f"{len(self.labels)} classes"
                fitting = ", ".join(m.name for m in METRICS.values() if self.fits(m))
                raise UsageError(f"task {self.name!r}: metric {metric!r} is not for {kind} (fitting: {fitting})")
        if self.captions and len(set(self.captions)) != len(self.labels):
            raise UsageError(
                f"task {self.name!r}: the prompt and answers give {len(set(self.captions))} different captions for "
                f"{len(self.labels)} labels (accepted: one each, by a prompt with a place {{label}})"
            )
        if self.wording is not None:
            self.wording.check(self.name, self.columns, self.labels)

    @property
    def regression(self) -> bool:
        """True if the label is a score instead of a class."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """Number of outputs of a model's head."""
        return len(self.labels) or 1

    def metric(self, name: str) -> Metric:
        """Look up a metric by its name, ``package.module:Name`` or ``file.py:Name``.

        Raises:
            UsageError: there is none, or it is code that is not trusted (``kdalign.registry``).
        """
        found: object = resolve(name, METRICS, "metric")
        if not isinstance(found, Metric):
            raise UsageError(
                f"metric {name!r} is not a kdalign.metrics.classification.Metric but a {type(found).__name__}"
            )
        return found

    def fits(self, metric: Metric) -> bool:
        """Return whether a metric fits this kind of task and its number of classes."""
        if (metric.name in RECALLS) != (self.metrics == RECALLS):  # of ranks, which only pairs of image and text have
            return False
        return metric.regression == self.regression and (not metric.binary or len(self.labels) == 2)


def normalise_label(label: str) -> str:
    """Strip case, separators and spaces from a label's name, for matching; a number keeps its sign."""
    if re.fullmatch(r"-?\d+(\.\d+)?", str(label).strip()):
        return str(label).strip()
    return re.sub(r"[\s_\-]+", "", str(label)).lower()
