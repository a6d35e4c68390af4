"""What each term costs a step, over soft labels only: python docs/costs.py TEACHER DATA TASK [TERM ...].

A student of half the teacher's layers, batches of 64. Steps with the term and without it take turns on the same
batches in one process, so that what else the machine does weighs on both; a cost is the median ratio of neighbours.
"""

import statistics
import sys
import time

import torch

from kdalign.arranging import load_student, load_teacher
from kdalign.batches import epoch_batches, micro_batches
from kdalign.calibration import CALIBRATION_TOKENS, calibrate, some
from kdalign.errors import UsageError
from kdalign.learner import Learner
from kdalign.looks import Sight, counted
from kdalign.observer import Silent
from kdalign.preparation import prepare
from kdalign.projection import Projections
from kdalign.reading import config_of, read_texts, tokenizer_of
from kdalign.recipe import build_recipe
from kdalign.teachers import Teacher
from kdalign.terms.further import TERMS
from kdalign.training import make_accelerator, make_optimizer, use_bf16

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
"""What each kind takes its steps on, and how often; the first round warms up."""


class Steps:
    """A student that trains on a fixed list of batches, again and again."""

    def __init__(self, teacher: str, data: str, task: str, changes: dict[str, object]) -> None:
        flags = {
            "teacher": teacher,
            "student": "layers=half",
            "data.task": task,
            "data.folder": data,
            "data.limit": 2000,
        }
        recipe = build_recipe(None, flags | {"out": "runs/costs"} | changes)
        run, self.accelerator = prepare(recipe), make_accelerator("auto")
        self.settings, device = recipe.train, self.accelerator.device
        bf16 = use_bf16("auto", device)
        tokenizer = tokenizer_of(run)
        config = config_of(run, tokenizer)
        encoded = read_texts(run, tokenizer, config).train
        taught = load_teacher(run, recipe, self.accelerator, bf16, Silent())
        student, _ = load_student(run, config, taught.model, tokenizer, encoded)
        student.to(device)
        seeing = Teacher(taught.model, run.work.order(taught.model), torch.bfloat16 if bf16 else torch.float32, device)
        plan = calibrate(run.plan, seeing, some(encoded, 0, CALIBRATION_TOKENS), device)
        self.objective = run.work.objective(recipe.objective, plan, torch.bfloat16 if bf16 else None)
        order, terms = run.work.order(student), self.objective.modules.values()
        self.learner = Learner(student, Projections(plan.projections, 0, ()), plan, self.objective, order, bf16, terms)
        self.learner.to(device).train()
        teach = (lambda batch: seeing(batch, self.learner.wanted_of_teacher)) if self.objective.needs_teacher else None
        self.see = Sight(self.learner, teach, self.accelerator, 0)
        self.optimizer = make_optimizer(self.learner, self.settings)
        rows = epoch_batches(encoded.lengths, self.settings.batch_size, 0, 0)[:BATCHES]
        self.batches = [micro_batches(encoded, chosen, 0, 1, None) for chosen in rows]

    def step(self, number: int) -> float:
        """Seconds of a step on a batch."""
        begun = time.perf_counter()
        share = self.batches[number]
        units, _ = counted(share, self.accelerator)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(self.see(share[0], number, 0), units).total.backward()
        self.objective.remember(units)
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip)
        self.optimizer.step()
        return time.perf_counter() - begun


def cost(base: Steps, other: Steps) -> float:
    """The median ratio of a step to the one of the base on the same batch just before it or just after, in turns."""
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
