"""A search chooses each arm's settings on slices of train, keeps every trial, and goes on after a stop."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from kdalign.data.tasks import DataSource, load_examples
from kdalign.data.tasks.glue import GLUE
from kdalign.distillation.ablation_runner import AblationObserver
from kdalign.distillation.engines import LocalEngine
from kdalign.distillation.search import STUDY, SearchSettings, _Search, search
from kdalign.distillation.search_study import ArmStudy, open_storage, open_study
from kdalign.errors import RunError, UsageError
from kdalign.runs.ablation_spec import build_ablation, read_ablation
from kdalign.runs.folder import RunFolder
from support.ranks import environment
from support.tiny import one_line, sentences

SPACE = {"train.lr": (1e-4, 2e-4)}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _optuna():
    pytest.importorskip("optuna", reason="Optuna is not installed (kdalign[search])")


def flags(teacher, folder, steps):
    return {
        "teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(folder),
        "train.max_steps": steps, "train.batch_size": 16, "train.precision": "fp32", "train.device": "cpu",
        "train.profile": False,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("_optuna")
def test_a_search_chooses_on_train_alone_and_by_the_best_mean(teacher, data, tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    table = pd.read_parquet(data / "train.parquet")
    table.to_parquet(folder / "train.parquet")
    texts, labels = sentences(8, 77)
    pd.DataFrame({"sentence": texts, "label": labels}).to_parquet(folder / "validation.parquet")
    ablation = build_ablation(None, flags(teacher, folder, 12), arms="labels,soft", seeds="2")
    (folder / "validation.parquet").write_bytes(b"nobody reads it")
    space = {"train.lr": (1e-9, 2e-3), "objective.temperature": (2.0, 4.0)}
    chosen, tried = search(ablation, SearchSettings(space, trials=6), tmp_path / "s", engine=LocalEngine(2))
    assert {arm: changes["train.lr"] for arm, changes in chosen.arms.items()} == {"labels": 2e-3, "soft": 2e-3}
    assert chosen.base == ablation.base
    by_arm = {arm: [one for one in tried if one.arm == arm] for arm in ("labels", "soft")}
    assert [len(by_arm[arm]) for arm in by_arm] == [2, 4], "a temperature says nothing to hard labels"
    for own in by_arm.values():
        (best,) = [one for one in own if one.chosen]
        assert best.score == max(one.score for one in own if one.score is not None)
        assert all(one.pruned == (one.score is None) for one in own)
    slices = replace(GLUE["sst2"], source=DataSource(folder=tmp_path / "s/data/sst2"))
    train, held = (load_examples(slices, split) for split in ("train", "validation"))
    assert not set(train.texts[0]) & set(held.texts[0])
    assert set(held.texts[0]) <= set(table["sentence"])
    assert list((tmp_path / "s/runs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("_optuna")
def test_a_search_does_not_go_on_with_slices_of_other_data_or_as_another_search(teacher, data, tmp_path):
    given, settings = flags(teacher, data, 1), SearchSettings({"train.lr": (1e-4,)})
    search(build_ablation(None, given, arms="labels"), settings, tmp_path / "s")
    with pytest.raises(UsageError, match="holds a slice of other data"):
        search(build_ablation(None, given | {"data.limit": 50}, arms="labels"), settings, tmp_path / "s")
    with pytest.raises(UsageError, match=r"was begun as another one, train\.max_steps differ"):
        search(build_ablation(None, given | {"train.max_steps": 2}, arms="labels"), settings, tmp_path / "s")


@pytest.mark.slow
@pytest.mark.usefixtures("_optuna")
def test_a_search_passes_over_a_value_that_fails_but_chooses_none_where_all_do(teacher, data, tmp_path):
    ablation = build_ablation(None, flags(teacher, data, 2), arms="labels")
    chosen, tried = search(ablation, SearchSettings({"train.lr": (1e30, 1e-4)}), tmp_path / "s")
    assert chosen.arms["labels"]["train.lr"] == 1e-4
    found = {one.settings["train.lr"]: (one.score is None, bool(one.failed)) for one in tried}
    assert found == {1e30: (True, True), 1e-4: (False, False)}
    with pytest.raises(RunError, match=r"no settings could be scored for arm 'labels' \(.*diverged"):
        search(ablation, SearchSettings({"train.lr": (1e30,)}), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.usefixtures("_optuna")
def test_a_later_search_for_another_arm_leaves_what_was_tried_before(kdalign, teacher, data):
    words = ("--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--max-steps", 1,
             "--search-only", "--no-profile", "--out", "s")  # fmt: skip
    for arm, rates in (("labels", "1e-4,2e-4"), ("soft", "3e-4,4e-4")):
        assert kdalign("ablate", *words, "--arms", arm, "--search", f"train.lr={rates}")[0] == 0
    tried = json.loads(Path("s/search/tried.json").read_text())
    found = {arm: {one["settings"]["train.lr"] for one in tried if one["arm"] == arm} for arm in ("labels", "soft")}
    assert found == {"labels": {1e-4, 2e-4}, "soft": {3e-4, 4e-4}}
    assert set(read_ablation(Path("s")).arms) == {"labels", "soft"}


@pytest.mark.slow
@pytest.mark.usefixtures("_optuna")
def test_a_search_of_a_file_that_is_stopped_goes_on_to_the_same_trials(teacher, data, tmp_path):
    Path("a.yaml").write_text(
        f"teacher: {teacher}\nstudent: layers=2\ndata: {{task: sst2, folder: {data}}}\n"
        "train: {max_steps: 20, batch_size: 16, precision: fp32, device: cpu, profile: false}\n"
        "arms: {labels: }\nsearch:\n  train.lr: {low: 1e-9, high: 1e-2, log: true}\n"
    )
    words = [
        sys.executable,
        "-m",
        "kdalign",
        "ablate",
        "--recipe",
        "a.yaml",
        "--trials",
        "6",
        "--search-only",
        "--json",
    ]
    found = []
    for out, stops in (("whole", 0), ("stopped", 1)):
        command = [*words, "--out", out]
        for _ in range(stops):
            process = subprocess.Popen(
                command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
            )
            while not list(Path(out).glob("search/runs/labels-trial-2*/history.jsonl")) and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate()
            assert process.returncode == 128 + signal.SIGTERM, err
            assert err.splitlines()[-1].endswith("the trials so far are kept; the same command resumes")
        made = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert made.returncode == 0, made.stderr
        found.append(json.loads(made.stdout))
        assert json.loads((tmp_path / out / "search/tried.json").read_text()) == found[-1]
    assert found[0] == found[1]
    assert len({one["settings"]["train.lr"] for one in found[0]}) == 6
    assert any(one["pruned"] for one in found[0])
    assert sum(one["chosen"] for one in found[0]) == 1


@pytest.mark.usefixtures("_optuna")
@pytest.mark.parametrize(
    ("steps", "done", "rungs"),
    [
        (8, {}, {"1/4": 20.0, "2/4": 40.0}),
        (2, {}, {"1/4": 40.0}),
        (1, {}, {}),
        (8, {"rte": 30.0}, {"2/4": 35.0}),
    ],
    ids=["eighths", "two steps", "one step", "second task"],
)
def test_a_rung_is_the_mean_over_tasks_and_rungs_that_coincide_are_one(tmp_path, steps, done, rungs):
    tasks = ["rte", "mrpc", "cola"] if done else ["mrpc"]  # half of all is half of the second
    given = {"teacher": "t", "data.task": tasks, "train.max_steps": steps}
    ablation = build_ablation(None, given, arms="labels", seeds="1")
    storage = open_storage(None, tmp_path / STUDY)
    study = ArmStudy("labels", SPACE, 2, 0, open_study(storage, "labels", SPACE, {}, {}))
    attempt = study.ask()
    for task, score in done.items():
        attempt.add_score(task, score)
    trial = next(trial for trial in ablation.trials(tmp_path) if trial.task == "mrpc")
    folder = RunFolder(Path(trial.recipe.out))
    folder.path.mkdir(parents=True)
    for step in range(1, steps + 1):
        folder.append_history({"kind": "evaluation", "step": step, "accuracy": 80.0 * step / steps})
    of = _Search(ablation, [study], tmp_path, LocalEngine(1), AblationObserver(), {trial.name: (attempt, trial)})
    of._prepared[trial.name] = steps, {}
    for _ in range(2):
        of._review(trial.name)  # every second: what was said is not said again
    assert study.candidates()[0].rungs == rungs


def test_without_its_package_a_search_says_how_to_install_it(kdalign, teacher, data, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ("ablate", "--teacher", teacher, "--task", "sst2", "--data", data, "--search", "train.lr=1e-4,2e-4")
    for more in ((), ("--dry-run",)):
        status, _, err = kdalign(*words, *more)
        assert (status, "--search needs a package: pip install 'kdalign[search]'" in one_line(err)) == (2, True), err
    assert list(tmp_path.iterdir()) == []
