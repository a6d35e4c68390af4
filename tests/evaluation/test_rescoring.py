"""Scores are computed again from kept predictions: an edited one is named, even where every hash was corrected."""

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdalign.distillation.pipeline import distill
from kdalign.errors import RunError, TamperedRun, UsageError
from kdalign.evaluation.rescoring import _languages, rescore, rescore_archived, rescore_evaluation, rescore_run
from kdalign.metrics.classification import METRICS
from kdalign.recipe import build_recipe
from kdalign.runs import archive
from kdalign.runs.discovery import RunGroup
from kdalign.runs.folder import RunFolder
from kdalign.runs.prediction_table import PredictionTable
from kdalign.runs.record import read_record
from kdalign.runs.seal import sealed
from support.commands import run_in
from support.covering import first_only
from support.tiny import one_line, sentences

QUICK = {"train.max_steps": 2, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts")
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame({"text": sentences(32, number)[0]}).to_parquet(place / f"{split}.parquet")
    return place


@pytest.fixture(scope="module")
def made(tmp_path_factory, teacher, data, texts):
    """Finished runs of each kind of answer: classes, cosines, tokens left to right and masked, with their teachers."""
    root = tmp_path_factory.mktemp("made")
    task = root / "films.yaml"
    task.write_text("columns: [sentence]\nlabels: [negative, positive]\nmetrics: [accuracy, f1, matthews, ece]\n")
    pairs = root / "pairs"
    pairs.mkdir()
    (first, _), (second, _) = sentences(48, 1), sentences(48, 2)
    pd.DataFrame({"text": first}).to_parquet(pairs / "train.parquet")
    likeness = np.linspace(0, 5, 48)
    pd.DataFrame({"sentence1": first, "sentence2": second, "score": likeness}).to_parquet(pairs / "validation.parquet")

    def run(name, **flags):
        distill(build_recipe(None, QUICK | flags | {"out": str(root / name)}))

    run("classes", teacher=str(teacher), student="layers=2", **{"data.task": str(task), "data.folder": str(data)})
    run("cosines", teacher=str(teacher), student="layers=2",
        **{"data.task": "embedding", "data.folder": str(pairs)})  # fmt: skip
    for kind in ("gpt2", "bert"):
        own = {"data.task": "lm", "data.folder": str(texts), "data.max_length": 16}
        new = f"new:{kind},layers=2,width=32,heads=4,positions=64"
        run(f"{kind}-teacher", teacher="none", student=new, tokenizer="train:300", **own)
        run(kind, teacher=str(root / f"{kind}-teacher"), student="layers=1", allow=["weak-teacher"], **own)
    return root


KINDS = ("classes", "cosines", "gpt2", "bert")


@pytest.mark.parametrize("kind", first_only(KINDS, 2))
def test_every_score_of_a_run_is_what_its_answers_give(made, kind):
    found = rescore_run(made / kind)
    split = read_record(made / kind).scores["validation"]
    told = [*split["student"], *split["teacher"], split["agreement"], *split["calibration"].values()]
    assert (found.differences, found.skipped) == ((), ())
    assert found.scores == len(told) == {"classes": 11, "cosines": 5}.get(kind, len(told))


def test_an_archived_perplexity_may_differ_by_what_its_likelihoods_were_rounded_by(made):
    record = read_record(made / "gpt2")
    columns = archive._read_answers(RunFolder(made / "gpt2").predictions("validation"))
    worst = {
        name: each * (1 + 0.6 * archive.ROUNDING) if each.dtype.kind == "f" else each for name, each in columns.items()
    }
    entry = RunGroup("gpt2", "key", {"lm": record}, answers={"lm": {"validation": worst}}, ablation=made)
    split = record.scores["validation"]
    assert max(math.log(score["value"]) for score in split["teacher"]) > 5, "its rounding grows by this factor"
    found = rescore_archived(entry)
    assert (found.differences, found.skipped) == ((), ())
    assert found.scores == len([*split["student"], *split["teacher"], split["agreement"]])
    worst["teacher_nll"] = worst["teacher_nll"] * (1 + 5 * archive.ROUNDING)
    differences = rescore_archived(entry).differences
    assert differences
    assert all("validation: teacher " in line for line in differences)


def test_a_run_without_a_teacher_is_verified_too(made):
    found = rescore_run(made / "gpt2-teacher")
    assert (found.scores, found.differences, found.skipped) == (4, (), ())


def places(split):
    return [(who, number) for who in ("student", "teacher") for number in range(len(split[who]))] + [("agreement", 0)]


@pytest.mark.parametrize("kind", first_only(KINDS))
def test_each_edited_score_is_found_though_hashes_and_seal_were_made_right_again(made, tmp_path, kind):
    run = tmp_path / "run"
    shutil.copytree(made / kind, run)
    record = read_record(run)
    some = slice(None, None, 2 if kind == "cosines" else 1)  # whose intervals take a second
    for who, number in places(record.scores["validation"])[some]:
        edited = copy.deepcopy(record.scores)
        score = edited["validation"][who] if who == "agreement" else edited["validation"][who][number]
        before, score["value"] = score["value"], score["value"] * (1 + 1e-7)
        RunFolder(run).write_record(replace(record, scores=edited))
        found = rescore_run(run)
        [line] = found.differences
        assert line.startswith(f"run {str(run)!r}, validation: ")
        assert (
            f"{'' if who == 'agreement' else who + ' '}{score['metric']} is recorded as {score['value']:.12g}" in line
        )
        assert f"its predictions give {before:.12g}" in line


@pytest.mark.parametrize("end", ["low", "high", "n"])
def test_an_edited_interval_or_number_of_examples_is_found(made, tmp_path, end):
    run = tmp_path / "run"
    shutil.copytree(made / "classes", run)
    record = read_record(run)
    edited = copy.deepcopy(record.scores)
    edited["validation"]["student"][1][end] += 1
    RunFolder(run).write_record(replace(record, scores=edited))
    [line] = rescore_run(run).differences
    assert "student f1 " in line


def test_edited_answers_are_found(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "classes", run)
    file = run / "predictions" / "validation.parquet"
    table = pd.read_parquet(file)
    table["prediction"] = table["label"]
    table.to_parquet(file)
    with pytest.raises(UsageError, match=r"predictions/validation\.parquet was changed"):
        rescore_run(run)
    RunFolder(run).write_record(read_record(run))
    assert any("student accuracy" in line and "give 100" in line for line in rescore_run(run).differences)


def test_compare_verifies_and_says_so(kdalign, made):
    status, out, err = kdalign("compare", made / "classes", made / "gpt2", "--verify", "--format", "markdown")
    assert status == 0, err
    assert "- verified: 20 scores computed again from kept predictions; the weights of 2 runs are as" in out


def test_a_teacher_whose_logits_are_not_kept_is_said_to_be_unverified_there(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "classes", run)
    file = run / "predictions" / "validation.parquet"
    table = pd.read_parquet(file)
    table.drop(columns=[name for name in table if name.startswith("teacher_logit/")]).to_parquet(file)
    RunFolder(run).write_record(read_record(run))
    found = rescore_run(run)
    assert found.differences == ()
    assert any("teacher ece was not computed again: its logits are not kept" in line for line in found.skipped)


def test_an_edited_calibration_is_found(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "classes", run)
    record = read_record(run)
    edited = copy.deepcopy(record.scores)
    edited["validation"]["calibration"]["student"]["value"] += 1
    RunFolder(run).write_record(replace(record, scores=edited))
    [line] = rescore_run(run).differences
    assert "student ece is recorded as" in line


def test_a_difference_is_one_line_of_status_1_and_no_table(kdalign, made, tmp_path):
    shutil.copytree(made / "classes", tmp_path / "run")
    record = read_record(tmp_path / "run")
    edited = copy.deepcopy(record.scores)
    for score in edited["validation"]["student"]:
        score["value"] += 1
    RunFolder(tmp_path / "run").write_record(replace(record, scores=edited))
    assert kdalign("compare", "run")[0] == 0
    status, out, err = kdalign("compare", "run", "--verify")
    assert (status, out) == (1, "")
    assert "student accuracy is recorded as" in one_line(err)
    assert one_line(err).endswith("; and 1 more")


def test_changed_weights_are_status_2_with_verify(kdalign, made, tmp_path):
    shutil.copytree(made / "classes", tmp_path / "run")
    file = tmp_path / "run" / "student" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert kdalign("compare", "run")[0] == 0
    status, out, err = kdalign("compare", "run", "--verify")
    assert (status, out) == (2, "")
    assert "student/model.safetensors was changed" in one_line(err)


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory, made, texts):
    """Evaluations of classes, with noise and agreement, and of tokens and texts by two families."""
    folder = tmp_path_factory.mktemp("evaluations")
    classes = ["--out", "classes.json", "--metrics", "accuracy,f1,ece,agreement", "--noise", "typos=0.5"]
    words = ["--task", "lm", "--data", texts, "--max-length", 32, "--limit", 8, "--metrics", "ppl,word_ppl,bleu,cer"]
    run_in(folder, "eval", made / "classes", *classes)
    run_in(folder, "eval", made / "gpt2", made / "bert", *words, "--out", "texts.json")
    return folder


@pytest.fixture
def evaluated(evaluations, tmp_path):
    return shutil.copytree(evaluations, tmp_path, dirs_exist_ok=True)


def test_an_evaluations_scores_are_what_its_answers_give(evaluated):
    found = rescore_evaluation(evaluated / "classes.json")
    assert (found.scores, found.differences, found.skipped) == (7, (), ())
    found = rescore_evaluation(evaluated / "texts.json")
    assert found.differences == ()
    # Two models by four metrics, two baselines by two; how likely the unigram finds words is kept nowhere.
    assert found.scores == 12
    assert [line.partition("the predictions behind ")[2] for line in found.skipped] == ["word_ppl are not next to it"]


def test_an_evaluation_is_verified_where_it_was_moved_to(evaluated):
    (evaluated / "moved").mkdir()
    for name in ("classes.json", "classes"):
        shutil.move(evaluated / name, evaluated / "moved" / name)
    assert rescore_evaluation(evaluated / "moved" / "classes.json").scores == 7


@pytest.mark.parametrize("file", ["classes.json", "texts.json"])
def test_each_edited_score_of_an_evaluation_is_found(evaluated, file):
    tree = json.loads((evaluated / file).read_text())
    for number, result in enumerate(tree["results"]):
        for place, score in enumerate(result["scores"]):
            if result["model"] == "unigram" and score["metric"] == "word_ppl":
                continue
            edited = copy.deepcopy(tree)
            edited["results"][number]["scores"][place]["value"] += 1e-6 * (1 + score["value"])
            (evaluated / "edited.json").write_text(json.dumps(edited))
            shutil.copytree(evaluated / file.removesuffix(".json"), evaluated / "edited", dirs_exist_ok=True)
            with pytest.raises(TamperedRun, match=r"edited\.json' was changed after it was written"):
                rescore([evaluated / "edited.json"])
            del edited["seal"]
            (evaluated / "edited.json").write_text(json.dumps(sealed(edited)))  # who can change a file can seal it, too
            [line] = rescore([evaluated / "edited.json"]).differences
            assert f"{result['model']}, {result['split']}: {score['metric']} is recorded as" in line


def test_an_evaluation_without_its_answers_is_said_to_be_so(evaluated):
    shutil.rmtree(evaluated / "classes")
    found = rescore([evaluated / "classes.json"])
    assert found.scores == 0
    assert "the predictions behind accuracy, f1, ece, agreement are not next to it" in found.skipped[0]
    found.check()


def test_three_differences_are_told_and_the_rest_counted(made, tmp_path):
    shutil.copytree(made / "classes", tmp_path / "run")
    record = read_record(tmp_path / "run")
    edited = copy.deepcopy(record.scores)
    for score in (*edited["validation"]["student"], *edited["validation"]["teacher"]):
        score["value"] += 1
    RunFolder(tmp_path / "run").write_record(replace(record, scores=edited))
    with pytest.raises(RunError, match=r"and 5 more$"):
        rescore_run(tmp_path / "run").check()


@pytest.mark.parametrize(
    ("columns", "who"),
    [
        ({"logit/a": [math.nan, 1.0], "logit/b": [math.nan, 0.0]}, "student"),
        ({"teacher_logit/a": [-math.inf, 1.0], "teacher_logit/b": [-math.inf, 0.0]}, "teacher"),
        ({"nll": [math.nan, 1.0]}, "student"),
    ],
)
def test_a_run_that_kept_answers_of_nan_is_named_whatever_its_classes_score(columns, who):
    from kdalign.evaluation.rescoring import RecordedPredictions, _check_numbers

    found = _check_numbers(
        RecordedPredictions(PredictionTable(pd.DataFrame({"prediction": [0, 0], **columns})), METRICS),
        "run 'x', validation",
    )
    [line] = found.differences
    assert line.startswith(f"run 'x', validation: the {who} gives NaN: 1 of 2 kept predictions are not numbers")
    with pytest.raises(RunError):
        found.check()


def test_answers_that_a_model_never_gives_are_numbers():
    from kdalign.evaluation.rescoring import RecordedPredictions, _check_numbers

    columns = {"logit/a": [-math.inf, 1.0], "logit/b": [0.0, 0.0], "nll": [math.inf, 1.0]}
    assert not _check_numbers(RecordedPredictions(PredictionTable(pd.DataFrame(columns)), METRICS), "x").differences


def test_texts_are_scored_again_in_every_language_that_counts_otherwise():
    assert [*_languages({"task": "unknown"}, ["wer"])] == ["en", "", "de", "zh", "tr", "ja", "ko"]
    assert next(_languages({"task": "multi30k"}, ["wer"])) == "de"
