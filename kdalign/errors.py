"""What can go wrong, as one small tree.

::

    KdalignError            base of all; one clear line for the user
    ├── UsageError          the user's mistake: exit code 2, nothing written
    │   └── Changed         a run's files are not as it left them
    ├── RunError            a run or a gate failed: exit code 1
    └── Interrupted         stopped by a signal after saving a checkpoint
"""

import difflib
from collections.abc import Iterable


class KdalignError(Exception):
    """Base of every error that kdalign raises on purpose; its text is one line meant for the user."""


class UsageError(KdalignError):
    """The user asked for something that cannot be done; the line says what was given and what is accepted."""


class Changed(UsageError):
    """A file of a run is missing or another than when the run ended."""


class RunError(KdalignError):
    """A run that was asked for correctly could not be finished."""


class Interrupted(KdalignError):
    """Training was stopped by a signal and its state saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, line: str, signal: int) -> None:
        super().__init__(line)
        self.signal = signal


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """A clause that names the nearest accepted word, or nothing when none is near."""
    names = {name.lower(): name for name in accepted}
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def unknown(what: str, given: str, accepted: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: what was given, what is accepted, the nearest match."""
    accepted = list(accepted)
    return UsageError(f"unknown {what} {given!r}{did_you_mean(given, accepted)} (accepted: {', '.join(accepted)})")
