"""What a step does with a balance: what it is shown, what it learns from and how fast, and what a look leaves."""

import json
import math
from functools import partial

import pytest
import torch
from accelerate import Accelerator

from kdalign.data.epochs import micro_batches
from kdalign.objective.balancing import BALANCES, LossBalancer, PaceBalance
from kdalign.objective.objective import Objective
from kdalign.objective.terms import LMHeadLoss, Unit
from kdalign.objective.units import count_units
from kdalign.observer import NullObserver
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.diagnostics import StepViewer, freeze_unreached, gradient_norms, measure_terms
from kdalign.training.loop import train
from kdalign.training.optimizer import make_optimizer
from kdalign.training.step import Stepper
from kdalign.training.task_trainer import Stage, TrainTask
from support.classifier_setting import Setting

CPU = torch.device("cpu")
WEIGHTS = Weights(
    hard=0.3, alpha=0.7, beta=2, gamma=0, delta=0, temperature=2,
    terms={"info-nce": {"weight": 0.5, "queue": 40}},
)  # fmt: skip


class Run:
    """A run in this process, of steps of 8 texts in micro-batches of 4."""

    def __init__(self, balance, folder, **settings):
        self.setting = Setting("bert", "bert", 32, WEIGHTS)
        self.objective, self.learner = self.setting.objective, self.setting.learner
        self.learner.balance = balance(self.objective.names) if balance is not None else None
        self.folder, self.balance = RunFolder(folder), self.learner.balance
        given = {"micro_batch": 4, "scheduler": "constant", "warmup": 0, "device": "cpu", **settings}
        self.train = TrainSettings(batch_size=8, precision="fp32", **given)

    def __call__(self):
        stages = [Stage(0.0, self.objective)]
        task = TrainTask("sst2", self.learner, self.setting.teacher, stages, self.setting.data, self.folder)
        train(task, self.train, Accelerator(cpu=True), NullObserver())
        return self

    def teach(self, batch):
        return self.setting.teacher(batch, self.learner.wanted_of_teacher)

    @property
    def steps(self):
        events = [json.loads(line) for line in self.folder.history.read_text().splitlines()]
        return [event for event in events if event["kind"] == "step"]


class Watching(LossBalancer):
    """Triples each weight, and keeps what it is shown."""

    def __init__(self, names):
        super().__init__(names)
        self.shown, self.asked = [], []

    def update(self, parts):
        super().update(parts)
        self.shown.append(dict(parts))

    def factors(self, names):
        return dict.fromkeys(names, 3.0)

    def penalty(self, parts, weights, share):
        self.asked.append((dict(weights), share, {name: float(part) for name, part in parts.items()}))


class OneOfTwo(Accelerator):
    """A rank of two, whose other rank has nothing."""

    num_processes = property(lambda self: 2)


def test_a_balance_is_shown_each_step_once_and_learns_by_the_recipes_weights_and_a_micro_batchs_part(tmp_path):
    run = Run(Watching, tmp_path, max_steps=3)()
    shown, steps = run.balance.shown, run.steps
    assert len(shown) == 1 + 3, "a look at the first step, and three steps"
    assert shown[1:] == [pytest.approx(step["parts"]) for step in steps]
    assert shown[0] == pytest.approx(steps[0]["parts"], rel=1e-6)
    weights = {"hard": 0.3, "soft": 0.7, "cosine": 2.0, "info-nce": 0.5}
    assert steps[0]["weights"] == {name: 3 * weight for name, weight in weights.items()}
    asked = run.balance.asked[-6:]  # two micro-batches in each of three steps
    assert [(given, share) for given, share, _ in asked] == [(weights, 0.5)] * 6
    for name, value in steps[2]["parts"].items():
        assert sum(parts[name] for _, _, parts in asked[-2:]) == pytest.approx(value)


def test_a_micro_batchs_part_of_a_step_is_one_of_all_ranks_micro_batches(tmp_path):
    run = Run(Watching, tmp_path)
    share = micro_batches(run.setting.data, range(8), 0, 1, 3)
    optimizer, penalty = make_optimizer(run.learner, run.train), run.balance.penalty
    viewer = StepViewer(run.learner, run.teach, OneOfTwo(cpu=True), run.train.seed)
    Stepper(viewer, optimizer, run.train.clip).take(run.objective, share, 0, penalty=partial(penalty, weights={}))
    assert [part for _, part, _ in run.balance.asked] == [1 / 6] * 3


LOOKS = {
    "measured": lambda see, run, share: measure_terms(see, run.objective, share, 0),
    "gradients": lambda see, run, share: gradient_norms(see, run.learner.student, run.objective, share[0], 0),
    "reached": lambda see, run, share: freeze_unreached(run.learner, see.teach, run.objective, run.setting.data, CPU),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_leaves_nothing_in_a_queue(look, tmp_path):
    run = Run(None, tmp_path)
    [term] = run.objective.modules.values()
    share = micro_batches(run.setting.data, range(8), 0, 1, 4)
    LOOKS[look](StepViewer(run.learner, run.teach, Accelerator(cpu=True), 0), run, share)
    run.objective.remember(count_units(share))
    assert term.queue.numbers.tolist() == [-1] * 40


def test_sizes_are_those_of_a_look_at_the_first_step_which_puts_its_rows_in_a_queue_once(tmp_path):
    run = Run(BALANCES["size"], tmp_path, max_steps=1)()
    [term] = run.objective.modules.values()
    assert sorted(term.queue.numbers[term.queue.numbers >= 0].tolist()) == list(range(8))
    assert run.balance.seen.tolist() == [2] * 4
    [step] = run.steps
    assert sum(step["weights"].values()) > 0
    for name, weight in (("hard", 0.3), ("soft", 0.7), ("cosine", 2), ("info-nce", 0.5)):
        assert step["weights"][name] == pytest.approx(weight / step["parts"][name], rel=1e-5)


def test_uncertainties_go_down_their_own_gradient_unclipped_at_fifty_times_the_rate(tmp_path):
    run = Run(BALANCES["uncertainty"], tmp_path, max_steps=1, lr=1e-3, clip=1e-6, weight_decay=0.5)
    logs, start = run.balance.logs, [0.5, -1.0, 0.25, 2.0]
    with torch.no_grad():
        logs.copy_(torch.tensor(start))
    groups = make_optimizer(run.learner, run.train).param_groups
    [own] = [group for group in groups if any(each is logs for each in group["params"])]
    assert (len(own["params"]), own["rate"], own["weight_decay"]) == (1, 50.0, 0.0)
    assert {group["rate"] for group in groups if group is not own} == {1.0}
    [step] = run().steps
    # d/ds (e^-s w L + s / 2), whole: neither clipped nor divided by micro-batches
    weights = (("hard", 0.3), ("soft", 0.7), ("cosine", 2.0), ("info-nce", 0.5))
    expected = [
        -math.exp(-s) * weight * step["parts"][name] + 0.5 for s, (name, weight) in zip(start, weights, strict=True)
    ]
    assert logs.grad.tolist() == pytest.approx(expected, rel=1e-4)
    others = [p.grad.square().sum() for p in run.learner.parameters() if p is not logs and p.grad is not None]
    assert float(sum(others)) ** 0.5 <= 1.01e-6
    # Adam's first step is the rate, whatever the gradient
    moved = [s - math.copysign(50 * 1e-3, gradient) for s, gradient in zip(start, expected, strict=True)]
    assert logs.tolist() == pytest.approx(moved, abs=1e-5)


def test_a_balance_scales_a_vocabularys_parts_too():
    objective = Objective({}, LMHeadLoss(hard=0.25, soft=0.75))
    assert objective.scaled({"hard": 2.0, "soft": 4.0}).weights == {"hard": 0.5, "soft": 3.0}
    assert objective.scaled({"soft": 4.0}).weights == {"hard": 0.25, "soft": 3.0}


def test_a_window_of_pace_is_fifty_steps():
    pace = PaceBalance(["a", "b"])
    for step in range(100):
        if step == 99:
            assert pace.factors(["a", "b"]) == pytest.approx({"a": 1 / 8, "b": 1 / 2})
        pace.update({"a": 8.0 if step < 50 else 4.0, "b": 2.0})
    slow = 2 / (1 + math.exp(-0.25))  # 2 e^(1/2) / (e^(1/4) + e^(1/2))
    assert pace.factors(["a", "b"]) == pytest.approx({"a": (2 - slow) / 8, "b": slow / 2})


def test_a_balance_counts_a_step_once_and_learns_nothing_of_a_term_that_had_nothing_to_look_at(tmp_path):
    run = Run(BALANCES["size"], tmp_path, max_steps=4)
    data = run.setting.data
    others = data.take(range(2, len(data)))
    run.setting.data = data.take(range(2)).with_unlabelled(others, len(others))
    run()
    hard, soft = (run.balance.names.index(name) for name in ("hard", "soft"))
    there = sum(step["parts"]["hard"] != 0 for step in run.steps)
    assert int(run.balance.seen[soft]) == 1 + 4
    assert int(run.balance.seen[hard]) == there + (1 if there else 0)
    penalty = BALANCES["uncertainty"](["hard", "soft"])
    parts = {"hard": torch.tensor(0.0), "soft": torch.tensor(2.0)}
    absent = run.objective.present_terms(parts, {unit: float(unit is not Unit.LABELLED) for unit in Unit})
    found = penalty.penalty(absent, {"hard": 0.3, "soft": 0.7}, 1.0)
    found.backward()
    assert penalty.logs.grad.tolist() == pytest.approx([0.0, -0.7 * 2 + 0.5])
