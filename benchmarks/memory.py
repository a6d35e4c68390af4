"""Compare the predicted peak of a recipe's memory with the measured one, part by part.

    python -m benchmarks.memory RECIPE.yaml [KEY=VALUE ...] [--steps 3] [--json]

With several ranks (``torchrun --nproc_per_node 2 -m benchmarks.memory ...``) each prints its own.

Loads the models and trains some steps, the longest texts first, in this process, which is to be a fresh one; nothing
is scored. Measured is the largest resident memory of the process, on CUDA that of torch's tensors.
"""

import argparse
import json
import tempfile

from benchmarks.step import begin_training, recipe_parser
from kdalign.environment import peak_memory
from kdalign.recipe import build_recipe
from kdalign.training.loop import Trainer
from kdalign.training.step import settings_of_steps


def sort_longest_first(trainer: Trainer) -> None:
    """Let the first steps have the longest texts of the epoch."""
    [only] = trainer.trainers
    only.data_of(0)
    order, lengths = only._order, only.task.encoded.lengths
    order._batches = sorted(order._batches, key=lambda rows: -int(lengths[rows].max()))


def measure(given: argparse.Namespace, folder: str) -> dict[str, object]:
    """Predict and measure a run in this folder."""
    recipe = build_recipe(given.recipe, {"out": f"{folder}/run"}, [*given.sets, f"train.max_steps={given.steps}"])
    trainer, _, run = begin_training(recipe, given.steps)
    device = trainer.accelerator.device
    loaded = peak_memory(device)
    sort_longest_first(trainer)
    with settings_of_steps(device):
        for _ in range(given.steps):
            trainer._take_step(False)
    assert run.memory is not None, "a checked run has a prediction"
    peak = peak_memory(device)
    return {
        "predicted": run.memory.total,
        "measured": peak,
        "ratio": run.memory.total / peak,
        "loaded": loaded,
        "phase": run.memory.phase,
        "missing": run.memory.missing,
        "parts": {str(part): size for part, size in run.memory.parts.items()},
    }


def main() -> None:
    """Measure, and print."""
    given = recipe_parser(__doc__, steps=3).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, folder)
    if given.json:
        print(json.dumps(found))
        return
    for part, size in found["parts"].items():
        print(f"{part:>24} {size / 2**30:6.2f} GiB")
    about = f", {found['missing']}" * bool(found["missing"])
    print(f"predicted {found['predicted'] / 2**30:.2f} GiB in {found['phase']}{about}")
    print(f"measured {found['measured'] / 2**30:.2f} GiB ({found['loaded'] / 2**30:.2f} before the first step)")
    print(f"ratio {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
