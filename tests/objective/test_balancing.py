"""Balance of terms: hand-worked factors, what a scaled term changes, ranks, stops, and what is recorded."""

import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from kdalign.data.batches import collate
from kdalign.objective.balancing import BALANCES, WINDOW, PaceBalance, RunningSize, UncertaintyBalance
from kdalign.objective.terms import TermInputs
from kdalign.objective.units import count_units
from kdalign.recipe import ObjectiveWeights as Weights
from kdalign.runs.curves import read_curves
from kdalign.runs.finished import finished_runs
from kdalign.training.diagnostics import StepViewer, find_small_shares, gradient_norms
from support.classifier_setting import Setting
from support.commands import command, steps_of
from support.terms import weights_of


def test_a_running_size_is_the_first_value_and_then_a_moving_mean():
    balance = RunningSize(["a", "b"])
    assert balance.needs_warmup(["a"])
    balance.update({"a": 4.0, "b": 0.0})
    assert not balance.needs_warmup(["a", "b"])
    assert balance.factors(["a", "b"]) == {"a": 0.25, "b": 1.0}
    balance.update({"a": 2.0})
    assert balance.factors(["a"])["a"] == pytest.approx((1 - 0.98**2) / (0.98 * 0.02 * 4 + 0.02 * 2))
    for _ in range(500):
        balance.update({"a": 2.0})
    assert balance.factors(["a"])["a"] == pytest.approx(1 / 2, rel=1e-3)


def test_what_rounding_leaves_of_nothing_is_no_size():
    balance = RunningSize(["a"])
    for value in (-2e-8, 0.0, 3e-8):
        balance.update({"a": value})
        assert balance.factors(["a"]) == {"a": 1.0}
    balance.update({"a": 0.002})  # the first size, and not a fiftieth of it
    assert balance.factors(["a"])["a"] == pytest.approx(500)
    pace = PaceBalance(["a"])
    pace.update({"a": -2e-8})
    assert pace.factors(["a"]) == {"a": 1.0}
    for _ in range(WINDOW - 1):
        pace.update({"a": 0.5})
    assert pace.factors(["a"])["a"] == pytest.approx(WINDOW / (0.5 * (WINDOW - 1)))


def test_a_term_that_is_scaled_has_a_size_that_is_scaled():
    one, other = RunningSize(["a"]), RunningSize(["a"])
    for value in (3.0, 2.0, 5.0, 1.0):
        one.update({"a": value})
        other.update({"a": 1000 * value})
        assert 1000 * other.factors(["a"])["a"] == pytest.approx(one.factors(["a"])["a"], rel=1e-12)


def test_uncertainty_has_the_gradient_of_its_formula():
    balance = UncertaintyBalance(["a", "b"])
    with torch.no_grad():
        balance.logs.copy_(torch.tensor([0.5, -1.0]))
    assert balance.factors(["a", "b"]) == pytest.approx({"a": math.exp(-0.5), "b": math.exp(1)})
    parts, weights = {"a": torch.tensor(3.0), "b": torch.tensor(0.2)}, {"a": 2.0, "b": 1.0}
    # Two micro-batches of a step, each with a part of it.
    found = sum(balance.penalty({k: v / 2 for k, v in parts.items()}, weights, 0.5) for _ in range(2))
    assert float(found.detach()) == pytest.approx((0.5 - 1.0) / 2)
    (gradient,) = torch.autograd.grad(found, balance.logs)
    # d/ds (e^-s w L + s / 2) = -e^-s w L + 1 / 2
    expected = torch.tensor([-math.exp(-0.5) * 6 + 0.5, -math.exp(1) * 0.2 + 0.5])
    torch.testing.assert_close(gradient, expected)


def test_pace_gives_more_weight_to_what_falls_more_slowly():
    balance = PaceBalance(["quick", "slow"])
    balance.update({"quick": 8.0, "slow": 2.0})
    assert balance.factors(["quick", "slow"]) == pytest.approx({"quick": 1 / 8, "slow": 1 / 2})
    balance = PaceBalance(["quick", "slow"])
    for _ in range(WINDOW):
        balance.update({"quick": 8.0, "slow": 2.0})
    for _ in range(WINDOW):
        balance.update({"quick": 4.0, "slow": 2.0})
    weights = np.exp([0.5 / 2, 1.0 / 2])
    quick, slow = 2 * weights / weights.sum()
    assert balance.factors(["quick", "slow"]) == pytest.approx({"quick": quick / 8, "slow": slow / 2})


def test_the_recipe_knows_every_balance():
    for word in BALANCES:
        assert Weights(balance=word).balance == word


TERM = """
import torch
from kdalign.plugins import Signal, Unit

class Scaled:
    needs, unit = frozenset({Signal.LOGITS}), Unit.EXAMPLE
    def __init__(self, setting, by):
        self.by = by
    def __call__(self, view):
        return self.by * (view.student.logits - view.teacher.logits).square().sum()
"""


@pytest.mark.slow
def test_a_term_scaled_by_a_thousand_changes_nothing_by_size_and_is_recorded(teacher, data, tmp_path, kdalign):
    """By 1,024, so that nothing is rounded otherwise."""
    (tmp_path / "own.py").write_text(TERM)
    for by in (1, 1024):
        recipe = tmp_path / f"{by}.yaml"
        terms = f"{{'{tmp_path}/own.py:Scaled': {{weight: 1, by: {by}}}}}"
        recipe.write_text(f"objective: {{balance: size, terms: {terms}}}\n")
        words = command(teacher, data, tmp_path / f"by{by}", "--recipe", str(recipe), "--allow", "code")
        assert kdalign(*words[2:])[0] == 0
    ours, theirs = (weights_of(tmp_path / f"by{by}") for by in (1, 1024))
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    name = f"{tmp_path}/own.py:Scaled"
    for one, other in zip(steps_of(tmp_path / "by1"), steps_of(tmp_path / "by1024"), strict=True):
        assert other["parts"][name] == 1024 * one["parts"][name]
        assert other["loss"] == one["loss"]
        assert sum(one["weights"][k] * one["parts"][k] for k in one["parts"]) == pytest.approx(one["loss"], rel=1e-5)
    first = steps_of(tmp_path / "by1")[0]  # at first, each is 1 times the recipe's weight
    assert first["loss"] == pytest.approx(0.3 + 0.7 + 1 + 1 + 1 + 1, rel=1e-5)
    [trained] = [read_curves(each) for each in finished_runs([tmp_path / "by1"])]
    assert sum(share[0] for share in trained.shares.values()) == pytest.approx(100)
    assert trained.shares[name][0] == pytest.approx(100 / 5)


def test_gradient_norms_of_terms_are_those_of_each_alone_on_the_last_layer_that_it_reaches():
    setting = Setting("bert", "bert", 32, Weights(hard=0.3, alpha=0.7, beta=2, gamma=1, delta=1, temperature=2))
    batch = collate(setting.data, range(8))
    teach = lambda each: setting.teacher(each, setting.learner.wanted_of_teacher)  # noqa: E731
    see = StepViewer(setting.learner, teach, Accelerator(cpu=True), 0)
    found = gradient_norms(see, setting.learner.student, setting.objective, batch, 0)
    assert list(found) == ["hard", "soft", "cosine", "euclid", "attention"]
    assert all(parameter.grad is None for parameter in setting.learner.parameters())
    last = list(setting.learner.student.bert.encoder.layer[-1].parameters())
    for name, weight in (("hard", 0.3), ("cosine", 2)):
        taught = teach(batch)
        view = TermInputs(setting.learner(batch.inputs, taught), taught, batch)
        _, term = setting.objective.terms[name]
        value = weight * term(view) / count_units([batch])[term.unit]
        grads = torch.autograd.grad(value, last, allow_unused=True)
        expected = sum(float(each.square().sum()) for each in grads if each is not None) ** 0.5
        assert found[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_look_at_gradients_changes_no_step_and_is_in_the_history(teacher, data, tmp_path, kdalign, monkeypatch):
    more = ("--set", "objective.terms.info-nce.queue=40")
    for steps in (3, 1000):
        monkeypatch.setattr("kdalign.training.loop.GRADIENT_STEPS", steps)
        assert kdalign(*command(teacher, data, tmp_path / f"every{steps}", *more)[2:])[0] == 0
    often, once = (weights_of(tmp_path / f"every{steps}") for steps in (3, 1000))
    assert all(torch.equal(often[name], once[name]) for name in once)
    events = [json.loads(line) for line in (tmp_path / "every3/history.jsonl").read_text().splitlines()]
    looked = [event for event in events if event["kind"] == "gradients"]
    assert [event["step"] for event in looked] == [0, 3, 6]
    assert set(looked[0]["norms"]) == {"hard", "soft", "cosine", "euclid", "attention", "info-nce"}
    assert all(norm > 0 for event in looked for norm in event["norms"].values())


@pytest.mark.slow
def test_a_term_that_hardly_counts_is_said(teacher, data, tmp_path, kdalign):
    code, _, said = kdalign(*command(teacher, data, tmp_path / "a", "--delta", "1e-6")[2:])
    assert code == 0, said
    assert "attention is only 0.00% of the loss at the end: give it a larger weight" in " ".join(said.split())
    assert "cosine is" not in said
    assert find_small_shares([{"a": 99.0, "b": 1.2}, {"a": 99.0, "b": 0.2}]) == pytest.approx({"b": 1.4 / 199.4})
    assert find_small_shares([]) == {}


@pytest.mark.parametrize("word", BALANCES)
def test_all_that_a_balance_knows_is_in_its_state(word):
    balance, again = BALANCES[word](["a", "b"]), BALANCES[word](["a", "b"])
    for step in range(2 * WINDOW + 7):
        balance.update({"a": 3.0 + step % 5, "b": 1 / (1 + step)})
    with torch.no_grad():
        for parameter in balance.parameters():
            parameter += 0.3
    again.load_state_dict(balance.state_dict())
    for _ in range(WINDOW):
        assert again.factors(["a", "b"]) == balance.factors(["a", "b"])
        assert again.needs_warmup(["a"]) == balance.needs_warmup(["a"])
        for each in (balance, again):
            each.update({"a": 2.0, "b": 1.0})


@pytest.mark.slow
def test_a_balance_that_is_learnt_survives_a_stop_bit_for_bit_and_belongs_to_no_student(
    teacher, data, tmp_path, kdalign, stopped
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--set", "objective.balance=uncertainty", "--set", "train.checkpoint_every=2", "--lr", "1e-2")
    assert kdalign(*command(teacher, data, whole, *more)[2:])[0] == 0
    words = command(teacher, data, parts, *more)[2:]
    assert stopped(*words)[0] == 9
    assert kdalign(*words, "--resume")[0] == 0
    ours, theirs = weights_of(whole), weights_of(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "balance" in name]
    assert [event["weights"] for event in steps_of(whole)] == [event["weights"] for event in steps_of(parts)]
    weights = steps_of(whole)
    assert weights[-1]["weights"]["cosine"] != weights[0]["weights"]["cosine"] == 1.0
