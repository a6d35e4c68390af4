"""Dropout drawn from sixteen bits for each activation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdalign.models.dropout import quick_dropout
from kdalign.training.step import settings_of_steps

CPU = torch.device("cpu")


def dropped(activations, p, seed=0):
    torch.manual_seed(seed)
    with quick_dropout(CPU):
        return F.dropout(activations, p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_is_the_probability_and_the_mean_stays(p):
    found = dropped(torch.ones(10**6 + 3), p)  # no multiple of the activations for one draw
    spread = (p * (1 - p) / 10**6) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(p, abs=4 * spread)
    assert float(found.double().mean()) == pytest.approx(1, abs=4 * spread / (1 - p))
    [kept] = found.unique()[1:].tolist()
    probability = round(p * 2**16) / 2**16
    assert kept == pytest.approx(1 / (1 - probability), rel=1e-6)


def test_each_of_the_four_activations_of_a_draw_is_dropped_independently():
    zero = (dropped(torch.ones(4 * 10**5), 0.5).view(-1, 4) == 0).double()
    assert torch.allclose(torch.corrcoef(zero.T), torch.eye(4, dtype=torch.double), atol=4e-3 * 4)


def test_the_gradient_has_the_same_mask():
    activations = torch.randn(7, 5, requires_grad=True)
    found = dropped(activations, 0.3)
    [gradient] = torch.autograd.grad(found.sum(), activations)
    assert torch.equal(gradient * activations, found)


def test_in_bfloat16_the_scale_is_not_rounded():
    """1 / 0.9 would be 1.1094 in bfloat16, and each of these 1.1094 times as large."""
    values = torch.full((1000,), 1.5, dtype=torch.bfloat16)
    found = dropped(values, 0.1)
    assert found.dtype == torch.bfloat16
    assert set(found.tolist()) == {0.0, float(torch.tensor(1.5 / 0.9).bfloat16())}


def test_a_seed_decides_the_mask():
    ones = torch.ones(100)
    assert torch.equal(dropped(ones, 0.5, seed=1), dropped(ones, 0.5, seed=1))
    assert not torch.equal(dropped(ones, 0.5, seed=1), dropped(ones, 0.5, seed=2))


def test_modules_draw_so_in_training_alone_and_only_inside():
    module, ones = nn.Dropout(0.5), torch.ones(4096)
    own = F.dropout
    with quick_dropout(CPU):
        torch.manual_seed(0)
        assert torch.equal(module(ones), dropped(ones, 0.5))
        assert torch.equal(module.eval()(ones), ones)
        assert torch.equal(F.dropout(ones, 0.0), ones)
        assert torch.equal(F.dropout(ones, 1.0), torch.zeros(4096))
    assert F.dropout is own


def test_steps_draw_so_unless_an_older_version_began_the_run():
    own = F.dropout
    with settings_of_steps(CPU):
        assert F.dropout is not own
    with settings_of_steps(CPU, quick=False):
        assert F.dropout is own
