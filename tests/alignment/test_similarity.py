"""Similarity of layers against a naive float64 loop, and maps that find the truth."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel

from kdalign.alignment.similarity import cka, monotone_path, similarities, transport, unbiased_hsic
from support.tiny import tiny_config


def naive_hsic(x, y):
    """The definition, over (tokens, tokens) matrices: the average over distinct i, j, q, r of Song et al.'s kernel."""
    n, k, other = len(x), x @ x.T, y @ y.T
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def test_hsic_is_the_average_over_all_quadruples_of_distinct_tokens():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(7, 3)) + 5, generator.normal(size=(7, 2))
    ours = unbiased_hsic(torch.from_numpy(x), torch.from_numpy(y))
    assert ours == pytest.approx(naive_hsic(x, y), rel=1e-10)


def test_unrelated_features_are_near_zero_however_wide_and_the_biased_estimate_is_not():
    torch.manual_seed(0)
    values = [cka(torch.randn(60, 400), torch.randn(60, 400)) for _ in range(50)]
    assert abs(np.mean(values)) < 0.02
    x, y = torch.randn(60, 400), torch.randn(60, 400)
    x, y = x - x.mean(0), y - y.mean(0)
    biased = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert biased > 0.8


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_a_rotation_a_scale_and_a_shift_change_nothing(scale):
    x = torch.randn(200, 16, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    assert cka(x, scale * x @ turned + 1000) == pytest.approx(1, abs=1e-6)


def test_padding_rows_and_outliers_would_show_and_too_few_tokens_are_refused():
    x, y = torch.randn(300, 8), torch.randn(300, 8)
    spoilt = [torch.cat([each, torch.full((2, 8), 1000.0) * torch.tensor([[1.0], [-1.0]])]) for each in (x, y)]
    assert abs(cka(x, y)) < 0.05
    assert cka(*spoilt) > 0.9  # why special tokens are left out
    with pytest.raises(ValueError, match="3 tokens are too few"):
        unbiased_hsic(x[:3], y[:3])


def test_features_without_spread_are_like_nothing():
    assert cka(torch.ones(10, 4), torch.randn(10, 4)) == 0


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_a_path_is_the_best_of_all_that_never_go_back(students, teachers, seed):
    alike = np.random.default_rng(seed).random((students, teachers))
    every = (
        itertools.combinations(range(teachers), students)
        if students <= teachers
        else itertools.combinations_with_replacement(range(teachers), students)
    )
    best = max(every, key=lambda path: sum(alike[row, column] for row, column in enumerate(path)))
    assert monotone_path(alike) == list(best)


def test_of_equal_paths_the_lowest_stands():
    assert monotone_path(np.zeros((3, 5))) == [0, 1, 2]


def test_a_flow_spends_every_share_and_costs_no_more_than_any_other():
    generator = np.random.default_rng(3)
    cost = generator.random((3, 6))
    flow = transport(cost)
    np.testing.assert_allclose(flow.sum(axis=1), 1 / 3, atol=1e-9)
    np.testing.assert_allclose(flow.sum(axis=0), 1 / 6, atol=1e-9)
    # With 3 shares over 6 layers, each student layer takes two teacher layers whole: all such splits, by hand.
    splits = [
        [a, b, sorted(set(range(6)) - set(a) - set(b))]
        for a in itertools.combinations(range(6), 2)
        for b in itertools.combinations(sorted(set(range(6)) - set(a)), 2)
    ]
    least = min(sum(cost[row, list(pair)].sum() / 6 for row, pair in enumerate(split)) for split in splits)
    assert (flow * cost).sum() == pytest.approx(least)


def rotated(features, generator):
    """c T Q: one layer's features under a random rotation and a random scale."""
    turned = torch.linalg.qr(
        torch.randn(features.shape[1], features.shape[1], dtype=torch.float64, generator=generator)
    )
    return float(torch.rand((), generator=generator) * 10 + 0.1) * features @ turned[0]


def test_layers_under_rotations_and_scales_are_mapped_back_exactly():
    torch.manual_seed(0)
    config = tiny_config("bert", layers=12, width=32, initializer_range=0.3)
    body = AutoModel.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (8, 32), generator=generator)
    with torch.no_grad():
        states = body(input_ids=ids, output_hidden_states=True).hidden_states[1:]
    teachers = [state.flatten(0, 1).double() for state in states]
    draw = np.random.default_rng(2)
    for _ in range(50):
        truth = sorted(draw.choice(12, size=int(draw.integers(1, 9)), replace=False).tolist())
        students = [rotated(teachers[layer], generator) for layer in truth]
        assert monotone_path(similarities(students, teachers)) == truth
