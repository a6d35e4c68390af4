"""A run's folder: paths of its files, writing and sealing them, and finding runs below a folder."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdalign.errors import TamperedRun, UsageError
from kdalign.files import (
    append_text,
    atomic_file,
    is_draft,
    is_file,
    older_of,
    read_json,
    remove_drafts,
    sha256,
    write_json,
    write_text,
    writing,
)
from kdalign.runs.record import BEGUN, LEFT, RECORD, RunRecord
from kdalign.runs.seal import digest_of, seal_of


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files, and how they are written, sealed and checked."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def inputs(self) -> Path:
        """File of fingerprints of the models and splits that the run reads."""
        return self.path / "inputs.json"

    @property
    def plan(self) -> Path:
        """The calibrated plan."""
        return self.path / "plan.json"

    @property
    def history(self) -> Path:
        """History of steps and evaluations, one JSON object a line."""
        return self.path / "history.jsonl"

    @property
    def log(self) -> Path:
        """Log of announcements."""
        return self.path / "log.txt"

    @property
    def student(self) -> Path:
        """The exported student, a stock Transformers checkpoint."""
        return self.path / "student"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints to resume from."""
        return self.path / "checkpoints"

    @property
    def projections(self) -> Path:
        """Trained projections, which the student does not need."""
        return self.path / "projections.safetensors"

    def predictions(self, split: str) -> Path:
        """Return the file of a split's predictions."""
        return self.path / "predictions" / f"{split}.parquet"

    @property
    def complete(self) -> bool:
        """True if the run ended and wrote its record."""
        return (self.path / RECORD).is_file()

    @property
    def started(self) -> bool:
        """True if the folder contains part of a run, or anything else."""
        return self.path.is_dir() and any(
            inner.name not in LEFT and not is_draft(inner) for inner in self.path.iterdir()
        )

    def begin(self, recipe: str, inputs: Mapping[str, str], keep: bool) -> None:
        """Make the folder, write the resolved recipe and the inputs' fingerprints, then remove an earlier run.

        Args:
            recipe: YAML.
            inputs: fingerprints of models and splits, by name.
            keep: true to resume the run in the folder, whose recipe and inputs stay as they are.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        there = keep and self.recipe.is_file()
        if not there or self.begun is None:
            text = json.dumps(dict(inputs), indent=2, ensure_ascii=False) + "\n"
            # The seal is written first: a run that is killed before the recipe is written has none.
            older = {"older": True} if there else {}
            self._seal({"recipe.yaml": digest_of(recipe), "inputs.json": digest_of(text), **older})
            write_text(self.inputs, text)
            write_text(self.recipe, recipe)
        for inner in (self.student, self.checkpoints, self.path / "predictions"):
            remove_drafts(inner)
        with writing(self.path):
            (self.path / RECORD).unlink(missing_ok=True)
            if not keep:
                for old in (self.student, self.checkpoints, self.path / "predictions"):
                    shutil.rmtree(old, ignore_errors=True)
                for file in (self.history, self.log, older_of(self.log), self.plan, self.projections):
                    file.unlink(missing_ok=True)

    @property
    def mark(self) -> tuple[int, int] | None:
        """A number that changes whenever a run begins in the folder; None before the first."""
        try:
            found = (self.path / BEGUN).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    @property
    def trained(self) -> bool:
        """True once a step was taken."""
        return any(event.get("kind") == "step" for event in self._events())

    def withdraw(self) -> None:
        """Remove what a run wrote that was refused before its first step.

        Where more remains, such as a tracker's files, all stays: without its recipe it would be nobody's folder, and in
        the way of every later run.
        """
        own = [self.recipe, self.inputs, self.path / BEGUN, self.plan, self.history, self.log]
        known = {file.name for file in own} | set(LEFT)
        if all(inner.name in known or is_draft(inner) for inner in self.path.iterdir()):
            _remove(self.path, own)

    def withdraw_above(self) -> None:
        """Remove what ``begin_above`` wrote."""
        _remove(self.path, [self.recipe, self.path / BEGUN])

    def begin_above(self, recipe: str, keep: bool) -> None:
        """Write the recipe of several tasks into the folder above the tasks' own."""
        if not (keep and self.recipe.is_file() and self.begun is not None):
            self._seal({"recipe.yaml": digest_of(recipe)})
            write_text(self.recipe, recipe)

    def write_plan(self, plan: str) -> None:
        """Write and seal the plan that the run is trained with, as JSON."""
        write_text(self.plan, plan)
        self._seal({**(self.begun or {}), "plan.json": digest_of(plan)})

    @property
    def begun(self) -> dict[str, Any] | None:
        """Hashes of what the run began with; None for a run of an older version.

        Raises:
            TamperedRun: the file was changed.
        """
        file = self.path / BEGUN
        if not file.exists():
            return None
        try:
            tree = read_json(file)
        except UsageError as error:
            raise self._damaged(str(error)) from None
        if not isinstance(tree, dict) or tree.get("seal") != seal_of(tree):
            raise self._damaged(f"{BEGUN} was changed after the run began: its seal does not fit it")
        if not all(isinstance(value, str | bool) for value in tree.values()):
            raise self._damaged(f"{BEGUN} does not hold hashes by name")
        return {name: value for name, value in tree.items() if name != "seal"}

    @property
    def identity(self) -> str:
        """Hash of recipe and inputs, by which checkpoints know their run; empty for a run of an older version."""
        begun = self.begun
        return "" if begun is None else seal_of({name: begun.get(name) for name in ("recipe.yaml", "inputs.json")})

    @property
    def plan_kept(self) -> bool:
        """True if the plan was completely written before training, and not cut off when the run was killed."""
        begun = self.begun
        return self.plan.is_file() and (begun is None or begun.get("older", False) or "plan.json" in begun)

    def check_recipe(self) -> None:
        """Check the recipe by its hash, if that is known.

        Raises:
            TamperedRun: it differs from when the run began.
        """
        begun = self.begun
        if begun is not None and self.recipe.is_file() and sha256(self.recipe) != begun.get("recipe.yaml"):
            raise self._damaged("recipe.yaml was changed after the run began")

    def check_begun(self, plan: str = "") -> bool:
        """Check the files that the run began with.

        Args:
            plan: plan to resume with, if layers were mapped again during training; else empty.

        Returns:
            False if their hashes are unknown, because an older version wrote none.

        Raises:
            TamperedRun: the line names the first file that is missing or changed.
        """
        begun = self.begun
        if begun is None:
            return False
        for name in ("recipe.yaml", "inputs.json", "plan.json"):
            if name not in begun:
                continue
            file = self.path / name
            if not file.is_file():
                raise self._damaged(f"{name} is missing, which was there when the run began")
            accepted = {begun[name]} | ({digest_of(plan)} if plan and name == "plan.json" else set())
            if sha256(file) not in accepted:
                raise self._damaged(f"{name} was changed after the run began")
        return True

    def _damaged(self, said: str) -> TamperedRun:
        return TamperedRun(f"run {str(self.path)!r}: {said}: put it back as it was, or start again with --overwrite")

    def _seal(self, begun: Mapping[str, Any]) -> None:
        write_json(self.path / BEGUN, {**begun, "seal": seal_of(begun)})

    def read_inputs(self) -> dict[str, str]:
        """Read the fingerprints in ``inputs``; empty if the file is missing.

        Raises:
            UsageError: the file holds something else.
        """
        if not self.inputs.is_file():
            return {}
        tree = read_json(self.inputs)
        if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
            raise UsageError(f"{str(self.inputs)!r} does not hold fingerprints by name")
        return tree

    def append_history(self, event: Mapping[str, Any]) -> None:
        """Add a line to the history."""
        append_text(self.history, json.dumps(event, allow_nan=False) + "\n")

    def read_history(self) -> list[dict[str, Any]]:
        """Read all events, oldest first; an unfinished last line of a killed run is skipped.

        Raises:
            UsageError: another line is not an event.
        """
        return list(self._events())

    def _events(self) -> Iterator[dict[str, Any]]:
        """Yield the events one by one, so that millions of steps need little memory."""
        if not self.history.is_file():
            return
        with self.history.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_EVENT), b""), 1):
                try:
                    event = self._event(number, line)
                except UsageError:
                    if line.endswith(b"\n") or len(line) == _LONGEST_EVENT:
                        raise
                    return  # the last one
                yield event

    def _event(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("step"), int):
            raise UsageError(f"{str(self.history)!r}, line {number} is not an event of a run: the history was changed")
        return event

    def history_seal(self) -> dict[str, Any]:
        """Return the history's length so far, in bytes, and its SHA-256."""
        if not self.history.is_file():
            return {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        with self.history.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": digest}

    def history_fits(self, seal: Mapping[str, Any]) -> bool:
        """Return whether the history begins with the sealed part; the rest is dropped when the run resumes."""
        digest, length = hashlib.sha256(), 0
        for part in self._beginning(int(seal["bytes"])):
            digest.update(part)
            length += len(part)
        return seal == {"bytes": length, "sha256": digest.hexdigest()}

    def _beginning(self, size: int) -> Iterator[bytes]:
        """Yield the first bytes of the history in parts."""
        if not self.history.is_file():
            return
        with self.history.open("rb") as file:
            while size > 0 and (part := file.read(min(size, 2**20))):
                size -= len(part)
                yield part

    @property
    def watched(self) -> list[dict[str, Any]]:
        """Evaluations during training, oldest first: each a step and scores by metric, without samples."""
        return [
            {name: value for name, value in event.items() if name not in ("kind", "samples")}
            for event in self._events()
            if event.get("kind") == "evaluation"
        ]

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Findings of the checks of loaded models before the first step: the name of the check, and the result."""
        return [(str(e["what"]), str(e["said"])) for e in self._events() if e.get("kind") == "finding"]

    def cut_history_to(self, size: int) -> None:
        """Drop the history after the first ``size`` bytes."""
        with atomic_file(self.history) as temporary, temporary.open("wb") as file:
            file.writelines(self._beginning(size))

    def cut_history(self, step: int) -> None:
        """Drop events after a step, for checkpoints that do not record the history's length.

        Training resumes from the checkpoint and measures gradients again before the next step.
        """
        kept = [event for event in self.read_history() if event["step"] <= step - (event.get("kind") == "gradients")]
        write_text(self.history, "".join(json.dumps(event) + "\n" for event in kept))

    def write_record(self, record: RunRecord) -> None:
        """Hash the folder's files, seal the record and write it, which makes the run complete."""
        files = {
            str(file.relative_to(self.path)): sha256(file)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.name not in _NOT_SEALED and self.checkpoints not in file.parents
        }
        tree = json.loads(json.dumps({**record.to_json(), "files": files}))  # as it will be read
        write_json(self.path / RECORD, {**tree, "seal": seal_of(tree)})


_OWN_FOLDERS = ("checkpoints", "student", "predictions")


_NOT_SEALED = (RECORD, BEGUN, "log.txt", "log.1.txt", ".lock")


_LONGEST_EVENT = 2**24
"""Limit of bytes of a line of a history."""


def _remove(folder: Path, files: Sequence[Path]) -> None:
    with writing(folder):
        for file in files:
            file.unlink(missing_ok=True)


MOST_FOLDERS = 20_000
"""Limit of folders below a named one: beyond it, another folder was meant."""


@dataclass
class Walk:
    """A bounded walk through the folders below one, into each once, however many links lead there.

    Attributes:
        start: folder where it begins.
        unreadable: folders that may not be read.
    """

    start: Path
    unreadable: list[Path] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        if (place := _place(self.start)) is not None:
            self._seen.add(place)

    def inside(self, folder: Path) -> list[Path]:
        """List the folders in a folder that were not met yet, by name.

        Raises:
            UsageError: more than ``MOST_FOLDERS`` were met.
        """
        try:
            with os.scandir(folder) as entries:  # which knows of most files that they are no folders
                inner_folders = sorted(Path(entry) for entry in entries if _is_folder(entry))
            places = {inner: _place(inner) for inner in inner_folders}
        except OSError:
            self.unreadable.append(folder)
            return []
        own = {place for inner, place in places.items() if place is not None and not inner.is_symlink()}
        found = []
        for inner, place in places.items():
            if place is None or place in self._seen or (inner.is_symlink() and place in own):
                continue
            self._seen.add(place)
            if os.access(inner, os.R_OK | os.X_OK):
                found.append(inner)
            else:
                self.unreadable.append(inner)
        if len(self._seen) > MOST_FOLDERS:
            raise UsageError(
                f"more than {MOST_FOLDERS:,} folders below {str(self.start)!r}: name a folder nearer to the runs"
            )
        return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _place(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, the same by every path to it; None if there is no folder."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def find_runs(folder: Path) -> Iterator[Path]:
    """Find complete run folders at or below a folder, by name.

    Raises:
        UsageError: too many folders below it.
    """
    walk, waiting = Walk(folder), [folder]
    while waiting:
        here = waiting.pop()
        if is_file(here / RECORD):
            yield here
        elif here.is_dir():
            own = _OWN_FOLDERS if is_file(here / "recipe.yaml") else ()  # of an unfinished run
            waiting += reversed([one for one in walk.inside(here) if one.name not in own])
