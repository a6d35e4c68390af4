"""Run a command in a process of its own, forked so that libraries are imported once, and judge what it did."""

import os
import resource
import shutil
import signal
import sys
import time
import unicodedata
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bad_input.case import REFUSED, Case

KEY = "sk-0123456789abcdefghij"
"""Stands for the user's API key, which no output may have."""
LONGEST_LINE = 1000
CPU_SECONDS, WALL_SECONDS = 30, 90
"""Most seconds of work, and of waiting on a busy machine."""
MOST_MEMORY = 12 * 2**30
"""Limit of a command's address space, so that a flood ends that command alone."""


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        status: exit code; the negative number of the signal that ended it.
        cpu: seconds of work.
    """

    status: int
    out: str
    err: str
    cpu: float
    memory: int


@dataclass(frozen=True)
class Verdict:
    """A case's row: what it was, how it ended (``refused``, ``accepted``, ``failed``) and its faults, if any."""

    kind: str
    why: str
    words: list[str]
    status: int
    end: str
    faults: list[str]
    line: str
    cpu: float


def in_child(words: list[str], work: Path, cache: Path, answer: Any = None, killed: bool = False) -> Outcome:
    """Run a command in a forked process; one that takes too long is killed.

    Args:
        words: without the program's name.
        work: its working folder.
        cache: kdalign's cache.
        answer: how a hostile server changes its answers; ``@url`` in the words is its address.
        killed: end after the second checkpoint, as by a kill.
    """
    logs = [work.parent / f"{work.name}.{name}" for name in ("out", "err")]
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _be_child(words, work, cache, logs, answer, killed)
    until, status, used = time.monotonic() + WALL_SECONDS, 0, None
    while time.monotonic() < until:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.005)
    else:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what the command has left running
    assert used is not None
    out, err = (log.read_text(encoding="utf-8", errors="surrogateescape") for log in logs)
    for log in logs:
        log.unlink()
    return Outcome(os.waitstatus_to_exitcode(status), out, err, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def _be_child(words: list[str], work: Path, cache: Path, logs: list[Path], answer: Any, killed: bool) -> None:
    """Run the command and leave, whatever happens."""
    status = 70
    try:
        os.setsid()
        os.chdir(work)
        os.environ.update(KDALIGN_CACHE=str(cache), OPENAI_API_KEY=KEY, COLUMNS="100")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, log in zip((1, 2), logs, strict=True):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if killed:
            _stop_after_checkpoint()
        status = _status_of(words, answer)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _status_of(words: list[str], answer: Any) -> int:
    from kdalign.cli import main
    from tests.bad_input.served import hostile_server

    with hostile_server(answer) as url:
        sys.argv = ["kdalign", *(url if word == "@url" else word for word in words)]
        try:
            main()
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else 1


def _stop_after_checkpoint() -> None:
    from kdalign.training import loop

    kept, saved = loop.save_checkpoint, []

    def stop(*rest: Any) -> None:
        kept(*rest)
        saved.append(1)
        if len(saved) == 1:
            raise SystemExit(9)

    loop.save_checkpoint = stop


def run_case(case: Case, place: Path, scratch: Path) -> Verdict:
    """Run a case in a new folder, judge it, and remove the folder."""
    work, cache = scratch / "work", scratch / "cache"
    for folder in (work, cache):
        shutil.rmtree(folder, ignore_errors=True)
    work.mkdir(parents=True)
    words = case.lay_out(place, work, "@url")
    before = files_of(work)
    outcome = in_child(words, work, cache, case.answer)
    after = files_of(work)
    faults = judge(case, outcome, before, after, work)
    end = {0: "accepted", 2: "refused"}.get(outcome.status, "failed")
    lines = outcome.err.strip().splitlines()
    last = next((line for line in reversed(lines) if line.startswith("kdalign: error")), lines[-1] if lines else "")
    return Verdict(case.kind, case.why, words, outcome.status, end, faults, last[:600], round(outcome.cpu, 2))


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files below a folder, and of the folders themselves."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        found[str(path.relative_to(folder))] = (stat.st_size, stat.st_mtime_ns) if path.is_file() else (0, 0)
    return found


def judge(case: Case, outcome: Outcome, before: dict[str, Any], after: dict[str, Any], work: Path) -> list[str]:
    """Say what is wrong with how a command ended; nothing for one that is as it must be."""
    faults = []
    errors = [line for line in outcome.err.splitlines() if line.startswith("kdalign: error: ")]
    if outcome.status not in (0, 1, 2):
        faults.append(f"ended with {outcome.status}")
    if any(
        word in outcome.err for word in ("Traceback (most recent call last)", "a fault of kdalign", "too deeply at ")
    ):
        faults.append("traceback")
    if outcome.status in (1, 2) and len(errors) != 1:
        faults.append(f"{len(errors)} error lines")
    if outcome.cpu > CPU_SECONDS or outcome.status == -signal.SIGKILL:
        faults.append(f"took {outcome.cpu:.0f} s")
    if "error: out of memory" in outcome.err:
        faults.append("out of memory")
    if outcome.status == 2 and before != after:
        faults.append(f"wrote before refusing: {sorted(set(before.items()) ^ set(after.items()))[:2]}")
    if any(len(line) > LONGEST_LINE for line in outcome.err.splitlines()):
        faults.append("a line of more than 1,000 characters")
    if bad := _control_characters(outcome.err + outcome.out):
        faults.append(f"control characters {bad!r}")
    if case.expect == REFUSED and outcome.status != 2:
        faults.append(f"nonsense {'accepted' if not outcome.status else 'not refused as such'}")
    if KEY in outcome.out + outcome.err or any(_holds_key(work / name) for name in after):
        faults.append("the key is told")
    if any(name.rpartition("/")[2] == "RAN" for name in after):
        faults.append("code of a stranger's ran")
    return faults


def _control_characters(text: str) -> str:
    bad = {char for char in set(text) if char != "\n" and unicodedata.category(char) in ("Cc", "Cs")}
    return "".join(sorted(bad | (set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))))


def _holds_key(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and KEY.encode() in file.read_bytes()


def as_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a row of JSON."""
    return asdict(verdict)
