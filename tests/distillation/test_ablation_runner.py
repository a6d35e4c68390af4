"""Arms of an ablation share what their teacher says: one cache keeps what any of them asks for."""

import json
from pathlib import Path

import pytest

from kdalign.distillation.ablation_runner import _prepare_arms
from kdalign.runs.ablation_spec import build_ablation

BUDGET = {"train.max_steps": 4, "train.batch_size": 32, "train.precision": "fp32", "train.device": "cpu"}


def ablation(teacher, data, seeds="2", **flags):
    basis = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    sets = ("objective.delta=0", "objective.gamma=0")
    return build_ablation(None, basis | BUDGET | flags, sets, "labels,soft,joint", seeds, ())


def test_all_arms_keep_what_any_of_them_asks_for(teacher, data, tmp_path):
    trials = ablation(teacher, data, **{"cache.folder": "auto"}).trials(tmp_path)
    shared = _prepare_arms(trials, (), False).with_shared_outputs(trials)
    words = ("classes", "hidden:encoder.1", "hidden:encoder.3")
    assert {trial.recipe.cache.keep for trial in shared} == {words}
    assert [trial.name for trial in shared] == [trial.name for trial in trials]


def test_without_a_cache_trials_stay_as_they_are(teacher, data, tmp_path):
    trials = ablation(teacher, data).trials(tmp_path)
    assert _prepare_arms(trials, (), False).with_shared_outputs(trials) == trials


def test_a_folder_of_several_tasks_has_one_inside_for_each(teacher, data, tmp_path):
    several = ablation(teacher, data, **{"cache.folder": "kept", "data.task": "sst2,cola"})
    folders = {trial.task: trial.recipe.cache.folder for trial in several.trials(tmp_path)}
    assert folders == {task: str(Path("kept") / task) for task in ("sst2", "cola")}


@pytest.mark.slow
def test_the_teacher_reads_each_row_once_for_all_arms_and_seeds_which_resume_without_it(
    teacher, data, kdalign, tmp_path
):
    words = [
        "ablate",
        "--teacher",
        teacher,
        "--student",
        "layers=2",
        "--task",
        "sst2",
        "--data",
        data,
        "--max-steps",
        4,
    ]
    words += ["--batch-size", 64, "--precision", "fp32", "--device", "cpu", "--arms", "labels,soft,joint", "--seeds", 2]
    kept = tmp_path / "kept"
    words += ["--cache", kept, "--out", tmp_path / "out"]
    status, _, err = kdalign(*words)
    assert status == 0, err
    assert "the teacher's outputs are kept by the first run that needs them" in err
    logs = {log.parent.name: log.read_text() for log in (tmp_path / "out").glob("*/log.txt")}
    built = [name for name, text in logs.items() if "reads 256 of 256 rows once" in text]
    assert len(built) == 1
    found = [name for name, text in logs.items() if "outputs on 256 rows are there" in text]
    assert sorted([*built, *found]) == ["joint-seed0", "joint-seed1", "soft-seed0", "soft-seed1"], "labels asks nothing"
    archived = len(list((tmp_path / "out" / "kept").glob("*.json.z")))
    status, out, err = kdalign(*words, "--json")
    assert status == 0, err
    assert archived == 6
    assert json.loads(out)
