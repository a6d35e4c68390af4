"""The command line: parse, one call, render, exit status. Only this package prints.

Results go to stdout; progress, announcements and errors to stderr. Exit codes: 0 done, 1 a run failed,
2 the user's mistake (one line, nothing written), 130 and 143 stopped by Ctrl-C or SIGTERM with the state saved,
141 whoever read the output has left.
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

from kdalign.cli import (  # each brings its commands
    ablate,
    card,
    compare,
    demo,
    distill,
    evaluate,
    inspect,
    map_layers,
    profile,
    recipe,
)
from kdalign.cli.application import PipeClosed, app
from kdalign.errors import LONGEST_LINE, Interrupted, KdalignError, UsageError, cause_of, printable, shorten
from kdalign.report.screen import encoding_note, replace_unencodable

__all__ = [
    "ablate",
    "app",
    "card",
    "compare",
    "demo",
    "distill",
    "evaluate",
    "inspect",
    "main",
    "map_layers",
    "profile",
    "recipe",
]

TRACEBACK = "KDALIGN_TRACEBACK"
"""The environment's variable that shows the trace of an error which kdalign did not expect."""


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    _check_streams()
    _end_with_a_line()
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signal)
    except KdalignError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except TyperException as error:
        line = _usage_line(error)
        _leave(2) if not line else _fail(line, 2)  # without a word the help says it all
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except (PipeClosed, BrokenPipeError):
        _leave(141)
    except Exception as error:  # the last boundary: no trace reaches a user who did not ask for it
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            traceback.print_exc()
        _fail(*_unexpected(error))
    _leave(status if isinstance(status, int) else 0)


def _check_streams() -> None:
    """Let no character that an encoding lacks stop a command, and refuse to work for a result that has no place.

    A descriptor that is closed is opened on nothing: else the next file that is opened would take its number, and
    whatever a library prints would go into that file.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    replace_unencodable(sys.stderr)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        _fail("stdout is closed, and results go there: send it to a file or to /dev/null", 2)
    replace_unencodable(sys.stdout)


def _end_with_a_line() -> None:
    """Let SIGTERM end a command with a line and status 143 outside of training, too, where it saves first."""
    first = os.environ.get("RANK", "0") in ("", "0")  # torchrun ends all ranks where one has failed
    here = threading.current_thread() is threading.main_thread()
    if first and here and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave by the way that locks and half-written files are cleared; no library takes it for an error of its own."""
    signal.signal(number, signal.SIG_DFL)  # a second one ends at once
    _say("kdalign: stopped by SIGTERM")
    raise SystemExit(128 + number)


def _usage_line(error: TyperException) -> str:
    return " ".join(error.format_message().split())


def _unexpected(error: Exception) -> tuple[str, int]:
    """The line and the status of an exception that is none of kdalign's own."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        said = cause_of(error) if str(error) else "no more is to be had"
        return f"out of memory: {said}; smaller batches and shorter texts need less", 1
    if isinstance(error, OSError):
        return _system_line(error), 2 if error.errno == errno.ENAMETOOLONG else 1
    if "No space left on device" in str(error):  # libraries in Rust and C++ have errors of their own
        return f"no space left on device: {cause_of(error)}", 1
    if isinstance(error, ImportError):
        return f"cannot import {error.name or 'a module'}: {cause_of(error)}; is the installation whole?", 1
    if isinstance(error, RecursionError):
        return f"something is nested too deeply{_place(error)}", 1
    text = cause_of(error)
    name = type(error).__name__
    said = text if text.startswith(name) else f"{name}: {text}"
    mend = f"a fault of kdalign, not yours: please report it with the trace that {TRACEBACK}=1 shows"
    return f"unexpected {shorten(said, 200)}{_place(error)}; {mend}", 1


def _system_line(error: OSError) -> str:
    """What the system says, and of which file where it says that."""
    said = error.strerror or cause_of(error)
    files = [shorten(str(name), 200) for name in (error.filename, error.filename2) if name is not None]
    return f"{said}: {' -> '.join(files)}" if files else said


def _place(error: BaseException) -> str:
    """The innermost line of kdalign's own code that an exception went through."""
    package = Path(__file__).parent.parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    inner = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    if not inner:
        return ""
    return f" at {Path(inner[-1].filename).relative_to(package.parent)}:{inner[-1].lineno}"


def _fail(line: str, status: int) -> NoReturn:
    begin = "kdalign: error: " if status < 128 else "kdalign: "
    _say(begin + shorten(printable(line), LONGEST_LINE - len(begin)))
    _leave(status)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr is full or gone: the status says what is left to say
        print(line, file=sys.stderr)


def _leave(status: int) -> NoReturn:
    """Exit; what a stream does not take is not tried once more, with a trace, while Python ends."""
    if signal.getsignal(signal.SIGTERM) is _terminated and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whoever called ``main`` within Python has it back
    note = encoding_note()
    if note is not None:
        _say(f"kdalign: note: {note}")
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
