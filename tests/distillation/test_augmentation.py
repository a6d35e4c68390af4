"""Augmented training rows: which words change, which never do, and that steps stay the same size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdalign.data.batches import collate
from kdalign.data.corruption import LONGEST_SPAN, MaskSpans, TokenCutoff
from kdalign.data.epochs import micro_batches
from kdalign.data.tasks import Examples
from kdalign.data.tokenized_split import CUT
from kdalign.devices import make_accelerator
from kdalign.distillation.augmentation import Substitutes, substitute_words
from kdalign.distillation.pipeline import distill, prepare_all
from kdalign.distillation.tokenize import student_tokenizer, tokenize_run, with_augmentation
from kdalign.environment import cache_folder
from kdalign.objective.terms import Unit
from kdalign.objective.units import count_units
from kdalign.observer import NullObserver
from kdalign.recipe import build_recipe
from support.classifier_setting import Setting, examples
from support.tiny import make_tokenizer, one_line, sentences, tiny_config

MASK, SPECIAL = 4, np.array([0, 1, 2, 3, 4])
LABELS = "{hard: 1, alpha: 0, beta: 0, gamma: 0, delta: 0}"
WAYS = {"spans": MaskSpans(MASK, SPECIAL, 0.3, 1.0), "cutoff": TokenCutoff(SPECIAL, 0.3, 1.0)}
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


@pytest.fixture(scope="module")
def filler(tmp_path_factory):
    """A small masked language model."""
    from transformers import BertForMaskedLM

    folder = tmp_path_factory.mktemp("filler")
    make_tokenizer(folder, "bert")
    torch.manual_seed(3)
    BertForMaskedLM(tiny_config("bert", 2, vocab_size=94, initializer_range=0.3)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def substitutes(filler):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    return Substitutes(AutoModelForMaskedLM.from_pretrained(filler), AutoTokenizer.from_pretrained(filler), 5, 32)


def test_only_words_of_one_token_have_a_place(substitutes):
    text = "The film, xyz GREAT a1"  # xyz is three tokens; the comma and a1 are no words
    assert [text[start:end] for _, start, end in substitutes.places(text)] == ["The", "film", "GREAT"]
    assert len(substitutes.places(" ".join(["film"] * 100))) == 30, "what is beyond the longest text stays"


def test_likely_words_are_those_of_the_model_for_a_mask_at_the_place(substitutes):
    tokenizer, text = substitutes.tokenizer, "the film was very good but slow"
    asked = [("acting is bad", 2), (text, 5), (text, 2)]
    for (given, position), found in zip(asked, substitutes.likely(asked), strict=True):
        ids = tokenizer(given, return_tensors="pt")["input_ids"]
        own, ids[0, position] = int(ids[0, position]), tokenizer.mask_token_id
        with torch.inference_mode():
            order = substitutes.model.eval()(ids).logits[0, position].argsort(descending=True).tolist()
        words = [tokenizer.convert_ids_to_tokens(entry) for entry in order if entry != own]
        assert found == [word for word in words if word.isalpha()][:5]


def test_new_texts_replace_words_by_likely_ones_and_nothing_else(substitutes):
    texts, _ = sentences(20, 5)
    made = substitute_words(Examples("train", (tuple(texts),), None), substitutes, 0.4, 3, seed=1)
    assert made.rows == tuple(row for row in range(20) for _ in range(3))
    changes = 0
    for row, (text,) in zip(made.rows, made.texts, strict=True):
        before, after = texts[row].split(), text.split()
        assert len(before) == len(after)
        places = [n for n in range(len(before)) if before[n] != after[n]]
        changes += len(places)
        assert places
        for n, likely in zip(places, substitutes.likely([(texts[row], n + 1) for n in places]), strict=True):
            assert after[n] in likely
    assert 0.35 < changes / (3 * sum(len(text.split()) for text in texts)) < 0.5
    assert made == substitute_words(Examples("train", (tuple(texts),), None), substitutes, 0.4, 3, seed=1)
    first = substitute_words(Examples("train", (tuple(texts[:4]),), None), substitutes, 0.4, 1, seed=1)
    assert first.texts == tuple(made.texts[3 * row] for row in range(4)), "a draw is of seed, row and copy"
    assert made != substitute_words(Examples("train", (tuple(texts),), None), substitutes, 0.4, 3, seed=2)


def test_case_is_kept_both_texts_of_a_pair_change_and_a_text_without_a_word_has_no_copy(substitutes):
    pairs = Examples("train", (("The film", "xyz"), ("was good", "...")), None)
    made = substitute_words(pairs, substitutes, 0.9, 1, seed=0)
    assert made.rows == (0,)
    [(first, second)] = made.texts
    assert first[0].isupper()
    assert first != "The film"
    assert second != "was good"


class Listening(NullObserver):
    def __init__(self):
        self.said = []

    def announce(self, line):
        self.said.append(line)


def asking(teacher, data, filler, out, *more):
    flags = {
        "teacher": str(teacher),
        "student": "layers=1",
        "data.task": "sst2",
        "data.folder": str(data),
        "out": str(out),
    }
    sets = ["data.limit=30", "data.augment.by=masked-lm", f"data.augment.model={filler}", "data.augment.copies=2"]
    return build_recipe(None, flags, [*sets, "train.max_steps=2", "train.batch_size=45", "train.device=cpu", *more])


@pytest.mark.parametrize("kept", [False, True], ids=["labels unknown", "labels kept"])
def test_new_texts_are_made_once_and_have_a_label_only_where_asked_for(kept, teacher, data, filler, tmp_path):
    sets = f"data.augment.keep_labels={str(kept).lower()}", "data.unlabelled=rest", "data.unlabelled_share=0.5"
    [run] = prepare_all(asking(teacher, data, filler, tmp_path / "run", *sets))
    tokenizer, place, listening = student_tokenizer(run), make_accelerator("cpu"), Listening()
    before = tokenize_run(run, tokenizer)

    def made():
        return with_augmentation(run, before, tokenizer, place, listening)

    texts = made()
    n, copies, others = 30, len(texts.copies), len(before.unlabelled)
    assert 55 <= copies <= 60
    assert texts.train.labelled.tolist() == [True] * n + [False] * others + [kept] * copies
    mixture = texts.train.mixture
    assert mixture.always.tolist() == [*range(n), *range(n + others, n + others + copies)]
    assert (len(mixture.others), mixture.drawn) == (others, n)
    if kept:
        rows = json.loads(next(cache_folder().glob("texts/*.json")).read_text())["rows"]
        assert set(texts.copies.labels) == set(run.splits.train.labels[rows])
    assert made().train.columns == texts.train.columns
    assert [line.partition(" ")[2].split()[0] for line in listening.said] == [
        str(filler),
        str(copies),
        "new",
        str(copies),
    ]
    [file] = cache_folder().glob("texts/*.json")
    tree = json.loads(file.read_text())
    file.write_text(json.dumps({"rows": tree["rows"][:5], "texts": tree["texts"][:5]}))
    assert len(made().copies) <= 5, "what is kept is read"
    for damaged in ("", "[]", json.dumps({"rows": tree["rows"], "texts": tree["texts"][:5]})):
        file.write_text(damaged)
        assert len(made().copies) == copies, "what is damaged is made again"


def test_a_run_learns_from_new_texts_and_records_them(teacher, data, filler, tmp_path):
    [record] = distill(asking(teacher, data, filler, tmp_path / "run"))
    facts = record.data["augmented"]
    assert facts["model"] == str(filler)
    assert record.training["examples"] == 30 + facts["n"], "each row once an epoch"
    assert "augmenting" in json.loads((tmp_path / "run" / "inputs.json").read_text())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ("--set", "data.augment.by=cutof"),
            "data.augment.by='cutof': must be 'none', 'masked-lm', 'spans', 'cutoff' or 'crop'",
        ),
        (("--set", "data.augment.rat=0.2"), "unknown recipe key 'data.augment.rat'; did you mean 'data.augment.rate'?"),
        (("--set", "data.augment.by=cutoff", "--task", "lm:sst2"), "is for tasks of classes or scores"),
        (("--set", "data.augment.by=spans", "--tokenizer", "train:300"), "(accepted: masked-lm)"),
        (("--set", "data.augment.by=masked-lm"), "give data.augment.model, an id or a folder"),
        (("--set", "data.augment={by: masked-lm, model: TEACHER}"), "is not a masked language model"),
        (("--set", "data.augment={by: cutoff, model: TEACHER}"), "data.augment.model is for data.augment.by=masked-lm"),
        (("--set", "data.augment={by: masked-lm, model: m}", "--set", f"objective={LABELS}"), "without keep_labels"),
    ],
)
def test_what_cannot_be_changed_is_refused_in_one_line(more, said, teacher, data, kdalign):
    more = [word.replace("TEACHER", str(teacher)) for word in more]
    status, _, err = kdalign("distill", "--teacher", teacher, "--task", "sst2", "--data", data, *more)
    assert status == 2
    assert said in one_line(err)


def test_a_section_within_a_section_is_flat_in_flags_and_comes_back(teacher):
    flags = {"teacher": str(teacher), "data.task": "sst2"}
    recipe = build_recipe(None, flags, ["data.augment.by=spans", "data.augment.rate=2e-1"])
    assert recipe.data.augment.rate == 0.2
    found = {key: value for key, value in recipe.flat().items() if "augment" in key}
    assert (found["data.augment.by"], found["data.augment.rate"], found["data.augment.copies"]) == ("spans", 0.2, 1)
