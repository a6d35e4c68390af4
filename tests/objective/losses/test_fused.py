"""Losses of a block of logits in closed form equal those of plain functions, and their gradient that of autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdalign.objective import losses
from kdalign.objective.losses.fused import CLOSED, fused_losses


def drawn(dtype=torch.float64, rows=5, vocabulary=11, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (scale * torch.randn(rows, vocabulary, generator=generator, dtype=dtype) for _ in range(2))
    return student, teacher, torch.randint(0, vocabulary, (rows,), generator=generator)


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_they_are_the_plain_losses_and_autograds_gradient(kind, temperature, weights):
    student, teacher, labels = drawn()
    found = fused_losses(student, teacher.clone(), labels, weights, kind, temperature)
    leaf = student.clone().requires_grad_()
    hard = F.cross_entropy(leaf, labels, reduction="sum")
    soft = losses.divergence(leaf, teacher, kind, temperature)
    (weights[0] * hard + weights[1] * soft).backward()
    assert float(found.hard) == pytest.approx(float(hard.detach()), rel=1e-12)
    assert float(found.soft) == pytest.approx(float(soft.detach()), rel=1e-6)  # ``divergence`` works in float32
    torch.testing.assert_close(found.slope, leaf.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", CLOSED)
def test_by_hand_two_entries_even_against_three_to_one(kind):
    """p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = log 2 - H(q), KL(p || q) = log(2 / sqrt(3))."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    found = fused_losses(student, teacher, torch.tensor([0]), (0.0, 1.0), kind, 1.0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = {"forward": math.log(2) - entropy, "reverse": math.log(2 / math.sqrt(3))}
    slope = {"forward": [-0.25, 0.25], "reverse": [-math.log(3) / 4, math.log(3) / 4]}
    assert float(found.hard) == pytest.approx(math.log(2))
    assert float(found.soft) == pytest.approx(expected[kind])
    assert found.slope[0].tolist() == pytest.approx(slope[kind])


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_at_the_teacher_both_divergence_and_gradient_vanish(kind, temperature):
    student, _, labels = drawn()
    found = fused_losses(student, student.clone(), labels, (0.0, 1.0), kind, temperature)
    assert float(found.soft) == pytest.approx(0.0, abs=1e-12)
    assert float(found.slope.abs().max()) < 1e-12


@pytest.mark.parametrize("kind", CLOSED)
def test_probabilities_that_underflow_stay_finite(kind):
    """A loss that is computed with probabilities in place of their logarithms gives NaN here (Liger-Kernel#1453)."""
    student = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    found = fused_losses(student, -student, torch.tensor([0, 0]), (0.5, 0.5), kind, 1.0)
    assert all(bool(each.isfinite().all()) for each in (found.hard, found.soft, found.slope))
    assert float(found.soft) == pytest.approx(800.0)


def test_without_a_slope_the_losses_are_the_same_and_the_students_logits_are_left_alone():
    student, teacher, labels = drawn(torch.float32)
    kept = student.clone()
    for kind in CLOSED:
        given = (0.5, 2.0), kind, 2.0
        found, alone = (fused_losses(student, teacher.clone(), labels, *given, slope=slope) for slope in (True, False))
        assert alone.slope is None
        assert (float(found.hard), float(found.soft)) == (float(alone.hard), float(alone.soft))
    assert torch.equal(student, kept)
