"""Rows of a task's training split: what is answered, the reference, and the row with another answer in its place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdalign.data.media.rows import MediaItem
from kdalign.data.split_files import available_splits, split_files
from kdalign.data.tables import TEXT_FORMATS
from kdalign.data.tasks import Examples, LanguageTask
from kdalign.data.tasks.columns import check_column, column_cells, is_blank, read_texts
from kdalign.data.tasks.conversations import Conversation, Message
from kdalign.data.tasks.generation_cases import PREFIX_WORDS
from kdalign.data.tasks.holdout import normalise_rows
from kdalign.data.tasks.language import text_columns, texts_of
from kdalign.data.tasks.loading import load_table, split_exists
from kdalign.data.tasks.media_parts import MediaTable, read_media_table, split_parts
from kdalign.distillation.sequence_level.filters import ALONE
from kdalign.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

DOCUMENTS = ("lm", "language-modeling")
_OBJECTS = "translation"
"""Column of objects with a text for each language, as in WMT and OPUS."""


@dataclass(frozen=True)
class PromptRow:
    """A row of train that is to be answered.

    Attributes:
        number: number of the row in the split.
        prompt: text to answer: a source, the beginning of a document, a conversation up to its last answer as JSON, or
            the name of a sound by its content.
        source: text by which the row is known in other splits: the source, the document, or all before the answer.
        references: correct answers in the data.
        sound: sound to transcribe, which the prompt names; None for texts.
    """

    number: int
    prompt: str
    source: str
    references: tuple[str, ...]
    sound: MediaItem | None = None

    @property
    def conversation(self) -> Conversation:
        """The prompt as a conversation."""
        return Conversation.from_json(self.prompt)


@dataclass(frozen=True)
class TrainRows:
    """A training split: its table, and the rows that are to be answered.

    Attributes:
        task: task of the split.
        table: the split as it is in the data, without its sounds.
        rows: rows to answer.
        left_out: rows that are not answered, by reason.
        sounds: the split's sounds, which are read in parts; None for texts.
    """

    task: LanguageTask
    table: "pd.DataFrame"
    rows: tuple[PromptRow, ...]
    left_out: tuple[tuple[str, int], ...] = ()
    sounds: MediaTable | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is answered and of the references."""
        prompts = tuple(row.prompt for row in self.rows)
        return Examples("train", (prompts,), None, references=tuple(row.references for row in self.rows)).fingerprint()

    def without(self, reason: str, numbers: set[int]) -> "TrainRows":
        """Return the split without some rows."""
        rows = tuple(row for row in self.rows if row.number not in numbers)
        return replace(self, rows=rows, left_out=(*self.left_out, (reason, len(self.rows) - len(rows))))

    def with_answer(self, row: PromptRow, answer: str) -> dict[str, Any]:
        """Return a row's cells by column, with an answer in place of the data's; without its sound."""
        cells = {str(name): self._cells[str(name)][row.number] for name in self.table.columns}
        column = self.task.columns[-1]
        if self.task.kind == "chat":
            before = list(cells[column])[: len(row.conversation.messages)]
            cells[column] = [*before, {"role": "assistant", "content": answer}]
        elif self.task.kind in DOCUMENTS:
            cells[column] = row.prompt + answer
        elif column not in cells and _OBJECTS in cells:
            cells[_OBJECTS] = {**cells[_OBJECTS], column: answer}
        else:
            cells[column] = answer
        return cells

    @cached_property
    def _cells(self) -> dict[str, list[Any]]:
        """Cells by column."""
        return {str(name): column_cells(self.table, name) for name in self.table.columns}


def check_task(task: object, name: str) -> LanguageTask:
    """Refuse tasks whose answers are not texts.

    Raises:
        UsageError: the task, and what is accepted.
    """
    if isinstance(task, LanguageTask) and (task.pairs or task.kind in ("chat", *DOCUMENTS)):
        if task.kind in DOCUMENTS and len(task.columns) > 1:
            raise UsageError(
                f"task {name!r} has documents in {' and '.join(task.columns)}, and one column is continued: name it as "
                f"in {task.kind}:{task.columns[0]}"
            )
        return task
    raise UsageError(
        f"task {name!r} has no prompts that are answered by a text (accepted: translation, summarization, dialogue, "
        "transcription, speech-recognition, chat, lm, language-modeling, and tasks of these kinds)"
    )


def read_train(task: LanguageTask, limit: int | None = None) -> TrainRows:
    """Read the training split, at most ``limit`` rows.

    Raises:
        UsageError: no such split, or rows that are not of the task.
    """
    if task.modality == "audio":
        sounds = read_sounds(task, task.train, limit)
        return TrainRows(task, sounds.others, tuple(_sound_rows(task, sounds)), sounds=sounds)
    table = load_table(task.source, task.train, text_files=True)
    table = table.iloc[: limit or len(table)].reset_index(drop=True)
    train = TrainRows(task, table, ())
    texts = text_columns(task, table, f"{task.source}, split {task.train!r}")
    if task.pairs:
        pairs = enumerate(_pairs(task, texts))
        return replace(train, rows=tuple(PromptRow(number, source, source, known) for number, (source, known) in pairs))
    examples = texts_of(task, task.train, texts)  # which checks them
    if task.kind == "chat":
        return replace(train, rows=tuple(_chat_row(number, chat) for number, chat in enumerate(examples.texts[0])))
    documents = read_texts(texts, task.columns[0], f"{task.source}, split {task.train!r}", missing="")
    rows = [_document_row(number, text) for number, text in enumerate(documents)]
    found = tuple(row for row in rows if row is not None)
    short = len(documents) - len(found)
    if not found:
        raise UsageError(
            f"{task.source}, split {task.train!r}: no document has two words, so that none can be continued"
        )
    return replace(train, rows=found, left_out=(("of one word or none", short),) if short else ())


def _sound_rows(task: LanguageTask, sounds: MediaTable) -> Iterator[PromptRow]:
    """Read sounds with their transcripts, which rows that are only to be transcribed lack."""
    target = task.columns[1]
    known = [""] * len(sounds.media)
    if target in sounds.others.columns:
        known = list(read_texts(sounds.others, target, f"{task.source}, split {task.train!r}", missing=""))
    for row, (name, text) in enumerate(zip(sounds.media, known, strict=True)):
        yield PromptRow(row, name, name, () if is_blank(text) else (text,), MediaItem(sounds.media, row))


def read_sounds(task: LanguageTask, split: str, limit: int | None = None) -> MediaTable:
    """Read a split of sounds, at most ``limit`` rows.

    Raises:
        UsageError: no rows, no column of sounds, or a row without one.
    """
    return read_media_table(task.source, split, task.columns[0], "audio", f"task {task.name!r}", limit)


def _pairs(task: LanguageTask, table: "pd.DataFrame") -> list[tuple[str, tuple[str, ...]]]:
    """Read sources with their references, which rows that are only to be answered lack.

    Raises:
        UsageError: no rows, no column of sources, or a row without a source.
    """
    where, (source, target) = f"{task.source}, split {task.train!r}", task.columns
    if not len(table):
        raise UsageError(f"{where} has no rows")
    check_column(table, source, f"task {task.name!r}", where)
    sources = read_texts(table, source, where, missing="")
    if target not in table.columns and not any(target in _columns(task, split) for split in reported_splits(task)):
        check_column(table, target, f"task {task.name!r}", where)  # raises: no split has a column of that name
    targets = read_texts(table, target, where, missing="") if target in table.columns else [""] * len(table)
    for row, text in enumerate(sources):
        if is_blank(text):
            raise UsageError(f"{where}: row {row} lacks its {source}")
    if not any(map(is_blank, targets)):
        examples = texts_of(task, task.train, table)
        return list(zip(sources, examples.references or [(text,) for text in targets], strict=True))
    return [(text, () if is_blank(known) else (known,)) for text, known in zip(sources, targets, strict=True)]


def _columns(task: LanguageTask, split: str) -> list[str]:
    """Return the columns of a split's texts; of a split of sounds, all."""
    if task.modality == "audio":
        first = next(split_parts(task.source, split), None)
        return [] if first is None else list(map(str, first.columns))
    where = f"{task.source}, split {split!r}"
    return [str(name) for name in text_columns(task, load_table(task.source, split, text_files=True), where).columns]


def check_references(train: TrainRows, measures: Sequence[str]) -> None:
    """Refuse measures that compare an answer with a reference where a row has none.

    Raises:
        UsageError: the measure and the first such row.
    """
    row = next((row for row in train.rows if not row.references), None)
    compared = next((name for name in measures if name not in ALONE), None)
    if row is not None and compared is not None:
        raise UsageError(
            f"{train.task.source}, split {train.task.train!r}: row {row.number} has no {train.task.columns[-1]}, with "
            f"which {compared} compares its answer (without one: {', '.join(ALONE)})"
        )


def _chat_row(number: int, chat: str) -> PromptRow:
    """Make the row of a conversation: its last answer is generated, from all turns before it."""
    whole = Conversation.from_json(chat)
    last = whole.answers[-1]
    before = Conversation(whole.messages[:last], whole.tools)
    return PromptRow(number, before.to_json(), spoken(before.messages), (whole.messages[last]["content"],))


def spoken(messages: Sequence[Message]) -> str:
    """Return the words of messages, by which conversations are compared."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _document_row(number: int, text: str) -> PromptRow | None:
    """Make the row of a document: its first half is given, at most ``PREFIX_WORDS`` words; None for one word."""
    words = list(re.finditer(r"\S+", text))
    if is_blank(text) or len(words) < 2:
        return None
    end = words[min(PREFIX_WORDS, len(words) // 2) - 1].end()
    return PromptRow(number, text[:end], text, (text[end:].strip(),))


_REPORTED = re.compile(r"(test|valid|val|dev|eval)([^a-z].*|ation.*|uation.*)?")
"""Names of further splits that scores may be reported on, such as test2016 or validation_matched."""


def reported_splits(task: LanguageTask) -> list[str]:
    """List the splits of the data that scores are reported on: the task's, and those of a folder that are named so."""
    named = [split for split in dict.fromkeys((*task.evaluation, *task.test)) if split_exists(task.source, split)]
    folder = task.source.folder
    if folder is None:
        return named
    taken = {file for split in (task.train, *named) for file in split_files(folder, split, TEXT_FORMATS)}
    others = [
        split
        for split in available_splits(folder, TEXT_FORMATS)
        if _REPORTED.fullmatch(split.lower()) and not taken & set(split_files(folder, split, TEXT_FORMATS))
    ]
    return [*named, *(split for split in others if task.columns[0] in _columns(task, split))]


def sources_of(task: LanguageTask, split: str) -> list[str]:
    """Read the sources of a split, which need no answers: texts as in ``PromptRow.source``."""
    if task.modality == "audio":
        return list(read_sounds(task, split).media)
    where = f"{task.source}, split {split!r}"
    table = text_columns(task, load_table(task.source, split, text_files=True), where)
    column = task.columns[0]
    check_column(table, column, f"task {task.name!r}", where)
    if task.kind != "chat":
        return list(read_texts(table, column, where, missing=""))
    chats = [Conversation.from_json(chat) for chat in texts_of(task, split, table).texts[0]]
    return [spoken(chat.messages[:place]) for chat in chats for place in chat.answers]


def rows_in_split(train: TrainRows, sources: Sequence[str]) -> set[int]:
    """Return the numbers of rows whose source is among others, equal word for word in lower case."""
    reported = set(normalise_rows(Examples("reported", (tuple(sources),), None)))
    own = normalise_rows(Examples("train", (tuple(row.source for row in train.rows),), None))
    return {row.number for row, words in zip(train.rows, own, strict=True) if words in reported and words != ((),)}
