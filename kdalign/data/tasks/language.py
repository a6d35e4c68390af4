"""Language-modelling and embedding tasks: their texts, and the families of models that fit."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdalign.data.delimited import NotInParts
from kdalign.data.media.rows import Modality
from kdalign.data.tables import TEXT_FORMATS
from kdalign.data.tasks.columns import (
    check_column,
    check_text,
    is_blank,
    is_missing,
    not_text_error,
    read_texts,
)
from kdalign.data.tasks.conversations import TOOLS, read_conversations
from kdalign.data.tasks.examples import Examples
from kdalign.data.tasks.glue import GLUE
from kdalign.data.tasks.large_splits import LargeSplit, find_large_split, mapped_examples
from kdalign.data.tasks.loading import load_table, read_origins, table_folder
from kdalign.data.tasks.media_columns import read_media
from kdalign.data.tasks.task import ClassificationTask, DataSource
from kdalign.data.text_rows import TextDraft
from kdalign.errors import Unwritten, UsageError
from kdalign.metrics.languages import is_language, language_code
from kdalign.result_cache import Draft

if TYPE_CHECKING:
    import pandas as pd

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "lm": ("masked", "causal", "permutation"),
    "masked-lm": ("masked",),
    "language-modeling": ("causal", "permutation"),
    "translation": ("seq2seq", "causal"),
    "summarization": ("seq2seq", "causal"),
    "dialogue": ("seq2seq", "causal"),
    "transcription": ("seq2seq", "causal"),
    "speech-recognition": ("seq2seq", "ctc"),
    "image-text": ("dual",),
    "chat": ("causal",),
    "embedding": ("masked",),
}
"""Kinds of task without labels, and the families of models that fit; ``lm`` fits the model at hand."""

_PAIRS = {
    "translation": ("source", "target"),
    "summarization": ("document", "summary"),
    "dialogue": ("dialogue", "summary"),
    "transcription": ("text", "transcript"),
    "speech-recognition": ("audio", "text"),
    "image-text": ("image", "text"),
}
_MODALITIES: Mapping[str, Modality] = {"speech-recognition": "audio", "image-text": "image"}
TEXT_METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
    "dialogue": ("rouge1", "rouge2", "rougeL"),
    "transcription": ("cer", "wer"),
    "speech-recognition": ("wer", "cer", "wer_normalized", "cer_normalized"),
}
"""Default text metrics by kind of task."""


@dataclass(frozen=True)
class LanguageTask:
    """A task whose answers are tokens, or a text's embedding.

    Attributes:
        name: name in flags and tables.
        kind: a key of ``FAMILIES``.
        columns: columns of text, each a document; for translation and summarization, source and target; for speech
            recognition, sound and transcript. Empty if they are inferred from the data.
        source: source of the data.
        found: sentence on what was inferred from the data.
        scored: task of text pairs with a similarity that embeddings are scored on; None for other kinds.
        references: columns of reference texts, one or several each; the target if empty.
        language: code of the generated text's language, such as ``de``; empty if unknown.
        prompt: template for models without an encoder, with ``{column}`` for the source.
        metrics: names of text metrics; the kind's own if empty.
        by_frames: true if models label frames of a sound (CTC), and write no tokens one after the other.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    source: DataSource
    train: str = "train"
    evaluation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    found: str = ""
    scored: ClassificationTask | None = None
    references: tuple[str, ...] = ()
    language: str = ""
    prompt: str = ""
    metrics: tuple[str, ...] = ()
    by_frames: bool = False

    @property
    def text_metrics(self) -> tuple[str, ...]:
        """Metrics of generated texts: the task's own, or the kind's."""
        return self.metrics or TEXT_METRICS_OF.get(self.kind, ())

    def render_prompt(self, row: Mapping[str, str]) -> str:
        """Fill a source into the prompt for a model without an encoder.

        Raises:
            UsageError: the prompt names a column other than the source.
        """
        source, target = self.columns if self.pairs else (self.columns[0], "")
        template = self.prompt or f"{source}: {{{source}}}\n{target}:"
        try:
            return template.format(**{source: row[source]})
        except (KeyError, IndexError, ValueError):
            raise UsageError(
                f"task {self.name!r}: its prompt may name {{{source}}} alone; given {template!r}"
            ) from None

    @property
    def word(self) -> str:
        """Name in flags, such as ``lm:sst2``."""
        return self.name.replace(f"{self.kind}-", f"{self.kind}:", 1)

    @property
    def modality(self) -> Modality:
        """What an encoder, or a model without one, reads."""
        return _MODALITIES.get(self.kind, "text")

    @property
    def pairs(self) -> bool:
        """True if an example is a source and a target."""
        return self.kind in _PAIRS

    def check(self, family: str, model: str) -> None:
        """Refuse a model of a family that does not fit the task."""
        if family not in FAMILIES[self.kind]:
            fitting = [kind for kind, families in FAMILIES.items() if family in families]
            hint = f" (fitting: {', '.join(fitting)})" if fitting else ""
            raise UsageError(f"{model!r} is a {family} model; task {self.word!r} is not for it{hint}")


def language_task(name: str) -> LanguageTask | None:
    """Parse a language-modelling task's name; None for other names. Its data may still be missing.

    ``lm:sst2`` takes a GLUE task's sentences, ``lm:COLUMN`` any column; ``translation:en-de`` names its columns.

    Raises:
        UsageError: names that do not fit the task.
    """
    kind, colon, rest = name.partition(":")
    if kind not in FAMILIES:
        return None
    if not colon:
        return LanguageTask(name, kind, _PAIRS.get(kind, ()), DataSource())
    if kind in _PAIRS:
        columns = tuple(rest.split("-"))
        if len(columns) != 2 or not all(columns):
            raise UsageError(f"task {name!r}: name two columns, as in {kind}:SOURCE-TARGET")
        language = _language_in(columns[1]) if kind == "translation" else ""
        return LanguageTask(name.replace(":", "-"), kind, columns, DataSource(), language=language)
    glue = GLUE.get(rest)
    if kind == "embedding" and (glue is None or not glue.regression):
        raise UsageError(f"task {name!r}: embeddings are scored on pairs with a similarity, as in {kind}:stsb")
    if glue is None:
        if not rest:
            raise UsageError(f"task {name!r} names no column: give one, as in {kind}:text")
        return LanguageTask(f"{kind}-{rest}", kind, (rest,), DataSource())
    return LanguageTask(
        name.replace(":", "-"),
        kind,
        glue.columns,
        glue.source,
        evaluation=glue.evaluation,
        test=glue.test,
        language="en",
    )


_LANGUAGE = re.compile(r"[a-z]{2}(_[A-Z]{2})?|[a-z]{2,3}_[A-Z][a-z]{3}")
"""Names of a language's column: de, pt_BR, zho_Hans. Three letters alone are too often a word."""


def _language_in(column: str) -> str:
    """Language code in a column's name; empty if it is none."""
    return language_code(column) if _LANGUAGE.fullmatch(column) and is_language(column) else ""


def load_texts(task: LanguageTask, split: str) -> Examples:
    """Read a split's documents, or its pairs of source and target, of which the source may be a sound.

    Documents without a word are skipped and counted; a pair must be complete. A conversation becomes the JSON that
    ``Conversation`` reads.

    Raises:
        UsageError: no such split or column, no document with a word in it, or half a pair.
    """
    large = find_large_split(task.source, split, TEXT_FORMATS) if task.modality == "text" else None
    if large is not None and not task.references and (task.pairs or len(task.columns) == 1):
        with suppress(NotInParts, Unwritten):  # without a cache, texts are held in memory
            return _map_texts(task, large)
    where = f"{task.source}, split {split!r}"
    return texts_of(task, split, text_columns(task, load_table(task.source, split, text_files=True), where))


def _map_texts(task: LanguageTask, large: LargeSplit) -> Examples:
    """Read the documents, conversations or pairs of a large split in parts, and map them into memory."""

    def write(draft: Draft) -> dict[str, int]:
        columns = [TextDraft(draft, str(number)) for number in range(len(task.columns))]
        rows = kept = 0
        for first, part in large.parts([*task.columns, TOOLS] if task.kind == "chat" else task.columns):
            texts = _read_columns(task, text_columns(task, part, large.where, first), large.where, first)
            if len(texts) == 1 and task.kind != "chat":
                texts = (tuple(text for text in texts[0] if not is_blank(text)),)
            for drafted, column in zip(columns, texts, strict=True):
                drafted.append(column)
            rows, kept = rows + len(part), kept + len(texts[0])
        if not kept:
            raise UsageError(f"{large.where} has {'no text: every document is empty' if rows else 'no rows'}")
        return {"passed_over": rows - kept}

    content = {"kind": task.kind, "columns": task.columns}
    return mapped_examples(large, large.keep(content, write), len(task.columns))


def text_columns(task: LanguageTask, table: "pd.DataFrame", where: str, first: int = 0) -> "pd.DataFrame":
    """Return a table with the columns of a task's texts: those of objects in a column ``translation`` for pairs.

    Args:
        task: task of the texts.
        table: table as it is in the data.
        where: its source, for error lines.
        first: number of its first row there.

    Raises:
        UsageError: a row of the column ``translation`` is no object.
    """
    import pandas as pd

    if (
        not task.pairs
        or task.modality != "text"
        or "translation" not in table.columns
        or set(task.columns) <= set(table.columns)
    ):
        return table
    rows = enumerate(table["translation"], first)
    return pd.DataFrame([_object(value, row, where) for row, value in rows], dtype=object)


def texts_of(task: LanguageTask, split: str, table: "pd.DataFrame") -> Examples:
    """Read and check the texts of a split's table, which has their columns, as ``load_texts`` does."""
    where = f"{task.source}, split {split!r}"
    if not len(table):
        raise UsageError(f"{where} has no rows")
    examples = read_rows(task, split, table)
    if not len(examples):
        raise UsageError(f"{where} has no text: every document is empty")
    return examples


def read_rows(task: LanguageTask, split: str, table: "pd.DataFrame", first: int = 0) -> Examples:
    """Read and check some rows of a split, of which the first has this number; none of them may have a word.

    Raises:
        UsageError: as of ``load_texts``, but for a split without text.
    """
    where = f"{task.source}, split {split!r}"
    folder = table_folder(task.source, split) if task.modality != "text" else None
    texts = _read_columns(task, table, where, first, folder)
    origins = read_origins(table, task.source, where, needed=split == task.train)
    if task.kind == "chat":
        return Examples(split, texts, None, origins=origins)
    if task.pairs:
        return Examples(split, texts, None, references=_references(task, table, where, first), origins=origins)
    every = [text for column in texts for text in column]
    kept = tuple(text for text in every if not is_blank(text))
    kept_origins = (
        tuple(origin for text, origin in zip(every, origins * len(texts), strict=True) if not is_blank(text))
        if origins
        else ()
    )
    return Examples(split, (kept,), None, passed_over=len(every) - len(kept), origins=kept_origins)


def _read_columns(
    task: LanguageTask, table: "pd.DataFrame", where: str, first: int = 0, folder: Path | None = None
) -> tuple[Sequence[str], ...]:
    """Read a task's columns of a table, whose first row has the number ``first``; pairs must be complete.

    Paths of sounds are relative to ``folder``.
    """
    for column in task.columns:
        check_column(table, column, f"task {task.name!r}", where)
    if task.kind == "chat":
        return (read_conversations(table, task.columns[0], where, first),)
    texts = tuple(
        read_media(table, column, task.modality, where, folder)
        if task.modality != "text" and column == task.columns[0]
        else read_texts(table, column, where, missing="", first=first)
        for column in task.columns
    )
    for row, pair in enumerate(zip(*texts, strict=True), first) if task.pairs else ():
        if any(map(is_blank, pair)):
            raise UsageError(f"{where}: row {row} lacks its {task.columns[0]} or its {task.columns[1]}")
    return texts


def _references(task: LanguageTask, table: "pd.DataFrame", where: str, first: int) -> tuple[tuple[str, ...], ...]:
    """Reference texts of each row from number ``first`` on, without repetition; empty if the target is the only one.

    A row may have fewer than another: missing and blank cells are left out.
    """
    for column in task.references:
        check_column(table, column, f"task {task.name!r}", where)
    rows = []
    for row in range(len(table)) if task.references else ():
        known: dict[str, None] = {}
        for column in task.references:
            value = table[column].iloc[row]
            for text in value if isinstance(value, list | tuple | np.ndarray) else [value]:
                if is_missing(text):
                    continue
                if not isinstance(text, str):
                    raise not_text_error(text, f"{where}: row {first + row}", column)
                if not is_blank(text):
                    known[check_text(text, f"{where}: row {first + row}", column)] = None
        if not known:
            raise UsageError(f"{where}: row {first + row} has no reference in {', '.join(task.references)}")
        rows.append(tuple(known))
    return tuple(rows)


def _object(value: Any, row: int, where: str) -> dict[str, Any]:
    """Parse a row of a column ``translation`` as in WMT and OPUS: an object with a text for each language."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: row {row} has no object of texts in column 'translation'")
    return value
