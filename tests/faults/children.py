"""Start kdalign commands as forks of this process, which has loaded the libraries: in a tenth of a second each.

A fork that is killed is as dead as any process. This process itself must stay without threads, which no fork would
have: whatever computes is called in a fork, too.
"""

import atexit
import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_LOADED = (
    *("accelerate", "datasets", "pandas", "pyarrow.parquet", "safetensors.torch", "scipy.stats", "sklearn.metrics"),
    *("transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"),
    *("kdalign.cli", "kdalign.distillation.pipeline", "kdalign.distillation.ablation_runner"),
    *("kdalign.distillation.cache_commands", "kdalign.distillation.sequence_level", "kdalign.evaluation.evaluate"),
    *("kdalign.served.client", "torch.distributed", "openai"),
)
SECONDS = 180.0
"""Longest time of a command: one that takes longer hangs."""


def load() -> None:
    """Import what the commands need, once for all of them."""
    import torch

    torch.set_num_threads(1)
    for name in _LOADED:
        importlib.import_module(name)
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    # Arrow's allocator starts its thread again in a fork.
    assert threads.count("jemalloc_bg_thd") >= len(threads) - 1, "a fork has the thread alone that forked"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit code, or minus the signal that ended it.
        out: what it wrote to stdout.
        err: what it wrote to stderr.
        seconds: how long it took.
    """

    status: int
    out: str
    err: str
    seconds: float

    @property
    def last_line(self) -> str:
        """Its last line on stderr."""
        return next((line for line in reversed(self.err.splitlines()) if line.strip()), "")


@dataclass
class Child:
    """A command in a process and a session of its own.

    Attributes:
        process: its number.
        streams: reading ends of its stdout and stderr.
        begun: when it was started, by ``time.monotonic``.
        ended: how it ended; None while it runs.
    """

    process: int
    streams: tuple[int, int]
    begun: float
    ended: Ended | None = None

    @property
    def runs(self) -> bool:
        """True until it has ended."""
        return self._look(os.WNOHANG) is None

    def wait(self, seconds: float = SECONDS) -> Ended:
        """Wait until it has ended.

        Raises:
            TimeoutError: it hangs; it is killed, with all that it started.
        """
        until = time.monotonic() + seconds
        while (ended := self._look(os.WNOHANG)) is None:
            if time.monotonic() > until:
                self.end_all()
                raise TimeoutError(f"it hangs after {seconds:g} s: {self.wait().err[-2000:]}")
            time.sleep(0.002)
        return ended

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.runs:
            os.kill(self.process, number)

    def started(self) -> list[psutil.Process]:
        """The processes that it has started, as far as they still run."""
        try:
            return psutil.Process(self.process).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def worked(self) -> float:
        """Seconds of a core that it and all that it has started have taken so far."""
        return sum(_worked(process) for process in (self.process, *(other.pid for other in self.started())))

    def end_all(self) -> None:
        """Kill it and all processes that it started."""
        for process in self.started():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.runs:
            os.kill(self.process, signal.SIGKILL)
            self._look(0)

    def _look(self, how: int) -> Ended | None:
        if self.ended is None:
            process, status = os.waitpid(self.process, how)
            if process:
                seconds = time.monotonic() - self.begun
                out, err = map(_read_stream, self.streams)
                self.ended = Ended(os.waitstatus_to_exitcode(status), out, err, seconds)
        return self.ended


def _worked(process: int) -> float:
    """Seconds of a core of a process; 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    except OSError:
        return 0.0


_STREAM_BYTES = 2**20
"""Size of the pipe of a stream, which is read when its process has ended."""


def _open_stream() -> tuple[int, int]:
    """A pipe, on which no limit of files and no full disk has any effect."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _STREAM_BYTES)
    os.set_blocking(reading, False)
    return reading, writing


def _read_stream(stream: int) -> str:
    with open(stream, "rb") as file:  # others that it has started may still have it open
        return (file.read() or b"").decode(errors="replace")


def start(
    words: list[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Child:
    """Start ``kdalign`` with these words in a folder.

    Args:
        words: the words after ``kdalign``.
        folder: the working folder.
        environment: further variables.
        before: called in the new process first.
    """
    begun, streams = time.monotonic(), [_open_stream() for _ in range(2)]
    process = os.fork()
    if process:
        for _, writing in streams:
            os.close(writing)
        return Child(process, (streams[0][0], streams[1][0]), begun)
    status = 1
    try:
        weakref.finalize._registry.clear()  # what ends with the parent, such as its temporary folder
        os.setsid()
        os.chdir(folder)
        for number, (_, writing) in enumerate(streams, 1):
            os.dup2(writing, number)
        os.environ.update({"COLUMNS": "200", "KDALIGN_CACHE": str(folder / "cache"), **(environment or {})})
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if before is not None:
            before()
        status = _call_main(words)
    except BaseException:
        traceback.print_exc(file=open(2, "w", closefd=False))  # of this file, or of what main lets through
    finally:
        _end(status)
    raise AssertionError("it has ended")


def _call_main(words: list[str]) -> int:
    from kdalign.cli import main

    sys.argv = ["kdalign", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _end(status: int) -> None:
    """End as Python does: with what the libraries do at its end."""
    with suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
        threading._shutdown()
        atexit._run_exitfuncs()
    os._exit(status)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fork and return its result, by JSON.

    Raises:
        RuntimeError: it raised; with the traceback.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            answer = {"is": function(*arguments)}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = json.loads(file.read())
    os.waitpid(process, 0)
    if "raised" in answer:
        raise RuntimeError(answer["raised"])
    return answer["is"]
