"""One folder, one process: a lock that ends with the process that holds it, however that ends."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdalign.errors import Unwritten, UsageError

LOCK = ".lock"
"""The lock's file in a folder; it is removed with the lock, and what a killed process leaves locks nothing."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def exclusive(folder: Path, name: str = LOCK) -> Iterator[str]:
    """Work in a folder while no other process does; a folder that is not there is made, and goes again if it is empty.

    Args:
        folder: what is locked.
        name: of the lock's file in it: several names are several locks.

    Yields:
        What the user should know where the file system has no locks; else nothing.

    Raises:
        UsageError: another process works there.
        Unwritten: the folder or the lock's file cannot be made.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    file = folder / name
    lock = FileLock(file, timeout=0)
    note = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holder = _holder(file)
        lock.acquire()
        file.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
    except Timeout:
        raise UsageError(
            f"another process works in {str(folder)!r}{holder}: wait for it, or give another --out"
        ) from None
    except (OSError, NotImplementedError) as error:
        lock.release()
        if not isinstance(error, NotImplementedError) and error.errno not in _NO_LOCKS:
            _clear(file, made)
            raise Unwritten(f"cannot lock {str(folder)!r}: {error.strerror or error}") from None
        note = f"the file system of {str(folder)!r} has no locks: see to it that no other process works there"
    try:
        yield note
    finally:
        _clear(file, made)  # while it is held: whoever waits for it looks whether the file is still there
        lock.release()


def _holder(file: Path) -> str:
    """Who wrote the lock's file, as a clause; nothing where that cannot be read."""
    with suppress(OSError, ValueError):
        process, host = file.read_text(encoding="utf-8").split()
        return f" (process {int(process)} on {host[:100]})"
    return ""


def _clear(file: Path, made: list[Path]) -> None:
    """Remove the lock's file, and the folders that were made for it where nothing else came into them."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
