"""One fault of one command: what it left, what was said, and whether the result is that of an undisturbed run."""

import random
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults import children
from tests.faults.children import Ended
from tests.faults.commands import Command, commands, read_facts, save_inputs
from tests.faults.kinds import Kind, Struck, count_writes, damage, status_names
from tests.faults.places import Disk, Place, Usual, small_disk
from tests.faults.servers import Server, free_port

ATTEMPTS = 5
"""Commands that may be needed until the work is done: one may wait for processes of the command before."""


@dataclass(frozen=True)
class Reference:
    """An undisturbed command.

    Attributes:
        facts: its result.
        usual: its time and its writes.
        files: names of the files that it left.
    """

    facts: Mapping[str, Any]
    usual: Usual
    files: frozenset[str]


@dataclass
class Trial:
    """What became of a command after a fault.

    Attributes:
        command: the command's name.
        kind: the fault's name.
        seed: number of the trial, from which it can be repeated.
        said: what happened, in a phrase.
        outcome: how the work was done in the end.
        faults: what is wrong; empty if nothing is.
        lines: the lines on which the commands ended.
    """

    command: str
    kind: str
    seed: str
    said: str = ""
    outcome: str = ""
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """The commands with their undisturbed results, in a folder with a disk.

    Attributes:
        root: the folder.
        disk: where trials work.
        server: the server of served teachers.
    """

    root: Path
    disk: Disk
    server: Server
    _references: dict[str, Reference] = field(default_factory=dict)

    @property
    def commands(self) -> dict[str, Command]:
        """The commands by name."""
        found = commands(self.root / "inputs")
        return {name: command.at(self.server.url) for name, command in found.items()}

    def reference(self, name: str) -> Reference:
        """The undisturbed result of a command, computed once."""
        if name not in self._references:
            place, counts = self._place(self.commands[name], random.Random(0), Usual()), self.root / "writes"
            counts.write_bytes(b"")
            launch, first, seconds = place.start(before=partial(count_writes, place.folder, counts)), 0.0, 0.0
            while launch.runs:
                seconds = max(seconds, launch.worked)
                first = seconds if not first and place.tree() else first
            ended = launch.wait()
            if ended.status:
                raise RuntimeError(f"{name} fails without a fault: {ended.err}")
            facts = children.call(read_facts, name, str(self.root / "inputs"), str(place.folder))
            usual = Usual(seconds, first, counts.stat().st_size)
            self._references[name] = Reference(facts, usual, _names(place))
        return self._references[name]

    def try_once(self, name: str, kind: Kind, seed: str) -> Trial:
        """Let a fault strike a command, do what it says, and compare the result."""
        reference, trial = self.reference(name), Trial(name, kind.name, seed)
        place = self._place(self.commands[name], random.Random(f"{name} {kind.name} {seed}"), reference.usual)
        try:
            struck = kind.strike(place, self.server)
            trial.said = struck.said
            _check_ends(trial, struck)
            if struck.damaged is None:
                struck.undo()
            self._recover(place, trial, struck)
            self._compare(place, trial, reference, struck.damaged)
        except TimeoutError as error:
            trial.faults.append(str(error))
        finally:
            place.end()
            self.server.start()
        return trial

    def try_files(self, name: str, kind: Kind, seed: str, changes: Sequence[str]) -> Iterator[Trial]:
        """Stop a command by a fault, then damage each file that it has left, one by one, in each of some ways."""
        reference = self.reference(name)
        chance = random.Random(f"{name} {kind.name} {seed}")
        place, left = self._place(self.commands[name], chance, reference.usual), self.root / "left"
        ends = kind.strike(place, self.server).ends
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(place.folder, left)
        for file in [file for file, content in place.tree().items() if content]:
            for how in changes:
                shutil.rmtree(place.folder)
                shutil.copytree(left, place.folder)
                trial = Trial(name, f"{file}: {how}", seed)
                undo = damage(place.folder / file, how, chance)
                self._recover(place, trial, Struck(ends, (), undo=undo, damaged=place.folder / file))
                self._compare(place, trial, reference, place.folder / file)
                yield trial

    def _place(self, command: Command, chance: random.Random, usual: Usual) -> Place:
        self.disk.clear()
        folder = self.disk.folder / "work"
        folder.mkdir()
        if command.served:
            self.server.start()
        return Place(command, folder, chance, usual, self.disk)

    def _recover(self, place: Place, trial: Trial, struck: Struck) -> None:
        """Give the same command, or the one that the line before names, until the work is done."""
        words = _resuming(struck.ends[-1], place.command) or place.command.words
        for _attempt in range(ATTEMPTS):
            before = place.tree() if struck.damaged is not None else {}
            ended = place.start(words).wait()
            trial.lines.append(ended.last_line)
            if ended.status == 0:
                how = "--resume" if "--resume" in words else "the same command"
                undone = " (with the file as it was)" if trial.outcome == "refused" else ""
                trial.outcome = f"{how}{undone}"
                return
            _check_line(trial, ended)
            if struck.damaged is not None and _refuses(ended, struck.damaged, place):
                if place.tree() != before:
                    trial.faults.append(f"a refusal changed files: {ended.last_line}")
                struck.undo()
                trial.outcome = "refused"
            else:
                words = _resuming(ended, place.command) or words
        trial.faults.append(f"not done after {ATTEMPTS} commands: {trial.lines[-1]}")

    def _compare(self, place: Place, trial: Trial, reference: Reference, damaged: Path | None) -> None:
        if trial.faults:
            return
        try:
            facts = children.call(read_facts, trial.command, str(self.root / "inputs"), str(place.folder))
        except RuntimeError as error:
            trial.faults.append(f"the result cannot be read: {str(error).splitlines()[-1]}")
            return
        wrong = [name for name in {**reference.facts, **facts} if facts.get(name) != reference.facts.get(name)]
        if damaged is not None and facts.get("changed") and _named_in(facts["changed"], damaged, wrong):
            trial.outcome += " (whoever reads that run is told)"
            return
        trial.faults += [f"another result: {', '.join(sorted(wrong)[:4])}"] if wrong else []
        left = sorted(_names(place) - reference.files)
        trial.faults += [f"files left: {', '.join(left[:4])}"] if left else []


@contextmanager
def bench(root: Path) -> Iterator[Bench]:
    """The commands with models and data, in a folder, while the context lasts."""
    children.load()
    (root / "inputs").mkdir(parents=True)
    children.call(save_inputs, str(root / "inputs"))
    server = Server(free_port())
    with small_disk(root / "disk") as disk:
        try:
            yield Bench(root, disk, server)
        finally:
            server.kill()


def _names(place: Place) -> frozenset[str]:
    """Names of the files of a result; shards are named by their content."""
    names = (name for name in place.tree() if not Path(name).name.startswith("shard-"))
    return frozenset(name for name in names if "/checkpoints/" not in name or name.endswith(".tmp"))


def _check_ends(trial: Trial, struck: Struck) -> None:
    for ended in struck.ends:
        trial.lines.append(ended.last_line)
        if ended.status not in struck.accepted:
            trial.faults.append(f"exit code {status_names(ended.status)}: {ended.last_line}")
        _check_line(trial, ended)


def _check_line(trial: Trial, ended: Ended) -> None:
    """A failure is one line at the end, from kdalign."""
    if "Traceback" in ended.err or "a fault of kdalign" in ended.err:
        shown = [line for line in ended.err.splitlines() if "Error" in line or "fault of" in line]
        trial.faults.append(f"traceback: {(shown or [ended.last_line])[-1]}")
    elif ended.status > 0 and not re.search(r"^kdalign: ", ended.err, re.MULTILINE):
        trial.faults.append(f"no line for exit code {ended.status}: {ended.last_line!r}")


def _named_in(line: str, damaged: Path, wrong: list[str]) -> bool:
    """True if a line names a damaged file, and nothing but that file differs."""
    return damaged.name in line and all(name == "changed" or name.endswith(damaged.name) for name in wrong)


def _refuses(ended: Ended, file: Path, place: Place) -> bool:
    """True if a line names the damaged file, or the folder that cannot be read without it."""
    named = (file.name, file.parent.name if file.parent != place.out else file.name)
    return ended.status in (1, 2) and any(name in ended.last_line for name in named)


def _resuming(ended: Ended, command: Command) -> tuple[str, ...] | None:
    """The command that a line names as the one that resumes; not that of a run of several, which resumes with all."""
    told = re.search(rf"kdalign ({command.words[0]}\b[^;`]* --resume)", ended.last_line)
    if told:
        return tuple(shlex.split(told[1]))
    if command.resumes and "give --resume" in ended.last_line:
        return (*command.words, "--resume")
    return None
