"""A student that diverges is neither exported nor scored, and one whose score is undefined is not lost."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from kdalign.evaluation.adapters import classification
from kdalign.runs.folder import RunFolder
from support.tiny import one_line, save_model, sentences


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    """A regressor of four layers, for STS-B."""
    return save_model(tmp_path_factory.mktemp("scorer"), "bert", num_labels=1, problem_type="regression")


def stsb(folder, labels):
    """Pairs with these labels, as train and validation."""
    texts, _ = sentences(2 * len(labels), 7)
    table = pd.DataFrame({"sentence1": texts[::2], "sentence2": texts[1::2], "label": labels})
    folder.mkdir()
    for split in ("train", "validation"):
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--lr", "1e38"), ("--lr", "1e20")])
def test_a_student_that_diverges_in_its_last_step_is_not_exported_and_not_scored(kdalign, data, teacher, tmp_path, how):
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    code, out, err = kdalign(*words, "--max-steps", 1, "--batch-size", 4, *how, "--out", "run")
    assert code == 1, err
    assert "diverged" in err.splitlines()[-1]
    assert "accuracy" not in out
    run = RunFolder(tmp_path / "run")
    assert not run.complete
    assert not run.student.exists()


@pytest.mark.slow
def test_a_training_on_equal_labels_ends_with_a_score_that_is_undefined(kdalign, scorer, tmp_path):
    words = ("distill", "--teacher", scorer, "--student", "layers=2", "--task", "stsb")
    folder = stsb(tmp_path / "data", [2.5] * 8)
    more = ("--data", folder, "--max-steps", 2, "--batch-size", 4, "--select", "best", "--set", "train.eval_every=1")
    code, _, err = kdalign(*words, *more, "--out", "run")
    assert code == 0, err
    assert "no step is the best" in err
    run = RunFolder(tmp_path / "run")
    tree = json.loads((run.path / "record.json").read_text(), parse_constant=pytest.fail)
    [pearson, spearman] = tree["scores"]["validation"]["student"]
    for score in (pearson, spearman):
        assert (score["value"], score["low"]) == (None, None)
        assert score["reason"] == "all 8 references are 2.5, and a constant has no correlation"
    assert tree["training"]["exported_step"] == 2, "the last one, where no score has a value"
    for line in run.history.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    code, out, err = kdalign("compare", "run")
    assert code == 0, err
    assert "stsb/pearson: no value, all 8 references are 2.5" in " ".join(out.split())
    code, out, _ = kdalign("compare", "run", "--require", "pearson>=0")
    assert code == 1
    assert "a constant has no correlation" in " ".join(out.split()) + " ".join(_.split())
    card = (run.student / "README.md").read_text()
    assert "pearson on `validation` is undefined: all 8 references are 2.5" in card


def test_one_row_is_trained_on_and_scored_as_undefined(kdalign, scorer, tmp_path):
    words = ("distill", "--teacher", scorer, "--student", "layers=2", "--task", "stsb", "--limit", 1)
    folder = stsb(tmp_path / "data", [1.0, 2.5, 4.0])
    code, _, err = kdalign(*words, "--data", folder, "--max-steps", 1, "--batch-size", 1, "--out", "run")
    assert code == 0, err
    [score, _] = json.loads((tmp_path / "run" / "record.json").read_text())["scores"]["validation"]["student"]
    assert score["reason"] == "one example has no correlation"


def test_a_metric_that_raises_leaves_the_student_and_the_way_on(kdalign, data, teacher, tmp_path, monkeypatch):

    def broken(*_, **__):
        raise ZeroDivisionError("of my own metric")

    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    words = (*words, "--max-steps", 1, "--batch-size", 4, "--out", "run")
    with monkeypatch.context() as patched:
        patched.setattr(classification.ClassificationAdapter, "calibration", broken)
        code, _, err = kdalign(*words)
    assert code == 1
    assert "could not be scored: ZeroDivisionError: of my own metric" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    code, _, err = kdalign("distill", "--out", "run", "--resume")
    assert code == 0, err
    assert RunFolder(tmp_path / "run").complete


def with_nan(folder, model, key):
    """A copy of a checkpoint with one weight that is NaN."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if key in name)
    weights[name].view(-1)[0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("who", ["--teacher", "--student"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_checkpoint_of_nan_is_named_before_anything_is_written(kdalign, data, teacher, tmp_path, who, dry):
    broken = with_nan(tmp_path / "broken", teacher, "layer.1.output.dense.weight")
    models = {"--teacher": teacher, "--student": teacher} | {who: broken}
    words = [word for pair in models.items() for word in pair]
    code, _, err = kdalign("distill", *words, "--task", "sst2", "--data", data, "--max-steps", 1, "--out", "run", *dry)
    assert code == 2
    assert "broken' gives NaN: its weight" in one_line(err)
    assert not (tmp_path / "run").exists()


def test_a_model_that_gives_nan_has_no_score(kdalign, data, teacher, tmp_path):
    broken = with_nan(tmp_path / "broken", teacher, "layer.1.output.dense.weight")
    code, out, err = kdalign("eval", broken, "--task", "sst2", "--data", data)
    assert code == 2
    assert "broken' gives NaN" in err.splitlines()[-1]
    assert "accuracy" not in out


def test_logits_of_nan_from_finite_weights_are_no_classes(kdalign, data, teacher, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(teacher, large)
    weights = load_file(large / "model.safetensors")
    save_file(
        {k: v * 1e30 if v.ndim > 1 else v for k, v in weights.items()}, large / "model.safetensors", {"format": "pt"}
    )
    code, out, err = kdalign("eval", large, "--task", "sst2", "--data", data)
    assert code == 1
    assert "large' gives NaN: 64 of 64 examples have logits that are NaN or infinite" in err.splitlines()[-1]
    assert "accuracy" not in out
    words = ("distill", "--teacher", large, "--student", "layers=2", "--task", "sst2", "--data", data)
    code, _, err = kdalign(*words, "--max-steps", 1, "--out", "run")
    assert code == 1
    assert "large' gives NaN" in err.splitlines()[-1]


def test_masked_logits_are_numbers_where_another_is():
    from kdalign.evaluation.predictions import check_finite

    check_finite(np.array([[-np.inf, 0.0], [-1e9, 200.0]]), "logits")
    for bad in ([np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]):
        with pytest.raises(Exception, match="1 of 2 examples"):
            check_finite(np.array([[0.0, 1.0], bad]), "logits")


def test_an_undefined_score_is_never_the_best_step():
    from kdalign.training.checkpoint import TrainState
    from kdalign.training.loop import Trainer

    class Settings:
        select, patience = "last", None

    loop = object.__new__(Trainer)
    loop.progress, loop.settings, loop.sharded = TrainState(), Settings(), False
    seen = []
    for step, value in enumerate([None, None, 10.0, None, 9.0]):
        loop.progress.step = step
        loop._rank(value)
        seen.append((loop.progress.best_step, loop.progress.best_score, loop.progress.evaluations_without_gain))
    assert seen == [(0, None, 1), (1, None, 2), (2, 10.0, 0), (2, 10.0, 1), (2, 10.0, 2)]
