"""Lock a folder for one process; the lock ends with the process, however that ends."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kdalign.errors import Unwritten, UsageError
from kdalign.files import remove_drafts

LOCK = ".lock"
"""The lock's file in a folder; it is removed with the lock, and one left by a killed process locks nothing."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks."""


@contextmanager
def exclusive(folder: Path, name: str = LOCK) -> Iterator[str]:
    """Hold an exclusive lock on a folder; a missing folder is made, and removed again if it stays empty.

    What a killed process was writing in the folder is removed.

    Args:
        folder: folder to lock.
        name: the lock's file in it; several names are several locks, none of which is of the whole folder.

    Yields:
        A warning for the user if the file system has no locks; else empty.

    Raises:
        UsageError: another process holds the lock.
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
        note = f"the file system of {str(folder)!r} has no locks: make sure that no other process works there"
    if name == LOCK and not note:
        remove_drafts(folder)
    try:
        yield note
    finally:
        _clear(file, made)  # while it is held: a waiting process checks whether the file still exists
        lock.release()


def _holder(file: Path) -> str:
    """The process that wrote the lock's file, as a clause; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        process, host = file.read_text(encoding="utf-8").split()
        return f" (process {int(process)} on {host[:100]})"
    return ""


def _clear(file: Path, made: list[Path]) -> None:
    """Remove the lock's file, and the folders that were made for it if they are empty."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()
