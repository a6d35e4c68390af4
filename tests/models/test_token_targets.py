"""Top entries of a distribution with the rest as one: against the whole distribution, and by hand."""

import math

import pytest
import torch

from kdalign.models.lm_head import LMHead
from kdalign.models.token_targets import ABSENT, DenseTokens, TopEntries, top_log_probabilities, top_tokens


def test_the_kept_entries_are_those_of_the_whole_distribution_and_the_rest_is_their_complement():
    scores = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02]]).log()
    logs = top_log_probabilities(scores + 7, torch.tensor([[0, 1, 2]]))  # a constant changes nothing
    torch.testing.assert_close(logs.exp(), torch.tensor([[0.5, 0.3, 0.1, 0.1]]))


def test_a_rest_that_vanishes_in_floating_point_is_finite_and_so_is_its_gradient():
    scores = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    logs = top_log_probabilities(scores, torch.tensor([[0]]))
    logs.sum().backward()
    assert logs[0, 1].item() == pytest.approx(math.log(2) - 60, rel=1e-6)
    assert scores.grad.isfinite().all()


def test_an_entry_that_a_vocabulary_lacks_has_no_probability_and_its_mass_joins_the_rest():
    top = TopEntries(torch.tensor([[3, 0]]), torch.tensor([[0.5, 0.3, 0.2]]).log(), 4)
    ours = top.renumbered(torch.tensor([2, 1, 0, -1]), 3)
    assert ours.entries.tolist() == [[-1, 2]]
    torch.testing.assert_close(ours.logs.exp(), torch.tensor([[0.0, 0.3, 0.7]]))
    student = top_log_probabilities(torch.tensor([[0.1, 0.2, 0.7]]).log(), ours.entries)
    torch.testing.assert_close(student.exp(), torch.tensor([[0.0, 0.7, 0.3]]))
    assert student[0, 0] < ABSENT / 2, "as far away as the teacher's, and finite"


def test_a_rest_of_no_entries_has_no_probability_and_a_finite_gradient():
    scores = torch.tensor([[0.3, 0.7]]).log().requires_grad_()
    logs = top_log_probabilities(scores, torch.tensor([[1, 0, -1]]))
    torch.testing.assert_close(logs.exp(), torch.tensor([[0.7, 0.3, 0.0, 0.0]]))
    assert logs.isfinite().all()
    assert torch.autograd.grad(logs.sum(), scores)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_tokens_in_blocks_are_the_log_softmax_of_all_logits(temperature):
    torch.manual_seed(0)
    dense = DenseTokens(torch.randn(7, 4), LMHead(torch.randn(11, 4)))
    kept = top_tokens(dense, 3, (1.0, temperature), rows=2)
    whole = (dense.head.logits(dense.features) / temperature).log_softmax(dim=1)
    block = kept.block(slice(2, 7), temperature)
    torch.testing.assert_close(block.logs[:, :3], whole[2:].topk(3, dim=1).values)
    torch.testing.assert_close(block.logs.exp().sum(dim=1), torch.ones(5))
    assert block.entries.tolist() == whole[2:].topk(3, dim=1).indices.tolist()


def test_selecting_positions_of_a_batch_selects_them_of_entries_and_of_every_temperature():
    torch.manual_seed(0)
    dense = DenseTokens(torch.randn(6, 4), LMHead(torch.randn(11, 4)))
    flat = top_tokens(dense, 2, (1.0, 3.0), rows=4)
    shaped = type(flat)(
        flat.entries.view(2, 3, 2), {t: kept.view(2, 3, 3) for t, kept in flat.logs.items()}, flat.vocabulary
    )
    positions = torch.tensor([[True, False, True], [False, True, False]])
    chosen = shaped.select(positions)
    for temperature in (1.0, 3.0):
        torch.testing.assert_close(chosen.logs[temperature], flat.logs[temperature][[0, 2, 4]])
    assert chosen.entries.tolist() == flat.entries[[0, 2, 4]].tolist()
