"""Arms over tasks and seeds: which runs there are, what is kept of them, and that a stop loses nothing."""

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from kdalign.comparison.budgets import arm_budget_notes
from kdalign.comparison.compare import CompareOptions, build_table, compare
from kdalign.errors import TamperedRun, UsageError
from kdalign.runs import archive
from kdalign.runs.ablation_spec import build_ablation, check_same, read_ablation, write_ablation
from kdalign.runs.archive import archive_run, read_archived
from kdalign.runs.discovery import Discovery, archived_groups
from kdalign.runs.record import read_record
from support.commands import run_in
from support.tiny import one_line

FLAGS = {"teacher": "t", "data.task": "sst2,rte", "train.max_steps": 6}


def test_every_arm_meets_every_task_and_seed_once_on_one_budget(tmp_path):
    ablation = build_ablation(None, FLAGS, arms="labels,joint", seeds="2")
    trials = ablation.trials(tmp_path)
    assert {(one.arm, one.task, one.seed) for one in trials} == {
        (arm, task, seed) for arm in ("labels", "joint") for task in ("sst2", "rte") for seed in (0, 1)
    }
    assert len(trials) == 8
    assert len({one.recipe.out for one in trials}) == 8
    assert len({one.file for one in trials}) == 8
    assert {one.recipe.train.max_steps for one in trials} == {6}
    assert {one.recipe.train.seed for one in trials if one.seed == 1} == {1}
    weights = {one.arm: one.recipe.objective.weights for one in trials}
    assert weights["labels"] == {**dict.fromkeys(weights["labels"], 0), "hard": 1}
    assert weights["joint"]["beta"] == weights["joint"]["delta"] == 1


def test_arms_of_a_file_start_from_shipped_ones_and_sweeps_cross_them(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "teacher: t\ndata: {task: rte}\narms:\n  joint:\n  cool: {from: soft, objective.temperature: 1}\n"
        "  narrow: {student: 'layers=2,width=16'}\nseeds: [3, 5]\n"
    )
    ablation = build_ablation(file, {}, sweeps=["train.lr=1e-4,2e-4"])
    assert list(ablation.arms) == [
        f"{arm} lr={lr}" for arm in ("joint", "cool", "narrow") for lr in ("0.0001", "0.0002")
    ]
    assert ablation.seeds == (3, 5)
    recipes = {one.arm: one.recipe for one in ablation.trials(tmp_path)}
    assert recipes["cool lr=0.0002"].objective.temperature == 1
    assert recipes["cool lr=0.0002"].objective.beta == 0
    assert recipes["narrow lr=0.0001"].student == "layers=2,width=16"
    assert recipes["joint lr=0.0001"].train.lr == 1e-4
    single = build_ablation(None, {**FLAGS, "data.task": "rte"}, arms="joint", sweeps=["align.map=uniform,0:1 1:3"])
    assert list(single.arms) == ["joint map=uniform", "joint map=0:1 1:3"]
    assert [one.recipe.align.map for one in single.trials(tmp_path)][::3] == ["uniform", "0:1 1:3"]


def test_what_arms_share_is_written_out_for_each(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("teacher: t\nstudent: layers=1\ndata: {task: rte}\narms: {one: {train.freeze: [embeddings]}}\n")
    ablation = build_ablation(file, {}, sweeps=["train.lr=1e-4,2e-4"])
    write_ablation(ablation, tmp_path / "out")
    text = (tmp_path / "out/ablation.yaml").read_text()
    assert text.count("- embeddings") == 2
    assert not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    assert read_ablation(tmp_path / "out") == ablation


def test_a_changed_or_cut_file_of_the_ablation_is_named(tmp_path, kdalign):
    write_ablation(build_ablation(None, {"teacher": "t", "student": "layers=2", "data.task": ["sst2"]}), tmp_path)
    file = tmp_path / "ablation.yaml"
    text = file.read_text()
    first, _, rest = text.partition("\n")
    for changed in (text.replace("layers=2", "layers=3"), text[:-40], first, first.replace("1", "2")):
        file.write_text(changed)
        with pytest.raises(TamperedRun, match=r"ablation.yaml' was changed after it was written: put it back"):
            read_ablation(tmp_path)
        code, _, err = kdalign("ablate", "--out", tmp_path)
        assert code == 2
        assert "ablation.yaml' was changed" in one_line(err)
    file.write_text(rest.replace("layers=2", "layers=3"))  # as older versions wrote it, or as the line says
    assert read_ablation(tmp_path).base["student"] == "layers=3"


def test_a_schedule_of_one_arm_stays_in_it(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "teacher: t\ndata: {task: rte}\nseeds: [0, 1]\narms:\n"
        "  cooling: {from: soft, objective.schedule.temperature: {to: 1}}\n  soft:\n"
    )
    trials = build_ablation(file, {}).trials(tmp_path)
    assert {(one.arm, *one.recipe.objective.moving) for one in trials} == {("cooling", "temperature"), ("soft",)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arms": "labels,jont"}, "unknown arm 'jont'; did you mean 'joint'?"),
        ({"arms": "joint,joint"}, "arm 'joint' is named twice"),
        ({"seeds": "0"}, "at least one seed"),
        ({"seeds": "1,1"}, "accepted are a number of them"),
        ({"seeds": "-1"}, "accepted are a number of them"),
        ({"sweeps": ["train.lr"]}, "--sweep takes KEY=VALUE,VALUE"),
        ({"sweeps": ["train.lrr=1,2"]}, "train.lrr"),
        ({"arms": "labels", "sweeps": ["objective.hard=0,1"]}, "arm 'labels hard=0': .*nothing to learn from"),
    ],
)
def test_what_makes_no_ablation_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        build_ablation(None, FLAGS, **given)


def test_an_ablation_goes_on_with_more_arms_and_seeds_but_not_with_another_recipe(tmp_path):
    first = build_ablation(None, FLAGS, arms="labels", seeds="1")
    write_ablation(first, tmp_path)
    assert read_ablation(tmp_path) == first
    more = build_ablation(None, FLAGS, arms="joint", seeds="2")
    check_same(more, tmp_path)
    write_ablation(more, tmp_path)
    both = read_ablation(tmp_path)
    assert (list(both.arms), both.seeds) == (["labels", "joint"], (0, 1))
    with pytest.raises(UsageError, match=r"holds another ablation: train\.max_steps differ"):
        check_same(build_ablation(None, FLAGS | {"train.max_steps": 7}, arms="labels"), tmp_path)
    warm = build_ablation(None, FLAGS, arms="labels", sweeps=["train.lr=1e-4"])
    other = replace(warm, arms={"labels": warm.arms["labels lr=0.0001"]})
    with pytest.raises(UsageError, match="holds another ablation: arm labels differ"):
        write_ablation(other, tmp_path)
    check_same(other, tmp_path, arms=False)  # a search has yet to choose them


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sweeps": ["data.task=sst2,mrpc"]}, "arms cannot differ by data.task"),
        ({"sweeps": ["train.seed=1,2"]}, "arms cannot differ by train.seed"),
    ],
)
def test_what_every_run_has_its_own_of_is_no_difference_between_arms(more, said):
    with pytest.raises(UsageError, match=said):
        build_ablation(None, FLAGS, **more)


def test_results_that_would_lie_in_one_place_are_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("teacher: t\ndata: {task: [lm, masked-lm]}\narms: {soft: , soft-masked: {from: soft}}\n")
    with pytest.raises(UsageError, match="would be written to the same place"):
        build_ablation(file, {})
    with pytest.raises(UsageError, match="would be written to the same place"):
        build_ablation(None, FLAGS | {"data.task": "x/rte.yaml,y/rte.yaml"}, arms="joint")


def test_an_ablation_is_read_back_as_it_was_made(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "teacher: t\ndata: {task: rte}\narms:\n  align: {from: joint, objective.hard: 1}\n"
        "  cool: {objective: {temperature: 4, beta: 0}}\nseeds: 2\n"
    )
    made = build_ablation(file, {})
    assert made.arms["cool"] == {"objective.temperature": 4, "objective.beta": 0}
    write_ablation(made, tmp_path / "out")
    again = read_ablation(tmp_path / "out")
    assert again == made
    recipes = {one.arm: one.recipe for one in again.trials(tmp_path)}
    assert recipes["align"].objective.align_first == 0
    assert (recipes["cool"].objective.temperature, recipes["cool"].objective.gamma) == (4, 1)


def test_all_seeds_learn_from_the_same_examples_where_there_is_a_limit(tmp_path):
    trials = build_ablation(None, FLAGS | {"data.limit": 50}, arms="joint", seeds="3").trials(tmp_path)
    assert {one.recipe.data.limit_seed for one in trials} == {0}
    assert {one.recipe.data.limit_seed for one in build_ablation(None, FLAGS, arms="joint").trials(tmp_path)} == {None}


def arguments(teacher, data, *more):
    return [
        "ablate", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2", "--data", str(data),
        "--max-steps", "6", "--batch-size", "16", "--precision", "fp32", "--device", "cpu", "--out", "a", *more,
    ]  # fmt: skip


def run(words, folder, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "kdalign", *words], capture_output=True, text=True, env=environment, cwd=folder, **more
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory, teacher, data):
    """An ablation of two arms and two seeds, and what it printed."""
    folder = tmp_path_factory.mktemp("ablation")
    words = arguments(teacher, data, "--arms", "labels,joint", "--seeds", "2")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setenv("COLUMNS", "100")
        run_in(folder, *words)
    return folder, words, out.getvalue(), err.getvalue()


def test_an_ablation_keeps_what_its_runs_leave(done):
    folder, *_ = done
    ablation = read_ablation(folder / "a")
    trials = ablation.trials(Path("a"))
    assert len(trials) == 4
    for trial in trials:
        run_folder = folder / str(trial.recipe.out)
        kept, record = read_archived(trial, folder / "a" / "kept"), read_record(run_folder)
        assert kept.record.scores == record.scores
        assert kept.record.recipe == record.recipe
        assert kept.record.identity == record.identity
        assert kept.inputs == json.loads((run_folder / "inputs.json").read_text())
        answers = pd.read_parquet(run_folder / "predictions/validation.parquet")
        for column in ("prediction", "label", "teacher"):
            assert np.array_equal(kept.answers["validation"][column], answers[column]), column
        assert not (run_folder / "checkpoints").exists()
    assert sum(file.stat().st_size for file in (folder / "a/kept").iterdir()) < 4 * 3000


def test_the_table_tests_arms_against_the_first_and_says_whether_budgets_were_equal(done):
    _, _, out, err = done
    said = " ".join(out.split())
    assert "joint − labels (2 seeds)" in said
    assert "no evidence of either at 5 %" in said
    assert "budget: all arms took the same steps and tokens on each task and seed" in said
    assert "kdalign compare a --against labels" in err


def test_compare_reads_an_ablation_and_its_verdicts_are_those_of_its_runs(done, kdalign, monkeypatch):
    folder, *_ = done
    monkeypatch.chdir(folder)
    status, out, err = kdalign("compare", "a", "--against", "labels", "--json")
    assert status == 0, err
    kept = json.loads(out)
    runs = [f"a/{arm}-seed{seed}" for arm in ("labels", "joint") for seed in (0, 1)]
    status, out, err = kdalign("compare", *runs, "--against", "labels", "--json")
    assert status == 0, err
    read = json.loads(out)
    assert [one["verdict"] for one in kept["judged"]] == [one["verdict"] for one in read["judged"]]
    assert {one["key"] for one in kept["judged"]} == {"sst2/accuracy", "sst2/agreement"}
    shown = {row["name"]: row["cells"] for row in kept["rows"]}
    difference = shown["joint − labels"]["sst2/accuracy"]["value"]
    assert difference == pytest.approx(
        shown["joint"]["sst2/accuracy"]["value"] - shown["labels"]["sst2/accuracy"]["value"]
    )
    status, _, err = kdalign("compare", "a", "--against", "lables")
    assert status == 2
    assert "did you mean 'labels'" in one_line(err)


@pytest.mark.slow
def test_the_same_command_again_runs_nothing(done):
    folder, words, *_ = done
    before = {file: file.stat().st_mtime_ns for file in (folder / "a").rglob("*") if file.name == "record.json"}
    again = run(words, folder)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 runs are there already" in again.stderr
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.slow
def test_runs_of_an_ablation_are_those_that_distill_makes(done, kdalign, teacher, data):
    folder, *_ = done
    recipe = folder / "a/joint-seed1/recipe.yaml"
    status, _, err = kdalign("distill", "--recipe", recipe, "--out", "again")
    assert status == 0, err
    ours, theirs = (path / "student/model.safetensors" for path in (folder / "a/joint-seed1", Path("again")))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_a_stop_of_two_processes_says_so_and_the_same_command_goes_on_to_the_same_results(done, tmp_path):
    folder, words, *_ = done
    process = subprocess.Popen(
        [sys.executable, "-m", "kdalign", *words, "--jobs", "2"], stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not list(tmp_path.glob("a/*/history.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err
    assert "the same command resumes" in err
    assert len(list(tmp_path.glob("a/kept/*seed*"))) < 4
    resumed = run([*words, "--jobs", "2"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for trial in read_ablation(tmp_path / "a").trials(Path("a")):
        ours, theirs = (read_archived(trial, where / "a" / "kept") for where in (tmp_path, folder))
        assert ours.record.scores == theirs.record.scores, trial.name


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_kept(kdalign, teacher, data, tmp_path):
    words = arguments(teacher, data, "--arms", "labels", "--seeds", "1", "--sweep", "train.lr=1e-4,1e30")
    status, _, err = kdalign(*words)
    assert status == 1
    last = [line for line in err.splitlines() if line.startswith("kdalign: error: ")]
    assert len(last) == 1
    assert "1 of 2 runs failed (labels lr=1e+30, sst2, seed 0:" in last[0]
    assert [file.name for file in Path("a/kept").glob("*seed*")] == ["labels-lr=0.0001-sst2-seed0.json.z"]


def test_what_is_wrong_with_an_arm_is_said_before_anything_is_written(kdalign, teacher, data, tmp_path):
    words = arguments(teacher, data, "--arms", "joint", "--sweep", "align.map=uniform,upside")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "arm 'joint map=upside', task 'sst2'" in one_line(err)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_lists_arms_and_writes_nothing(kdalign, teacher, data, tmp_path):
    words = arguments(teacher, data, "--seeds", "5", "--dry-run")
    at = words.index("--max-steps")
    words[at : at + 2] = ["--max-tokens", "5000"]
    status, out, _ = kdalign(*words)
    assert status == 0
    told = " ".join(out.split())
    assert "20 runs: 4 arms, 5 seeds (0 1 2 3 4), sst2" in told
    assert "5,000 tokens, batch 16" in told
    assert "align_first 0.5" in out
    status, out, _ = kdalign(*words, "--sweep", "train.max_tokens=5000,7000")
    assert status == 0
    each = " ".join(out.split()).partition("· each: ")[2]
    assert each.startswith("layers=2 of ")
    assert "tokens" not in each, "arms differ in them"
    assert "batch 16, learning rate" in each
    assert not list(tmp_path.iterdir())


def test_overwriting_removes_only_an_ablation(kdalign, teacher, data, tmp_path):
    Path("a").mkdir()
    Path("a/precious").write_text("x")
    status, _, err = kdalign(*arguments(teacher, data, "--overwrite"))
    assert status == 2
    assert "holds no ablation" in one_line(err)
    assert Path("a/precious").is_file()


def copied(done, tmp_path):
    shutil.copytree(done[0] / "a", tmp_path / "a")
    return Path("a")


@pytest.mark.slow
def test_overwriting_makes_an_ablation_anew_and_leaves_what_is_not_its_own(done, kdalign, teacher, data, tmp_path):
    out = copied(done, tmp_path)
    (out / "notes.txt").write_text("mine")
    before = {file.name: file.stat().st_mtime_ns for file in (out / "kept").iterdir()}
    words = arguments(teacher, data, "--arms", "labels", "--seeds", "1", "--lr", "1e-3")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "holds another ablation: train.lr differ" in one_line(err)
    assert {file.name: file.stat().st_mtime_ns for file in (out / "kept").iterdir()} == before
    status, _, err = kdalign(*words, "--overwrite", "--drop-runs")
    assert status == 0, err
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name for path in out.iterdir()} == {"notes.txt", "ablation.yaml", "kept"}
    (kept,) = (out / "kept").glob("*seed*")
    trial = read_ablation(out).trials(out)[0]
    assert read_archived(trial, kept.parent).record.recipe["train"]["lr"] == 1e-3


def test_a_search_over_something_else_removes_nothing(kdalign, teacher, data, tmp_path):
    Path("a").mkdir()
    Path("a/precious").write_text("x")
    words = arguments(teacher, data, "--overwrite", "--search", "train.lr=1e-4,2e-4")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "holds no ablation" in err.splitlines()[-1]
    assert [path.name for path in Path("a").iterdir()] == ["precious"]


def without_checksum(file):
    return file.read_text().partition("\n")[2]


def test_a_recipe_edited_behind_its_results_is_refused(done, kdalign, tmp_path):
    out = copied(done, tmp_path)
    file = out / "ablation.yaml"
    file.write_text(without_checksum(file).replace("max_steps: 6", "max_steps: 7"))
    status, _, err = kdalign("compare", "a")
    assert status == 2
    assert "is of another recipe, train.max_steps differ" in one_line(err)


def test_results_of_other_training_data_are_refused(done, kdalign, teacher, data, tmp_path):
    out = copied(done, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(data, other)
    table = pd.read_parquet(other / "train.parquet")
    table.assign(label=1 - table["label"]).to_parquet(other / "train.parquet")
    file = out / "ablation.yaml"
    file.write_text(without_checksum(file).replace(str(data), str(other)))
    for run_folder in out.glob("*-seed?"):
        shutil.rmtree(run_folder)
    for result in (out / "kept").glob("*seed*"):
        tree = json.loads(archive._restored(result.read_bytes(), result.parent))
        tree["recipe"]["data"]["folder"] = str(other)
        tree["seal"] = archive._seal_of(tree)
        result.write_bytes(archive._compressed(json.dumps(tree).encode(), result.parent))
    status, _, err = kdalign(*arguments(teacher, other, "--arms", "labels,joint", "--seeds", "2"))
    assert status == 2
    assert "the result of labels, sst2, seed 0 is of another train than is here now" in err.splitlines()[-1]


def test_arms_that_would_be_scored_on_other_examples_are_refused(kdalign, teacher, data, tmp_path):
    words = arguments(teacher, data, "--arms", "labels", "--sweep", "data.limit=20,40")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "arm 'labels limit=40' would be scored on other examples of 'sst2'" in one_line(err)


def test_a_seed_that_lacks_a_task_is_left_out_and_said(done, kdalign, tmp_path):
    kept = [read_archived(trial, done[0] / "a/kept") for trial in read_ablation(done[0] / "a").trials(Path("a"))]
    second = [replace(one, trial=replace(one.trial, task="b"), record=replace(one.record, task="b")) for one in kept]
    entries, left = archived_groups([*kept, *second[:3]])
    assert [(entry.name, entry.seed) for entry in entries] == [("labels", 0), ("joint", 0), ("labels", 1)]
    assert {str(name) for name in left} == {"joint seed 1"}
    table = build_table(Discovery(tuple(entries)), CompareOptions(against="labels"))
    assert [row.seeds for row in table.rows if row.kind == "student"] == [(0, 1), (0,)]


def test_equal_recipes_are_arms_of_their_own(done):
    kept = [read_archived(trial, done[0] / "a/kept") for trial in read_ablation(done[0] / "a").trials(Path("a"))]
    twin = [replace(one, trial=replace(one.trial, arm="twin")) for one in kept if one.trial.arm == "joint"]
    table = build_table(Discovery(tuple(archived_groups([*kept, *twin])[0])), CompareOptions(against="joint"))
    [difference] = [row for row in table.rows if row.name == "twin − joint"]
    assert difference.cells["sst2/accuracy"].value == 0
    assert difference.cells["sst2/accuracy"].verdict == "≈"


def test_arms_of_two_ablations_stay_apart_and_what_was_watched_stays_without_their_runs(done, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(done[0] / "a", tmp_path / name, ignore=shutil.ignore_patterns("*-seed?"))
    students = [row for row in compare([tmp_path / "first"]).rows if row.kind == "student"]
    assert [row.name for row in students] == ["labels", "joint"]
    table = compare([tmp_path / "first", tmp_path / "second"], steps_to=["accuracy=50%"])
    students = [row for row in table.rows if row.kind == "student"]
    assert [row.name for row in students] == ["first labels", "first joint", "second labels", "second joint"]
    assert {row.seeds for row in students} == {(0, 1)}
    events = (done[0] / "a/labels-seed0/history.jsonl").read_text().splitlines()
    seen = [event for event in map(json.loads, events) if event["kind"] == "evaluation"]
    kept = read_archived(read_ablation(done[0] / "a").trials(Path("a"))[0], done[0] / "a/kept")
    assert [one["step"] for one in kept.watched] == [event["step"] for event in seen]
    assert [one["accuracy"] for one in kept.watched] == pytest.approx([event["accuracy"] for event in seen], rel=1e-4)
    assert students[0].cells["steps-to/sst2/accuracy=50%"].value is not None


def test_scores_are_kept_to_four_digits_and_classes_as_they_are(tmp_path):
    values = np.array([1957.0, 1957.25, 70000.5, 3.14159, -0.2, 0.0, 1e-6, np.nan, np.inf])
    packed = archive._packed("prediction", values, tmp_path)
    assert archive._unpacked(packed, tmp_path).tolist() == pytest.approx(
        values.tolist(), rel=6.2e-5, abs=0, nan_ok=True
    )
    many = np.random.default_rng(0).normal(size=10_000)
    again = archive._unpacked(archive._packed("nll", many, tmp_path), tmp_path)
    assert abs(float(np.mean(again / many - 1))) < 2e-6, "rounded, not cut"
    classes = np.array([0, 1, 2, -1, 300])
    assert archive._unpacked(archive._packed("label", classes, tmp_path), tmp_path).tolist() == [*classes]


def test_budgets_that_differ_are_said_with_their_steps_and_tokens(done):
    kept = [read_archived(trial, done[0] / "a/kept") for trial in read_ablation(done[0] / "a").trials(Path("a"))]
    longer = replace(kept[1], record=replace(kept[1].record, training=kept[1].record.training | {"steps": 7}))
    notes = arm_budget_notes(archived_groups([kept[0], longer])[0])
    tokens = kept[0].record.training["tokens"]
    assert notes[0] == (
        f"budgets differ on sst2, seed 0: labels 6 steps of {tokens:,} tokens, joint 7 steps of {tokens:,} tokens"
    )


def test_two_ablations_do_not_work_in_one_folder(done, kdalign, teacher, data, tmp_path):
    out = copied(done, tmp_path)
    with FileLock(out / ".lock"):
        status, _, err = kdalign(*done[1])
    assert status == 2
    assert "another process works in 'a'" in err.splitlines()[-1]


def test_a_damaged_result_is_named(done, tmp_path):
    folder, *_ = done
    trial = read_ablation(folder / "a").trials(Path("a"))[0]
    (tmp_path / trial.file).write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is not what an ablation kept"):
        read_archived(trial, tmp_path)


def test_what_was_kept_and_changed_is_named_and_what_is_told_is_what_the_answers_give(done, kdalign, tmp_path):
    out = copied(done, tmp_path)
    status, said, err = kdalign("compare", "a", "--verify")
    assert status == 0, err
    assert "verified: 12 scores computed again from kept predictions" in " ".join(said.split()), (
        "4 runs: both models, agreement"
    )
    file = next((out / "kept").glob("labels*seed0*"))
    whole, tree = file.read_bytes(), json.loads(archive._restored(file.read_bytes(), file.parent))
    tree["scores"]["validation"]["student"][0]["value"] += 1
    file.write_bytes(archive._compressed(json.dumps(tree).encode(), file.parent))
    status, _, err = kdalign("compare", "a")
    assert (status, "was changed after it was kept: its seal does not fit it" in one_line(err)) == (2, True)
    file.write_bytes(
        archive._compressed(json.dumps({**tree, "seal": archive._seal_of(tree)}).encode(), file.parent)
    )  # sealed again
    status, _, err = kdalign("compare", "a", "--verify")
    assert status == 1
    assert "labels, sst2, seed 0, validation: student accuracy is recorded as" in err.splitlines()[-1]
    file.write_bytes(whole)
    shared = next(file.parent.glob("????????????????.gz"))
    raw = bytearray(gzip.decompress(shared.read_bytes()))
    raw[0] ^= 1
    shared.write_bytes(gzip.compress(bytes(raw)))
    status, _, err = kdalign("compare", "a")
    assert (status, f"{shared.name} was changed" in one_line(err)) == (2, True)


def test_an_ablation_under_way_says_what_it_lacks(done, kdalign, tmp_path):
    out = copied(done, tmp_path)
    for file in (out / "kept").glob("joint*seed1*"):
        file.unlink()
    status, said, err = kdalign("compare", "a", "--against", "labels")
    assert status == 0, err
    said = " ".join(said.split())
    assert "skipped: joint seed 1 (unfinished)" in said
    assert "joint − labels " in said
    assert "joint − labels (2 seeds)" not in said, "one seed alone was tested"
    assert "labels (2 seeds)" in said


def test_kept_results_are_the_same_bytes_each_time(done, tmp_path):
    folder, *_ = done
    trial = read_ablation(folder / "a").trials(folder / "a")[0]
    there = folder / "a/kept" / trial.file
    shutil.copy(there.with_name("common.json.gz"), tmp_path)
    archive_run(trial, tmp_path)
    assert (tmp_path / trial.file).read_bytes() == there.read_bytes()
    assert json.loads(archive._restored(there.read_bytes(), there.parent))["task"] == "sst2"


def test_kept_results_take_little_room_and_name_what_cannot_be_read(done, tmp_path):
    out = done[0] / "a"
    sizes = {file.name: file.stat().st_size for file in (out / "kept").glob("*seed*")}
    assert len(sizes) == 4
    assert max(sizes.values()) < 1500, "of about 8,000 bytes"
    shutil.copytree(out / "kept", tmp_path / "kept")
    (tmp_path / "kept/common.json.gz").write_bytes(gzip.compress(b"{}"))
    trial = read_ablation(out).trials(out)[0]
    with pytest.raises(UsageError, match=f"{trial.file}' is not what an ablation kept"):
        read_archived(trial, tmp_path / "kept")


def test_a_folder_in_which_something_else_lies_is_refused_and_left_alone(kdalign, teacher, data, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/record.json").write_text("{}")
    for more in ((), ("--overwrite",), ("--dry-run",), ("--search", "train.lr=1e-4,2e-4")):
        code, _, errors = kdalign(*arguments(teacher, data, "--arms", "labels", *more))
        assert (code, "'a' holds no ablation but other things (record.json)" in one_line(errors)) == (2, True), more
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["record.json"]


def test_a_search_alone_needs_something_to_search(kdalign, teacher, data, tmp_path):
    code, _, errors = kdalign(*arguments(teacher, data, "--search-only"))
    assert (code, "--search-only needs --search" in one_line(errors)) == (2, True)
    assert not (tmp_path / "a").exists()


def test_tables_say_which_settings_a_search_has_chosen(done, tmp_path):
    shutil.copytree(done[0] / "a", tmp_path / "a", ignore=shutil.ignore_patterns("*-seed0", "*-seed1"))
    (tmp_path / "a/search").mkdir()
    tried = [
        {"arm": "labels", "settings": {"train.lr": lr}, "score": 50.0, "chosen": lr == 2e-4} for lr in (1e-4, 2e-4)
    ]
    (tmp_path / "a/search/tried.json").write_text(json.dumps(tried))
    assert (
        "settings chosen on a slice of train (search/tried.json): labels train.lr 0.0002"
        in compare([tmp_path / "a"]).notes
    )
