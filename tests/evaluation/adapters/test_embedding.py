"""Sentence embeddings: the pooling, the two losses by hand, and a run from plain text to a stock encoder."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer

from kdalign.data.batches import Batch
from kdalign.errors import UsageError
from kdalign.models.capture import pooled
from kdalign.models.checkpoint_files import find_checkpoint
from kdalign.models.sentence_transformers import check_sentences, prompts_note, read_pooling
from kdalign.objective.losses import embedding_distance, similarity_distance
from kdalign.objective.terms import Unit
from kdalign.objective.units import count_units
from kdalign.recipe import build_recipe
from support.covering import first_only
from support.tiny import one_line, save_model, sentences

ALL = torch.ones(3, dtype=torch.bool)


def test_an_embedding_is_the_mean_over_real_tokens_alone():
    features = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[1.0, 1.0], [2.0, 2.0], [6.0, 3.0]]])
    real = torch.tensor([[True, True, False], [True, True, True]])
    assert pooled(features, real).tolist() == [[2.0, 4.0], [3.0, 2.0]]


def test_embedding_distance_of_a_right_angle_is_one_and_a_stand_in_counts_nothing():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 5.0], [-1.0, -1.0]])
    assert embedding_distance(student, teacher, torch.tensor([True, True, False])).item() == pytest.approx(1)
    assert embedding_distance(student, teacher, ALL).item() == pytest.approx(3)


def test_similarity_distance_by_hand():
    # Teacher's cosines: 0, 1/sqrt 2, 1/sqrt 2; student's: all 1.
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    student = torch.tensor([[1.0, 0.0, 0.0]]).repeat(3, 1)
    cosines = [0.0, math.sqrt(0.5), math.sqrt(0.5)]
    expected = np.mean([(1 - c) ** 2 for c in cosines]) / np.var(cosines)
    assert similarity_distance(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_finds_all_texts_alike_to_the_right_degree_scores_one():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 5, generator=generator)
    unit = torch.nn.functional.normalize(teacher, dim=-1)
    mean = ((unit @ unit.T).sum() - 8) / 56
    # Unit vectors with equal cosines: rows of the root of (1 - mean) I + mean 11^T.
    student = torch.linalg.cholesky((1 - mean) * torch.eye(8) + mean)
    assert similarity_distance(student, teacher).item() == pytest.approx(1, rel=1e-4)


def test_similarity_sees_no_rotation_no_length_and_no_stand_in():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 4, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    counted = torch.tensor([True] * 5 + [False])
    student = 3 * teacher @ rotation
    student[5] = 7.0
    assert similarity_distance(student[counted], teacher[counted]).item() == pytest.approx(0, abs=1e-6)


def test_fewer_than_three_texts_have_no_similarities_to_compare():
    student = torch.randn(3, 4, requires_grad=True)
    loss = similarity_distance(student[:2], torch.randn(2, 4))
    loss.backward()
    assert (loss.item(), student.grad.abs().sum().item()) == (0.0, 0.0)


def test_a_teacher_that_finds_all_texts_alike_has_a_least_spread():
    # Cosines 0.99995 and 0.9999 and 0.99980: their spread is far below 0.05, which divides.
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02]])
    student = torch.eye(3)
    unit = torch.nn.functional.normalize(teacher, dim=-1)
    cosines = (unit @ unit.T)[torch.triu(torch.ones(3, 3), 1).bool()]
    expected = (cosines.square().mean() / 0.05**2).item()
    assert similarity_distance(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_a_micro_batch_of_three_is_a_group_and_smaller_ones_are_none():
    batches = [Batch({}, None, torch.ones(n, dtype=torch.bool), torch.ones(n, 1, dtype=torch.bool)) for n in (3, 2, 5)]
    assert count_units(batches)[Unit.GROUP] == 2


def test_gradients_of_both_are_those_of_the_function():
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    mask = torch.tensor([True, True, True, False])
    assert torch.autograd.gradcheck(lambda s: embedding_distance(s, teacher, mask), (student,))
    assert torch.autograd.gradcheck(lambda s: similarity_distance(s, teacher), (student,))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Text without labels to learn from, and pairs that are alike by the words they share."""
    place = tmp_path_factory.mktemp("pairs")
    pd.DataFrame({"text": sentences(128, 0)[0]}).to_parquet(place / "train.parquet")
    first, second = sentences(40, 1)[0], sentences(40, 2)[0]
    shared = [
        len({*a.split()} & {*b.split()}) / len({*a.split()} | {*b.split()}) for a, b in zip(first, second, strict=True)
    ]
    table = pd.DataFrame({"sentence1": first, "sentence2": second, "label": shared})
    table.to_parquet(place / "validation.parquet")
    return place


def words(teacher, pairs, *more):
    return ["distill", "--teacher", teacher, "--student", "layers=2", "--task", "embedding", "--data", pairs,
            "--batch-size", 32, "--device", "cpu", "--precision", "fp32", "--max-steps", 12, "--lr", 3e-3,
            "--out", "runs/e", *more]  # fmt: skip


@pytest.mark.slow
def test_a_student_learns_from_text_alone_and_is_scored_by_the_cosines_of_its_own_files(
    kdalign, teacher, pairs, tmp_path
):
    status, _, err = kdalign(*words(teacher, pairs, "--set", "train.dropout=0"))
    assert status == 0, err
    record = json.loads((tmp_path / "runs/e/record.json").read_text())
    assert record["metrics"] == ["spearman", "pearson"]
    assert set(record["training"]["terms"]) == {"embedding", "similarity", "cosine", "euclid", "attention"}
    events = [json.loads(line) for line in (tmp_path / "runs/e/history.jsonl").read_text().splitlines()]
    watched = [event["agreement"] for event in events if event["kind"] == "evaluation"]
    assert watched[-1] > watched[0]
    # The score again, with Transformers and scipy alone.
    folder = tmp_path / "runs/e/student"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    table = pd.read_parquet(pairs / "validation.parquet")

    def vector(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    cosines = [
        torch.nn.functional.cosine_similarity(vector(a), vector(b), dim=0).item()
        for a, b in zip(table.sentence1, table.sentence2, strict=True)
    ]
    [spearman, _] = record["scores"]["validation"]["student"]
    assert spearman["value"] == pytest.approx(100 * spearmanr(cosines, table.label).statistic, abs=0.05)
    assert spearman["signature"].startswith("cosines of mean-pooled tokens")
    # And by the command that scores any encoder.
    status, _, err = kdalign("eval", "runs/e", teacher, "--task", "embedding", "--data", pairs, "--out", "e.json")
    assert status == 0, err
    ours, theirs = json.loads((tmp_path / "e.json").read_text())["results"]
    assert ours["scores"][0]["value"] == pytest.approx(spearman["value"], abs=1e-6)
    assert theirs["scores"][0]["value"] == pytest.approx(
        record["scores"]["validation"]["teacher"][0]["value"], abs=1e-4
    )


@pytest.mark.slow
def test_of_another_width_only_similarities_teach(kdalign, pairs, tmp_path):
    teacher = save_model(tmp_path / "wide", "bert", width=64)
    narrow = save_model(tmp_path / "narrow", "bert", layers=2, width=32)
    status, _, err = kdalign(*words(teacher, pairs, "--student", narrow, "--beta", 0, "--gamma", 0, "--delta", 0))
    assert status == 0, err
    events = [json.loads(line) for line in (tmp_path / "runs/e/history.jsonl").read_text().splitlines()]
    steps = [event["parts"]["similarity"] for event in events if event["kind"] == "step"]
    assert next(set(event["parts"]) for event in events if event["kind"] == "step") == {"similarity"}
    assert steps[-1] < steps[0]


def test_embeddings_have_no_labels():
    recipe = build_recipe(None, {"teacher": "t", "data.task": "embedding"})
    assert (recipe.objective.hard, recipe.objective.alpha, recipe.train.epochs) == (0.0, 1.0, 1.0)


def test_the_training_split_has_nothing_to_score(kdalign, teacher, pairs, tmp_path):
    status, out, _ = kdalign("eval", teacher, "--task", "embedding", "--data", pairs, "--split", "train")
    assert status == 2
    assert "split train has no pairs with a similarity" in out
    assert not (tmp_path / "runs").exists()


WRONG = [
    (("--micro-batch", 2), "of a micro-batch with one another: 2 are too few (accepted: 3 or more)"),
    (("--hard", 0.5), "'embedding' has no labels: it takes --hard 0"),
    (("--student", "new:bert,layers=2"), "cannot be learned from scratch"),
    (("--task", "embedding:sst2"), "pairs with a similarity, as in embedding:stsb"),
]


@pytest.mark.parametrize(("more", "said"), WRONG)
def test_what_cannot_be_embedded_is_one_line_and_nothing_is_written(kdalign, teacher, pairs, tmp_path, more, said):
    status, _, err = kdalign(*words(teacher, pairs, *more))
    assert status == 2
    assert said in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_without_a_teacher_nothing_teaches_an_embedding(kdalign, teacher, pairs):
    status, _, err = kdalign(
        "distill", "--teacher", "none", "--student", teacher, "--task", "embedding", "--data", pairs
    )
    assert status == 2
    assert "learns from a teacher's embeddings" in one_line(err)


def test_a_split_without_likeness_is_named(kdalign, teacher, pairs, tmp_path):
    pd.DataFrame({"text": ["a film"]}).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame({"text": ["a film"]}).to_parquet(tmp_path / "validation.parquet")
    status, _, err = kdalign("eval", teacher, "--task", "embedding", "--data", tmp_path)
    assert status == 2
    assert "two columns of text and one named label" in one_line(err)


def test_another_pooling_is_refused(kdalign, pairs, tmp_path):
    teacher = save_model(tmp_path / "first", "bert")
    (teacher / "1_Pooling").mkdir()
    told = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (teacher / "1_Pooling" / "config.json").write_text(json.dumps(told))
    status, _, err = kdalign(*words(teacher, pairs))
    assert status == 2
    assert "pools its tokens by cls; accepted is the mean" in one_line(err)


MODULES = [{"path": "", "type": "x.Transformer"}, {"path": "2_Pooling", "type": "x.Pooling"}]


def beside(folder, **files):
    """An encoder with further files: names without their ending, and what they hold."""
    model = save_model(folder, "bert")
    for name, tree in files.items():
        file = model / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(tree))
    return find_checkpoint(str(model))


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean and max"),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False}, "weightedmean"),
        ({"pooling_mode_mean_tokens": False}, "nothing"),
        ({"embedding_dimension": 32, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
        ({"embedding_dimension": 32}, "mean"),
    ],
)
def test_pooling_is_read_where_the_list_of_modules_says(tmp_path, told, pooling):
    checkpoint = beside(
        tmp_path / "a", modules=MODULES, **{"2_Pooling__config": told, "1_Pooling__config": {"pooling_mode": "max"}}
    )
    assert read_pooling(checkpoint) == pooling


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules": MODULES}, "pools its tokens as 2_Pooling/config.json says (modules.json), and has no such file"),
        ({"modules": [*MODULES, MODULES[1]]}, "pools its tokens 2 times"),
        ({"modules": [{"path": "../x", "type": "x.Pooling"}]}, "is not a list of sentence-transformers' modules"),
        (
            {"config_sentence_transformers": {"prompts": {"query": "query: "}, "default_prompt_name": "query"}},
            "puts the prompt 'query: ' before every text",
        ),
    ],
)
def test_vectors_that_would_be_others_are_refused(tmp_path, files, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        check_sentences(beside(tmp_path / "a", **files))


def test_lower_case_is_left_to_a_tokenizer_that_sees_to_it(tmp_path):
    checkpoint = beside(tmp_path / "a", sentence_bert_config={"do_lower_case": True})
    check_sentences(checkpoint)
    file = tmp_path / "a" / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(tree))
    config = tmp_path / "a" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"do_lower_case": False}))
    with pytest.raises(UsageError, match="reads texts in lower case"):
        check_sentences(checkpoint)


def test_prompts_that_are_asked_for_by_name_are_told(tmp_path):
    prompts = {"prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": None}
    checkpoint = beside(tmp_path / "a", config_sentence_transformers=prompts)
    check_sentences(checkpoint)
    assert prompts_note(checkpoint).endswith("knows prompts, and texts are read without them: query 'query: '")


@pytest.mark.parametrize("train", first_only([False, True]))
def test_pairs_are_scored_with_no_train_or_with_pairs_in_it(kdalign, tmp_path, train):
    model = save_model(tmp_path / "a", "bert")
    texts = [sentences(16, number)[0] for number in (0, 1)]
    pairs = pd.DataFrame({"first": texts[0], "second": texts[1], "label": np.arange(16.0)})
    for split in ("validation", *(["train"] if train else [])):
        pairs.to_csv(tmp_path / f"{split}.csv", index=False)
    status, out, _ = kdalign("eval", model, "--task", "embedding", "--data", ".", "--json")
    assert status == 0
    encoder, tokenizer = AutoModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        vectors = [
            [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in column]
            for column in texts
        ]
    cosines = [float(torch.cosine_similarity(one, other, dim=0)) for one, other in zip(*vectors, strict=True)]
    score = json.loads(out)[0]["scores"][0]
    assert (score["metric"], score["n"]) == ("spearman", 16)
    assert score["value"] == pytest.approx(100 * spearmanr(cosines, np.arange(16)).statistic)


def test_the_pooling_above_an_inner_folder_counts(kdalign, pairs, tmp_path):
    inner = save_model(tmp_path / "old" / "0_Transformer", "bert")
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "old" / "1_Pooling").mkdir()
    told = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "old" / "1_Pooling" / "config.json").write_text(json.dumps(told))
    status, _, err = kdalign(*words(inner, pairs), "--dry-run")
    assert status == 2
    assert "pools its tokens by cls; accepted is the mean" in one_line(err)
