"""The command line: parse, one call, render, exit status. Only this package prints.

Results go to stdout; progress, announcements and errors to stderr. Exit codes: 0 done, 1 a run failed,
2 the user's mistake (one line, nothing written), 130 and 143 stopped by Ctrl-C or SIGTERM with the state saved.
"""

import os
import sys
from typing import NoReturn

from typer.exceptions import TyperException

from kdalign.cli import ablate, card, compare, distill, evaluate, models  # each brings its commands
from kdalign.cli.shared import app
from kdalign.errors import LONGEST_LINE, Interrupted, KdalignError, UsageError, printable, shortened

__all__ = ["ablate", "app", "card", "compare", "distill", "evaluate", "main", "models"]


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    try:
        status = app(standalone_mode=False)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signal)
    except KdalignError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except TyperException as error:
        line = _usage_line(error)
        sys.exit(2) if not line else _fail(line, 2)  # without a word the help says it all
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        _fail(f"{error.strerror}: {error.filename}", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)


def _usage_line(error: TyperException) -> str:
    return " ".join(error.format_message().split())


def _fail(line: str, status: int) -> NoReturn:
    begin = "kdalign: error: " if status < 128 else "kdalign: "
    print(begin + shortened(printable(line), LONGEST_LINE - len(begin)), file=sys.stderr)
    sys.exit(status)
