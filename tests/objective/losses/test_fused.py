"""Losses of a block of logits in closed form equal those of plain functions, and their gradient that of autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdalign.models.token_targets import TopEntries, top_log_probabilities
from kdalign.objective import losses
from kdalign.objective.losses.fused import CLOSED, fused_losses, fused_losses_of_top


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


def top_of(teacher, k, temperature=1.0):
    entries = teacher.topk(k, dim=1).indices
    return TopEntries(entries, top_log_probabilities(teacher / temperature, entries), teacher.size(1))


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("weights", "k"), [((0.3, 0.7), 3), ((0.0, 1.0), 10), ((1.0, 0.0), 1)])
def test_by_top_entries_they_are_the_plain_losses_and_autograds_gradient(kind, temperature, weights, k):
    student, teacher, labels = drawn()
    top = top_of(teacher, k, temperature)
    found = fused_losses_of_top(student, top, labels, weights, kind, temperature, 0.2)
    alone = fused_losses_of_top(student, top, labels, weights, kind, temperature, 0.2, slope=False)
    leaf = student.clone().requires_grad_()
    hard = F.cross_entropy(leaf, labels, reduction="sum")
    soft = losses.divergence_of_top(leaf, top.entries, top.logs, kind, temperature, 0.2)
    (weights[0] * hard + weights[1] * soft).backward()
    assert float(found.hard) == float(alone.hard) == pytest.approx(float(hard.detach()), rel=1e-12)
    assert float(found.soft) == float(alone.soft) == pytest.approx(float(soft.detach()), rel=1e-6, abs=1e-9)
    torch.testing.assert_close(found.slope, leaf.grad, rtol=1e-6, atol=1e-7)
    assert alone.slope is None


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
def test_by_top_entries_what_underflows_stays_finite_and_has_autograds_gradient(kind):
    """The kept entries reach 1 in the first row, where the rest by subtraction is log 0, and 0 in the second."""
    student = torch.tensor([[200.0, -200.0, 0.0, 1.0], [-200.0, -150.0, 200.0, 1.0]])
    top = top_of(torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]]), 2)
    found = fused_losses_of_top(student, top, torch.tensor([0, 3]), (0.5, 0.5), kind, 1.0)
    leaf = student.clone().requires_grad_()
    hard = F.cross_entropy(leaf, torch.tensor([0, 3]), reduction="sum")
    soft = losses.divergence_of_top(leaf, top.entries, top.logs, kind, 1.0)
    (0.5 * hard + 0.5 * soft).backward()
    assert float(found.soft) == pytest.approx(float(soft.detach()), rel=1e-6)
    torch.testing.assert_close(found.slope, leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse"])
def test_all_entries_as_top_entries_are_the_closed_form_of_the_whole(kind):
    student, teacher, labels = drawn()
    top = top_of(teacher, teacher.size(1))
    found = fused_losses_of_top(student, top, labels, (0.3, 0.7), kind, 1.0)
    whole = fused_losses(student, teacher.clone(), labels, (0.3, 0.7), kind, 1.0)
    assert float(found.soft) == pytest.approx(float(whole.soft), rel=1e-9)
    torch.testing.assert_close(found.slope, whole.slope, rtol=1e-9, atol=1e-12)


def test_by_hand_one_entry_and_two_others_as_one():
    """p = (1/2, 1/4, 1/4), q = (3/4, 1/4): KL(q || p) = 3/4 log 3/2 + 1/4 log 1/2; the two others move as p does."""
    student = torch.tensor([[2.0, 1.0, 1.0]]).log()
    teacher = TopEntries(torch.tensor([[0]]), torch.tensor([[0.75, 0.25]]).log(), 3)
    found = fused_losses_of_top(student, teacher, torch.tensor([1]), (0.0, 1.0), "forward", 1.0)
    assert float(found.soft) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.slope[0].tolist() == pytest.approx([-0.25, 0.125, 0.125])
