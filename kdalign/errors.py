"""Exceptions of kdalign, and texts that are safe to show in their lines.

::

    KdalignError            base of all; one clear line for the user
    ├── UsageError          the user's mistake: exit code 2, nothing written
    │   ├── TamperedRun     a run's files are not as it left them
    │   └── NoAnswers       conversations leave nothing to learn
    ├── RunError            a run or a gate failed: exit code 1
    │   ├── RefusedRun      a check of loaded models refused a run before its first step; it leaves no folder
    │   ├── NotFinite       a model's outputs are NaN or infinite
    │   └── Unwritten       a file could not be written: no space, or a limit
    └── Interrupted         stopped by a signal after saving a checkpoint
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LONGEST_LINE = 500
"""Limit of characters of an error line."""


class KdalignError(Exception):
    """Base of all errors that kdalign raises on purpose; the text is one line for the user."""


class UsageError(KdalignError):
    """A user's mistake; the line says what was given and what is accepted."""


class TamperedRun(UsageError):
    """A file of a run is missing or differs from when the run ended."""


class NoAnswers(UsageError):
    """No conversation of some has an answer within the longest input."""


class RunError(KdalignError):
    """A correct request that could not be finished."""


class RefusedRun(RunError):
    """A check of the loaded models refused a run before its first step; what the run wrote is removed again."""


class NotFinite(RunError):
    """A model's outputs are NaN or infinite; the text says how many, and the caller adds whose they are."""


class Unwritten(RunError):
    """A file could not be written: a full disk, a quota, a limit on files, a file system that became read-only."""


class Interrupted(KdalignError):
    """Training was stopped by a signal and its state saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, line: str, signal: int) -> None:
        super().__init__(line)
        self.signal = signal


def printable(text: str) -> str:
    """Turn a name or message into one line that is safe to show.

    Line ends and tabs become spaces. Other control characters, direction marks and invisible format
    characters are dropped, except the joiners that scripts and emoji need. Half a surrogate pair becomes U+FFFD.
    Text that is clean already is returned as it is.
    """
    return "".join(map(_shown, text)) if not text.isascii() or not text.isprintable() else text


def _shown(character: str) -> str:
    if character in _LINE_ENDS:
        return " "
    category = unicodedata.category(character)
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category == "Cc" or (category == "Cf" and character not in _JOINERS) else character


_LINE_ENDS = frozenset("\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_JOINERS = frozenset("\u200c\u200d")


def printable_names(names: Sequence[str]) -> list[str]:
    r"""Show names by ``printable``; if two would look the same, what it drops is written out (``a\x1b``)."""
    shown = list(map(printable, names))
    alike = {
        clean for clean in shown if len({name for name, own in zip(names, shown, strict=True) if own == clean}) > 1
    }
    return [
        name.encode("unicode_escape").decode("ascii") if clean in alike and name != clean else clean
        for name, clean in zip(names, shown, strict=True)
    ]


def shorten(text: str, longest: int = LONGEST_LINE) -> str:
    """Shorten a line to its beginning and its end (which has the remedy), with … between."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3].rstrip()} … {text[-end:].lstrip()}"


def cause_of(error: BaseException) -> str:
    """Return an exception's text as a clause of an error line, with its type if the text alone says nothing."""
    text = re.sub(r"\s+", " ", printable(str(error))).strip()
    plain = isinstance(error, OSError | KdalignError) or (isinstance(error, ValueError) and " " in text)
    return shorten(text if plain and text else f"{type(error).__name__}: {text}".rstrip(": "), 300)


@contextmanager
def library_errors(what: str, mend: str = "") -> Iterator[None]:
    """Turn any error of a library (Transformers, pyarrow) over a user's file into one line.

    Args:
        what: action that failed and its file, such as ``cannot read the tokenizer in 'models/x'``.
        mend: remedy, as a clause.

    Raises:
        UsageError: the library raised anything but an error of kdalign's own.
    """
    try:
        yield
    except KdalignError:
        raise
    except Exception as error:  # no library documents all its errors
        raise UsageError(f"{what}: {cause_of(error)}" + (f"; {mend}" if mend else "")) from error


def lost_rank(error: BaseException) -> str | None:
    """Return what an error says of another process of a distributed run that has ended; None for other errors."""
    if type(error).__name__ in _OF_RANKS or (type(error) is RuntimeError and "gloo" in str(error)):
        return re.sub(r"\[\S*/\S*\] |\. This is typically.*", "", cause_of(error))
    return None


_OF_RANKS = ("DistBackendError", "DistNetworkError", "DistStoreError")
"""Errors of ``torch.distributed``; gloo's have no type of their own."""


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """Return a clause that names the nearest accepted word; empty if none is near."""
    names = {name.lower(): name for name in accepted}
    near = difflib.get_close_matches(given.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def unknown(what: str, given: str, accepted: Iterable[str]) -> UsageError:
    """Make the error for a name that is not in a list: what was given, what is accepted, the nearest match."""
    accepted = list(accepted)
    return UsageError(
        f"unknown {what} {shorten(repr(given), 120)}{did_you_mean(given, accepted)} (accepted: {', '.join(accepted)})"
    )
