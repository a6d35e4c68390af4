"""Commands of short runs, and what their history holds."""

import json
import sys

import pytest


def command(teacher, data, out, *more):
    return [
        "-m", "kdalign", "distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2",
        "--data", str(data), "--max-steps", "8", "--batch-size", "16", "--precision", "fp32", "--device", "cpu",
        "--set", "train.dropout=0", "--out", str(out), *more,
    ]  # fmt: skip


def run_in(folder, *words):
    """Run a command that succeeds in this folder and this process, for a fixture that several tests read."""
    from kdalign.cli import main

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("KDALIGN_CACHE", f"{folder}-cache")
        patched.setattr(sys, "argv", ["kdalign", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert exit_.value.code == 0


def steps_of(out):
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]
