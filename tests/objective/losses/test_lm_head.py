"""Divergences against numbers worked by hand; the blocked head against plain PyTorch on the whole matrix of logits."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kdalign.models.lm_head import LMHead, block_rows, vocabulary_scores
from kdalign.models.token_targets import DenseTokens, TopTokens, top_log_probabilities, top_tokens
from kdalign.objective import losses
from kdalign.objective.losses import lm_head
from kdalign.objective.losses.lm_head import TokenLoss, vocabulary_losses

KINDS = ["forward", "reverse", "js", "skew"]


def sums_of(student, head, labels, teacher=None, teacher_head=None, rows=None, **loss):
    """The blocked losses of features and heads by themselves."""
    taught = None if teacher is None else DenseTokens(teacher, teacher_head)
    return vocabulary_losses(TokenLoss(**loss), DenseTokens(student, head), labels, taught, rows=rows)


def problem(n=11, vocabulary=13, theirs=13, dtype=torch.float32, bias=True, softcap=None):
    """Student features of width 6 and teacher's of width 4, their heads, and labels; all that can learns."""
    torch.manual_seed(3)
    student, teacher = torch.randn(n, 6, dtype=dtype, requires_grad=True), torch.randn(n, 4, dtype=dtype)
    offset = torch.randn(vocabulary, dtype=dtype, requires_grad=True) if bias else None
    head = LMHead(torch.randn(vocabulary, 6, dtype=dtype, requires_grad=True), offset, softcap)
    return student, head, torch.randint(vocabulary, (n,)), teacher, LMHead(torch.randn(theirs, 4, dtype=dtype))


def learned(student, head):
    return [one for one in (student, head.weight, head.bias) if one is not None]


def plain(student, head, labels, teacher, teacher_head, hard, soft, temperature=1.0):
    """The sums for cross-entropy and forward KL, written with PyTorch's own functions."""
    ours, theirs = F.linear(student, head.weight, head.bias), F.linear(teacher, teacher_head.weight)
    if head.softcap is not None:
        ours = head.softcap * torch.tanh(ours / head.softcap)
    hard_sum = F.cross_entropy(ours, labels, reduction="sum")
    shared = min(ours.shape[1], theirs.shape[1])
    ours, theirs = (F.log_softmax(one[:, :shared] / temperature, dim=-1) for one in (ours, theirs))
    soft_sum = temperature**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return hard * hard_sum + soft * soft_sum, hard_sum, soft_sum


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        # Teacher (3/4, 1/4), student (1/2, 1/2).
        ("forward", 0.1308120),  # 3/4 log(3/2) + 1/4 log(1/2)
        ("reverse", 0.1438410),  # 1/2 log(2/3) + 1/2 log 2
        ("js", 0.0338220),  # m = (5/8, 3/8): (3/4 log(6/5) + 1/4 log(2/3) + 1/2 log(4/5) + 1/2 log(4/3)) / 2
        ("skew", 0.1070427),  # a = 1/10, m = (21/40, 19/40): 3/4 log(10/7) + 1/4 log(10/19)
    ],
)
def test_each_divergence_by_hand_at_temperature_one_and_two(kind, by_hand):
    even = torch.zeros(1, 2)
    assert float(losses.divergence(even, torch.tensor([[math.log(3), 0]]), kind, 1.0)) == pytest.approx(by_hand, 1e-5)
    # Odds of 9 : 1 are 3 : 1 at temperature 2, and 2^2 stands before the sum.
    twice = losses.divergence(even, torch.tensor([[math.log(9), 0]]), kind, 2.0)
    assert float(twice) == pytest.approx(4 * by_hand, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_divergence_equals_a_loop_in_float64_over_probabilities(kind):
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    s, t = (torch.softmax(logits / 1.5, dim=-1) for logits in (student, teacher))
    total = 0.0
    for row in range(5):
        for p, q in zip(t[row].tolist(), s[row].tolist(), strict=True):
            total += {
                "forward": p * math.log(p / q),
                "reverse": q * math.log(q / p),
                "js": (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2,
                "skew": p * math.log(p / (0.3 * p + 0.7 * q)),
            }[kind]
    found = losses.divergence(student, teacher, kind, 1.5, skew=0.3)
    assert float(found) == pytest.approx(1.5**2 * total, rel=1e-12)


def test_the_forward_divergence_is_the_soft_target_loss_with_every_row_counted():
    student, teacher = torch.randn(2, 5, 4)
    whole = losses.soft_target_kl(student, teacher, torch.ones(5, dtype=torch.bool), 2.0)
    torch.testing.assert_close(losses.divergence(student, teacher, "forward", 2.0), whole)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_divergence_and_its_gradient_are_zero_at_teacher_equal_student(kind, temperature):
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        logits = (3 * torch.randn(5, 9, dtype=dtype)).requires_grad_()
        loss = losses.divergence(logits, logits.detach().clone(), kind, temperature)
        loss.backward()
        assert abs(loss.item()) < temperature**2 * close
        assert logits.grad.abs().max() < temperature * close


@pytest.mark.parametrize(
    ("kind", "by_hand"), [("forward", 400.0), ("reverse", 400.0), ("js", math.log(2)), ("skew", math.log(10))]
)
def test_probabilities_that_underflow_give_finite_losses_and_gradients(kind, by_hand):
    # All of the teacher's mass is on the first entry, all of the student's on the second; e^-400 is 0 in float32.
    student = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = losses.divergence(student, torch.tensor([[200.0, -200.0]]), kind, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert student.grad.isfinite().all()
    features = torch.tensor([[-1.0, 1.0]], requires_grad=True)
    heads = LMHead((200 * torch.eye(2)).requires_grad_()), LMHead(-200 * torch.eye(2))
    total, _, soft_sum = sums_of(
        features, heads[0], torch.tensor([0]), hard=1.0, soft=1.0,
        teacher=features.detach(), teacher_head=heads[1], divergence=kind,
    )  # fmt: skip
    total.backward()
    assert soft_sum.item() == pytest.approx(by_hand, rel=1e-5)
    assert features.grad.isfinite().all()
    assert heads[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_features_weight_and_bias_are_those_of_the_total(kind):
    student, head, labels, teacher, teacher_head = problem(n=4, vocabulary=5, theirs=5, dtype=torch.float64)

    def total(student, weight, bias):
        return sums_of(
            student, LMHead(weight, bias, softcap=2.0), labels, hard=0.7, soft=0.4,
            teacher=teacher, teacher_head=teacher_head, divergence=kind, temperature=1.5, rows=3,
        )[0]  # fmt: skip

    assert torch.autograd.gradcheck(total, (student, head.weight, head.bias))
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda ours: losses.divergence(ours, theirs, kind, 1.5), (logits,))


@given(
    rows=st.one_of(st.none(), st.integers(1, 20)),
    n=st.integers(0, 12),
    theirs=st.sampled_from([9, 13, 17]),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 1.5]),
    temperature=st.sampled_from([1.0, 2.0]),
)
def test_blocks_of_any_size_give_the_loss_and_gradients_of_the_whole_matrix(
    rows, n, theirs, bias, softcap, temperature
):
    student, head, labels, teacher, teacher_head = problem(n, theirs=theirs, bias=bias, softcap=softcap)
    whole = plain(student, head, labels, teacher, teacher_head, 0.3, 0.7, temperature)
    found = sums_of(
        student, head, labels, hard=0.3, soft=0.7,
        teacher=teacher, teacher_head=teacher_head, temperature=temperature, rows=rows,
    )  # fmt: skip
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(total, learned(student, head)) for total in (found[0], whole[0]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 11, 50])
def test_each_divergence_in_blocks_is_that_of_the_whole_matrix(kind, rows):
    student, head, labels, teacher, teacher_head = problem()
    found, _, soft_sum = sums_of(
        student, head, labels, hard=0.0, soft=2.0,
        teacher=teacher, teacher_head=teacher_head, divergence=kind, temperature=2.0, skew=0.2, rows=rows,
    )  # fmt: skip
    whole = losses.divergence(head.logits(student), teacher_head.logits(teacher), kind, 2.0, 0.2)
    torch.testing.assert_close(soft_sum, whole.detach(), rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(total, learned(student, head)) for total in (found, 2 * whole))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_soft_loss_and_no_gradient():
    student, head, labels, _, _ = problem(dtype=torch.float64)
    for kind in KINDS:
        total, _, soft_sum = sums_of(
            student, head, labels, hard=0.0, soft=1.0, teacher=student, teacher_head=head, divergence=kind
        )
        assert abs(soft_sum) < 1e-12
        assert all(gradient.abs().max() < 1e-12 for gradient in torch.autograd.grad(total, learned(student, head)))


def test_a_weight_tied_to_the_embeddings_gets_the_gradients_of_both_uses():
    weight, labels = torch.nn.Parameter(torch.randn(13, 6)), torch.randint(13, (7,))
    tokens = torch.randint(13, (7,))
    sums_of(F.embedding(tokens, weight).tanh(), LMHead(weight), labels, hard=1.0, soft=0.0)[0].backward()
    whole = F.cross_entropy(F.embedding(tokens, weight).tanh() @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(weight.grad, torch.autograd.grad(whole, weight)[0])


def test_only_the_total_has_a_gradient_and_only_for_what_learns():
    student, head, labels, teacher, teacher_head = problem()
    frozen = LMHead(head.weight.detach(), head.bias)
    teacher_head.weight.requires_grad_()
    total, hard_sum, soft_sum = sums_of(
        student, frozen, labels, hard=1.0, soft=1.0, teacher=teacher.requires_grad_(), teacher_head=teacher_head
    )
    assert not hard_sum.requires_grad
    assert not soft_sum.requires_grad
    total.backward()
    assert student.grad is not None
    assert head.bias.grad is not None
    assert head.weight.grad is teacher.grad is teacher_head.weight.grad is None


def test_backward_scales_with_what_the_total_is_divided_by_and_a_kept_graph_can_be_walked_twice():
    student, head, labels, *_ = problem()
    total = sums_of(student, head, labels, hard=1.0, soft=0.0)[0]
    (once,) = torch.autograd.grad(total, head.weight, retain_graph=True)
    (part,) = torch.autograd.grad(total / 8, head.weight)
    torch.testing.assert_close(8 * part, once)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_sums_are_the_same_and_there_is_no_graph(mode):
    student, head, labels, teacher, teacher_head = problem(softcap=2.0)
    settings = {"hard": 0.5, "soft": 0.5, "teacher": teacher, "teacher_head": teacher_head, "rows": 4}
    with mode():
        found = sums_of(student, head, labels, **settings)
    assert not found[0].requires_grad
    torch.testing.assert_close(list(found), [one.detach() for one in sums_of(student, head, labels, **settings)])


def test_no_rows_give_zero_with_a_graph():
    student, head, labels, teacher, teacher_head = problem(n=0)
    total, hard_sum, soft_sum = sums_of(
        student, head, labels, hard=1.0, soft=1.0, teacher=teacher, teacher_head=teacher_head
    )
    total.backward()
    assert total.item() == hard_sum.item() == soft_sum.item() == 0
    assert student.grad.shape == (0, 6)
    assert not head.weight.grad.any()
    assert [len(one) for one in vocabulary_scores(student, head, labels)] == [0, 0]


@pytest.mark.parametrize("pending", [0, 500, 2**27], ids=["each block", "some together", "all together"])
def test_products_in_bfloat16_come_close_and_every_gradient_has_its_tensors_precision(monkeypatch, pending):
    monkeypatch.setattr(lm_head, "PENDING_BYTES", pending)
    student, head, labels, teacher, teacher_head = problem(n=40)
    whole = plain(student, head, labels, teacher, teacher_head, 0.5, 0.5)
    expected = torch.autograd.grad(whole[0], learned(student, head))
    settings = {"hard": 0.5, "soft": 0.5, "teacher": teacher, "teacher_head": teacher_head, "rows": 7}
    total, hard_sum, _ = sums_of(student, head, labels, dtype=torch.bfloat16, **settings)
    assert total.dtype == hard_sum.dtype == torch.float32
    torch.testing.assert_close(total, whole[0], rtol=2e-2, atol=0)
    for found, exact in zip(torch.autograd.grad(total, learned(student, head)), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 2e-2 * exact.norm()
    small = LMHead(head.weight.detach().bfloat16().requires_grad_())
    sums_of(student.detach().bfloat16(), small, labels, hard=1.0, soft=0.0)[0].backward()
    assert small.weight.grad.dtype == torch.bfloat16


def test_under_autocast_scores_are_those_of_a_head_in_its_precision():
    student, head, labels, *_ = problem(n=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vocabulary_scores(student.detach(), head, labels)
    expected = vocabulary_scores(student.detach(), head.detached(torch.bfloat16), labels)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(found[0], vocabulary_scores(student.detach(), head, labels)[0])
    assert found[0].dtype == torch.float32


def test_autocast_around_the_call_changes_nothing():
    student, head, labels, teacher, teacher_head = problem()
    settings = {"hard": 0.5, "soft": 0.5, "teacher": teacher, "teacher_head": teacher_head}
    expected = sums_of(student, head, labels, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sums_of(student, head, labels, **settings)
    assert [one.item() for one in found] == [one.item() for one in expected]


@pytest.mark.parametrize("rows", [1, 3, None])
def test_scores_are_each_rows_cross_entropy_and_its_most_probable_entry(rows):
    student, head, labels, *_ = problem(softcap=2.0)
    nll, best = vocabulary_scores(student, head, labels, rows)
    logits = 2 * torch.tanh(F.linear(student, head.weight, head.bias) / 2)
    torch.testing.assert_close(nll, F.cross_entropy(logits, labels, reduction="none").detach())
    assert best.tolist() == logits.argmax(dim=-1).tolist()
    assert not nll.requires_grad


def test_a_block_has_at_least_one_row_and_at_most_sixteen_mebibytes_on_a_cpu():
    cpu = torch.device("cpu")
    assert block_rows(10**9, cpu) == 1
    assert block_rows(49_152, cpu) * 49_152 * 4 <= 16 * 2**20


GROWTH = """
import json, resource, sys, torch, torch.nn.functional as F
from kdalign.models.lm_head import LMHead
from kdalign.models.token_targets import DenseTokens, TopTokens, top_log_probabilities, top_tokens
from kdalign.objective.losses.lm_head import TokenLoss, vocabulary_losses
torch.set_num_threads(1)
way, vocabulary, width, n, rows = sys.argv[1], *map(int, sys.argv[2:])
student, teacher = torch.randn(n, width, requires_grad=True), torch.randn(n, width)
weight, theirs = (torch.randn(vocabulary, width) / 8).requires_grad_(), torch.randn(vocabulary, width) / 8
labels = torch.randint(vocabulary, (n,))
(torch.ones(64, 64) @ torch.ones(64, 64)).sum()  # the library's own buffers are no part of it
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if way == "plain":
    ours = student @ weight.T
    total = F.cross_entropy(ours, labels, reduction="sum") + F.kl_div(
        F.log_softmax(ours, dim=-1), F.log_softmax(teacher @ theirs.T, dim=-1), reduction="sum", log_target=True
    )
else:
    sides = DenseTokens(student, LMHead(weight)), DenseTokens(teacher, LMHead(theirs))
    total = vocabulary_losses(TokenLoss(1.0, 1.0), sides[0], labels, sides[1], rows=rows or None)[0]
(total / n).backward()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rows"), [(1024, 32), (4 * 1024, 0)])
def test_blocks_grow_the_process_by_at_most_a_quarter_of_the_whole_matrix(n, rows):
    # A process starts with its parent's peak as its own on Linux: a small one in between keeps pytest's out of it.
    between = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]
    grown = {}
    for way in ("plain", "blocked"):
        command = [*between, sys.executable, "-c", GROWTH, way, "49152", "64", str(n), str(rows)]
        grown[way] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert 0 < grown["blocked"] <= grown["plain"] / 4


def test_entries_that_are_never_given_count_as_numbers_and_others_do_not():
    from kdalign.errors import NotFinite

    features, labels = torch.eye(3), torch.tensor([0, 1, 2])
    never = LMHead(torch.eye(3).repeat(2, 1), torch.tensor([0.0, 0.0, 0.0, -1e9, -torch.inf, -torch.inf]))
    nll, best = vocabulary_scores(features, never, labels)
    assert nll.isfinite().all()
    assert best.tolist() == [0, 1, 2]
    given = vocabulary_scores(features, never, torch.tensor([0, 1, 4]))[0]
    assert given.tolist()[2] == torch.inf, "a token that the model never gives"
    for bad in (torch.nan, torch.inf):
        head = LMHead(torch.eye(3), torch.tensor([0.0, 0.0, bad]))
        with pytest.raises(NotFinite, match="3 of 3 tokens"):
            vocabulary_scores(features, head, torch.tensor([0, 1, 1]))
    with pytest.raises(NotFinite, match="3 of 3"):
        vocabulary_scores(features, LMHead(torch.eye(3), torch.full((3,), -torch.inf)), labels)


TEACHER = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]], dtype=torch.float64).log()


def of_top(student, teacher, kind, k=3, temperature=1.0):
    kept = (teacher / temperature).topk(k, dim=1).indices
    return losses.divergence_of_top(
        student, kept, top_log_probabilities(teacher / temperature, kept), kind, temperature
    )


def test_a_student_that_left_the_kept_entries_is_seen_by_the_rest_as_one_entry():
    # As likely as the teacher's among the three kept, with a tenth of their mass: renormalised, nothing differs.
    student = torch.tensor([[0.05, 0.03, 0.01, 0.3, 0.3, 0.31]], dtype=torch.float64).log()
    assert float(of_top(student, TEACHER, "forward")) == pytest.approx(0.9 * math.log(10) + 0.1 * math.log(0.1 / 0.91))
    # 0.09 log(0.09 / 0.9) + 0.91 log(0.91 / 0.1); truncated it would be -0.207, a reward for leaving.
    by_hand = 0.09 * math.log(0.1) + 0.91 * math.log(9.1)
    assert float(of_top(student, TEACHER, "reverse")) == pytest.approx(by_hand)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_entries_never_exceed_the_whole_divergence_and_reach_it_with_one_entry_left(kind, temperature):
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 6, 9, dtype=torch.float64)
    whole = float(losses.divergence(student, teacher, kind, temperature))
    sums = [float(of_top(student, teacher, kind, k, temperature)) for k in (1, 3, 5, 8)]
    assert 0 < sums[0] <= whole + 1e-12
    assert sums == sorted(sums)
    assert sums[-1] == pytest.approx(whole, rel=1e-12)
    assert float(of_top(teacher, teacher, kind, 3, temperature)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rows", [2, 64])
def test_a_vocabularys_loss_by_top_entries_has_the_gradient_of_plain_autograd(rows):
    student, head, labels, teacher, teacher_head = problem()
    kept = top_tokens(DenseTokens(teacher, teacher_head), 4, (2.0,), rows=3)
    total, _, _ = vocabulary_losses(
        TokenLoss(hard=0.3, soft=0.7, divergence="js", temperature=2.0),
        DenseTokens(student, head), labels, kept, rows=rows,
    )  # fmt: skip
    total.backward()
    found = [one.grad.clone() for one in learned(student, head)]
    for one in learned(student, head):
        one.grad = None
    logits = F.linear(student, head.weight, head.bias)
    soft = losses.divergence_of_top(logits, kept.entries, kept.logs[2.0], "js", 2.0)
    plain_total = 0.3 * F.cross_entropy(logits, labels, reduction="sum") + 0.7 * soft
    plain_total.backward()
    torch.testing.assert_close(total, plain_total)
    torch.testing.assert_close(found, [one.grad for one in learned(student, head)])


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
@pytest.mark.parametrize("k", [3, 8])  # of 8, all entries of the student are kept
def test_top_entries_beyond_a_shorter_vocabulary_are_left_out_as_of_dense_logits(kind, k):
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64)
    teacher = torch.randn(5, 9, dtype=torch.float64)
    teacher[:, 8], teacher[:, 7] = 9.0, -90.0  # the likeliest and the least likely are entries that the student lacks
    entries = teacher.topk(k, dim=1).indices
    kept = TopTokens(entries, {1.0: top_log_probabilities(teacher, entries)}, 9)
    ours = DenseTokens(torch.eye(5, dtype=torch.float64), LMHead(student.T.contiguous()))
    loss = TokenLoss(hard=0.0, soft=1.0, divergence=kind)
    found = vocabulary_losses(loss, ours, torch.zeros(5, dtype=torch.long), kept)[0]
    both = teacher[:, :7].log_softmax(dim=1)
    shared = both.topk(k - 1, dim=1).indices
    as_one = top_log_probabilities(both, shared)
    expected = losses.divergence_of_top(student, shared, as_one, kind, 1.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_gradient_of_many_products_is_summed_in_float32(monkeypatch):
    """In bfloat16 a sum of ones stays at 256."""
    monkeypatch.setattr(lm_head, "PENDING_BYTES", 0)
    head = LMHead(torch.zeros(2, 1, dtype=torch.bfloat16).requires_grad_())
    tokens = DenseTokens(torch.ones(600, 1, dtype=torch.bfloat16), head)
    vocabulary_losses(TokenLoss(2.0, 0.0), tokens, torch.zeros(600, dtype=torch.long), rows=1)[0].backward()
    assert head.weight.grad.flatten().tolist() == [-600, 600]
