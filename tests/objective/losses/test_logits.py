"""Losses on logits against numbers worked by hand, and against loops in float64."""

import math

import numpy as np
import pytest
import torch

from kdalign.objective import losses

YES = torch.tensor([True])


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_logit_squared_error_by_hand():
    # (1 - 0)^2 and (0 - 2)^2 over two classes: 5 / 2.
    student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(losses.logit_squared_error(student, teacher, YES)) == pytest.approx(2.5)
    assert float(losses.logit_squared_error(student, teacher, ~YES)) == 0


def test_decoupled_kl_by_hand():
    # Teacher (1/2, 1/4, 1/4), student (1/3, 1/3, 1/3), label 0: the others are even in both, so that only
    # (1/2, 1/2) against (1/3, 2/3) is left: log(3/2) / 2 + log(3/4) / 2.
    teacher, student = torch.tensor([[math.log(2), 0.0, 0.0]]), torch.zeros(1, 3)
    label = torch.tensor([0])
    by_hand = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert float(losses.decoupled_kl(student, teacher, label, YES, 1.0)) == pytest.approx(by_hand, rel=1e-5)
    # Label 1: (1/4, 3/4) against (1/3, 2/3), and among the others (2/3, 1/3) against (1/2, 1/2), eight times.
    binary = 0.25 * math.log(0.75) + 0.75 * math.log(9 / 8)
    others = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    found = float(losses.decoupled_kl(student, teacher, torch.tensor([1]), YES, 1.0))
    assert found == pytest.approx(binary + 8 * others, rel=1e-5)


def test_decoupled_kl_is_plain_kl_where_the_others_are_weighed_as_there():
    """KL = KL(b || b) + (1 - p_y) KL(others): one example at a time (equation 5 of the paper)."""
    student, teacher, labels = numbers(4, 5), numbers(4, 5, seed=1), torch.tensor([0, 4, 2, 2])
    for row in range(4):
        one = slice(row, row + 1)
        p = float(torch.softmax(teacher[one] / 3, 1)[0, labels[row]])
        found = losses.decoupled_kl(student[one], teacher[one], labels[one], YES, 3.0, other=1 - p)
        assert float(found) == pytest.approx(float(losses.soft_target_kl(student[one], teacher[one], YES, 3.0)))


def test_of_two_classes_decoupled_kl_is_plain_kl_however_the_others_are_weighed():
    student, teacher, labels = numbers(4, 2), numbers(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    mask = torch.ones(4, dtype=torch.bool)
    plain = float(losses.soft_target_kl(student, teacher, mask, 2.0))
    for other in (0.0, 8.0, 100.0):
        assert float(losses.decoupled_kl(student, teacher, labels, mask, 2.0, other)) == pytest.approx(plain)


def test_correlation_distance_is_a_loop_over_rows_and_columns():
    student, teacher = numbers(6, 4), numbers(6, 4, seed=1)
    ours, theirs = (np.array([softmax(row / 2) for row in x.numpy()]) for x in (student, teacher))
    rows = np.mean([1 - np.corrcoef(ours[i], theirs[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(ours[:, c], theirs[:, c])[0, 1] for c in range(4)])
    found = losses.correlation_distance(student, teacher, 2.0)
    assert float(found) == pytest.approx(4 * (rows + columns), rel=1e-12)


def test_of_two_classes_the_correlation_over_classes_is_one_or_minus_one():
    """Which is why it is refused there: nothing but the sign of a row is left, and no gradient."""
    student = torch.tensor([[2.0, 0.0], [0.1, 0.0], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 1.0]], dtype=torch.float64)
    ours, theirs = student.softmax(1), teacher.softmax(1)
    rows = torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(rows, torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    assert float(torch.autograd.grad(rows.sum(), student)[0].abs().max()) < 1e-7


def test_standardised_logits_are_blind_to_scale_and_shift_and_of_two_classes_always_the_same():
    logits = numbers(5, 4)
    torch.testing.assert_close(
        losses.standardise_logits(3 * logits - 7), losses.standardise_logits(logits), rtol=1e-5, atol=1e-6
    )
    assert losses.standardise_logits(logits).mean(1).abs().max() < 1e-12
    torch.testing.assert_close(losses.standardise_logits(logits).std(1), torch.ones(5).double(), rtol=1e-6, atol=0)
    two = losses.standardise_logits(numbers(50, 2)).abs()
    torch.testing.assert_close(two, torch.full_like(two, 1 / math.sqrt(2)), rtol=1e-3, atol=1e-6)


def test_adaptive_divergence_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2): the head is the first entry, on which half of the gap of 1/2 lies.
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    found = float(losses.divergence(student, teacher, "adaptive", 1.0))
    assert found == pytest.approx((forward + reverse) / 2, rel=1e-5)
    # Teacher (0.6, 0.3, 0.1), student (0.5, 0.1, 0.4): 0.1 of a gap of 0.6 lies on the head.
    p, q = (0.6, 0.3, 0.1), (0.5, 0.1, 0.4)
    forward, reverse = (sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in ((p, q), (q, p)))
    teacher, student = torch.tensor([p]).log(), torch.tensor([q]).log()
    found = float(losses.divergence(student, teacher, "adaptive", 1.0))
    assert found == pytest.approx(forward / 6 + 5 * reverse / 6, rel=1e-5)


def test_the_head_of_a_distribution_is_the_fewest_entries_that_reach_half():
    """Of five even entries three: two hold 0.4 alone. The gap lies on two of the head and two of the tail."""
    teacher = torch.zeros(1, 5, dtype=torch.float64)
    student = torch.tensor([[0.3, 0.1, 0.2, 0.3, 0.1]], dtype=torch.float64).log()
    p, q = torch.full((5,), 0.2), torch.tensor([0.3, 0.1, 0.2, 0.3, 0.1])
    forward, reverse = float((p * (p / q).log()).sum()), float((q * (q / p).log()).sum())
    found = float(losses.divergence(student, teacher, "adaptive", 1.0))
    assert found == pytest.approx((forward + reverse) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", losses.DIVERGENCES)
def test_every_divergence_and_its_gradient_are_zero_at_teacher_equal_student(kind):
    logits = numbers(5, 6).requires_grad_()
    found = losses.divergence(logits, logits.detach().clone(), kind, 2.0)
    (gradient,) = torch.autograd.grad(found, logits)
    assert abs(float(found.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


MASK = torch.tensor([True, False, True, True])
LABELS = torch.tensor([0, 1, 4, 2])
OF_LOGITS = {
    "squared error": lambda s, t: losses.logit_squared_error(s, t, MASK),
    "decoupled": lambda s, t: losses.decoupled_kl(s, t, LABELS, MASK, 2.0),
    "correlation": lambda s, t: losses.correlation_distance(s, t, 2.0),
    "standardised": lambda s, t: losses.soft_target_kl(
        losses.standardise_logits(s), losses.standardise_logits(t), MASK, 2.0
    ),
}


@pytest.mark.parametrize("name", OF_LOGITS)
def test_gradients_are_those_of_the_function_and_zero_at_teacher_equal_student(name):
    student, teacher = numbers(4, 5).requires_grad_(), numbers(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: OF_LOGITS[name](s, teacher), (student,))
    found = OF_LOGITS[name](student, student.detach().clone())
    (gradient,) = torch.autograd.grad(found, student)
    assert abs(float(found.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["squared error", "decoupled", "standardised"])
def test_what_does_not_count_has_no_part_and_no_gradient(name):
    student, teacher = numbers(4, 5).requires_grad_(), numbers(4, 5, seed=1)
    (gradient,) = torch.autograd.grad(OF_LOGITS[name](student, teacher), student)
    assert float(gradient[1].abs().max()) == 0
    assert float(gradient[0].abs().max()) > 0
    other = student.detach().clone()
    other[1] = 100 * torch.arange(5)
    assert float(OF_LOGITS[name](other, teacher)) == float(OF_LOGITS[name](student.detach(), teacher))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_bfloat16_logits_give_what_their_values_in_float64_give(name):
    student, teacher = numbers(4, 5).bfloat16(), numbers(4, 5, seed=1).bfloat16()
    found = OF_LOGITS[name](student, teacher)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(OF_LOGITS[name](student.double(), teacher.double())), rel=1e-4)


def test_the_adaptive_gradient_is_that_of_both_divergences_by_shares_that_stay():
    student, teacher = numbers(1, 6).requires_grad_(), numbers(1, 6, seed=1)
    gradient, forward, reverse = (
        torch.autograd.grad(losses.divergence(student, teacher, kind, 2.0), student)[0]
        for kind in ("adaptive", "forward", "reverse")
    )
    p, q = (softmax(x.detach().numpy()[0] / 2) for x in (teacher, student))
    order = np.argsort(-p)
    head = order[: 1 + int(np.argmax(np.cumsum(p[order]) >= 0.5))]
    share = np.abs(p - q)[head].sum() / np.abs(p - q).sum()
    assert 0.05 < share < 0.95
    torch.testing.assert_close(gradient, share * forward + (1 - share) * reverse)
