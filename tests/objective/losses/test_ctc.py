"""The CTC loss against numbers worked by hand, and against a sum over all paths in float64."""

import math
from itertools import groupby, product

import numpy as np
import pytest
import torch

from kdalign.objective import losses

YES = torch.tensor([True])


def loss(logits, labels, frames=None, mask=YES, blank=0):
    student, frames = torch.tensor([logits]), torch.tensor([len(logits) if frames is None else frames])
    return float(losses.ctc_loss(student, torch.tensor([labels]), frames, mask, blank))


def test_ctc_loss_by_hand():
    # Of the four paths over two frames, aa, a-, -a are read as "a", with 1/4 each.
    even = [[0.0, 0.0]] * 3
    assert loss(even[:2], [1]) == pytest.approx(-math.log(3 / 4))
    # "aa" in three frames is a-a alone.
    assert loss(even, [1, 1]) == pytest.approx(-math.log(1 / 8))
    # One label "a" of two entries beside the blank, whose number is 2: 1/3 in one frame.
    assert loss([[0.0, 0.0, 0.0]], [1], blank=2) == pytest.approx(math.log(3))


def test_frames_and_labels_that_are_padding_and_rows_that_do_not_count_add_nothing():
    even = [[0.0, 0.0]] * 2
    assert loss([*even, [9.0, -9.0]], [1, -100], frames=2) == pytest.approx(-math.log(3 / 4))
    assert loss(even, [1], mask=~YES) == 0


def test_a_row_with_too_few_frames_is_infinite_and_not_hidden():
    assert loss([[0.0, 0.0]] * 2, [1, 1]) == math.inf


def test_ctc_loss_is_the_sum_over_all_paths_in_float64():
    generator = np.random.default_rng(0)
    for labels in ([1], [2, 1], [1, 1], [1, 2, 1]):
        logits = generator.normal(size=(4, 3))
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        total = 0.0
        for path in product(range(3), repeat=4):
            if [label for label, _ in groupby(path) if label] == labels:
                total += math.prod(p[frame, label] for frame, label in enumerate(path))
        assert loss(logits.astype(np.float32).tolist(), labels) == pytest.approx(-math.log(total), rel=1e-5)


def test_sure_blanks_are_those_above_the_probability():
    logits = torch.log(torch.tensor([[[0.96, 0.04], [0.94, 0.06], [0.01, 0.99]]]))
    assert losses.sure_blanks(logits, 0, 0.95).tolist() == [[True, False, False]]
