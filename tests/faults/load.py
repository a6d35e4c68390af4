"""Train a tiny model for very many steps, and print memory, history and log by step.

python -m tests.faults.load --steps 60000
"""

import argparse
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for ``support``, as pytest has it

from kdalign.distillation.pipeline import distill
from kdalign.observer import NullObserver, StepReport
from kdalign.recipe import build_recipe
from tests.faults.commands import save_inputs

ROWS = 12
"""Rows of the table."""
GROWTH = 16 * 2**20
"""Bytes by which memory may differ between the last three quarters of a run."""


class Meter(NullObserver):
    """Measures this process and a run's files at equal distances."""

    def __init__(self, out: Path, every: int) -> None:
        self.out, self.every = out, every
        self.rows: list[tuple[int, int, int, int]] = []

    def into(self, log: Path) -> "Meter":
        """The files are found without it."""
        return self

    def stepped(self, report: StepReport) -> None:
        """Add a row, if it is time."""
        if report.step % self.every == 0:
            memory = psutil.Process().memory_info().rss
            self.rows.append((report.step, memory, self._size("history.jsonl"), self._size("checkpoints")))
            shown = " | ".join(f"{size / 1e6:.2f}" for size in self.rows[-1][1:])
            print(f"| {report.step:,} | {shown} |", flush=True)

    def _size(self, name: str) -> int:
        path = self.out / name
        files = [path] if path.is_file() else path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())


def main() -> int:
    """Train, print the table, and return 1 if memory grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.load", description=__doc__)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--folder", help="where to work (default: the system's folder of temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdalign-load-", dir=options.folder) as folder:
        print("| step | memory (MB) | history (MB) | checkpoints (MB) |\n|--:|--:|--:|--:|")
        rows = train(Path(folder), options.steps)
    late = [memory for step, memory, *_ in rows if step >= options.steps / 4]
    print(f"\nmemory from a quarter of the steps on: {(max(late) - min(late)) / 1e6:.1f} MB between least and most")
    return int(late[-1] - late[0] > GROWTH)


def train(folder: Path, steps: int) -> list[tuple[int, int, int, int]]:
    """Train so many steps in a folder; returns step, memory, history and checkpoints in bytes."""
    (folder / "inputs").mkdir()
    save_inputs(str(folder / "inputs"))
    inputs, out = folder / "inputs", folder / "run"
    flags = {
        **{"teacher": str(inputs / "teacher"), "student": str(inputs / "student"), "data.task": "sst2"},
        **{"data.folder": str(inputs / "films"), "train.max_steps": steps, "train.batch_size": 4},
        **{"train.precision": "fp32", "train.device": "cpu", "train.profile": False, "objective.beta": 0.05},
        **{"out": str(out), "objective.gamma": 0.0},
    }
    meter = Meter(out, max(1, steps // ROWS))
    distill(build_recipe(flags=flags), meter)
    return meter.rows


if __name__ == "__main__":
    sys.exit(main())
