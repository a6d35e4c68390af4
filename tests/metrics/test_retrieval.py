"""Ranks of right answers, and recall at k of packed ranks."""

import numpy as np
import pytest

from kdalign.metrics.classification import METRICS
from kdalign.metrics.retrieval import MOST_PAIRS, RECALLS, agree, agree_weighted, pack_ranks, ranks, unpack_ranks


def test_a_rank_counts_the_wrong_items_before_the_best_right_one_and_those_that_equal_it():
    cosines = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.1, 0.8, 0.9]])
    right = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=bool)
    assert ranks(cosines, right).tolist() == [0, 2, 2, 0]


def test_a_model_with_one_embedding_for_all_finds_nothing():
    found = ranks(np.ones((50, 50)), np.eye(50, dtype=bool))
    assert found.tolist() == [49] * 50


def test_both_ranks_come_back_from_one_number():
    of_texts, of_images = np.array([0, 1, MOST_PAIRS - 1]), np.array([MOST_PAIRS - 1, 0, 7])
    back = unpack_ranks(pack_ranks(of_texts, of_images))
    assert [each.tolist() for each in back] == [of_texts.tolist(), of_images.tolist()]


def test_recall_is_the_share_of_ranks_below_k_each_way():
    packed = pack_ranks(np.array([0, 0, 3, 12]), np.array([9, 0, 5, 100]))
    values = {name: METRICS[name].compute(packed, np.zeros(4)) for name in RECALLS}
    assert values == {
        **{"i2t_recall_1": 50.0, "i2t_recall_5": 75.0, "i2t_recall_10": 75.0},
        **{"t2i_recall_1": 25.0, "t2i_recall_5": 25.0, "t2i_recall_10": 75.0},
    }


OURS = pack_ranks(np.array([0, 0, 3, 9]), np.array([0, 5, 0, 1]))
THEIRS = pack_ranks(np.array([0, 2, 8, 0]), np.array([0, 1, 0, 0]))


def test_models_agree_on_a_query_that_both_answer_right_or_both_wrong():
    """Images: right and right, right and wrong, wrong and wrong, wrong and right. Texts: the last alone differs."""
    assert agree(OURS, THEIRS) == agree(THEIRS, OURS) == 100 * (2 + 3) / 8
    assert agree(OURS, OURS) == 100


def test_agreement_hears_both_directions_alike():
    """Packed ranks are as good as ranks of texts alone: their correlation would not move with those of images."""
    first, last = np.zeros(4), np.arange(1.0, 5)
    assert agree(pack_ranks(first, first), pack_ranks(first, last)) == 50
    assert agree(pack_ranks(first, first), pack_ranks(last, first)) == 50
    assert agree(pack_ranks(first, first), pack_ranks(last, last)) == 0


def test_agreement_of_pairs_with_weights_is_that_of_pairs_that_are_there_as_often():
    rows = [0, 0, 2, 3]
    weights = np.array([[2.0, 0.0, 1.0, 1.0]])
    assert agree_weighted(weights, OURS, THEIRS)[0] == pytest.approx(agree(OURS[rows], THEIRS[rows]))


@pytest.mark.parametrize("name", RECALLS)
def test_a_pair_that_counts_twice_is_a_pair_that_is_there_twice(name):
    packed, metric = pack_ranks(np.array([0, 2, 6, 30]), np.array([1, 0, 11, 2])), METRICS[name]
    weights = np.array([[2.0, 0.0, 1.0, 1.0]])
    again = packed[[0, 0, 2, 3]]
    assert metric.of_weights(weights, packed, np.zeros(4))[0] == pytest.approx(metric.compute(again, np.zeros(4)))
