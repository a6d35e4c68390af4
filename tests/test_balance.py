"""Balance of terms: hand-worked factors, what a scaled term changes, ranks, stops, and what is recorded."""

import json
import math

import numpy as np
import pytest
import torch
from test_further_terms import run, weights_of

from kdalign.balance import BALANCES, WINDOW, Pace, RunningSize, Uncertainty
from kdalign.evidence import curves, finished_runs
from kdalign.recipe import Objective as Weights


def test_a_running_size_is_the_first_value_and_then_a_moving_mean():
    balance = RunningSize(["a", "b"])
    assert balance.lacks(["a"])
    balance.saw({"a": 4.0, "b": 0.0})
    assert not balance.lacks(["a", "b"])
    assert balance.factors(["a", "b"]) == {"a": 0.25, "b": 1.0}
    balance.saw({"a": 2.0})
    assert balance.factors(["a"])["a"] == pytest.approx(1 / (0.98 * 4 + 0.02 * 2))


def test_a_term_that_is_scaled_has_a_size_that_is_scaled():
    one, other = RunningSize(["a"]), RunningSize(["a"])
    for value in (3.0, 2.0, 5.0, 1.0):
        one.saw({"a": value})
        other.saw({"a": 1000 * value})
        assert 1000 * other.factors(["a"])["a"] == pytest.approx(one.factors(["a"])["a"], rel=1e-12)


def test_uncertainty_has_the_gradient_of_its_formula():
    balance = Uncertainty(["a", "b"])
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
    balance = Pace(["quick", "slow"])
    balance.saw({"quick": 8.0, "slow": 2.0})
    assert balance.factors(["quick", "slow"]) == pytest.approx({"quick": 1 / 8, "slow": 1 / 2})
    balance = Pace(["quick", "slow"])
    for _ in range(WINDOW):
        balance.saw({"quick": 8.0, "slow": 2.0})
    for _ in range(WINDOW):
        balance.saw({"quick": 4.0, "slow": 2.0})
    weights = np.exp([0.5 / 2, 1.0 / 2])
    quick, slow = 2 * weights / weights.sum()
    assert balance.factors(["quick", "slow"]) == pytest.approx({"quick": quick / 8, "slow": slow / 2})


def test_the_recipe_knows_every_balance():
    for word in BALANCES:
        assert Weights(balance=word).balance == word


TERM = """
import torch
from kdalign.terms import Signal, Unit

class Scaled:
    needs, unit = frozenset({Signal.LOGITS}), Unit.EXAMPLE
    def __init__(self, setting, by):
        self.by = by
    def __call__(self, view):
        return self.by * (view.student.logits - view.taught.logits).square().sum()
"""


def command(teacher, data, out, *more):
    return [
        "-m", "kdalign", "distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2",
        "--data", str(data), "--max-steps", "8", "--batch-size", "16", "--precision", "fp32", "--device", "cpu",
        "--set", "train.dropout=0", "--out", str(out), *more,
    ]  # fmt: skip


def steps_of(out):
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "step"]


def test_a_term_scaled_by_a_thousand_changes_nothing_by_size_and_is_recorded(teacher, data, tmp_path):
    """By 1,024, so that nothing is rounded otherwise, and by 1,000."""
    (tmp_path / "own.py").write_text(TERM)
    for by in (1, 1000, 1024):
        recipe = tmp_path / f"{by}.yaml"
        terms = f"{{'{tmp_path}/own.py:Scaled': {{weight: 1, by: {by}}}}}"
        recipe.write_text(f"objective: {{balance: size, terms: {terms}}}\n")
        done = run(command(teacher, data, tmp_path / f"by{by}", "--recipe", str(recipe)))
        assert done.returncode == 0, done.stderr
    ours, exactly, nearly = (weights_of(tmp_path / f"by{by}") for by in (1, 1024, 1000))
    for name in ours:
        assert torch.equal(exactly[name], ours[name]), name
        torch.testing.assert_close(nearly[name], ours[name], atol=2e-4, rtol=1e-3)  # Adam makes much of rounding
    name = f"{tmp_path}/own.py:Scaled"
    for one, other in zip(steps_of(tmp_path / "by1"), steps_of(tmp_path / "by1000"), strict=True):
        assert other["parts"][name] == pytest.approx(1000 * one["parts"][name], rel=1e-3)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert sum(one["weights"][k] * one["parts"][k] for k in one["parts"]) == pytest.approx(one["loss"], rel=1e-5)
    first = steps_of(tmp_path / "by1")[0]  # at first, each is 1 times the recipe's weight
    assert first["loss"] == pytest.approx(0.3 + 0.7 + 1 + 1 + 1 + 1, rel=1e-5)
    [trained] = [curves(each) for each in finished_runs([tmp_path / "by1"])]
    assert sum(share[0] for share in trained.shares.values()) == pytest.approx(100)
    assert trained.shares[name][0] == pytest.approx(100 / 5)


@pytest.mark.parametrize("word", BALANCES)
def test_a_balance_survives_a_stop_bit_for_bit_and_belongs_to_no_student(word, teacher, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = ("--set", f"objective.balance={word}", "--set", "train.checkpoint_every=2", "--lr", "1e-2")
    assert run(command(teacher, data, whole, *more)).returncode == 0
    code = (
        "import sys\nfrom kdalign import training\nkept = training.save_checkpoint\n"
        "def stop(folder, *rest):\n    kept(folder, *rest)\n    raise SystemExit(9)\n"
        "training.save_checkpoint = stop\nfrom kdalign.cli import main\nsys.argv[1:] = sys.argv[3:]\nmain()\n"
    )
    stopped = run(["-c", code, *command(teacher, data, parts, *more)])
    assert stopped.returncode == 9, stopped.stderr
    done = run(command(teacher, data, parts, *more, "--resume"))
    assert done.returncode == 0, done.stderr
    ours, theirs = weights_of(whole), weights_of(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "balance" in name]
    assert [event["weights"] for event in steps_of(whole)] == [event["weights"] for event in steps_of(parts)]
    if word == "uncertainty":
        weights = steps_of(whole)
        assert weights[-1]["weights"]["cosine"] != weights[0]["weights"]["cosine"] == 1.0


def test_two_ranks_have_one_balance(teacher, data, tmp_path):
    more = ("--set", "objective.balance=size")
    assert run(command(teacher, data, tmp_path / "one", *more)).returncode == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0", "--standalone"]  # fmt: skip
    done = run([*torchrun, *command(teacher, data, tmp_path / "two", *more)])
    assert done.returncode == 0, done.stderr
    for one, two in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "two"), strict=True):
        assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
