"""Read files within limits, with errors that name them; write them completely or not at all."""

import codecs
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from kdalign.errors import Unwritten, UsageError, cause_of, shorten

LARGEST_TEXT = 256 * 2**20
"""Limit of bytes of a text file (records, recipes, plans)."""


LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Limits of bytes of a file's name and of its path on the usual file systems."""


DEEPEST = 64
"""Limit of levels of lists and mappings in JSON and YAML."""
_MOST_DIGITS = 40
"""Limit of digits of a whole number in JSON or YAML: no meaningful one has more, and Python refuses to print very long
ones."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and their encodings; a mark that begins with a shorter one comes before it."""


def read_bytes(file: Path, largest: int | None = LARGEST_TEXT) -> bytes:
    """Read the bytes of a file.

    Args:
        file: its path.
        largest: limit of bytes; None for data, which may be as large as memory holds.

    Raises:
        UsageError: nothing there, a folder, a pipe or device (reading one would block), unreadable, or too large.
    """
    try:
        size = check_regular(file)
        if largest is not None and size > largest:
            raise UsageError(f"{str(file)!r} has {size:,} bytes; at most {largest:,} are read")
        with file.open("rb") as opened:
            data = opened.read(size + 1)  # allocates a buffer of this size
            if len(data) > size:  # it grows, or the system does not know its size
                data += opened.read() if largest is None else opened.read(largest + 1 - len(data))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UsageError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or error}") from None
    if largest is not None and len(data) > largest:
        raise UsageError(f"{str(file)!r} has more than the {largest:,} bytes that are read")
    return data


def is_file(file: Path) -> bool:
    """Return whether a file is there; False if no file can have such a name, or the system refuses to say."""
    try:
        return file.is_file()
    except OSError:  # too long a name, or a folder of the kernel's
        return False


def check_name(name: str, what: str) -> None:
    """Refuse a path that no file system can hold.

    Args:
        name: a file, a folder or a hub id.
        what: flag or key of the name, for the error line.

    Raises:
        UsageError: it is empty, has a null byte, or a part of it is too long.
    """
    if not name.strip():
        raise UsageError(f"{what} is empty")
    if "\0" in name:
        raise UsageError(f"{what} {shorten(name, 80)!r} has a null byte, which no file name can have")
    written = name.encode("utf-8", "surrogatepass")
    longest = max(map(len, written.split(b"/")))
    if longest > LONGEST_NAME or len(written) > LONGEST_PATH:
        raise UsageError(
            f"{what} {shorten(name, 80)!r} is too long for a file's name: {longest:,} bytes "
            f"(accepted: {LONGEST_NAME}, and {LONGEST_PATH:,} with its folders)"
        )


def check_regular(file: Path) -> int:
    """Return the size of a regular file in bytes, and refuse anything else.

    Raises:
        UsageError: nothing there, a folder, or a pipe, socket or device.
    """
    try:
        found = file.stat()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{str(file)!r} is a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{str(file)!r} is not a regular file but a pipe, socket or device")
    return found.st_size


def decode(data: bytes, where: str) -> str:
    """Decode text as UTF-8, or as its byte order mark says, and drop the mark.

    Args:
        data: the bytes of a file, from its beginning.
        where: the file, for error lines.

    Raises:
        UsageError: another encoding; the line has the row.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        row = data[: len(mark) + error.start].count(b"\n") + 1
        raise UsageError(
            f"{where}, line {row}: not {encoding.upper()} (byte {error.object[error.start]:#04x}: {error.reason}); "
            "save it as UTF-8"
        ) from None


def read_text(file: Path, largest: int = LARGEST_TEXT) -> str:
    """Read a text file without its byte order mark, with line ends as they are.

    Raises:
        UsageError: as ``read_bytes`` and ``decode``.
    """
    return decode(read_bytes(file, largest), repr(str(file)))


def parse_json(text: str, where: str, **options: Any) -> Any:
    """Parse strict JSON: NaN, infinities, numbers beyond floats and repeated keys are refused.

    Args:
        text: one value.
        where: the file, for error lines.
        options: further arguments of ``json.loads``.

    Raises:
        UsageError: it is not JSON, or nested too deeply.
    """
    strict = {
        "parse_constant": _no_number,
        "parse_float": _finite,
        "parse_int": _whole,
        "object_pairs_hook": unique_keys,
    }
    try:
        value = json.loads(text, **(strict | options))
    except RecursionError:
        raise UsageError(f"{where} is not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {cause_of(error)}") from None
    if not _shallow(value):
        raise UsageError(f"{where} is not JSON that can be read: nested too deeply")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, for ``object_pairs_hook``; ValueError for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {shorten(twice, 100)!r} is given twice")
    return found


def _shallow(value: Any) -> bool:
    level, depth = [value] if isinstance(value, dict | list) else [], 0
    while level and depth < DEEPEST:
        inner = (each for one in level for each in (one.values() if isinstance(one, dict) else one))
        level, depth = [each for each in inner if isinstance(each, dict | list)], depth + 1
    return not level


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is beyond what a float holds")
    return value


def check_digits(digits: str) -> str:
    """Refuse a whole number of very many digits, and return the others."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return digits


def _whole(digits: str) -> int:
    return int(check_digits(digits))


def read_json(file: Path, **options: Any) -> Any:
    """Read the value in a JSON file.

    Raises:
        UsageError: as ``read_text`` and ``parse_json``.
    """
    return parse_json(read_text(file), repr(str(file)), **options)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file or folder that could not be written, whichever library was writing it.

    Raises:
        Unwritten: the disk is full, a quota or a limit on files is reached, or writing is not permitted.
    """
    try:
        yield
    except Exception as error:  # Rust libraries and Arrow raise types of their own
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise Unwritten(f"cannot write {str(path)!r}: {refusal}") from error


def _refusal(error: Exception) -> str | None:
    """The operating system's message; None for other errors."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"(?:os error|errno) (\d+)", str(error), re.IGNORECASE)
    if number is not None:
        return os.strerror(int(number[1]))
    return cause_of(error) if isinstance(error, OSError) else None


def draft_of(path: Path) -> Path:
    """Return a free name next to a path, for a file that is being written; processes of two containers share ids."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def is_draft(path: Path) -> bool:
    """Return whether a file or folder was being written when its process was killed."""
    return re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}\.tmp|\.step-\d+\.tmp", path.name) is not None


def remove_drafts(folder: Path, names: str = "*") -> None:
    """Remove what killed processes were writing in a folder; the caller holds the lock under which they wrote.

    Args:
        folder: where to look, and not below.
        names: pattern of the names of the files that were being written.
    """
    for draft in filter(is_draft, folder.glob(f".{names}.tmp")):
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; it is renamed on success and removed on failure.

    Raises:
        Unwritten: as ``writing``.
    """
    temporary = draft_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            apply_umask(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):  # a file system became read-only; the first error counts
                temporary.unlink(missing_ok=True)


def apply_umask(file: Path) -> None:
    """Give a file that its owner alone may read the mode of a new one.

    Libraries that write into a temporary file and rename it, such as safetensors, leave that file's mode, 0600.
    """
    if stat.S_IMODE(file.stat().st_mode) == _OWNER_ALONE:
        probe = draft_of(file)
        probe.write_bytes(b"")
        try:
            file.chmod(stat.S_IMODE(probe.stat().st_mode))
        finally:
            probe.unlink()


_OWNER_ALONE = 0o600


def append_text(path: Path, text: str) -> None:
    """Append text to a file.

    Raises:
        Unwritten: as ``writing``; a part may be written.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


def line_of(tree: Mapping[str, Any]) -> str:
    """Return a JSON line with a checksum of its own, for files to which lines are appended."""
    return json.dumps({**tree, _CHECK: _checksum(tree)}) + "\n"


def read_line(line: bytes) -> Any:
    """Read a line of ``line_of``, without its checksum; lines of older versions have none.

    Raises:
        ValueError: it is not JSON, or was changed.
    """
    tree = json.loads(line)
    if isinstance(tree, dict) and _CHECK in tree and tree.pop(_CHECK) != _checksum(tree):
        raise ValueError("its checksum does not fit it")
    return tree


_CHECK = "check"


def _checksum(tree: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(tree, sort_keys=True).encode()):08x}"


def append_bounded(path: Path, text: str, most: int) -> None:
    """Append text to a file of at most ``most`` bytes: a full one is kept as ``NAME.1.END`` until the next is full.

    Raises:
        Unwritten: as ``writing``; a part may be written.
    """
    with writing(path):
        if path.is_file() and path.stat().st_size + len(text) > most:
            path.replace(older_of(path))
    append_text(path, text)


def older_of(path: Path) -> Path:
    """Return where ``append_bounded`` keeps a full file."""
    return path.with_name(f"{path.stem}.1{path.suffix}")


def write_text(path: Path, text: str) -> None:
    r"""Write a text file atomically; half a surrogate pair (of a file name that is not UTF-8) is written ``\udcff``."""
    with atomic_file(path) as temporary:
        # The same bytes, and hash, on every system.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_utf8(path: Path) -> bool:
    """Return whether all bytes of a path are UTF-8, as the names of weight files must be."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, without making it.

    Raises:
        UsageError: a file is in the way, a name is too long, or the nearest existing parent is not writable.
        OSError: the disk is full or broken.
    """
    try:
        check_name(str(folder), "folder")
        for parent in (folder, *folder.parents):
            if parent.is_dir():
                if not os.access(parent, os.W_OK | os.X_OK):
                    why = "read-only file system" if os.statvfs(parent).f_flag & os.ST_RDONLY else "permission denied"
                    raise UsageError(f"cannot write into {str(parent)!r}: {why}")
                with TemporaryFile(dir=parent):  # unnamed; os.access allows root everything, even /proc
                    return
            if parent.exists() or parent.is_symlink():
                raise UsageError(f"cannot make folder {str(folder)!r}: {str(parent)!r} is a file")
    except OSError as error:
        if error.errno in _NO_MISTAKES:
            raise
        raise UsageError(f"cannot write into {str(folder)!r}: {error.strerror or cause_of(error)}") from None


_NO_MISTAKES = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
"""Errors of the machine and not of the path."""


def check_file(file: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result goes there.

    Raises:
        UsageError: it is a folder or a link, or its folder cannot be made or written.
    """
    check_writable(file.parent)
    check_name(str(file), "--out")
    if file.is_dir():
        raise UsageError(f"--out {str(file)!r} is a folder; give a file")
    if file.is_symlink():  # writing would replace the link itself
        raise UsageError(f"--out {str(file)!r} is a link to {str(file.readlink())!r}; name the file itself")


def check_links(folder: Path) -> None:
    """Refuse an output folder that contains a link, pipe or device at any depth.

    Writing there would end up elsewhere, or block. The folder itself may be a link.

    Raises:
        UsageError: the line names the first one.
    """
    for where, folders, files in os.walk(folder):
        for path in sorted(Path(where, name) for name in (*folders, *files)):
            if path.is_symlink():
                raise UsageError(
                    f"{str(path)!r} is a link to {str(path.readlink())!r}; kdalign writes through no links in "
                    f"{str(folder)!r}: replace it by what it leads to, or give another --out"
                )
            if not (path.is_dir() or path.is_file()):
                raise UsageError(f"{str(path)!r} is a pipe, socket or device; give another --out")


def size_text(size: float) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
