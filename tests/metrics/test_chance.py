"""What knowing nothing would score: by hand, and by what it must be blind to."""

import math

import numpy as np
import pytest

from kdalign.metrics.chance import DRAWS, frequency_nats, log_softmax, shuffled_fit


def test_tokens_by_their_frequencies_are_predicted_from_the_others_by_hand():
    # a a a b of 5 entries. Each a sees two a among three tokens of two kinds, 2 / (3 + 2); b is a new one among three
    # of one kind, 1 / (3 + 1) over the 4 entries that were not seen.
    nats = -(3 * math.log(2 / 5) + math.log(1 / 4 / 4)) / 4
    assert frequency_nats(np.array([3, 1]), 5) == pytest.approx(nats)


def test_a_single_kind_of_token_is_nearly_certain_and_many_kinds_cost_nearly_a_uniform_guess():
    assert frequency_nats(np.array([1000]), 50) == pytest.approx(math.log(1000 / 999), abs=1e-5)
    assert frequency_nats(np.full(200, 50), 200) == pytest.approx(math.log(200), rel=0.01)


def test_answers_that_know_the_labels_fit_better_than_any_order_of_them_and_turned_ones_worse():
    labels = np.arange(60) % 2
    scores = log_softmax(np.where(np.arange(2) == labels[:, None], 1.0, 0.0))
    assert shuffled_fit(scores, labels) == (1 / (1 + DRAWS), 1.0)
    assert shuffled_fit(scores, 1 - labels) == (1.0, 1 / (1 + DRAWS))


def test_answers_that_are_always_the_same_fit_no_better_than_labels_in_any_order():
    labels = (np.arange(100) % 10 == 0).astype(int)  # right in 90 rows of 100, and knows nothing
    assert shuffled_fit(log_softmax(np.tile([3.0, -3.0], (100, 1))), labels)[0] == 1.0


def test_a_rare_class_that_is_found_counts_though_the_accuracy_hardly_rises():
    labels = (np.arange(100) % 10 == 0).astype(int)
    logits = np.where(labels[:, None] == 1, [0.2, 0.0], [1.0, 0.0])  # never answers the rare class
    assert shuffled_fit(log_softmax(logits), labels)[0] < 0.001


def test_random_answers_are_called_better_in_five_of_a_hundred_cases():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 80)
    found = [shuffled_fit(log_softmax(generator.normal(size=(80, 3))), labels)[0] < 0.05 for _ in range(200)]
    assert 2 <= sum(found) <= 20


def test_scores_are_compared_by_how_they_rise_whatever_their_scale():
    generator = np.random.default_rng(0)
    truth = generator.random(50)
    assert shuffled_fit((100 + truth)[:, None], truth)[0] < 0.001
    assert shuffled_fit(-truth[:, None], truth)[1] < 0.001
    assert shuffled_fit(generator.random((50, 1)), truth)[0] > 0.05
