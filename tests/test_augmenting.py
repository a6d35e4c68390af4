"""Other views of training rows: what is changed, what never is, and that steps stay what they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import one_line
from test_contract import Setting, examples

from kdalign.batches import CUT, collate, micro_batches
from kdalign.encoding import LONGEST_SPAN, CutOff, MaskSpans
from kdalign.objective import count_units
from kdalign.recipe import build_recipe
from kdalign.terms import Unit

MASK, SPECIAL = 4, np.array([0, 1, 2, 3, 4])
WAYS = {"spans": MaskSpans(MASK, SPECIAL, 0.3, 1.0), "cutoff": CutOff(SPECIAL, 0.3, 1.0)}
BOTH = pytest.mark.parametrize("way", WAYS)


def changed(way, row, seed):
    found = WAYS[way]({"input_ids": row, "token_type_ids": [0] * len(row)}, np.random.default_rng(seed))
    if way == "spans":
        return [ours != theirs for ours, theirs in zip(found["input_ids"], row, strict=True)]
    assert found["input_ids"] == row
    return [bool(cut) for cut in found[CUT]]


def viewed(way, n=8):
    data = examples(n)
    return replace(data, corrupt=WAYS[way], pad={**data.pad, CUT: 0})


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_a_share_of_the_tokens_is_changed_and_no_special_one(way, seed):
    row = [2, *range(10, 22), 3, *range(30, 38), 3]  # a pair of 12 and 8 tokens
    here = changed(way, row, seed)
    assert sum(here) == 6
    assert not any(is_changed for is_changed, token in zip(here, row, strict=True) if token in (2, 3))
    assert sum(changed(way, [2, 10, 11, 3], seed)) == 1, "at least one"


def test_runs_are_as_long_as_drawn_and_all_become_the_mask():
    row, way = [2, *range(10, 1010), 3], replace(WAYS["spans"], rate=0.15)
    found = np.array(way({"input_ids": row}, np.random.default_rng(0))["input_ids"]) == MASK
    edges = np.flatnonzero(np.diff(found.astype(int)))
    runs = edges[1::2] - edges[::2]
    assert found.sum() == runs.sum() == 150
    assert 2.5 < runs.mean() < 6, "3.8 on average (arXiv:1907.10529), longer where runs touch"
    assert runs.max() <= 2 * LONGEST_SPAN


@BOTH
def test_a_row_s_draw_is_of_seed_epoch_and_row_alone(way):
    data = viewed(way)
    alone, together = (collate(data, rows, draw=(1, 2), width=10) for rows in ([5], [0, 5, 3]))
    another = collate(data, [0, 5, 3], draw=(1, 3), width=10)
    for one, other in (
        (alone.real[0], together.real[1]),
        (alone.inputs["input_ids"][0], together.inputs["input_ids"][1]),
    ):
        assert torch.equal(one, other)
    same = torch.equal(another.real, together.real)
    assert not (same and torch.equal(another.inputs["input_ids"], together.inputs["input_ids"]))


@BOTH
def test_so_many_rows_of_an_epoch_are_changed_as_asked(way):
    some = replace(WAYS[way], share=0.25)
    rows = [{"input_ids": list(range(10, 30))}] * 2000
    found = [some(row, np.random.default_rng([0, n])) for n, row in enumerate(rows)]
    changes = [any(row[CUT]) if way == "cutoff" else MASK in row["input_ids"] for row in found]
    assert 0.2 < np.mean(changes) < 0.3


@BOTH
def test_a_step_of_changed_rows_split_into_micro_batches_and_ranks_has_the_same_gradient(way):
    setting, data = Setting("bert", "bert", 32), viewed(way)
    whole = setting.gradient(micro_batches(data, range(8), 0, 1, None, (0, 1)))
    parts = [batch for rank in (0, 1) for batch in micro_batches(data, range(8), rank, 2, 2, (0, 1))]
    torch.testing.assert_close(setting.gradient(parts), whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(setting.gradient(micro_batches(examples(), range(8), 0, 1, None)), whole, atol=1e-3)


def test_what_is_cut_off_enters_no_term_and_no_unit():
    setting, data = Setting("bert", "bert", 32), viewed("cutoff")
    batch = collate(data, range(8), draw=(0, 0))
    cut = ~batch.real & (batch.inputs["input_ids"] != 0)
    assert cut.any(dim=1).sum() >= 6
    assert count_units([batch])[Unit.TOKEN] == sum(map(len, data.columns["input_ids"])) - int(cut.sum())
    before = setting.breakdown(batch, count_units([batch])).parts
    batch.inputs["input_ids"][cut] = 77
    after = setting.breakdown(batch, count_units([batch])).parts
    for name in before:
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--set", "data.augment.by=cutof"),
            "data.augment.by='cutof': must be 'none', 'masked-lm', 'spans' or 'cutoff'",
        ),
        (("--set", "data.augment.rat=0.2"), "unknown recipe key 'data.augment.rat'; did you mean 'data.augment.rate'?"),
        (("--set", "data.augment.by=cutoff", "--task", "lm:sst2"), "is for tasks of classes or scores"),
        (("--set", "data.augment.by=spans", "--tokenizer", "train:300"), "(accepted: masked-lm)"),
    ],
)
def test_what_cannot_be_changed_is_refused_in_one_line(more, said, teacher, data, kdalign):
    status, _, err = kdalign("distill", "--teacher", teacher, "--task", "sst2", "--data", data, *more)
    assert status == 2
    assert said in one_line(err)


def test_a_section_within_a_section_is_flat_in_flags_and_comes_back(teacher):
    flags = {"teacher": str(teacher), "data.task": "sst2"}
    recipe = build_recipe(None, flags, ["data.augment.by=spans", "data.augment.rate=2e-1"])
    assert recipe.data.augment.rate == 0.2
    assert {key: value for key, value in recipe.flat().items() if "augment" in key} == {
        "data.augment.by": "spans",
        "data.augment.rate": 0.2,
        "data.augment.share": 0.5,
    }
