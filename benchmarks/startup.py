"""Measure how long commands take to start, in units of a bare Typer program: python benchmarks/startup.py [ROUNDS].

Each command and the unit, ``python -c "import typer, rich"``, take turns, so that other work on the machine slows
both; the ratio is of the medians. The last row is what a command would cost at least if it imported the libraries.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNIT = ["-c", "import typer, rich"]
COMMANDS = {
    "kdalign --help": ["-m", "kdalign", "--help"],
    "kdalign recipe show": ["-m", "kdalign", "recipe", "show"],
    "kdalign compare, 9 runs": ["-m", "kdalign", "compare", str(ROOT / "benchmarks/results/copying")],
    "import torch, transformers": ["-c", "import torch, transformers"],
}


def seconds(words: list[str], folder: str) -> float:
    """Run Python once and return the wall-clock time in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        for name, words in COMMANDS.items():
            pairs = [(seconds(words, folder), seconds(UNIT, folder)) for _ in range(rounds + 1)][
                1:
            ]  # the first warms up
            command, unit = (statistics.median(times) for times in zip(*pairs, strict=True))
            print(f"{name:28} {command / unit:5.1f} x the start of a bare Typer program")
