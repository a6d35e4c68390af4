"""What is counted of a loop that a library owns."""

import itertools

import pytest
import torch

from benchmarks.peers.meter import Counts, Job, Meter


class Reader(torch.nn.Module):
    """Reads rows of which a mask says how many tokens are real."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, attention_mask):
        return self.weight * attention_mask.sum()


def job(**changes):
    fixed = {"variant": "", "teacher": "", "student": "", "data": "", "scratch": "", "seed": 0, "seconds": 0.0}
    return Job(**{**fixed, "warm_up": 2, "least": 3, **changes})


def loop_of(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loop():
        for step in itertools.count(1):
            model(attention_mask=torch.tensor([[1] * step + [0], [1] * (step + 1)])).backward()
            optimizer.step()

    return loop


def test_the_steps_after_those_that_warm_up_are_counted_without_padding():
    model = Reader()
    meter = Meter(job(), Counts(model))
    meter.run(loop_of(model))
    assert (meter.steps, meter.speed["steps"], meter.speed["samples"]) == (5, 3, 6)
    assert meter.speed["tokens"] == (3 + 4) + (4 + 5) + (5 + 6)
    assert meter.speed["gib"] > 0


def test_rows_read_for_scores_are_not_counted():
    model = Reader()
    counts = Counts(model)
    model.eval()(attention_mask=torch.ones(4, 8))
    assert counts() == (0, 0)


def test_the_student_is_scored_when_it_is_due_and_the_loop_ends_after_the_last():
    model, scored = Reader(), []
    meter = Meter(job(accuracy_steps=8), Counts(model), lambda: scored.append(meter.steps) or 0.5)
    meter.run(loop_of(model))
    assert scored == [5, 8]  # the speed first; then the seconds, which were due before
    assert meter.scores["after_seconds"]["steps"] == 5
    assert meter.scores["after_steps"]["steps"] == meter.steps == 8
    assert meter.speed["steps"] == 3


def test_a_loop_that_ends_too_early_is_no_measurement():
    with pytest.raises(AssertionError, match="before all was measured"):
        Meter(job(), lambda: (0, 0)).run(lambda: None)
