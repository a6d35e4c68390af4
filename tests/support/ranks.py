"""Runs in processes of their own, stopped and resumed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def environment():
    """For a process of its own, which may import what the tests share."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def run(words, **more):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment(), **more)


def steps_done(out: Path) -> int:
    history = out / "history.jsonl"
    if not history.is_file():
        return 0
    return sum('"kind": "step"' in line for line in history.read_text().splitlines())


def stop_after(words, out, step, signal_):
    """Start a run and send it a signal once it has taken so many steps."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment())  # fmt: skip
    while steps_done(out) < step and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal_)
    _, err = process.communicate()
    return process.returncode, err


def each_step(out: Path, key: str) -> list[float]:
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event[key] for event in events if event["kind"] == "step"]
