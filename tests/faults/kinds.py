"""The kinds of faults: each starts the command, strikes at a random moment, and says how that ended."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.children import Ended
from tests.faults.commands import Command
from tests.faults.places import Launch, Place, is_root
from tests.faults.servers import Server

GONE = (-signal.SIGKILL,)
FAILED = (0, 1, 2)
AFTER, EMPTY = "after its end", "no file yet"
MISSED = (AFTER, EMPTY)
"""Said of a fault that had nothing to strike."""


def _killed(place: Place) -> tuple[int, ...]:
    """Exit codes of a command of which one process was killed: torchrun ends the other ranks."""
    return (*GONE, 1, 128 + signal.SIGTERM, -signal.SIGTERM) if place.command.ranks > 1 else GONE


@dataclass(frozen=True)
class Struck:
    """A fault that has struck.

    Attributes:
        ends: how the command ended, or both commands.
        accepted: exit codes that it may have.
        said: what happened, in a phrase.
        undo: takes the fault away, where that is not the command's to do.
        damaged: the file that was damaged, if one was.
    """

    ends: tuple[Ended, ...]
    accepted: tuple[int, ...]
    said: str = ""
    undo: Callable[[], None] = field(default=lambda: None)
    damaged: Path | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: its name in tables.
        strike: lets the command of a place run into it.
        fits: True for a command that it can meet, on a disk that can be mounted or not.
    """

    name: str
    strike: Callable[[Place, Server], Struck]
    fits: Callable[[Command, bool], bool] = lambda command, mounted: True


def _at_a_moment(place: Place, launch: Launch, writing: bool = False) -> str:
    """Wait for a random moment of the command's work, or its end."""
    moment = place.moment(writing)
    while launch.runs and launch.worked < moment:
        time.sleep(0.001)
    return f"after {moment:.2f} s of work" if launch.runs else AFTER


def _stop(number: int, accepted: tuple[int, ...]) -> Callable[[Place, Server], Struck]:
    def strike(place: Place, _: Server) -> Struck:
        launch = place.start()
        said = _at_a_moment(place, launch)
        for child in launch.children:
            child.send(number)
        return Struck((launch.wait(),), accepted, said)

    return strike


_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_WRITING = os.O_WRONLY | os.O_RDWR


def _at_each_write(folder: Path, then: Callable[[], None]) -> None:
    """Call a function before this process opens, renames or removes a file of a folder, or makes a folder in it."""
    root, here = str(folder), os.getpid()

    def look(event: str, arguments: tuple[object, ...]) -> None:
        writes = event in _WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING)
        if writes and os.getpid() == here and os.path.abspath(str(arguments[0])).startswith(root):
            then()

    sys.addaudithook(look)


def count_writes(folder: Path, counts: Path) -> None:
    """Let this process append a byte to a file at each of its writes."""
    file = os.open(counts, os.O_WRONLY | os.O_APPEND)
    _at_each_write(folder, lambda: os.write(file, b"."))


def _kill_at_a_write(place: Place, _: Server) -> Struck:
    """Let the command be killed just before one of its writes."""
    number = place.chance.randint(1, max(1, place.usual.writes))
    left = iter(range(number, 0, -1))

    def before() -> None:
        _at_each_write(place.folder, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(left) == 1 else None)

    ended = place.start(before=before).wait()
    return Struck((ended,), (0, *_killed(place)), f"before write {number} of {place.usual.writes}")


def _kill_one(place: Place, _: Server) -> Struck:
    """Kill one of several ranks, or one of the processes that the command has started."""
    launch = place.start()
    said = _at_a_moment(place, launch)
    if len(launch.children) > 1:
        place.chance.choice(launch.children).send(signal.SIGKILL)
    else:
        started = launch.children[0].started()
        with suppress(psutil.NoSuchProcess):
            if started:
                place.chance.choice(started).kill()
    return Struck((launch.wait(),), (*FAILED, *_killed(place)), said)


def _fill_disk(place: Place, _: Server) -> Struck:
    launch = place.start()
    said = _at_a_moment(place, launch)
    room = place.chance.choice((0, place.chance.randrange(4_096), place.chance.randrange(200_000)))
    undo = place.disk.fill(room)
    return Struck((launch.wait(),), FAILED, f"{said}, {room:,} bytes left", undo)


def _limit_files(place: Place, _: Server) -> Struck:
    """Limit the size of files of the command and of all that it has started."""
    launch = place.start()
    said = _at_a_moment(place, launch)
    largest = place.chance.choice((0, place.chance.randrange(4_096), place.chance.randrange(100_000)))
    for child in launch.children:
        for process in (child.process, *(process.pid for process in child.started())):
            with suppress(ProcessLookupError, PermissionError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return Struck((launch.wait(),), FAILED, f"{said}, files of at most {largest:,} bytes")


def _set_read_only(place: Place, _: Server) -> Struck:
    launch = place.start()
    said = _at_a_moment(place, launch)
    if place.disk.mounted:
        undo = place.disk.set_read_only()
    else:
        folders = [place.folder, *(inner for inner in place.folder.rglob("*") if inner.is_dir())]
        undo = _restrict(folders)
    return Struck((launch.wait(),), FAILED, said, undo)


def _restrict(folders: list[Path]) -> Callable[[], None]:
    for folder in folders:
        folder.chmod(0o555)

    def undo() -> None:
        for folder in folders:
            if folder.exists():
                folder.chmod(0o755)

    return undo


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit flipped": lambda content, chance: _flipped(content, chance),
    "cut off": lambda content, chance: content[: chance.randrange(len(content))],
    "its last byte lost": lambda content, chance: content[:-1],
    "zeros in a block": lambda content, chance: _zeroed(content, chance),
}
"""Ways in which a file is damaged."""


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zeroed(content: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(content))
    return content[:begin] + bytes(len(content[begin : begin + 512])) + content[begin + 512 :]


def damage(file: Path, how: str, chance: random.Random) -> Callable[[], None]:
    """Damage a file; returns what puts it back as it was."""
    content = file.read_bytes()
    changed = CHANGES[how](content, chance)
    file.write_bytes(changed)

    def undo() -> None:
        if file.is_file() and file.read_bytes() == changed:
            file.write_bytes(content)

    return undo


def _damage_file(place: Place, _: Server) -> Struck:
    """Kill the command, then damage one of the files that it has written."""
    launch = place.start()
    said = _at_a_moment(place, launch, writing=True)
    for child in launch.children:
        child.send(signal.SIGKILL)
    ended = launch.wait()
    files = [place.folder / name for name, content in place.tree().items() if content]
    if not files:
        return Struck((ended,), (0, *GONE), f"{said}, {EMPTY}")
    file, how = place.chance.choice(files), place.chance.choice(list(CHANGES))
    undo = damage(file, how, place.chance)
    return Struck((ended,), (0, *GONE), f"{said}, {file.relative_to(place.folder)}: {how}", undo, file)


def _kill_server(place: Place, server: Server) -> Struck:
    launch = place.start(before=shorten_pauses)
    said = _at_a_moment(place, launch)
    server.kill()
    ended = launch.wait()
    server.start()
    return Struck((ended,), FAILED, said)


def shorten_pauses() -> None:
    """Let the client of a server try again at once: the pauses are the library's."""
    import openai._base_client as client

    client.INITIAL_RETRY_DELAY, client.MAX_RETRY_DELAY = 0.01, 0.02


def _start_twice(place: Place, _: Server) -> Struck:
    """Start the command a second time, in the same folder, while the first works."""
    launch = place.start()
    said = _at_a_moment(place, launch)
    second = place.start()
    return Struck((launch.wait(), second.wait()), (0, 2), said)


HOURS = 3600.0


def _jump_clock(place: Place, _: Server) -> Struck:
    """Let the clock jump by hours, back and forth, whenever it is read."""
    seed = place.chance.random()

    def jump() -> None:
        jumps, real, real_ns = random.Random(seed), time.time, time.time_ns
        time.time = lambda: real() + jumps.uniform(-9 * HOURS, 9 * HOURS)
        time.time_ns = lambda: real_ns() + int(jumps.uniform(-9 * HOURS, 9 * HOURS) * 1e9)

    launch = place.start(before=jump)
    return Struck((launch.wait(),), (0,), "at every reading")


def _has_processes(command: Command, _: bool) -> bool:
    return command.ranks > 1 or command.name == "ablate"


KINDS = (
    Kind("SIGKILL", _stop(signal.SIGKILL, (0, *GONE))),
    Kind("SIGKILL at a write", _kill_at_a_write),
    # Before its first line Python itself ends by the signal.
    Kind("SIGTERM", _stop(signal.SIGTERM, (0, 128 + signal.SIGTERM, -signal.SIGTERM))),
    Kind("SIGINT", _stop(signal.SIGINT, (0, 128 + signal.SIGINT))),
    Kind("process killed", _kill_one, _has_processes),
    Kind("disk full", _fill_disk, lambda command, mounted: mounted),
    Kind("limit on files", _limit_files),
    Kind("read-only", _set_read_only, lambda command, mounted: mounted or not is_root()),
    Kind("file damaged", _damage_file),
    Kind("server gone", _kill_server, lambda command, mounted: command.served),
    Kind("two processes", _start_twice, lambda command, mounted: command.ranks == 1),
    Kind("clock jumps", _jump_clock),
)


def kinds_of(command: Command, mounted: bool) -> list[Kind]:
    """The kinds of faults that a command can meet."""
    return [kind for kind in KINDS if kind.fits(command, mounted)]


def status_names(status: int) -> str:
    """An exit code for people."""
    return signal.Signals(-status).name if status < 0 else str(status)
