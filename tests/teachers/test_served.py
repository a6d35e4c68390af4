"""A served teacher's answers in its student's vocabulary: hand-worked numbers and refusals."""

import math

import numpy as np
import pytest
import torch

from kdalign.data.batches import Batch
from kdalign.data.passages import split_row
from kdalign.data.tokenized_split import IGNORED
from kdalign.models.capture import CaptureSpec, Signal
from kdalign.objective.terms import Unit
from kdalign.objective.units import count_units
from kdalign.served.top_logprobs import TokenPrompt, TopLogprobs
from kdalign.teachers.base import TermRequest
from kdalign.teachers.served import LEAST_REST, ServedTeacher, in_vocabulary, served_refusal
from kdalign.teachers.served_checks import Probe, mean_difference, reading_fault


def answer(rows, tokens=None, own=None):
    """An answer by token numbers: for each position {token: probability}."""
    k = max(map(len, rows))
    entries, logs = np.full((len(rows), k), -1, np.int32), np.zeros((len(rows), k), np.float32)
    for row, named in enumerate(rows):
        ordered = sorted(named.items(), key=lambda pair: -pair[1])
        entries[row, : len(named)] = [token for token, _ in ordered]
        logs[row, : len(named)] = [math.log(p) for _, p in ordered]
    tokens = np.array(tokens if tokens is not None else range(len(rows)), np.int32)
    own = np.array(own if own is not None else [np.nan] * len(rows), np.float32)
    return TopLogprobs(tokens, own, entries, logs)


def test_what_is_not_named_or_not_known_to_the_student_is_one_entry():
    top = answer([{}, {1: 0.5, 2: 0.2, 9: 0.2}, {3: 1.0}])
    found = in_vocabulary(top, np.array([1, 2]), None, 5, 3)
    assert found.entries.tolist() == [[1, 2, -1], [3, -1, -1]]
    assert np.exp(found.logs[0, [0, 1, 3]]).tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert np.exp(found.logs[1, -1]) == pytest.approx(LEAST_REST)
    assert np.isfinite(found.logs).all()
    assert found.unmapped.tolist() == pytest.approx([0.2, 0.0])


def test_positions_without_a_row_say_nothing():
    found = in_vocabulary(answer([{}, {1: 0.5}]), np.array([-1, 1]), None, 5, 2)
    assert found.returned.tolist() == [False, True]
    assert found.entries[0].tolist() == [-1, -1]
    assert np.exp(found.logs[0, -1]) == pytest.approx(1)


class Answers:
    """A source whose server says nothing of what follows these tokens."""

    def __init__(self, silent):
        self.silent, self.asked = silent, []

    def ask_missing(self, passages):
        self.asked += passages

    def targets(self, passage):
        return in_vocabulary(
            answer([{} if token in self.silent else {1: 0.5} for token in passage.ids]),
            np.arange(len(passage.ids)),
            None,
            9,
            1,
        )


def test_positions_of_samples_at_which_a_server_says_nothing_are_not_counted():
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 0, 0]])
    targets = torch.tensor([[IGNORED, 6, 7, 2], [8, 2, IGNORED, IGNORED]])
    real = torch.tensor([[True] * 4, [True, True, False, False]])
    batch = Batch({"input_ids": ids}, None, torch.tensor([True, True]), real, targets)
    source = Answers({6, 8})
    marked = ServedTeacher(source, torch.device("cpu")).mark_returned(batch)
    assert [each.whole for each in source.asked] == [(1, 5, 6, 7, 2), (1, 8, 2)]
    assert marked.answered.tolist() == [[False, True, False, True], [True, False, False, False]]
    assert (count_units([batch])[Unit.ANSWERED], count_units([marked])[Unit.ANSWERED]) == (5, 3)
    assert ServedTeacher(Answers(set()), torch.device("cpu")).mark_returned(batch) is batch


def test_texts_stand_for_the_entries_of_the_student():
    top = answer([{}, {0: 0.5, 1: 0.25}])
    found = in_vocabulary(top, np.array([1]), np.array([4, -1]), 5, 2)
    assert found.entries.tolist() == [[4, -1]]
    assert found.unmapped.tolist() == pytest.approx([0.25])
    assert np.exp(found.logs[0, -1]) == pytest.approx(0.5)


def test_packed_documents_are_passages_up_to_the_last_token_to_predict():
    ids, targets = [1, 5, 6, 1, 7, 1], [5, 6, 2, 7, 2, IGNORED]
    passages = list(split_row(ids, targets, [0, 1, 2, 0, 1, 0]))
    assert [(each.start, each.whole) for each in passages] == [(0, (1, 5, 6, 2)), (3, (1, 7, 2))]
    chat = list(split_row([1, 5, 6, 7], [IGNORED, 6, IGNORED, IGNORED]))
    assert [(each.start, each.whole) for each in chat] == [(0, (1, 5, 6))]


def request(*signals, temperature=1.0):
    return TermRequest("soft", frozenset(signals), CaptureSpec(), temperature)


def test_only_tokens_at_temperature_one_are_given():
    assert served_refusal(request(Signal.TOKENS)) is None
    assert "at temperature 2" in served_refusal(request(Signal.TOKENS, temperature=2.0))
    assert "compares hidden" in served_refusal(request(Signal.HIDDEN, temperature=None))


def probe(rows, tokens, own=None):
    return Probe(TokenPrompt(tuple(tokens), tuple(map(str, tokens)), frozenset(), "", ""), answer(rows, tokens, own))


TOKENS = [1, 2, 3, 4, 5, 6]
SURE = [{}, *[{token: 0.9, 50: 0.05} for token in TOKENS[1:]]]


def test_a_right_reading_has_no_fault():
    assert reading_fault([probe(SURE, TOKENS)], 100, True) is None


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{}, {}, *SURE[1:-1]], "one token late"),
        ([*SURE[1:], {9: 0.5}], "one token early"),
        ([{}, *[{70: 0.6, 80: 0.3}] * 5], "chance among 100"),
        ([{}, *[{token: 0.9, 50: 0.2} for token in TOKENS[1:]]], "probabilities of 1.100 together"),
    ],
)
def test_a_shift_chance_and_impossible_probabilities_are_faults(rows, said):
    assert said in reading_fault([probe(rows, TOKENS)], 100, True)


def test_other_tokens_and_a_token_with_two_probabilities_are_faults():
    other = Probe(probe(SURE, TOKENS).prompt, answer(SURE, [1, 2, 9, 4, 5, 6]))
    assert "token 2 is '9' there and 3 ('3') here" in reading_fault([other], 100, True)
    own = [math.nan, *[math.log(0.2)] * 5]
    assert "two log-probabilities" in reading_fault([probe(SURE, TOKENS, own)], 100, True)


def test_the_difference_of_two_answers_by_hand():
    first, second = answer([{}, {1: 0.5, 2: 0.25}]), answer([{}, {1: 0.25, 3: 0.5}])
    assert mean_difference(first, second) == pytest.approx(0.5 * math.log(2))
    assert mean_difference(first, first) == 0
