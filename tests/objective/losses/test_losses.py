"""Each loss against numbers worked by hand, and against a loop in float64."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from kdalign.objective import losses

YES = torch.tensor([True])


def test_cross_entropy_of_even_odds_is_log_two():
    logits = torch.zeros(1, 2)
    assert float(losses.hard_label_cross_entropy(logits, torch.tensor([1]), YES)) == pytest.approx(math.log(2))


def test_squared_error_of_three_against_one_is_four():
    assert float(losses.squared_error(torch.tensor([[3.0]]), torch.tensor([1.0]), YES)) == pytest.approx(4.0)


def test_soft_target_kl_by_hand_at_temperature_one_and_two():
    # Teacher (3/4, 1/4) from logits (log 3, 0); student even: KL = 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(losses.soft_target_kl(student, teacher, YES, 1.0)) == pytest.approx(by_hand, rel=1e-5)
    # At temperature 2 the teacher's odds are sqrt(3) : 1, and T^2 = 4 stands before the sum.
    p = math.sqrt(3) / (1 + math.sqrt(3))
    softened = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    assert float(losses.soft_target_kl(student, teacher, YES, 2.0)) == pytest.approx(softened, rel=1e-5)


def test_the_soft_target_gradient_keeps_its_size_at_high_temperature():
    # Hinton et al. 2015, section 2: for large T and zero-mean logits the gradient is (z_s - z_t) / classes.
    student = torch.tensor([[0.4, -0.1, -0.3]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.2, 0.5, -0.3]], dtype=torch.float64)
    losses.soft_target_kl(student, teacher, YES, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 3, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_and_its_gradient_are_zero_at_teacher_equal_student(temperature):
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    loss = losses.soft_target_kl(logits, logits.detach().clone(), torch.ones(5, dtype=torch.bool), temperature)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert logits.grad.abs().max() < 1e-12


def test_cosine_distance_of_a_right_angle_is_one_and_of_opposites_two():
    ours = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]]])
    theirs = torch.tensor([[[0.0, 3.0], [-5.0, 0.0], [1.0, 1.0]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert float(losses.cosine_distance(losses.PairDistances.of(ours, theirs), mask)) == pytest.approx(3.0, abs=1e-6)


def test_scaled_euclid_by_hand():
    # |(1, 2) - (3, 5)|^2 = 13, width 2, variance 4.
    ours, theirs = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 5.0]]])
    loss = losses.scaled_euclid(losses.PairDistances.of(ours, theirs), torch.tensor([[True]]), 4.0)
    assert float(loss) == pytest.approx(13 / 8)


def test_a_student_that_answers_the_teachers_mean_scores_one_a_position():
    theirs = 3 * torch.randn(4, 500, 16) + torch.randn(16) * 10
    mean = theirs.reshape(-1, 16).mean(0)
    variance = float(theirs.reshape(-1, 16).var(0, unbiased=False).mean())
    loss = losses.scaled_euclid(
        losses.PairDistances.of(mean.expand_as(theirs), theirs), torch.ones(4, 500, dtype=torch.bool), variance
    )
    assert float(loss) / 2000 == pytest.approx(1.0, rel=1e-4)


def test_attention_distance_by_hand():
    # One head agrees, one puts all weight on the other key: (1-0)^2 + (0-1)^2 = 2; the mean over 2 heads is 1.
    ours = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    theirs = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    ours, theirs = ours.expand(1, 2, 2, 2).contiguous(), theirs.expand(1, 2, 2, 2).contiguous()
    assert float(losses.attention_distance(ours, theirs, torch.tensor([[True, False]]))) == pytest.approx(1.0)


def test_every_loss_equals_a_loop_in_float64():
    torch.manual_seed(1)
    ours, theirs = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    mask = torch.rand(3, 5) > 0.4
    cosine = euclid = 0.0
    for b in range(3):
        for i in range(5):
            if mask[b, i]:
                cosine += 1 - float(cosine_similarity(ours[b, i], theirs[b, i], dim=0))
                euclid += sum(float(ours[b, i, d] - theirs[b, i, d]) ** 2 for d in range(4)) / (4 * 0.7)
    assert float(losses.cosine_distance(losses.PairDistances.of(ours, theirs), mask)) == pytest.approx(
        cosine, rel=1e-12
    )
    assert float(losses.scaled_euclid(losses.PairDistances.of(ours, theirs), mask, 0.7)) == pytest.approx(
        euclid, rel=1e-12
    )


def test_soft_target_kl_works_on_three_dimensions_over_the_class_axis():
    student, teacher = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    each = sum(
        float(losses.soft_target_kl(student[b, i][None], teacher[b, i][None], YES, 2.0))
        for b in range(2)
        for i in range(3)
        if mask[b, i]
    )
    assert float(losses.soft_target_kl(student, teacher, mask, 2.0)) == pytest.approx(each, rel=1e-5)


def test_bfloat16_inputs_are_summed_in_float32():
    big = torch.zeros(1, 40_000, dtype=torch.bfloat16)
    loss = losses.hard_label_cross_entropy(big, torch.tensor([7]), YES)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log(40_000), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t, m: losses.cosine_distance(losses.PairDistances.of(s, t), m),
        lambda s, t, m: losses.scaled_euclid(losses.PairDistances.of(s, t), m, 0.5),
        lambda s, t, m: losses.soft_target_kl(s, t, m, 2.0),
    ],
    ids=["cosine", "euclid", "kl"],
)
def test_gradients_are_those_of_the_function(loss):
    ours = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda s: loss(s, theirs, mask), (ours,))


def test_gradients_of_features_are_those_of_the_function_on_both_sides_and_twice():
    ours, theirs = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    numbers = lambda s, t: (lambda a: (a.ours, a.theirs, a.inner, a.squared))(losses.PairDistances.of(s, t))  # noqa: E731
    assert torch.autograd.gradcheck(numbers, (ours, theirs))
    assert torch.autograd.gradgradcheck(numbers, (ours, theirs))


def test_the_euclidean_gradient_is_zero_at_the_teacher_and_exact_close_to_it():
    torch.manual_seed(0)
    theirs = torch.randn(2, 3, 768)
    theirs[..., 0] = 900  # as features of many models are
    mask = torch.ones(2, 3, dtype=torch.bool)
    for apart, allowed in ((0.0, 0.0), (1e-2, 1e-6), (1e-4, 1e-6)):
        ours = (theirs + apart * torch.randn_like(theirs)).requires_grad_()
        losses.scaled_euclid(losses.PairDistances.of(ours, theirs), mask, 1.0).backward()
        exact = 2 * (ours.detach().double() - theirs.double()) / 768
        assert (ours.grad.double() - exact).norm() <= allowed * exact.norm()


def test_a_feature_of_zeros_is_at_a_right_angle_to_all_and_has_a_finite_gradient():
    ours = torch.zeros(1, 1, 3, requires_grad=True)
    loss = losses.cosine_distance(
        losses.PairDistances.of(ours, torch.tensor([[[1.0, 2.0, 2.0]]])), torch.tensor([[True]])
    )
    loss.backward()
    assert float(loss.detach()) == 1
    assert torch.isfinite(ours.grad).all()


def test_the_gradient_of_bfloat16_features_is_rounded_once_for_both_losses():
    torch.manual_seed(2)
    ours, theirs = torch.randn(3, 5, 64).bfloat16(), torch.randn(3, 5, 64).bfloat16()
    mask = torch.rand(3, 5) > 0.2

    def gradient(student):
        student = student.clone().requires_grad_()
        features = losses.PairDistances.of(student, theirs.to(student.dtype))
        (losses.cosine_distance(features, mask) + losses.scaled_euclid(features, mask, 0.7)).backward()
        return student.grad

    assert torch.equal(gradient(ours), gradient(ours.float()).bfloat16())


def test_relation_divergence_by_hand():
    """Two positions in one head: scores x x^T, so position 0 relates to (0, 1) by softmax(x0 x0, x0 x1)."""
    teacher = torch.tensor([[[[1.0], [0.0]]]])  # position 0: softmax(1, 0); position 1: softmax(0, 0)
    student = torch.zeros(1, 1, 2, 1)  # even everywhere
    visible, mask = torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([[True, True]])
    p = math.e / (1 + math.e)
    by_hand = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert float(losses.relation_divergence(student, teacher, visible, mask)) == pytest.approx(by_hand, rel=1e-6)
    assert float(losses.relation_divergence(student, teacher, visible, ~mask)) == 0
    assert float(losses.relation_divergence(student, teacher, visible.tril(), mask)) == pytest.approx(0, abs=1e-7)


def test_relation_divergence_is_the_mean_over_heads_of_a_naive_loop():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 4, 5, generator=generator)
    teacher = torch.randn(2, 3, 4, 8, generator=generator)
    visible = torch.rand(2, 4, 4, generator=generator) > 0.3
    visible |= torch.eye(4, dtype=torch.bool)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    total = 0.0
    for b in range(2):
        for head in range(3):
            for i in range(4):
                if not mask[b, i]:
                    continue
                seen = visible[b, i].nonzero().flatten()
                rows = [each[b, head].double() for each in (teacher, student)]
                p, q = ((x[seen] @ x[i] / x.shape[1] ** 0.5).softmax(0) for x in rows)
                total += float((p * (p / q).log()).sum()) / 3
    assert float(losses.relation_divergence(student, teacher, visible, mask)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 2 * 3 * 4 * 2, 2**24])
def test_relations_in_blocks_have_the_gradient_of_their_definition(monkeypatch, at_once):
    monkeypatch.setattr("kdalign.objective.losses.attention.RELATIONS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, width, generator=generator, dtype=torch.double) for width in (5, 8))
    visible, mask = torch.ones(2, 4, 4, dtype=torch.bool).tril(), torch.tensor([[True] * 4, [True, True, False, False]])
    found = losses.relation_divergence(student.requires_grad_(), teacher, visible, mask)
    theirs, ours = (
        (x @ x.transpose(-1, -2) / x.size(-1) ** 0.5).masked_fill(~visible[:, None], -math.inf).softmax(dim=-1)
        for x in (teacher, student)
    )
    defined = (torch.xlogy(theirs, theirs) - theirs * ours.clamp_min(1e-300).log()).sum(dim=-1)
    defined = defined.mean(dim=1)[mask].sum()
    assert torch.allclose(found, defined)
    assert torch.allclose(*(torch.autograd.grad(3 * each, student)[0] for each in (found, defined)))


def test_relations_in_bfloat16_keep_the_weight_of_their_term():
    """A weight of 0.7 / 160 is off by 0.3 % in bfloat16, and so would be the whole term's gradient."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 16, 8, generator=generator).bfloat16() for _ in range(2))
    visible, mask = torch.ones(2, 16, 16, dtype=torch.bool), torch.ones(2, 16, dtype=torch.bool)

    def gradient(values):
        values = values.clone().requires_grad_()
        (losses.relation_divergence(values, teacher.to(values), visible, mask) * (0.7 / 160)).backward()
        return values.grad.double()

    exact, found = gradient(student.double()), gradient(student)
    assert float((found * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=5e-4)


def test_long_rows_keep_no_square_map_of_relations():
    """What is kept for the backward pass is a gradient as large as the values."""
    student, teacher, kept = torch.randn(1, 2, 64, 4, requires_grad=True), torch.randn(1, 2, 64, 4), []
    visible, mask = torch.ones(1, 64, 64, dtype=torch.bool).tril(), torch.ones(1, 64, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        losses.relation_divergence(student, teacher, visible, mask)
    assert kept == [student.numel()]


def test_relations_of_equal_values_have_no_divergence_and_no_gradient_and_do_not_depend_on_a_rotation():
    values = torch.randn(2, 3, 5, 8, requires_grad=True)
    turned = torch.linalg.qr(torch.randn(8, 8))[0]
    visible, mask = torch.ones(2, 5, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    found = losses.relation_divergence(values, (values @ turned).detach(), visible, mask)
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(found, values)
    assert float(gradient.abs().max()) < 1e-5
