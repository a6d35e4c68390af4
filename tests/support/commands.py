"""Commands of short runs, and what their history holds."""

import json


def command(teacher, data, out, *more):
    return [
        "-m", "kdalign", "distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2",
        "--data", str(data), "--max-steps", "8", "--batch-size", "16", "--precision", "fp32", "--device", "cpu",
        "--set", "train.dropout=0", "--out", str(out), *more,
    ]  # fmt: skip


def steps_of(out):
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]
