"""Infer the columns of a language task from its data: texts, conversations, scored pairs, sounds and transcripts."""

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from kdalign.data.delimited import NotInParts
from kdalign.data.media.rows import NOUNS, MediaKind
from kdalign.data.tables import TEXT_FORMATS
from kdalign.data.tasks.columns import (
    TEXT_COLUMNS,
    Kind,
    cell_kinds,
    column_cells,
    looks_like_data,
    missing_header_hint,
)
from kdalign.data.tasks.language import LanguageTask
from kdalign.data.tasks.large_splits import find_large_split
from kdalign.data.tasks.loading import load_table, split_exists
from kdalign.data.tasks.media_columns import find_media_column
from kdalign.data.tasks.media_parts import split_parts
from kdalign.data.tasks.task import ClassificationTask
from kdalign.errors import UsageError
from kdalign.metrics.retrieval import RECALLS

if TYPE_CHECKING:
    import pandas as pd

_MESSAGES = ("messages", "conversations")
_TRANSCRIPTS = ("text", "transcript", "transcription", "caption", "sentence")
"""Usual names of a column of transcripts or captions, the likeliest first."""


def with_columns(task: LanguageTask) -> LanguageTask:
    """Infer the columns from the data, if they were not given."""
    if task.kind == "chat" and not task.columns:
        return _with_messages(task)
    if task.kind == "embedding":
        scored = _similarity_task(task)
        return replace(task if task.columns else _with_texts(task, scored.columns), scored=scored)
    if task.kind == "image-text":
        task = replace(task, scored=ClassificationTask(task.name, task.columns, (), RECALLS, task.source))
    if task.modality != "text" and task.name == task.kind:  # else its name says the columns
        return _with_media(task, task.modality)
    return task if task.columns else _with_text_column(task)


def _with_texts(task: LanguageTask, pair: tuple[str, ...]) -> LanguageTask:
    """Infer the columns to train embeddings on: the text of train, or its pairs.

    Args:
        task: without columns.
        pair: columns of the scored split, which are taken if there is no train.
    """
    if split_exists(task.source, task.train):
        names = [str(name) for name in load_table(task.source, task.train, text_files=True).columns]
        if not set(pair) <= set(names) or any(name.strip().lower() in TEXT_COLUMNS for name in names):
            return _with_text_column(task)
    return replace(task, columns=pair, found=f"texts in {' and '.join(pair)}")


def _similarity_task(task: LanguageTask) -> ClassificationTask:
    """Infer the pairs that embeddings are scored on: two columns of text and a number in the reported split."""
    (split,) = task.evaluation
    table = load_table(task.source, split)
    numbers = [str(name) for name in table.columns if name in ("label", "score", "similarity", "similarity_score")]
    texts = [
        str(name) for name in table.columns if name not in numbers and "text" in cell_kinds(column_cells(table, name))
    ]
    if len(texts) != 2 or len(numbers) != 1:
        raise UsageError(
            f"{task.source}, split {split!r}: task {task.name!r} is scored on two columns of text and one named label, "
            f"score or similarity (it has: {', '.join(map(str, table.columns))}){missing_header_hint(table)}"
        )
    return ClassificationTask(task.name, tuple(texts), (), ("spearman", "pearson"), task.source, numbers[0])


def _with_messages(task: LanguageTask) -> LanguageTask:
    table = load_table(task.source, _first_split(task))
    named = [str(name) for name in table.columns if name in _MESSAGES]
    if len(named) != 1:
        raise UsageError(
            f"{task.source}: task {task.name!r} needs one column of conversations named {' or '.join(_MESSAGES)} "
            f"(it has: {', '.join(map(str, table.columns))})"
        )
    return replace(task, columns=tuple(named), found=f"conversations in {named[0]}")


def _with_media(task: LanguageTask, modality: MediaKind) -> LanguageTask:
    """Infer the columns of sounds or images and of their texts, unless there are columns of the usual names."""
    split = _first_split(task)
    table = next(split_parts(task.source, split), None)
    if table is None:
        raise UsageError(f"{task.source}, split {split!r} has no rows")
    if set(task.columns) <= set(table.columns):
        return task
    where = f"{task.source}, split {split!r}"
    sounds = find_media_column(table, modality, where)
    texts = [str(name) for name in table.columns if name != sounds and "text" in cell_kinds(column_cells(table, name))]
    usual = {name.strip().lower(): name for name in reversed(list(map(str, table.columns)))}
    called = "transcripts" if modality == "audio" else "texts"
    named = next((usual[name] for name in _TRANSCRIPTS if name in usual), None)
    if named is None and len(texts) != 1:
        raise UsageError(
            f"{where}: which column has the {called}? It has {', '.join(map(str, table.columns))}; name it as in "
            f"{task.kind}:{sounds}-{(texts or ['text'])[0]}"
        )
    columns = (sounds, named or texts[0])
    return replace(task, columns=columns, found=f"{NOUNS[modality]}s in {columns[0]}, {called} in {columns[1]}")


def _kinds_of_columns(task: LanguageTask) -> tuple[dict[str, set[Kind]], "pd.DataFrame"]:
    """Return the kinds of the cells of each column of the first split, and its first rows."""
    split = _first_split(task)
    large = find_large_split(task.source, split, TEXT_FORMATS)
    if large is not None:
        with suppress(NotInParts):
            kinds, first = dict[str, set[Kind]](), None
            for _, part in large.parts():
                first = part if first is None else first
                for name in part.columns:
                    kinds.setdefault(str(name), set()).update(cell_kinds(column_cells(part, name)))
            if first is not None:
                return kinds, first
    table = load_table(task.source, split, text_files=True)
    return {str(name): cell_kinds(column_cells(table, name)) for name in table.columns}, table


def _with_text_column(task: LanguageTask) -> LanguageTask:
    kinds, table = _kinds_of_columns(task)
    named = [name for name in kinds if name.strip().lower() in TEXT_COLUMNS and kinds[name] & {"text", "digits"}]
    strings = named or [name for name in kinds if "text" in kinds[name]]
    if not len(table):
        raise UsageError(
            f"{task.source}, split {_first_split(task)!r} has no text: no row, or no line that is not blank"
        )
    if len(strings) != 1:
        way = f"name it as in {task.kind}:{(strings or ['text'])[0]}" if task.kind != "embedding" else "call it text"
        raise UsageError(
            f"{task.source}: which column is the text? It has {', '.join(kinds)}; {way}{missing_header_hint(table)}"
        )
    (column,) = strings
    if not named and looks_like_data(column):
        raise UsageError(f"{task.source}: no column has a name{missing_header_hint(table)}")
    return replace(task, columns=(column,), found=f"text in {column}")


def _first_split(task: LanguageTask) -> str:
    """Training split, or without one the first that exists: a task that is only scored needs no train."""
    splits = (task.train, *task.evaluation, *task.test)
    return next((split for split in splits if split_exists(task.source, split)), task.train)
