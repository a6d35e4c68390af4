"""The output folder of generated data: who claims it, answers as they arrive, splits, and the record written last.

::

    OUT/  train.jsonl|parquet     the training split with the teacher's answers
          validation.* test.* ... the other splits, as they are in the data
          generation.json         the record; its presence means that the folder is complete
          generation/             command.json   what is generated here
                                  answers.jsonl  a local teacher's answers, dropped ones included
                                  served.jsonl   a server's answers
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdalign.data.split_files import available_splits, split_files
from kdalign.data.tables import TEXT_FORMATS, file_format
from kdalign.data.tasks import LanguageTask
from kdalign.data.tasks.loading import load_table
from kdalign.data.tasks.media_parts import write_media_table
from kdalign.distillation.sequence_level.rows import PromptRow, TrainRows, read_sounds, reported_splits
from kdalign.errors import TamperedRun, UsageError, shorten
from kdalign.files import (
    append_text,
    atomic_file,
    check_links,
    check_writable,
    is_draft,
    line_of,
    read_json,
    read_line,
    remove_drafts,
    sha256,
    write_json,
    writing,
)
from kdalign.runs.locks import LOCK
from kdalign.runs.seal import is_changed, sealed

RECORD = "generation.json"
WORK = "generation"
COMMAND, ANSWERS, SERVED = "command.json", "answers.jsonl", "served.jsonl"
OF_SELECTION = ("keep", "best_of")
"""Settings that decide which answers are kept, and not what is answered."""


def prompt_key(prompt: str) -> str:
    """Return the key of a prompt in files: the first digits of its text's SHA-256."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class GeneratedAnswer:
    """A teacher's answer to a prompt.

    Attributes:
        prompt: key of the prompt.
        draw: number of the sample.
        text: the answer.
        ended: False if the token limit cut it off; None if a server does not say.
        cut: True if the prompt was too long and lost a part.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer.
    """

    prompt: str
    draw: int
    text: str
    ended: bool | None = True
    cut: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Prompt and number of the sample."""
        return self.prompt, self.draw


class GenerationFolder:
    """A folder of generated data; nothing is written before ``begin``.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK
        self.record, self.answers, self.command = path / RECORD, self.work / ANSWERS, self.work / COMMAND

    def claim(self, command: Mapping[str, Any], overwrite: bool, shown: str) -> None:
        """Refuse a folder that holds something else than what the command began; nothing is changed.

        Args:
            command: what is to be generated, by name.
            overwrite: True to replace what another command generated.
            shown: the command line, for the error's remedy.

        Raises:
            UsageError: what the folder holds, and what can be done.
        """
        check_writable(self.path)
        if self._is_free:
            return
        check_links(self.path)
        if not self.command.is_file():
            raise UsageError(f"{str(self.path)!r} is not empty and holds no generated data; choose another --out")
        difference = _difference(self._begun(), command)
        if difference and not overwrite and self.has_answers:
            raise UsageError(
                f"{str(self.path)!r} holds data of another command ({difference}): give --overwrite or another --out"
            )
        if not overwrite and self.record.is_file():
            self.check_files(self.read_record(), f"generate it again by: {shown} --overwrite")

    @property
    def _is_free(self) -> bool:
        """True if it holds nothing, or what a command leaves that is stopped before it has written what it does."""
        folders = [folder for folder in (self.path, self.work) if folder.is_dir()]
        return all(
            inner == self.work or inner.name == LOCK or is_draft(inner)
            for folder in folders
            for inner in folder.iterdir()
        )

    @property
    def has_answers(self) -> bool:
        """True if a teacher answered: a folder without an answer, as of a wrong URL, is free for another command."""
        files = (self.answers, self.work / SERVED, self.record)
        return any(file.is_file() and file.stat().st_size > 0 for file in files)

    def begin(self, command: Mapping[str, Any]) -> None:
        """Write the command, and remove an earlier one's files; answers stay if only their selection differs.

        The rest of a line that was being written when a process was killed is cut off.

        Raises:
            UsageError: the folder's files cannot be read.
            Unwritten: a file cannot be written.
        """
        remove_drafts(self.work)
        if self.command.is_file():
            before = self._begun()
            if _answering(before) == _answering(command):
                self.read_answers()  # one that is none is said before anything is removed
            if before == command:
                self._cut_unfinished_line()
                return
            with writing(self.path):
                self.record.unlink(missing_ok=True)
                for name in before.get("files", ()):
                    (self.path / name).unlink(missing_ok=True)
                if _answering(before) != _answering(command):  # what a server was paid for is kept
                    self.answers.unlink(missing_ok=True)
        with writing(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        self._cut_unfinished_line()
        write_json(self.command, sealed(command))

    def withdraw(self) -> None:
        """Remove what ``begin`` wrote, of a command without an answer."""
        with writing(self.work), suppress(FileNotFoundError):
            for file in (self.command, self.answers, self.work / SERVED):
                file.unlink(missing_ok=True)
            self.work.rmdir()

    def _cut_unfinished_line(self) -> None:
        if self.answers.is_file():
            data = self.answers.read_bytes()
            with writing(self.answers):
                os.truncate(self.answers, data.rfind(b"\n") + 1)

    def _begun(self) -> dict[str, Any]:
        tree = read_json(self.command)
        if not isinstance(tree, dict) or not _is_names(tree.get("files", [])):
            raise UsageError(f"{str(self.command)!r} does not hold a command of kdalign; choose another --out")
        if is_changed(tree):
            raise TamperedRun(f"{str(self.command)!r} was changed: put it back as it was, or choose another --out")
        return tree

    def read_record(self) -> dict[str, Any]:
        """Read the record.

        Raises:
            UsageError: it is none.
            TamperedRun: it was changed.
        """
        tree = read_json(self.record)
        if not isinstance(tree, dict) or not isinstance(tree.get("files"), dict):
            raise UsageError(f"{str(self.record)!r} is no record of generated data")
        if is_changed(tree):
            raise TamperedRun(
                f"{str(self.record)!r} was changed after it was written: put it back as it was, or generate the data "
                "again with --overwrite"
            )
        return tree

    def check_files(self, record: Mapping[str, Any], mend: str) -> None:
        """Refuse a folder whose files are not as they were written.

        Raises:
            TamperedRun: the first that is missing or changed.
        """
        for name, digest in record["files"].items():
            file = self.path / Path(name).name
            if not file.is_file() or sha256(file) != digest:
                state = "is missing" if not file.is_file() else "was changed after it was written"
                raise TamperedRun(f"{str(file)!r} {state}: {mend}")

    def read_answers(self) -> list[GeneratedAnswer]:
        """Read the answers so far, but for a line that was being written when a process was killed.

        Raises:
            UsageError: a line is no answer.
        """
        if not self.answers.is_file():
            return []
        data = self.answers.read_bytes()
        found, answer = [], TypeAdapter(GeneratedAnswer)
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                found.append(answer.validate_python(read_line(line), strict=False))
            except (ValueError, RecursionError):  # a ValidationError is a ValueError
                raise UsageError(
                    f"{str(self.answers)!r}, line {number}: {shorten(repr(line), 80)} is no answer as it was "
                    "written: remove that line, and run the same command again"
                ) from None
        return found

    def append(self, answers: Iterable[GeneratedAnswer]) -> None:
        """Append answers, each on a line of its own.

        Raises:
            Unwritten: the file cannot be written.
        """
        append_text(self.answers, "".join(line_of(asdict(answer)) for answer in answers))

    def write_train(self, name: str, train: TrainRows, answers: Sequence[tuple[PromptRow, str]]) -> None:
        """Write the training split, a row for each answer: as parquet or jsonl, by the file's name."""
        import pandas as pd

        rows = [train.with_answer(row, answer) for row, answer in answers]
        with atomic_file(self.path / name) as temporary:
            if train.sounds is not None:
                numbers = [row.number for row, _ in answers]
                write_media_table(temporary, train.sounds, pd.DataFrame(rows), numbers)
            elif file_format(Path(name)) == "parquet":
                pd.DataFrame(rows).to_parquet(temporary, index=False)
            else:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                temporary.write_bytes("".join(lines).encode("utf-8", "surrogatepass"))

    def copy_splits(self, task: LanguageTask, names: Iterable[str]) -> None:
        """Copy the splits other than train as they are; those of the hub, and of sounds, are written as parquet."""
        files = {file.name: file for file in other_files(task)}
        for name in names:
            with atomic_file(self.path / name) as temporary:
                if _copies_files(task):
                    shutil.copyfile(files[name], temporary)
                    continue
                split = Path(name).stem
                if task.modality == "audio":
                    sounds = read_sounds(task, split)
                    write_media_table(temporary, sounds, sounds.others, range(len(sounds.media)))
                else:
                    load_table(task.source, split, text_files=True).to_parquet(temporary, index=False)

    def finish(self, record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Write the record with the hashes of the folder's splits and of all that made them, and return it."""
        files = {name: sha256(self.path / name) for name in names}
        content = json.dumps([self._begun(), files], sort_keys=True)
        whole = {**record, "files": files, "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16]}
        write_json(self.record, sealed(whole))
        return whole


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and Path(name).name == name for name in value)


def _answering(command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a command that decide what is answered."""
    return {name: value for name, value in command.items() if name not in (*OF_SELECTION, "files")}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say the first part in which two commands differ; empty if none does."""
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            there, here = (shorten(str(side.get(name)), 80) for side in (before, now))
            return f"{name} is {there} there, {here} here"
    return ""


def train_file(task: LanguageTask) -> str:
    """Return the name of the file in which the training split is written: parquet if the data are, else jsonl."""
    folder = task.source.folder
    is_parquet = (
        folder is None
        or not _copies_files(task)
        or file_format(split_files(folder, task.train, TEXT_FORMATS)[0]) == "parquet"
    )
    return f"{task.train}.{'parquet' if is_parquet else 'jsonl'}"


def _copies_files(task: LanguageTask) -> bool:
    """True if splits are files whose content does not depend on where they are, as that of paths of sounds does."""
    return task.source.folder is not None and task.modality == "text"


def other_files(task: LanguageTask) -> list[Path]:
    """List the files of the splits other than train; of sounds and hub data, the names that they are written under."""
    folder = task.source.folder
    if folder is None or not _copies_files(task):
        return [Path(f"{split}.parquet") for split in reported_splits(task) if split != task.train]
    train = set(split_files(folder, task.train, TEXT_FORMATS))
    files = [
        file for split in available_splits(folder, TEXT_FORMATS) for file in split_files(folder, split, TEXT_FORMATS)
    ]
    return [file for file in dict.fromkeys(files) if file not in train]


def generation_fingerprint(folder: Path | None) -> str | None:
    """Return the fingerprint of a folder of generated data, by its record; None for other folders."""
    if folder is None or not (folder / RECORD).is_file():
        return None
    with suppress(UsageError):
        found = GenerationFolder(folder).read_record().get("fingerprint")
        return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{16}", found) else None
    return None
