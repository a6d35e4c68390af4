"""Where a command works in a trial, and the disk below it: a small file system of its own where one may be mounted."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.children import Child, Ended, start
from tests.faults.commands import Command
from tests.faults.servers import free_port

DISK_BYTES = 24 * 2**20


@dataclass
class Disk:
    """A folder on a file system of its own, which can be filled and made read-only while a command works.

    Attributes:
        folder: where it is mounted.
        mounted: False where this process may not mount.
    """

    folder: Path
    mounted: bool = False

    def mount(self) -> None:
        """Mount it, if that is permitted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "kdalign-faults", str(self.folder)]
        self.mounted = sys.platform == "linux" and subprocess.run(words, capture_output=True).returncode == 0

    def unmount(self) -> None:
        """Unmount it, with all that is in it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True, capture_output=True)

    def clear(self) -> None:
        """Remove all that is in it."""
        for inner in self.folder.iterdir():
            shutil.rmtree(inner) if inner.is_dir() else inner.unlink()

    def fill(self, room: int) -> Callable[[], None]:
        """Leave so many bytes free; returns what makes room again."""
        ballast = self.folder / "ballast"
        free = shutil.disk_usage(self.folder).free
        with suppress(OSError), ballast.open("wb", buffering=0) as file:  # the command writes, too
            file.write(bytes(max(0, free - room)))
        return lambda: ballast.unlink(missing_ok=True)

    def set_read_only(self) -> Callable[[], None]:
        """Make it read-only, which waits for files that are being written; returns what makes it writable again."""

        def remount(how: str) -> None:
            words = ["mount", "-o", f"remount,{how}", str(self.folder)]
            while subprocess.run(words, capture_output=True).returncode:
                pass

        remount("ro")
        return lambda: remount("rw")


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk in a folder, while the context lasts."""
    disk = Disk(folder)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


@dataclass
class Launch:
    """A command's processes, one for each rank.

    Attributes:
        children: the processes.
    """

    children: list[Child]

    @property
    def runs(self) -> bool:
        """True until all have ended."""
        return any(child.runs for child in self.children)

    @property
    def worked(self) -> float:
        """Seconds of a core that the first has taken: on a busy machine moments of the same work, too."""
        return self.children[0].worked()

    def wait(self) -> Ended:
        """Wait for all; where one of several ends with an error, the others get SIGTERM, as from torchrun."""
        ended = [child.wait() for child in self.children] if len(self.children) == 1 else self._wait_for_ranks()
        worst = next((one for one in ended if one.status), ended[0])
        texts = "\n".join(one.err for one in ended)
        return Ended(worst.status, worst.out, texts, max(one.seconds for one in ended))

    def _wait_for_ranks(self) -> list[Ended]:
        left = list(self.children)
        while left:
            ended = [child for child in left if not child.runs]
            left = [child for child in left if child not in ended]
            if any(child.wait().status for child in ended):
                for child in left:
                    child.send(15)
                break
        return [child.wait() for child in self.children]


@dataclass(frozen=True)
class Usual:
    """A command undisturbed.

    Attributes:
        seconds: seconds of a core that it takes.
        first: the same until it has written its first file.
        writes: times at which it opens, renames or removes a file or makes a folder.
    """

    seconds: float = 0.0
    first: float = 0.0
    writes: int = 0


@dataclass
class Place:
    """A working folder of one trial.

    Attributes:
        command: what works there.
        folder: the folder.
        chance: decides moments and places.
        usual: the command undisturbed.
        disk: the disk that the folder is on.
    """

    command: Command
    folder: Path
    chance: random.Random
    usual: "Usual"
    disk: Disk
    _launches: list[Launch] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """What the command writes into."""
        return self.folder / "out"

    def start(self, words: tuple[str, ...] | None = None, before: Callable[[], None] | None = None) -> Launch:
        """Start the command, or other words of ``kdalign``, on all its ranks."""
        ranks, port = self.command.ranks, free_port()
        children = []
        for rank in range(ranks):
            environment = {} if ranks == 1 else _torchrun(rank, ranks, port)
            children.append(start(list(words or self.command.words), self.folder, environment, before))
        self._launches.append(Launch(children))
        return self._launches[-1]

    def moment(self, writing: bool = False) -> float:
        """A random moment of the command's work, in seconds of a core.

        Args:
            writing: only after its first file; else in one of three cases at any time.
        """
        early = not writing and self.chance.random() < 1 / 3
        return self.chance.uniform(0.0 if early else self.usual.first, self.usual.seconds)

    def tree(self) -> dict[str, bytes]:
        """All files that the command has written, but its lock."""
        found = {}
        for file in sorted(self.folder.rglob("*")):
            if not file.is_relative_to(self.folder / "cache") and not file.name.endswith(".lock"):
                with suppress(FileNotFoundError, IsADirectoryError):  # renamed by a command that still runs
                    found[str(file.relative_to(self.folder))] = file.read_bytes()
        return found

    def end(self) -> None:
        """End whatever is left."""
        for launch in self._launches:
            for child in launch.children:
                child.end_all()


def _torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives to a rank."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
    }


def is_root() -> bool:
    """True if modes of files forbid this process nothing."""
    return os.geteuid() == 0
