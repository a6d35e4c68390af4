"""Measure the time of a step with each loss term, relative to soft labels alone.

    python tools/costs.py TEACHER DATA TASK [TERM ...]

A student of half the teacher's layers, batches of 64. Steps with and without the term alternate on the same batches in
one process, so that other load slows both; a cost is the median ratio of neighbouring steps. Run it on an idle machine.
"""

import statistics
import sys
import tempfile
import time

from kdalign.devices import make_accelerator
from kdalign.distillation.build import build_task
from kdalign.distillation.load import load
from kdalign.distillation.prepare import prepare
from kdalign.distillation.tokenize import open_run
from kdalign.errors import UsageError
from kdalign.objective.terms.registry import TERMS
from kdalign.observer import NullObserver
from kdalign.recipe import build_recipe
from kdalign.training.optimizer import make_optimizer
from kdalign.training.step import Stepper
from kdalign.training.task_trainer import TaskTrainer

SOFT = {"objective.beta": 0, "objective.gamma": 0, "objective.delta": 0}
VARIANTS = {
    "hard": {**SOFT, "objective.alpha": 0, "objective.hard": 1},
    **{key: {**SOFT, f"objective.{key}": 1} for key in ("beta", "gamma", "delta", "embeddings", "relations")},
    **{name: {**SOFT, "objective.terms": {name: 1}} for name in TERMS},
    "info-nce, queue 4096": {**SOFT, "objective.terms": {"info-nce": {"weight": 1, "queue": 4096}}},
    "masked_lm": {**SOFT, "objective.masked_lm": 1},
    "adaptive": {**SOFT, "objective.divergence": "adaptive"},
    "standardise": {**SOFT, "objective.standardise": True},
    "joint": {},
}
BATCHES, ROUNDS = 8, 12
"""Batches of each kind, and rounds over them; the first round warms up."""


class Steps:
    """A student that trains on a fixed list of batches."""

    def __init__(self, teacher: str, data: str, task: str, changes: dict[str, object]) -> None:
        flags = {"teacher": teacher, "student": "layers=half", "data.task": task, "data.folder": data}
        self.accelerator = make_accelerator("auto")
        with tempfile.TemporaryDirectory() as folder:
            recipe = build_recipe(None, flags | {"data.limit": 2000, "out": f"{folder}/run"} | changes)
            loaded = load(open_run(prepare(recipe), self.accelerator), self.accelerator, NullObserver())
            task = build_task(loaded, self.accelerator, NullObserver(), resume=False)
        self.settings = recipe.train
        task.learner.to(self.accelerator.device).train()
        self.trainer = TaskTrainer(task, BATCHES, recipe.train, self.accelerator)
        self.trainer.begin(0)
        self.optimizer = make_optimizer(task.learner, recipe.train)
        self.batches = [self.trainer.micro_batches(number)[1] for number in range(BATCHES)]

    def step(self, number: int) -> float:
        """Take a step on a batch and return its seconds."""
        begun = time.perf_counter()
        stepper = Stepper(self.trainer.viewer, self.optimizer, self.settings.clip)
        stepper.take(self.trainer.objective, self.batches[number], number)
        return time.perf_counter() - begun


def cost(base: Steps, other: Steps) -> float:
    """Return the median ratio of a step to the base's neighbouring step on the same batch."""
    ratios = []
    for turn in range(ROUNDS):
        for number in range(BATCHES):
            if turn % 2:
                below, above = base.step(number), other.step(number)
            else:
                above, below = other.step(number), base.step(number)
            ratios.append(above / below)
    return statistics.median(ratios[BATCHES:])


if __name__ == "__main__":
    teacher, data, task, *names = sys.argv[1:]
    base = Steps(teacher, data, task, SOFT)
    alone = statistics.median(base.step(number) for _ in range(4) for number in range(BATCHES))
    print(f"{'soft labels only':24} {1000 * alone:.0f} ms a step", flush=True)
    for name in names or VARIANTS:
        try:
            other = Steps(teacher, data, task, VARIANTS[name])
        except UsageError as refused:  # of two classes, some say nothing
            print(f"{name:24} {refused}", flush=True)
        else:
            print(f"{name:24} {100 * (cost(base, other) - 1):+.0f} %", flush=True)
