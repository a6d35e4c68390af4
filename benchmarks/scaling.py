"""Measure how a language model's training step grows: with the length of rows, layers, vocabulary and ranks.

    python -m benchmarks.scaling [--axes length layers vocabulary ranks] [--steps 3]

Teacher and student have SmolLM2-135M's shape (30 and 15 layers, width 576, 49,152 entries) and random weights; a step
has 2,048 tokens, forward KL, bfloat16. One of the axes differs at a time, each in a process of its own. Prints
Markdown. Run it on a quiet machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.on_policy import Pair, kdalign_steps, measure

TOKENS = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a pair of models, and of a step."""

    length: int = 512
    layers: int = 30
    vocabulary: int = 49152
    ranks: int = 1


AXES: dict[str, tuple[int, ...]] = {
    "length": (32, 128, 512, 1024, 2048),
    "layers": (6, 12, 30, 60),
    "vocabulary": (8192, 49152, 131072),
    "ranks": (1, 2),
}


def save_pair(shape: Shape, folder: Path) -> Pair:
    """Save a teacher, and a student of half its layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    for name, layers in (("teacher", shape.layers), ("student", max(1, shape.layers // 2))):
        config = LlamaConfig(
            vocab_size=shape.vocabulary, hidden_size=576, num_hidden_layers=layers, num_attention_heads=9,
            num_key_value_heads=3, intermediate_size=1536, max_position_embeddings=8192, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return Pair(str(folder / "teacher"), str(folder / "student"), TOKENS // shape.length, shape.length)


def work(shape: Shape, steps: int) -> None:
    """Measure one shape in this process, one of its ranks."""
    with tempfile.TemporaryDirectory() as folder:
        pair = save_pair(shape, Path(folder))
        with kdalign_steps(pair, "off-policy", 1 + steps) as step:
            found = measure(argparse.Namespace(steps=steps), pair, step, 1)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


def run(shape: Shape, steps: int) -> dict[str, float]:
    """Measure one shape in processes of its own, each rank with its share of the cores."""
    words = ["-m", "benchmarks.scaling", "--steps", str(steps), "--worker", json.dumps(asdict(shape))]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if shape.ranks > 1:
        words = ["-m", "torch.distributed.run", "--nproc-per-node", str(shape.ranks), *words]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // shape.ranks))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{shape}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure every axis, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--turns", type=int, default=1, help="processes for each shape")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(Shape(**json.loads(given.worker)), given.steps)
        return
    for axis in given.axes:
        print(f"| {axis} | tokens/s | memory{' of a rank' if axis == 'ranks' else ''} |\n|---:|---:|---:|", flush=True)
        for value in AXES[axis]:
            found = [run(replace(Shape(), **{axis: value}), given.steps) for _ in range(given.turns)]
            speed, memory = (statistics.median(each[key] for each in found) for key in ("tokens_per_second", "gib"))
            print(f"| {value:,} | {speed:,.0f} | {memory:.2f} GiB |", flush=True)
        print()


if __name__ == "__main__":
    main()
