"""Losses on features, maps and groups of rows against numbers worked by hand, and against loops in float64."""

import itertools
import math

import pytest
import torch

from kdalign.alignment.similarity import cka
from kdalign.objective import losses

HALF = torch.tensor([[True, True, False], [True, False, False]])


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def huber(x, y):
    apart = abs(float(x) - float(y))
    return apart**2 / 2 if apart < 1 else apart - 0.5


def test_relative_squared_error_by_hand():
    # |(1, 2) - (3, 4)|^2 = 8 in units of |(3, 4)|^2 = 25; a student of zeros scores 1.
    ours, theirs = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert float(losses.relative_squared_error(losses.PairDistances.of(ours, theirs), first)) == pytest.approx(8 / 25)
    assert float(losses.relative_squared_error(losses.PairDistances.of(ours, theirs), both)) == pytest.approx(
        8 / 25 + 1
    )


def test_patient_distance_of_a_right_angle_is_two_and_twice_the_cosine_distance():
    ours, theirs = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 7.0]])
    assert float(losses.patient_distance(ours, theirs, torch.tensor([True]))) == pytest.approx(2)
    ours, theirs, mask = numbers(4, 6), numbers(4, 6, seed=1), torch.tensor([True, False, True, True])
    cosine = float(losses.cosine_distance(losses.PairDistances.of(ours[:, None], theirs[:, None]), mask[:, None]))
    assert float(losses.patient_distance(ours, theirs, mask)) == pytest.approx(2 * cosine)


def test_attended_euclid_by_hand():
    # Two positions; the first gets 1/2 of the first query and all of the second, so 1.5, the second 0.5.
    # Squared distances over width 1 and variance 2: 4 / 2 and 1 / 2.
    attention = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    ours, theirs = torch.tensor([[[2.0], [1.0]]]), torch.zeros(1, 2, 1)
    both = torch.tensor([[True, True]])
    assert float(losses.attended_euclid(losses.PairDistances.of(ours, theirs), attention, both, 2.0)) == pytest.approx(
        1.5 * 2 + 0.5 * 0.5
    )
    # Where the second is no position: neither its query nor its own distance counts.
    first = torch.tensor([[True, False]])
    assert float(losses.attended_euclid(losses.PairDistances.of(ours, theirs), attention, first, 2.0)) == pytest.approx(
        0.5 * 2
    )


def test_where_all_positions_are_attended_to_alike_it_is_the_plain_distance():
    ours, theirs, mask = numbers(2, 3, 4), numbers(2, 3, 4, seed=1), torch.ones(2, 3, dtype=torch.bool)
    even = torch.full((2, 5, 3, 3), 1 / 3, dtype=torch.float64)
    plain = float(losses.scaled_euclid(losses.PairDistances.of(ours, theirs), mask, 0.7))
    assert float(losses.attended_euclid(losses.PairDistances.of(ours, theirs), even, mask, 0.7)) == pytest.approx(plain)


def test_attention_divergence_by_hand():
    # One head agrees, the other is (1/2, 1/2) against the teacher's (3/4, 1/4); the mean over 2 heads is half of it.
    ours = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])
    theirs = torch.tensor([[[[1.0, 0.0]], [[0.75, 0.25]]]])
    by_hand = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert float(losses.attention_divergence(ours, theirs, torch.tensor([[True]]))) == pytest.approx(by_hand, rel=1e-5)
    assert float(losses.attention_divergence(ours, theirs, torch.tensor([[False]]))) == 0


def test_attention_divergence_of_the_scores_that_made_the_maps_is_that_of_their_logarithms():
    ours, theirs = numbers(2, 4, 3, 3).requires_grad_(), numbers(2, 4, 3, 3, seed=1)
    found = losses.attention_divergence(ours.softmax(-1), theirs.softmax(-1), HALF)
    rows = losses.divergence(
        ours.permute(0, 2, 1, 3)[HALF].flatten(0, 1), theirs.permute(0, 2, 1, 3)[HALF].flatten(0, 1), "forward", 1.0
    )
    assert float(found.detach()) == pytest.approx(float(rows.detach()) / 4)
    assert torch.autograd.gradcheck(
        lambda s: losses.attention_divergence(s.softmax(-1), theirs.softmax(-1), HALF), (ours,)
    )
    alike = losses.attention_divergence(ours.softmax(-1), ours.detach().softmax(-1), HALF)
    assert abs(float(alike.detach())) < 1e-12
    assert float(torch.autograd.grad(alike, ours)[0].abs().max()) < 1e-12


def test_a_key_that_the_student_does_not_see_makes_no_infinite_divergence():
    ours, theirs = torch.tensor([[[[1.0, 0.0]]]], requires_grad=True), torch.tensor([[[[0.5, 0.5]]]])
    found = losses.attention_divergence(ours, theirs, torch.tensor([[True]]))
    assert math.isfinite(float(found.detach()))
    assert torch.autograd.grad(found, ours)[0].isfinite().all()


def test_similarity_preserving_by_hand():
    # The student finds both rows alike, the teacher not at all: (1, 1) / sqrt 2 against (1, 0) and (0, 1).
    student, teacher = torch.tensor([[1.0], [1.0]]), torch.eye(2)
    near, far = (1 - math.sqrt(0.5)) ** 2, 0.5
    assert float(losses.similarity_preserving(student, teacher)) == pytest.approx((2 * near + 2 * far) / 4)


def test_linear_cka_distance_is_one_minus_cka_and_blind_to_rotation_scale_and_shift():
    x, y = numbers(40, 5), numbers(40, 7, seed=1)
    # The same by similarities of rows: <K, L> / |K| |L| with centred K = X X', L = Y Y'.
    centred = [each - each.mean(0) for each in (x, y)]
    k, ell = (each @ each.T for each in centred)
    alike = float((k * ell).sum() / (k.norm() * ell.norm()))
    assert float(losses.linear_cka_distance(x, y)) == pytest.approx(1 - alike)
    turned = torch.linalg.qr(numbers(5, 5, seed=2))[0]
    assert float(losses.linear_cka_distance(x, 3 * x @ turned + 1)) == pytest.approx(0, abs=1e-12)
    # The measured maps' CKA is debiased; of many rows both agree.
    many, more = numbers(20_000, 3), numbers(20_000, 4, seed=1)
    more[:, :3] += many
    assert float(losses.linear_cka_distance(many, more)) == pytest.approx(1 - cka(many, more), abs=1e-3)


def test_relational_losses_are_loops_over_pairs_and_triples():
    x, y = 3 * numbers(5, 4), numbers(5, 6, seed=1)
    pairs = list(itertools.permutations(range(5), 2))
    apart = [{(a, b): float((z[a] - z[b]).norm()) for a, b in pairs} for z in (x, y)]
    means = [sum(each.values()) / len(pairs) for each in apart]
    by_pairs = sum(huber(apart[0][pair] / means[0], apart[1][pair] / means[1]) for pair in pairs) / len(pairs)
    assert float(losses.relational_distance(x, y)) == pytest.approx(by_pairs)

    def angle(z, a, b, c):
        first, second = z[a] - z[b], z[c] - z[b]
        return 0.0 if b in (a, c) else float(first @ second / first.norm() / second.norm())

    triples = list(itertools.product(range(5), repeat=3))
    by_triples = sum(huber(angle(x, *triple), angle(y, *triple)) for triple in triples) / len(triples)
    assert float(losses.relational_angle(x, y)) == pytest.approx(by_triples)


def test_info_nce_by_hand():
    # Two rows at right angles, temperature 1: each finds its own (cosine 1) against the other (cosine 0).
    rows = torch.eye(2)
    assert float(losses.info_nce(rows, 5 * rows, 1.0)) == pytest.approx(math.log(1 + math.exp(-1)))
    # A queue of one row that is the second's opposite: cosine 0 for the first, -1 for the second.
    queue = torch.tensor([[0.0, -2.0]])
    each = (math.log(1 + 2 * math.exp(-1)), math.log(1 + math.exp(-1) + math.exp(-2)))
    assert float(losses.info_nce(rows, rows, 1.0, queue)) == pytest.approx(sum(each) / 2)
    # Both have the same label: half of what is asked for is the other row.
    alike = torch.ones(2, 2, dtype=torch.bool)
    expected = math.log(1 + math.exp(-1)) + 0.5
    assert float(losses.info_nce(rows, rows, 1.0, alike=alike)) == pytest.approx(expected)


def test_info_nce_of_rows_that_say_nothing_is_chance_and_of_ones_alone_is_cross_entropy():
    same = torch.ones(7, 3)
    assert float(losses.info_nce(same, same, 0.07)) == pytest.approx(math.log(7), rel=1e-5)
    x, y, queue = numbers(6, 4), numbers(6, 4, seed=1), numbers(9, 4, seed=2)
    keys = torch.nn.functional.normalize(torch.cat([y, queue]), dim=1)
    logits = torch.nn.functional.normalize(x, dim=1) @ keys.T / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    assert float(losses.info_nce(x, y, 0.2, queue)) == pytest.approx(float(expected))


def test_supervised_info_nce_is_a_loop_over_rows_of_the_same_label():
    x, y, labels = numbers(6, 4), numbers(6, 4, seed=1), torch.tensor([0, 1, 0, 2, 1, 0])
    ours, theirs = (torch.nn.functional.normalize(each, dim=1) for each in (x, y))
    total = 0.0
    for i in range(6):
        scores = [math.exp(float(ours[i] @ theirs[j]) / 0.3) for j in range(6)]
        right = [j for j in range(6) if labels[j] == labels[i]]
        total -= sum(math.log(scores[j] / sum(scores)) for j in right) / len(right) / 6
    assert float(losses.info_nce(x, y, 0.3, alike=labels[:, None] == labels[None])) == pytest.approx(total)


def test_memory_nce_by_hand():
    # Cosines 1 and 0 at temperature 1 with K = 1 drawn and e^z = 1/2: h = e^c / (e^c + 1/2).
    row, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 3.0]]])
    right, wrong = math.e / (math.e + 0.5), 1 / 1.5
    found = losses.memory_nce(row, 2 * row, other, 1.0, level=math.log(0.5))
    assert float(found) == pytest.approx(-math.log(right) - math.log(1 - wrong))


OF_ROWS = {
    "similarity preserving": losses.similarity_preserving,
    "cka": losses.linear_cka_distance,
    "relational distance": losses.relational_distance,
    "relational angle": losses.relational_angle,
    "info nce": lambda s, t: losses.info_nce(s, t[:, :4], 0.5, numbers(3, 4, seed=5)),
    "memory nce": lambda s, t: losses.memory_nce(s, t[:, :4], numbers(len(s), 3, 4, seed=5), 0.5, 0.7),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_gradients_of_groups_are_those_of_the_function(name):
    student, teacher = numbers(6, 4).requires_grad_(), numbers(6, 5, seed=1)
    assert torch.autograd.gradcheck(lambda s: OF_ROWS[name](s, teacher), (student,))


@pytest.mark.parametrize("name", ["similarity preserving", "cka", "relational distance", "relational angle"])
def test_distances_of_groups_and_their_gradients_are_zero_at_teacher_equal_student(name):
    student = numbers(6, 4).requires_grad_()
    found = OF_ROWS[name](student, student.detach().clone())
    (gradient,) = torch.autograd.grad(found, student)
    assert abs(float(found.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_that_are_all_alike_give_numbers_and_numbers_as_gradients(name):
    student, teacher = torch.ones(6, 4, requires_grad=True), numbers(6, 5, seed=1).float()
    found = OF_ROWS[name](student, teacher)
    (gradient,) = torch.autograd.grad(found, student)
    assert math.isfinite(float(found.detach()))
    assert gradient.isfinite().all()


OF_POSITIONS = {
    "relative": lambda s, t: losses.relative_squared_error(losses.PairDistances.of(s, t), HALF),
    "patient": lambda s, t: losses.patient_distance(s[:, 0], t[:, 0], HALF[:, 1]),
    "attended": lambda s, t: losses.attended_euclid(
        losses.PairDistances.of(s, t), numbers(2, 2, 3, 3, seed=7).softmax(-1), HALF, 0.5
    ),
}


@pytest.mark.parametrize("name", OF_POSITIONS)
def test_gradients_of_positions_are_those_of_the_function_and_zero_at_teacher_equal_student(name):
    student, teacher = numbers(2, 3, 4).requires_grad_(), numbers(2, 3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: OF_POSITIONS[name](s, teacher), (student,))
    found = OF_POSITIONS[name](student, student.detach().clone())
    (gradient,) = torch.autograd.grad(found, student)
    assert abs(float(found.detach())) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("name", OF_POSITIONS)
def test_padding_has_no_part_in_losses_of_positions(name):
    student, teacher = numbers(2, 3, 4).requires_grad_(), numbers(2, 3, 4, seed=1)
    (gradient,) = torch.autograd.grad(OF_POSITIONS[name](student, teacher), student)
    counted = torch.stack([HALF[:, 1], *torch.zeros(2, 2, dtype=torch.bool)], 1) if name == "patient" else HALF
    assert float(gradient[~counted].abs().max()) == 0
    assert float(gradient[counted].abs().min()) > 0


@pytest.mark.parametrize("name", OF_ROWS)
def test_bfloat16_rows_give_what_their_values_in_float64_give(name):
    student, teacher = numbers(6, 4).bfloat16(), numbers(6, 5, seed=1).bfloat16()
    found = OF_ROWS[name](student, teacher)
    assert found.dtype in (torch.float32, torch.float64)
    assert float(found) == pytest.approx(float(OF_ROWS[name](student.double(), teacher.double())), rel=1e-3)


def test_memory_nce_keeps_a_student_at_its_teacher_where_all_rows_point_one_way():
    # The rows of a layer have a direction in common: without the level every wrong row would push as if it were right.
    common = 5 * numbers(1, 8, seed=3)
    teacher = common + numbers(6, 8)
    others = torch.stack([teacher[[j for j in range(6) if j != i]] for i in range(6)])
    unit = torch.nn.functional.normalize(teacher, dim=1)
    scores = unit @ unit.T / 0.07
    level = scores[~torch.eye(6, dtype=torch.bool)].logsumexp(0) - math.log(30)
    pull = {}
    for name, each in {"level": level, "none": 0.0}.items():
        student = teacher.clone().requires_grad_()
        losses.memory_nce(student, teacher, others, 0.07, each).backward()
        moved = teacher - 1e-3 * student.grad
        pull[name] = float(torch.nn.functional.cosine_similarity(moved, common).mean())
    start = float(torch.nn.functional.cosine_similarity(teacher, common).mean())
    assert start - pull["none"] > 3 * abs(start - pull["level"])


def test_attention_divergence_has_a_gradient_for_a_teacher_s_map_with_zeros():
    teacher = torch.tensor([[[[0.5, 0.5, 0.0]]]], requires_grad=True)
    student = torch.tensor([[[[0.2, 0.3, 0.5]]]])
    losses.attention_divergence(student, teacher, torch.ones(1, 1, dtype=torch.bool)).backward()
    assert teacher.grad.isfinite().all()


def test_correlation_distance_is_nothing_at_the_teacher_however_sure_it_is():
    logits = 20 * torch.eye(3)[[0, 1, 2, 0, 1, 2]] + numbers(6, 3).float() / 100
    for each in (logits, logits.double()):
        student = each.clone().requires_grad_()
        found = losses.correlation_distance(student, each, 1.0)
        found.backward()
        assert found.item() == pytest.approx(0, abs=1e-6)
        assert student.grad.abs().max() < 1e-6
