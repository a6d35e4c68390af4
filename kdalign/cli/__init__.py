"""The command line: parse, call one function, render, exit. Only this package prints.

Results go to stdout; progress, announcements and errors to stderr. Exit codes: 0 done, 1 a run failed,
2 a mistake on the command line (one line, nothing written), 130 and 143 stopped by Ctrl-C or SIGTERM with the state
saved, 141 the reader of the output has closed it.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

from typer.exceptions import TyperException

from kdalign.cli import (  # each registers its command
    ablate,
    cache,
    card,
    compare,
    demo,
    distill,
    evaluate,
    generate,
    inspect,
    map_layers,
    profile,
    recipe,
)
from kdalign.cli.application import PipeClosed, app
from kdalign.environment import set_thread_defaults
from kdalign.errors import LONGEST_LINE, Interrupted, KdalignError, UsageError, cause_of, lost_rank, printable, shorten
from kdalign.report.screen import encoding_note, replace_unencodable

__all__ = [
    "ablate",
    "app",
    "cache",
    "card",
    "compare",
    "demo",
    "distill",
    "evaluate",
    "generate",
    "inspect",
    "main",
    "map_layers",
    "profile",
    "recipe",
]

TRACEBACK = "KDALIGN_TRACEBACK"
"""Environment variable that shows the traceback of unexpected errors."""


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    _check_streams()
    _handle_sigterm()
    set_thread_defaults()
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signal)
    except KdalignError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except TyperException as error:
        line = _usage_line(error)
        _exit(2) if not line else _fail(line, 2)  # without arguments the help is printed
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except (PipeClosed, BrokenPipeError):
        _exit(141)
    except Exception as error:  # the last boundary: a traceback is shown only on request
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            traceback.print_exc()
        _fail(*_describe_error(error))
    _exit(status if isinstance(status, int) else 0)


def _check_streams() -> None:
    """Replace characters that the encoding lacks, and refuse a closed stdout.

    A closed descriptor is opened on the null device: otherwise the next opened file would take its number, and the
    output of libraries would go into that file.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    replace_unencodable(sys.stderr)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        _fail("stdout is closed: send results to a file or to /dev/null", 2)
    replace_unencodable(sys.stdout)


def _handle_sigterm() -> None:
    """End a command on SIGTERM with a line and status 143; training handles the signal itself and saves first."""
    first = os.environ.get("RANK", "0") in ("", "0")  # torchrun ends all ranks if one has failed
    here = threading.current_thread() is threading.main_thread()
    if first and here and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(number: int, _frame: FrameType | None) -> NoReturn:
    """Exit through SystemExit: locks and temporary files are removed, and no library catches it as an error."""
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    _print_error("kdalign: stopped by SIGTERM")
    raise SystemExit(128 + number)


def _usage_line(error: TyperException) -> str:
    return " ".join(error.format_message().split())


def _describe_error(error: Exception) -> tuple[str, int]:
    """Describe an exception that is not kdalign's own.

    Returns:
        The error line and the exit status.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        cause = cause_of(error) if str(error) else "no more is available"
        return f"out of memory: {cause}; smaller batches and shorter texts need less", 1
    if isinstance(error, OSError):
        return _describe_os_error(error), 2 if error.errno == errno.ENAMETOOLONG else 1
    if "No space left on device" in str(error):  # libraries in Rust and C++ have errors of their own
        return f"no space left on device: {cause_of(error)}", 1
    if isinstance(error, ImportError):
        return f"cannot import {error.name or 'a module'}: {cause_of(error)}; is the installation complete?", 1
    lost = lost_rank(error)
    if lost is not None:
        return f"another process of this command has ended ({lost})", 1
    if isinstance(error, RecursionError):
        return f"something is nested too deeply{_location(error)}", 1
    text = cause_of(error)
    name = type(error).__name__
    line = text if text.startswith(name) else f"{name}: {text}"
    advice = f"a fault of kdalign, not yours: please report it with the traceback that {TRACEBACK}=1 shows"
    return f"unexpected {shorten(line, 200)}{_location(error)}; {advice}", 1


def _describe_os_error(error: OSError) -> str:
    """The system's message with the files that it names."""
    message = error.strerror or cause_of(error)
    files = [shorten(str(name), 200) for name in (error.filename, error.filename2) if name is not None]
    return f"{message}: {' -> '.join(files)}" if files else message


def _location(error: BaseException) -> str:
    """The innermost line of kdalign's own code in an exception's traceback."""
    package = Path(__file__).parent.parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    inner = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    if not inner:
        return ""
    return f" at {Path(inner[-1].filename).relative_to(package.parent)}:{inner[-1].lineno}"


def _fail(line: str, status: int) -> NoReturn:
    begin = "kdalign: error: " if status < 128 else "kdalign: "
    _print_error(begin + shorten(printable(line), LONGEST_LINE - len(begin)))
    _exit(status)


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr is full or closed; the status remains
        print(line, file=sys.stderr)


def _exit(status: int) -> NoReturn:
    """Flush and exit; a stream that fails is replaced, so that Python does not flush it again with a traceback."""
    if signal.getsignal(signal.SIGTERM) is _on_sigterm and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # restored for callers of ``main`` within Python
    note = encoding_note()
    if note is not None:
        _print_error(f"kdalign: note: {note}")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
