"""Measure the training steps of a recipe: speed, processor time, memory, and their share of what the machine can do.

    python -m benchmarks.step RECIPE.yaml [KEY=VALUE ...] [--steps 5] [--warm-up 2] [--json]

Prints tokens a second, CPU seconds for 1,000 tokens (steadier than the clock where other work is running), peak memory,
and the share of the matrix products' peak: the floating-point operations of a step (both models' forwards, the
student's backward), divided by what a product of 2,048 x 2,048 matrices in the precision of training, measured here,
would do in the step's time. Teacher and student are not scored. Run it on a quiet machine, and two builds in turns.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from transformers import PreTrainedModel

from benchmarks.machine import peak_flops, peak_gib, share_of_peak, wait
from kdalign.devices import make_accelerator
from kdalign.distillation import load as loading
from kdalign.distillation.build import build_task
from kdalign.distillation.costs import ForwardCosts
from kdalign.distillation.pipeline import prepare_all
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.teacher_answers import TeacherAnswers
from kdalign.distillation.tokenize import begin_folder, open_run
from kdalign.models.flop_count import count_flops
from kdalign.observer import NullObserver
from kdalign.recipe import Recipe, build_recipe
from kdalign.stopwatch import Stopwatch
from kdalign.training.loop import Trainer
from kdalign.training.step import settings_of_steps


def flops_a_token(models: loading.LoadedModels, length: int) -> float:
    """Operations of a step for each token: the student's forward and backward, and each teacher's forward."""
    teachers = sum(flops_of_training(teacher.model, length, backward=False) for teacher in models.teachers)
    return flops_of_training(models.student, length, backward=True) + teachers


def flops_of_training(model: PreTrainedModel, length: int, *, backward: bool) -> float:
    """Operations of a model's forward, and of its backward if it is trained, for each of so many tokens."""
    before, dtype = model.config._attn_implementation, model.dtype
    model.set_attn_implementation("eager")
    counted = count_flops(model.float(), length, backward=backward).total / length
    model.to(dtype).set_attn_implementation(before)
    return counted


def begin_training(recipe: Recipe, steps: int) -> tuple[Trainer, loading.LoadedModels, PreparedRun]:
    """Begin a run of the recipe's one task for so many steps, in which no model is scored."""
    accelerator = make_accelerator(recipe.train.device)
    [run] = prepare_all(recipe)
    opened = open_run(run, accelerator)
    observer = begin_folder(opened, accelerator, NullObserver(), resume=False)
    # What comes before the first step is measured by `kdalign distill` itself.
    loading.score_teachers = lambda *_: TeacherAnswers()
    loading.measure_costs = lambda models, **_: ForwardCosts(1, [None] * len(models), [None] * len(models))
    models = loading.load(opened, accelerator, observer, Stopwatch("benchmark"))
    task = build_task(models, accelerator, observer, resume=False)
    return Trainer([task], [0] * steps, opened.recipe.train, accelerator, task.folder, observer), models, run


def measure(given: argparse.Namespace, folder: str) -> dict[str, float]:
    """Train some steps of the recipe, with a run in this folder, and return what they cost."""
    total = given.warm_up + given.steps
    recipe = build_recipe(given.recipe, {"out": f"{folder}/run"}, [*given.sets, f"train.max_steps={total}"])
    trainer, models, _ = begin_training(recipe, total)
    opened = models.opened
    seconds, processor, tokens = [], [], []
    with settings_of_steps(trainer.accelerator.device):
        for _ in range(total):
            begun, worked, before = time.perf_counter(), time.process_time(), trainer.progress.tokens
            trainer._take_step(False)
            wait()
            seconds.append(time.perf_counter() - begun)
            processor.append(time.process_time() - worked)
            tokens.append(trainer.progress.tokens - before)
    kept = slice(given.warm_up, None)
    read = sum(tokens[kept])
    memory = peak_gib()
    peak = peak_flops("bf16" if opened.bf16 else "fp32")
    length = max(8, round(float(opened.texts.train.lengths.mean())))
    work, speed = flops_a_token(models, length), read / sum(seconds[kept])
    return {
        "tokens_per_second": speed,
        "cpu_seconds_per_1000_tokens": 1000 * sum(processor[kept]) / read,
        "peak_gib": memory,
        "gflops_of_products": speed * work / 1e9,
        "gflops_of_peak": peak / 1e9,
        "share_of_peak": share_of_peak(speed, work, peak),
        "first_step_seconds": seconds[0],
    }


def recipe_parser(description: str | None, steps: int) -> argparse.ArgumentParser:
    """Make the parser of a command that takes some steps of a recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("sets", nargs="*", metavar="KEY=VALUE", help="recipe keys that win over the file")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    """Measure, and print."""
    parser = recipe_parser(__doc__, steps=5)
    parser.add_argument("--warm-up", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, folder)
    if given.json:
        print(json.dumps(found))
        return
    speed, processor = found["tokens_per_second"], found["cpu_seconds_per_1000_tokens"]
    products, peak = found["gflops_of_products"], found["gflops_of_peak"]
    print(f"{speed:,.0f} tokens/s, {processor:.2f} CPU s for 1,000 tokens, {found['peak_gib']:.2f} GiB")
    print(f"products at {products:,.0f} of {peak:,.0f} GFLOP/s, {100 * found['share_of_peak']:.0f} %")


if __name__ == "__main__":
    main()
