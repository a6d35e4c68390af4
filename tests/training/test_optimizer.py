"""AdamW's moments in fewer bytes: near the steps of float32, never standing still, and resumed bit for bit."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdalign.objective.balancing import UncertaintyBalance
from kdalign.recipe import TrainSettings
from kdalign.training import loop
from kdalign.training.checkpoint import newest_sound
from kdalign.training.optimizer import FACTOR_RATE, MOMENT_BYTES, make_optimizer
from kdalign.training.rounded_adamw import CHUNK, RoundedAdamW, round_at_random
from support.on_policy_setting import OnPolicySetting
from support.tiny import one_line

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
NEEDS_BITSANDBYTES = pytest.mark.skipif(not HAS_BITSANDBYTES, reason="8-bit moments need the extra: 8bit")
SMALL = pytest.mark.parametrize("form", ["bf16", pytest.param("8bit", marks=NEEDS_BITSANDBYTES)])
EVERY = pytest.mark.parametrize("form", ["fp32", "bf16", pytest.param("8bit", marks=NEEDS_BITSANDBYTES)])


def optimizer_of(module, form="fp32", lr=1e-3):
    return make_optimizer(module, TrainSettings(optimizer_state=form, lr=lr))


def linear(width=96):
    """Matrices that are large enough for 8 bits, whose weights all start at 1."""
    module = nn.Linear(width, width)
    nn.init.ones_(module.weight)
    return module


def steps(form, gradients):
    """Weights after each step from these gradients of the matrix."""
    module = linear()
    optimizer, found = optimizer_of(module, form), []
    for gradient in gradients:
        module.weight.grad = gradient.clone()
        optimizer.step()
        found.append(module.weight.detach().clone())
    return found


@SMALL
def test_the_first_step_is_that_of_float32(form):
    gradient = torch.randn(96, 96, generator=torch.Generator().manual_seed(1))
    [found], [expected] = steps(form, [gradient]), steps("fp32", [gradient])
    torch.testing.assert_close(found, expected, atol=2e-7, rtol=0)


def test_a_transposed_parameter_takes_the_steps_of_one_that_is_not():
    gradient = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    plain, turned = nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(3, 5).T)
    for parameter in (plain, turned):
        parameter.grad = gradient.clone()
        RoundedAdamW([parameter], lr=0.1, seed=0).step()
    assert not turned.is_contiguous()
    assert torch.equal(plain, turned)
    assert not torch.equal(plain, torch.ones(5, 3))


def test_later_steps_are_within_what_bfloat16_rounds():
    # Of one sign: then a moment is off by at most 2^-7 of itself, and a step by 2^-7 + 2^-8 of its length, 1.2 %.
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.rand(96, 96, generator=generator) + 0.1 for _ in range(2)]
    found, expected = steps("bf16", gradients), steps("fp32", gradients)
    step = expected[1] - expected[0]
    assert float(((found[1] - found[0]) - step).abs().max() / step.abs().max()) < 0.012


@SMALL
def test_two_hundred_steps_end_near_those_of_float32(form):
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(96, 96, generator=generator) + 0.2 for _ in range(200)]
    found, expected = steps(form, gradients)[-1] - 1, steps("fp32", gradients)[-1] - 1
    assert float((found - expected).norm() / expected.norm()) < {"bf16": 0.005, "8bit": 0.03}[form]


def test_a_second_moment_follows_its_gradient_where_the_nearest_number_would_stand_still():
    module = nn.Linear(64, 64)
    optimizer = RoundedAdamW([{"params": [module.weight]}], lr=0.0)
    module.weight.grad = torch.ones(64, 64)
    optimizer.step()
    state = optimizer.state[module.weight]
    state["exp_avg_sq"].fill_(1.0)
    module.weight.grad.fill_(2.0)
    nearest = torch.tensor(1.0, dtype=torch.bfloat16)
    for _ in range(500):
        optimizer.step()
        nearest = (0.999 * nearest.float() + 0.001 * 4).bfloat16()
    assert float(nearest) == 1.0, "an update of 0.3 % is below half of bfloat16's step of 0.8 %"
    expected = 4 - 3 * 0.999**500
    assert float(state["exp_avg_sq"].float().mean()) == pytest.approx(expected, rel=0.005)


def test_rounding_is_right_on_average_and_leaves_what_bfloat16_holds():
    generator = torch.Generator().manual_seed(0)
    for value in (1.001, -3.3e-9, 1e-41, 7.7e30):
        many = torch.full((200_000,), value)
        rounded = round_at_random(many, generator).double()
        low, high = sorted(rounded.unique().tolist())
        assert low < float(many[0]) < high
        spread = (high - low) / 200_000**0.5
        assert abs(float(rounded.mean()) - float(many[0])) < 3 * spread
    held = torch.tensor([0.0, 1.0, -2.5, 2.0**-126, -0.0])
    assert torch.equal(round_at_random(held, generator), held.bfloat16())


def test_a_parameter_of_several_chunks_is_stepped_to_its_end_whatever_others_have_a_gradient():
    def stepped(alone):
        first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(CHUNK + 5))
        optimizer = RoundedAdamW([{"params": [first]}, {"params": [second]}], lr=1e-3, seed=4)
        first.grad = None if alone else torch.ones(3)
        second.grad = torch.full((CHUNK + 5,), 0.3)
        optimizer.step()
        return second.detach(), optimizer.state[second]["exp_avg"]

    (weights, moments), (_, others) = stepped(True), stepped(False)
    torch.testing.assert_close(weights, torch.full((CHUNK + 5,), 1 - 1e-3))
    assert torch.equal(moments, others)


@EVERY
def test_moments_take_the_bytes_that_the_checks_before_a_run_count(form):
    module = nn.Linear(1024, 512, bias=False)
    optimizer = optimizer_of(module, form)
    module.weight.grad = torch.randn(512, 1024)
    optimizer.step()
    tensors = [each for each in optimizer.state[module.weight].values() if isinstance(each, torch.Tensor)]
    each = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / module.weight.numel()
    assert MOMENT_BYTES[form] <= each < 1.04 * MOMENT_BYTES[form]


@EVERY
def test_groups_and_their_rates_are_the_same_for_every_format(form):
    module = nn.ModuleDict({"student": nn.Linear(4, 4), "balance": UncertaintyBalance(["hard", "soft"])})
    groups = optimizer_of(module, form).param_groups
    assert [(group["weight_decay"], group["rate"]) for group in groups] == [(0.01, 1.0), (0.0, 1.0), (0.0, FACTOR_RATE)]


@EVERY
def test_a_run_stopped_and_resumed_ends_in_the_same_weights_and_moments(form, tmp_path, monkeypatch):
    whole, stopped, kept = tmp_path / "whole", tmp_path / "stopped", loop.save_checkpoint
    OnPolicySetting("gpt2").train(whole, optimizer_state=form)

    def stop(folder, *rest):
        kept(folder, *rest)
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", stop)
        with pytest.raises(SystemExit):
            OnPolicySetting("gpt2").train(stopped, optimizer_state=form)
    assert newest_sound(loop.RunFolder(stopped)).progress.step == 2
    OnPolicySetting("gpt2").train(stopped, resume=True, optimizer_state=form)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(path / "checkpoints" / "step-6" / name) for path in (whole, stopped))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_eight_bits_without_their_package_are_refused_by_a_dry_run(kdalign, teacher, data, monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else real(name, *rest)
    )
    words = ["distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run"]
    status, _, err = kdalign(*words, "--set", "train.optimizer_state=8bit")
    assert status == 2
    assert "train.optimizer_state=8bit needs a package: pip install 'kdalign[8bit]'" in one_line(err)
    assert list(tmp_path.iterdir()) == []
