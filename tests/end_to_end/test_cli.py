"""The command line as its user meets it: what it prints, where, and with which status."""

import json
import os
import re
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from kdalign.distillation.pipeline import prepare_all
from kdalign.recipe import build_recipe
from kdalign.report.dry_run import preparation_table
from kdalign.version import __version__
from support.covering import first_only
from support.tiny import one_line, save_model, sentences


def quick(teacher, data, *more):
    return (
        "distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data,
        "--max-steps", "6", "--batch-size", "16", "--precision", "fp32", "--device", "cpu", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, teacher, data):
    """Three finished runs: labels and joint of seed 0, joint of seed 1."""
    from kdalign.distillation.pipeline import distill
    from kdalign.recipe import ARMS, build_recipe

    folder = tmp_path_factory.mktemp("runs")
    for arm, seed in (("labels", 0), ("joint", 0), ("joint", 1)):
        flags = {
            "teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data),
            "objective": dict(ARMS[arm]), "train.max_steps": 6, "train.batch_size": 16, "train.precision": "fp32",
            "train.seed": seed, "train.device": "cpu", "out": str(folder / f"{arm}-{seed}"),
        }  # fmt: skip
        distill(build_recipe(None, flags))
    return folder


def test_distill_prints_the_table_on_stdout_and_leaves_a_whole_run_folder(kdalign, teacher, data, tmp_path):
    status, out, err = kdalign(*quick(teacher, data, "--out", "runs/a"))
    assert status == 0
    for word in ("sst2 accuracy", "agreement", "retained", "params", "latency", "speed-up", "teacher", "n = 64"):
        assert word in " ".join(out.split()), word
    assert "step 6/6" in err
    assert "samples/s" in err
    run = tmp_path / "runs" / "a"
    there = {str(f.relative_to(run)) for f in run.rglob("*") if f.is_file() and "checkpoints" not in f.parts}
    assert there >= {
        "recipe.yaml", "plan.json", "history.jsonl", "log.txt", "record.json", "predictions/validation.parquet",
        "student/model.safetensors", "student/config.json", "student/tokenizer.json",
    }  # fmt: skip
    record = json.loads((run / "record.json").read_text())
    assert record["scores"]["validation"]["student"][0]["n"] == 64
    assert record["training"]["steps"] == 6
    assert record["data"]["train"]["n"] == 256
    steps = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [e["step"] for e in steps if e["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in steps if e["kind"] == "evaluation"] == [0, 1, 2, 3, 4, 5, 6]
    kept = pd.read_parquet(run / "predictions" / "validation.parquet")
    logits = ["logit/negative", "logit/positive", "teacher_logit/negative", "teacher_logit/positive"]
    assert list(kept.columns) == ["prediction", "label", "teacher", *logits]
    accuracy = 100 * (kept.prediction == kept.label).mean()
    assert record["scores"]["validation"]["student"][0]["value"] == pytest.approx(accuracy)
    logits = kept[["logit/negative", "logit/positive"]].to_numpy()
    confidence = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1)
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs((kept.prediction == kept.label)[bins == b].sum() - confidence[bins == b].sum()) for b in set(bins)]
    found = record["scores"]["validation"]["calibration"]["student"]["value"]
    assert found == pytest.approx(100 * sum(gaps) / 64, abs=1e-4)
    assert not list(run.rglob("*.pt")) + list(run.rglob("*.bin")) + list(run.rglob("*.pkl"))


def terms_of(run):
    events = [json.loads(line) for line in (Path(run) / "history.jsonl").read_text().splitlines()]
    return [set(event["parts"]) for event in events if event["kind"] == "step"]


@pytest.mark.parametrize(
    ("share", "aligning"),
    [("0.5", 3), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("0.01", 1), ("0.99", 5)))],
)
def test_each_of_two_stages_has_a_step_at_least(kdalign, teacher, data, share, aligning):
    more = ("--hard", "1", "--alpha", "0", "--set", f"objective.align_first={share}")
    status, _, err = kdalign(*quick(teacher, data, *more, "--out", "runs/a"))
    assert status == 0, err
    assert terms_of("runs/a") == [{"cosine", "euclid", "attention"}] * aligning + [{"hard"}] * (6 - aligning)


def test_two_stages_in_one_step_are_refused(kdalign, teacher, data, tmp_path):
    more = ("--set", "objective.align_first=0.5", "--max-steps", "1", "--out", "runs/a")
    status, _, err = kdalign(*quick(teacher, data, *more))
    assert status == 2
    assert "2 parts (objective.align_first, align.grow) need a step each" in err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_training_is_not_stopped_early_before_its_last_stage(kdalign, teacher, data):
    more = ("--hard", "1", "--alpha", "0", "--set", "objective.align_first=0.5", "--patience", "1", "--eval-every", "1")
    status, _, err = kdalign(*quick(teacher, data, *more, "--select", "best", "--out", "runs/a"))
    assert status == 0, err
    assert terms_of("runs/a")[3] == {"hard"}
    assert json.loads(Path("runs/a/record.json").read_text())["training"]["exported_step"] > 3


@pytest.mark.parametrize("arm", first_only(["joint", "align", "labels", "soft"]))
def test_every_arm_goes_with_a_learned_map(kdalign, teacher, data, arm):
    from kdalign.recipe import ARMS

    more = [word for key, value in ARMS[arm].items() for word in ("--set", f"objective.{key}={value}")]
    status, _, err = kdalign(*quick(teacher, data, "--map", "learned", *more, "--out", "runs/a"))
    assert status == 0, err
    assert ("layer_attention" in json.loads(Path("runs/a/record.json").read_text())["training"]) == (arm == "joint")


def test_the_resolved_recipe_gives_the_same_run_again_and_json_on_stdout_is_json_alone(kdalign, runs):
    status, out, _ = kdalign("distill", "--recipe", runs / "joint-0" / "recipe.yaml", "--out", "runs/b", "--json")
    assert status == 0
    assert json.loads(out)[0]["task"] == "sst2"
    for name in ("student/model.safetensors", "history.jsonl"):
        assert Path("runs/b", name).read_bytes() == (runs / "joint-0" / name).read_bytes()


def test_a_dry_run_shows_the_plan_and_writes_nothing(kdalign, teacher, data, tmp_path):
    status, out, _ = kdalign(*quick(teacher, data, "--out", "runs/a", "--dry-run"))
    assert status == 0
    assert "layers 1 3" in out
    assert "steps" in out
    assert "hard 0.3, alpha 0.7, beta 1, gamma 1, delta 1" in out
    status, out, _ = kdalign(*quick(teacher, data, "--out", "runs/a", "--dry-run", "--json"))
    assert status == 0
    [found] = json.loads(out)
    assert found["recipe"]["train"]["max_steps"] == 6
    assert found["plan"]["maps"][0]["pairs"] == [[0, 1], [1, 3]]
    assert found["examples"] == {"train": 256, "watched": 100, "validation": 64}
    assert (found["cut_from"], found["finetunes"]) == ({"encoder": [1, 3]}, False)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_where_the_objective_is_not_the_plain_one(teacher, data, tmp_path):
    def facts(*sets):
        given = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
        console = Console(width=200, file=StringIO())
        console.print(preparation_table(prepare_all(build_recipe(None, {**given, "out": str(tmp_path / "a")}, sets))))
        rows = (re.split(r"  +", line.strip(), maxsplit=1) for line in console.file.getvalue().splitlines())
        # What is free is another number each time.
        return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] not in ("memory", "disk")}

    plain = facts()
    added = {"preset", "schedule", "parts", "balance", "layer weights", "layers aligned", "frozen"}
    assert not added & set(plain)
    assert facts("preset=feature-alignment") == plain
    assert plain["profile"] == "FLOPs and latency of both models"
    assert facts("train.profile=false")["profile"] == "none (--no-profile)"
    found = facts(
        "objective.align_first=0.5", "objective.beta=0", "objective.schedule.beta={to: 1, until: 0.4}",
        "objective.schedule.alpha={to: 0.1, shape: constant, from: 0.75}", "objective.balance=pace",
        "align.weights=[1, 3]", "align.grow=0.25", "train.freeze=embeddings",
    )  # fmt: skip
    assert {key: found[key] for key in found if key in added or key == "weights"} == {
        "weights": "hard 0.3, alpha 0.7, beta 0, gamma 1, delta 1",
        "schedule": "beta 0 to 1, linearly over the first 40 % of the steps; alpha 0.7, from 75 % of the steps on 0.1",
        "parts": "layers in the first 50 % of the steps, then answers",
        "balance": "pace",
        "layer weights": "1, 3",
        "layers aligned": "one more at a time, from the bottom, over the first 25 % of the steps",
        "frozen": "embeddings",
    }
    assert facts("preset=pkd", "align.weights=ramp")["layer weights"] == "ramp"
    assert facts("preset=pkd")["preset"] == "pkd"


def test_a_misspelt_task_is_said_before_torch_is_loaded(teacher, data):
    code = (
        "import sys; from kdalign.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error: print(error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    for command in (("distill", "--teacher", teacher), ("eval", teacher)):
        words = [sys.executable, "-c", code, *map(str, command), "--task", "sst3", "--data", str(data)]
        found = subprocess.run(words, capture_output=True, text=True)
        assert "did you mean 'sst2'" in found.stdout
        assert found.stdout.endswith("False False\n")


def test_without_a_word_the_help_is_all_that_is_said(kdalign):
    status, out, err = kdalign()
    assert (status, err) == (2, "")
    assert "Usage" in out


BAD = {
    "unknown model": (("--teacher", "./nowhere"), "nowhere"),
    "unknown task": (("--task", "sst3"), "did you mean 'sst2'"),
    "no such folder": (("--data", "./nodata"), "nodata"),
    "unknown map": (("--map", "unifrom"), "did you mean 'uniform'"),
    "layer out of range": (("--map", "0:1 1:9"), "layers 0 to 3"),
    "too many layers": (("--student", "layers=9"), "layers=1 to layers=4"),
    "unknown init": (("--init", "frist"), "did you mean 'first'"),
    "bad weight": (("--alpha", "-1"), "objective.alpha"),
    "bad temperature": (("--temperature", "0"), "objective.temperature"),
    "bad precision": (("--precision", "fp8"), "train.precision"),
    "unknown set key": (("--set", "train.lrr=1"), "did you mean 'train.lr'"),
    "set without value": (("--set", "train.lr"), "section.key=value"),
    "unknown device": (("--device", "gpu"), "accepted: auto, cpu, cuda, mps"),
    "too long": (("--max-length", "4096"), "positions"),
    "missing plan": (("--plan", "no.json"), "no.json"),
    "unknown tracker": (("--tracker", "tensorbord"), "tensorboard"),
    "file as folder": (("--out", "/dev/null/x"), "/dev/null"),
    "data and dataset": (("--dataset", "a/b"), "not both"),
    "resume and overwrite": (("--resume", "--overwrite"), "not both"),
    "not a number": (("--epochs", "many"), "--epochs"),
    "wrong flag": (("--techer", "x"), "--teacher"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_gets_one_line_and_status_two_and_nothing_is_written(kdalign, teacher, data, tmp_path, case):
    words, said = BAD[case]
    status, out, err = kdalign(*quick(teacher, data, "--out", "runs/a", *words))
    assert status == 2
    assert said in one_line(err)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_head_for_other_labels_is_refused_before_anything_is_written(kdalign, tmp_path_factory, tmp_path, data):
    other = save_model(
        tmp_path_factory.mktemp("nli"), "bert", id2label={0: "entailment", 1: "neutral", 2: "contradiction"}
    )
    status, _, err = kdalign(*quick(other, data))
    assert status == 2
    assert not (tmp_path / "runs").exists()
    assert "entailment, neutral, contradiction" in one_line(err)


def test_weights_that_are_not_safetensors_are_refused(kdalign, tmp_path_factory, data):
    folder = save_model(tmp_path_factory.mktemp("broken"), "bert")
    (folder / "model.safetensors").write_bytes(b"not what it says")
    status, _, err = kdalign(*quick(folder, data))
    assert status == 2
    assert "model.safetensors' is damaged or not a safetensors file" in one_line(err)
    (folder / "model.safetensors").unlink()
    status, _, err = kdalign(*quick(folder, data, "--out", "runs/other"))
    assert status == 2
    assert "no model.safetensors" in one_line(err)


def test_a_second_run_over_the_first_is_refused_then_overwritten_on_request(kdalign, teacher, data, runs):
    shutil.copytree(runs / "joint-0", "runs/a")
    before = Path("runs/a/record.json").read_bytes()
    status, _, err = kdalign(*quick(teacher, data, "--out", "runs/a"))
    assert status == 2
    assert "--overwrite" in one_line(err)
    assert Path("runs/a/record.json").read_bytes() == before
    assert kdalign(*quick(teacher, data, "--out", "runs/a", "--overwrite", "--seed", "5"))[0] == 0
    assert json.loads(Path("runs/a/record.json").read_text())["recipe"]["train"]["seed"] == 5


def test_a_folder_that_is_no_run_is_never_overwritten(kdalign, teacher, data):
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years of work")
    status, _, err = kdalign(*quick(teacher, data, "--out", "precious", "--overwrite"))
    assert status == 2
    assert "holds no run" in one_line(err)
    assert [f.name for f in Path("precious").iterdir()] == ["thesis.txt"]


def test_resume_with_another_recipe_is_refused(kdalign, teacher, data, runs):
    shutil.copytree(runs / "joint-0", "runs/a")
    status, _, err = kdalign(*quick(teacher, data, "--out", "runs/a", "--resume", "--lr", "0.01"))
    assert status == 2
    assert "train.lr" in one_line(err)


def test_map_layers_knows_a_student_from_nothing(kdalign, teacher):
    status, out, err = kdalign("map-layers", "--teacher", teacher, "--student", "new:bert,layers=2,width=64", "--json")
    assert status == 0, err
    plan = json.loads(out)
    assert plan["student"]["vocabulary"] == plan["teacher"]["vocabulary"]
    assert [(shape["student_width"], shape["teacher_width"]) for shape in plan["projections"]] == [(64, 32)] * 2


def test_a_plan_travels_from_map_layers_to_distill_and_is_refused_for_other_models(
    kdalign, teacher, data, tmp_path_factory
):
    status, out, _ = kdalign(
        "map-layers", "--teacher", teacher, "--student", "layers=2", "--map", "0:0 1:2", "--out", "p.json"
    )
    assert status == 0
    assert "student layer" in out
    assert kdalign(*quick(teacher, data, "--plan", "p.json", "--out", "runs/a"))[0] == 0
    maps = json.loads(Path("runs/a/plan.json").read_text())["maps"]
    assert maps[0]["pairs"] == [[0, 0], [1, 2]]
    status, _, err = kdalign(*quick(teacher, data, "--plan", "p.json", "--student", "layers=3", "--out", "runs/b"))
    assert status == 2
    assert "the plan is for the student" in one_line(err)


def test_compare_averages_seeds_and_names_what_it_cannot_tell_apart(kdalign, runs):
    status, out, _ = kdalign("compare", runs)
    assert status == 0
    flat = " ".join(out.split())
    assert "joint (2 seeds)" in flat
    assert "labels" in flat
    assert max(len(line) for line in out.splitlines()) <= 80
    values = [
        json.loads((runs / f"joint-{s}" / "record.json").read_text())["scores"]["validation"]["student"][0]["value"]
        for s in (0, 1)
    ]
    status, out, _ = kdalign("compare", runs, "--format", "json")
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert rows["joint"]["cells"]["sst2/accuracy"]["value"] == pytest.approx(sum(values) / 2)
    assert rows["joint"]["seeds"] == [0, 1]
    theirs = rows[next(name for name in rows if name.startswith("teacher"))]["cells"]["sst2/accuracy"]["value"]
    ours = rows["labels-0"]["cells"]
    assert ours["retained"]["value"] == pytest.approx(100 * ours["sst2/accuracy"]["value"] / theirs)


def test_compare_writes_markdown_that_is_a_table(kdalign, runs):
    status, out, err = kdalign("compare", runs, "--format", "markdown", "--out", "table.md")
    assert status == 0
    assert out == ""
    assert "table.md" in err
    lines = Path("table.md").read_text().splitlines()
    assert lines[0].startswith("| model | sst2 accuracy (%)")
    assert lines[1] == "|---|" + "---:|" * (lines[0].count("|") - 2)
    assert {line.count("|") for line in lines[: lines.index("")]} == {lines[0].count("|")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("compare", "nowhere"), "nowhere"),
        (("compare", "{runs}", "--format", "latx"), "accepted: rich, markdown, latex, csv, json"),
        (("compare", "{runs}", "--format", "rich", "--json"), "not both"),
        (("compare", "{runs}", "--sort", "retaind"), "did you mean 'retained'"),
        (("compare", "{runs}", "--metrics", "bleu"), "unknown column 'bleu'"),
        (("compare", "{runs}", "--filter", "retained>=9999"), "leaves no row"),
        (("compare", "{runs}", "--steps-to", "acuracy=85"), "did you mean 'sst2/accuracy'"),
        (("compare", "{runs}", "--out", "t.pdf"), "accepted: .txt, .md, .tex, .csv, .json"),
        (("eval", "{runs}/joint-0", "--metrics", "acuracy"), "did you mean 'accuracy'"),
        (("eval", "{runs}/joint-0", "--split", "tset"), "did you mean 'test'"),
        (("eval", "{teacher}"), "--task"),
        (("eval", "{runs}/joint-0", "--out", "scores.txt"), ".json"),
        (("eval",), "no finished run"),
        (("profile", "{teacher}", "--seq-len", "many"), "128,512"),
        (("profile", "{teacher}", "--seq-len", "100000"), "positions"),
        (("map-layers", "--teacher", "{teacher}", "--student", "layers=none"), "layers=1 to layers=4"),
    ],
)
def test_mistakes_in_the_other_commands_get_one_line_too(kdalign, runs, teacher, tmp_path, words, said):
    status, out, err = kdalign(*(word.format(runs=runs, teacher=teacher) for word in words))
    assert status == 2
    assert said in one_line(err)
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_eval_of_a_run_gives_the_records_scores_and_keeps_predictions(kdalign, runs):
    status, out, _ = kdalign("eval", runs / "joint-0", "--json", "--out", "scores.json")
    assert status == 0
    found = json.loads(out)[0]
    record = json.loads((runs / "joint-0" / "record.json").read_text())
    assert found["scores"][0]["value"] == pytest.approx(record["scores"]["validation"]["student"][0]["value"])
    assert found["scores"][1]["metric"] == "agreement"
    assert found["scores"][1]["value"] == pytest.approx(record["scores"]["validation"]["agreement"]["value"])
    assert len(pd.read_parquet(found["predictions"])) == 64
    status, out, _ = kdalign("compare", "scores.json", runs / "labels-0")
    assert status == 0
    assert "joint-0 (validation)" in " ".join(out.split())


def test_an_evaluation_of_other_data_is_not_written_over(kdalign, runs):
    for limit, name in ((20, "-2"), (20, "-2"), (10, "-3"), (64, "")):
        if name == "-2":
            kdalign("eval", runs / "joint-0")
        status, _, err = kdalign("eval", runs / "joint-0", "--limit", limit)
        assert status == 0
        assert f"sst2-validation{name}.json" in "".join(err.split())
    kept = [json.loads(file.read_text())["results"][0]["n"] for file in sorted(Path("runs/eval").glob("*.json"))]
    assert sorted(kept) == [10, 20, 64]


def test_eval_of_a_run_takes_its_limit_over(kdalign, teacher, data):
    kdalign(*quick(teacher, data, "--limit", 40, "--out", "runs/a"))
    status, out, _ = kdalign("eval", "runs/a", "--json")
    assert status == 0
    [found] = json.loads(out)
    assert found["n"] == 40
    assert [score["metric"] for score in found["scores"]] == ["accuracy", "agreement"]


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_was_scored_is_scored_again_without_training(kdalign, teacher, data):
    kdalign(*quick(teacher, data, "--out", "runs/a"))
    history, weights = (Path("runs/a") / name for name in ("history.jsonl", "student/model.safetensors"))
    before = history.read_bytes(), weights.read_bytes()
    Path("runs/a/record.json").unlink()
    shutil.rmtree("runs/a/student")
    status, _, err = kdalign("distill", "--out", "runs/a", "--resume")
    assert status == 0, err
    assert (history.read_bytes(), weights.read_bytes()) == before
    record = json.loads(Path("runs/a/record.json").read_text())
    assert record["training"]["steps"] == 6
    Path("runs/a/record.json").unlink()
    Path("runs/a/checkpoints/step-6/model.safetensors").write_bytes(b"")
    status, _, err = kdalign("distill", "--out", "runs/a", "--resume")
    assert status == 2
    assert "no sound checkpoint: step-6 (model.safetensors was changed)" in next(
        line for line in err.splitlines() if "error" in line
    )


def test_the_version_is_told_and_nothing_else_is_asked(kdalign):
    assert kdalign("--version") == (0, f"kdalign {__version__}\n", "")


def test_models_of_like_names_do_not_share_their_predictions(kdalign, teacher, data, tmp_path):
    for name in ("a/b", "a-b"):
        shutil.copytree(teacher, tmp_path / name)
    status, out, err = kdalign("eval", "a/b", "a-b", "--task", "sst2", "--data", data, "--json", "--out", "both.json")
    assert status == 0, err
    kept = [Path(found["predictions"]).name for found in json.loads(out)]
    assert kept == ["a-b-1-sst2-validation.parquet", "a-b-2-sst2-validation.parquet"]
    assert all((tmp_path / "both" / name).is_file() for name in kept)


def test_eval_without_a_model_takes_the_newest_run_and_says_so(kdalign, runs):
    Path("runs").symlink_to(runs)
    status, _, err = kdalign("eval")
    assert status == 0
    assert "newest run, runs/joint-1" in err


def test_language_model_metrics_of_a_classifier_are_dashes_with_the_reason(kdalign, runs):
    status, out, err = kdalign("eval", runs / "joint-0", "--metrics", "ppl,bleu,rouge,cer")
    assert status == 2
    assert "no language-model head" in " ".join(out.split())
    assert "nothing was scored" in err
    status, out, _ = kdalign("eval", runs / "joint-0", "--metrics", "ppl,accuracy")
    assert status == 0


def test_a_checkpoint_without_a_head_is_a_dash_with_the_command_that_makes_one(kdalign, headless, data):
    status, out, _ = kdalign("eval", headless, "--task", "sst2", "--data", data)
    assert status == 2
    assert "kdalign distill --teacher" in " ".join(out.split())


def test_eval_on_test_writes_the_leaderboards_file_and_no_score(kdalign, runs):
    status, out, _ = kdalign("eval", runs / "joint-0", "--split", "test", "--json")
    assert status == 0
    found = json.loads(out)[0]
    assert found["scores"] == []
    lines = Path(found["submission"]).read_text().splitlines()
    assert Path(found["submission"]).name == "SST-2.tsv"
    assert lines[0] == "index\tprediction"
    assert len(lines) == 17
    assert set(line.split("\t")[1] for line in lines[1:]) <= {"0", "1"}


@pytest.fixture(scope="module")
def headless(tmp_path_factory, teacher):
    """The teacher's encoder without its classification head."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path_factory.mktemp("headless")
    AutoModel.from_pretrained(teacher).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return folder


def test_a_teacher_without_a_head_is_fine_tuned_first_kept_and_used_again(kdalign, headless, data):
    words = quick(headless, data, "--set", "finetune.epochs=0.1", "--allow", "weak-teacher", "--out")
    status, _, err = kdalign(*words, "runs/a")
    assert status == 0
    assert "has no head for sst2: fine-tuning it first" in err
    head = json.loads(Path("runs/a/record.json").read_text())["teacher"]["head"]
    assert head.startswith("fine-tuned on sst2")
    status, _, err = kdalign(*words, "runs/b")
    assert status == 0
    assert "fine-tuned on sst2 is in the cache" in err
    assert (
        Path("runs/a/student/model.safetensors").read_bytes() == Path("runs/b/student/model.safetensors").read_bytes()
    )
    words = quick(
        headless, data, "--set", "finetune.epochs=0.2", "--allow", "weak-teacher", "--max-steps", "1", "--out"
    )
    _, _, err = kdalign(*words, "runs/c")
    assert "fine-tuning it first" in err, "another budget is another teacher"


@pytest.mark.slow
def test_a_student_may_start_from_its_teacher_before_fine_tuning(kdalign, headless, data):
    from safetensors.torch import load_file

    still = ("--set", "finetune.epochs=1", "--max-steps", "1", "--lr", "1e-12", "--allow", "weak-teacher")
    query = "encoder.layer.1.attention.self.query.weight"
    source = load_file(headless / "model.safetensors")[query.replace(".1.", ".3.")]
    for start, equal in (("pretrained", True), ("fine-tuned", False)):
        status, _, err = kdalign(
            *quick(headless, data, *still, "--set", f"init_from={start}", "--out", f"runs/{start}")
        )
        assert status == 0, err
        run = Path(f"runs/{start}")
        own = load_file(run / "student/model.safetensors")
        (name,) = (name for name in own if name.endswith(query))
        assert bool((own[name] - source).abs().max() < 1e-6) == equal
        said = json.loads((run / "record.json").read_text())["student"]["source"]
        assert ("before fine-tuning" in said) == equal


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "init=random"), "a student that copies layers"),
        (("{teacher}",), "a teacher that is fine-tuned first, not"),
    ],
)
def test_only_copies_of_a_teacher_that_is_fine_tuned_start_from_before(kdalign, headless, teacher, data, words, said):
    chosen, words = (teacher, ()) if words == ("{teacher}",) else (headless, words)
    status, _, err = kdalign(*quick(chosen, data, "--set", "init_from=pretrained", *words))
    assert status == 2
    assert said in one_line(err)


def test_a_teacher_without_a_head_is_refused_on_request(kdalign, headless, data, tmp_path):
    status, _, err = kdalign(*quick(headless, data, "--no-finetune-teacher"))
    assert status == 2
    assert "no classification head" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_tasks_make_one_row_with_the_macro(kdalign, teacher, data, headless, tmp_path):
    folder = tmp_path / "data"
    for task, columns in (("rte", ("sentence1", "sentence2")), ("stsb", ("sentence1", "sentence2"))):
        (folder / task).mkdir(parents=True)
        for split, n in (("train", 64), ("validation", 32)):
            first, labels = sentences(n, 1)
            second, other = sentences(n, 2)
            grades = [float(a + b) + i % 3 for i, (a, b) in enumerate(zip(labels, other, strict=True))]
            label = labels if task == "rte" else grades
            pd.DataFrame({columns[0]: first, columns[1]: second, "label": label}).to_parquet(
                folder / task / f"{split}.parquet"
            )
    words = ("distill", "--teacher", headless, "--student", "layers=2", "--task", "rte,stsb", "--data", folder,
             "--allow", "weak-teacher")  # fmt: skip
    status, out, _ = kdalign(*words, "--max-steps", "4", "--set", "finetune.epochs=1", "--out", "runs/both")
    assert status == 0
    assert "macro" in out
    assert "pearson" in out
    status, out, _ = kdalign("compare", "runs/both", "--format", "json")
    row = json.loads(out)["rows"][1]
    cells = {key: cell["value"] for key, cell in row["cells"].items()}
    assert cells["macro"] == pytest.approx(
        (cells["rte/accuracy"] + (cells["stsb/pearson"] + cells["stsb/spearman"]) / 2) / 2
    )
    status, _, err = kdalign(*words, "--max-steps", "4", "--set", "finetune.epochs=1", "--out", "runs/both", "--resume")
    assert status == 0
    assert err.count("finished already") == 2


def test_any_labelled_text_works_itself_out_and_says_what_it_found(kdalign, teacher, data, headless, tmp_path):
    for split, n in (("train", 64), ("dev", 32)):
        texts, labels = sentences(n, 3)
        table = pd.DataFrame({"review": texts, "mood": [("bad", "good")[label] for label in labels]})
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    words = ("--student", "layers=2", "--task", "classification", "--data", tmp_path, "--max-steps", "4", "--allow",
             "weak-teacher")  # fmt: skip
    status, _out, err = kdalign(
        "distill", "--teacher", headless, *words, "--set", "finetune.epochs=0.5", "--out", "runs/x"
    )
    assert status == 0
    assert "text in review, 2 classes (bad, good) in mood" in err
    config = json.loads(Path("runs/x/student/config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


def test_profile_shows_models_side_by_side_with_ratios(kdalign, teacher, runs):
    status, out, _ = kdalign("profile", teacher, runs / "joint-0", "--seq-len", "16,32", "--json")
    assert status == 0
    first, second = json.loads(out)
    assert (first["layers"], second["layers"]) == (4, 2)
    assert first["parameters"] > second["parameters"]
    layer = 4 * 32 * 32 + 2 * 32 * 64  # weights of a layer's matrices
    attention = 2 * 2 * 16 * 32  # scores and values, 16 tokens
    head = (32 * 32 + 2 * 32) * 2 / 16  # pooler and classifier, once per sequence
    assert first["flops_per_token"]["16"] == pytest.approx(4 * (2 * layer + attention) + head)
    assert first["timings"][0]["latency_ms"] > 0
    status, out, _ = kdalign("profile", teacher, runs / "joint-0", "--seq-len", "16")
    assert "ratio" in out
    status, out, _ = kdalign("profile", teacher, "--no-weights", "--json")
    assert json.loads(out)[0]["timings"] == []


def test_a_runs_record_holds_the_flops_that_profile_counts_and_compare_shows_them(kdalign, teacher, runs):
    _, out, _ = kdalign("profile", teacher, runs / "joint-0" / "student", "--seq-len", "128", "--no-weights", "--json")
    record = json.loads((runs / "joint-0" / "record.json").read_text())
    for model, who in zip(json.loads(out), ("teacher", "student"), strict=True):
        assert record[who]["tokens"] == 128
        assert record[who]["flops"] / 128 == pytest.approx(model["flops_per_token"]["128"])
    _, out, _ = kdalign("compare", runs / "joint-0", "--format", "json")
    cells = json.loads(out)["rows"][1]["cells"]
    assert cells["flops"]["value"] == pytest.approx(record["student"]["flops"] / 128e6)
    assert cells["tokens"]["value"] == pytest.approx(record["training"]["tokens"] / 1e6)
    _, out, _ = kdalign("compare", runs / "joint-0", "--steps-to", "accuracy=0", "--format", "csv")
    assert "steps-to/sst2/accuracy=0" in out.splitlines()[0]


def test_a_run_without_a_profile_measures_no_speed_and_says_where_its_time_went(kdalign, teacher, data, tmp_path):
    soft = ("--beta", "0", "--gamma", "0", "--delta", "0")
    status, out, err = kdalign(*quick(teacher, data, "--out", "runs/a", "--no-profile", *soft))
    assert status == 0
    assert re.search(r"^time: [\d.]+ s: .*training [\d.]+", err, re.MULTILINE)
    run = tmp_path / "runs" / "a"
    record = json.loads((run / "record.json").read_text())
    for who in ("teacher", "student"):
        assert (record[who]["latency_ms"], record[who]["flops"]) == (None, None)
    assert "latency: one forward pass" not in out
    assert "not measured" in (run / "student" / "README.md").read_text()
    phases = {"preparing", "tokenizing", "loading", "scoring the teacher", "training", "scoring the student"}
    assert set(record["phases"]) >= phases
    assert sum(record["phases"].values()) == pytest.approx(record["seconds"], abs=0.01)


def test_variances_are_measured_only_for_terms_that_divide_by_them(kdalign, teacher, data, tmp_path, runs):
    assert json.loads((runs / "joint-0" / "plan.json").read_text())["statistics"]
    status, _, err = kdalign(*quick(teacher, data, "--out", "runs/a", "--no-profile", "--gamma", "0"))
    assert status == 0, err
    assert json.loads((tmp_path / "runs" / "a" / "plan.json").read_text())["statistics"] == {}


COMMANDS = ("ablate", "distill", "eval", "compare", "card", "profile", "map-layers", "inspect", "demo")


def test_every_commands_help_has_examples(kdalign):
    for command in COMMANDS:
        status, out, _ = kdalign(command, "--help")
        assert (status, "Examples" in out) == (0, True)
        assert f"kdalign {command}" in re.sub(r"[\s│]+", " ", out)


HEAVY = frozenset(
    "torch transformers tokenizers datasets accelerate safetensors sklearn scipy pandas pyarrow matplotlib peft "
    "sacrebleu jiwer rouge_score".split()
)


def imported_by(*words):
    """The heavy packages that a command of its own process has loaded when it ends, and its exit code."""
    code = (
        "import json, sys\n"
        "from kdalign.cli import main\n"
        "sys.argv = ['kdalign', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as e: print(json.dumps([e.code, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True, text=True)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    return status, HEAVY & set(modules)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("distill", "compare", "eval")),
        ["recipe", "show"],
        ["recipe", "dump", "--teacher", "t", "--task", "sst2"],
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_nothing_heavy(words):
    assert imported_by(*words) == (0, set())


def test_what_is_misspelt_is_said_before_anything_heavy_is_imported():
    assert imported_by("distill", "--teacher", "t", "--task", "sst22") == (2, set())
    assert imported_by("eval", "m", "--task", "sst22") == (2, set())


def test_compare_imports_no_torch(runs):
    status, heavy = imported_by("compare", runs)
    assert (status, heavy & {"torch", "transformers", "datasets", "accelerate", "sklearn", "pandas"}) == (0, set())


@pytest.mark.slow
def test_the_exported_student_loads_in_a_python_without_kdalign(runs):
    code = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] == 'kdalign': raise ImportError('blocked')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "m, report = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not report['missing_keys'] and not report['unexpected_keys'], report\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(m(**t(['a good film'], return_tensors='pt')).logits.shape, m.dtype, m.config.id2label)\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs / "joint-0" / "student")],
        capture_output=True, text=True, env=environment, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([1, 2]) torch.float32 {0: 'negative', 1: 'positive'}"


def test_the_student_is_trained_in_train_mode_and_scored_in_eval_mode(teacher, data, tmp_path, monkeypatch):
    from kdalign.distillation.pipeline import distill
    from kdalign.recipe import build_recipe
    from kdalign.training.step import Stepper

    modes = []
    take = Stepper.take

    def watched(self, *args, **kwargs):
        modes.append(self.viewer.learner.student.training)
        return take(self, *args, **kwargs)

    monkeypatch.setattr(Stepper, "take", watched)
    flags = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    flags |= {"train.max_steps": 5, "train.eval_every": 2, "out": str(tmp_path / "run")}
    distill(build_recipe(None, flags))
    assert modes == [True] * 5


def test_the_help_shows_choices_and_defaults_of_the_recipe(kdalign, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = kdalign("distill", "--help")
    flat = re.sub(r"[\s│]+", " ", out)
    assert "Peak learning rate. Default 0.0002." in flat
    assert "cosine distance. Default 1; without a teacher 0." in flat
    assert "One of linear, cosine, constant. Default linear." in flat
    assert "see kdalign recipe show. One of feature-alignment, codir," in flat


def test_resume_refuses_data_that_changed_since(kdalign, teacher, data, tmp_path):
    import shutil

    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    kdalign(*quick(teacher, mine, "--out", "runs/a"))
    (tmp_path / "runs/a/record.json").unlink()
    table = pd.read_parquet(mine / "train.parquet")
    table.iloc[::-1].to_parquet(mine / "train.parquet", index=False)
    status, _, err = kdalign("distill", "--out", "runs/a", "--resume")
    assert status == 2
    assert "another train" in one_line(err)


def test_select_best_exports_the_step_that_scored_best_on_held_out_texts(kdalign, teacher, data, tmp_path):
    from safetensors.torch import load_file

    # The learning rate ruins the student after its start.
    status, *_ = kdalign(
        *quick(teacher, data, "--out", "runs/a", "--select", "best", "--lr", "0.05", "--eval-every", "1")
    )
    assert status == 0
    record = json.loads((tmp_path / "runs/a/record.json").read_text())
    events = [json.loads(line) for line in (tmp_path / "runs/a/history.jsonl").read_text().splitlines()]
    looks = {event["step"]: event["accuracy"] for event in events if event["kind"] == "evaluation"}
    best = max(looks, key=lambda step: (looks[step], -step))
    assert record["training"]["exported_step"] == best
    assert record["training"]["steps"] == 6
    kept = load_file(tmp_path / f"runs/a/checkpoints/best-{best}.safetensors")
    exported = load_file(tmp_path / "runs/a/student/model.safetensors")
    for name, weight in exported.items():
        assert weight.equal(kept[f"student.{name}"]), name


def test_a_run_scored_on_its_task_by_name_keeps_its_data(kdalign, runs):
    status, out, _ = kdalign("eval", runs / "joint-0", "--task", "sst2", "--limit", "16")
    assert status == 0
    assert "accuracy" in out


@pytest.mark.slow
def test_a_part_of_a_test_split_is_no_leaderboard_file(kdalign, teacher, data):
    kdalign(*quick(teacher, data, "--out", "runs/a"))
    status, _, err = kdalign("eval", "runs/a", "--split", "test", "--limit", "3")
    assert status == 2
    assert "leave --limit out" in one_line(err)


def test_a_misspelt_cut_is_named(kdalign, teacher, data):
    status, _, err = kdalign("distill", "--teacher", teacher, "--student", "layer=2", "--task", "sst2", "--data", data)
    assert status == 2
    assert "layers=N" in one_line(err)
