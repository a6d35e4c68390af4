"""Arms of an ablation share what their teacher says: one cache keeps what any of them asks for."""

import json
from pathlib import Path

import pytest
import yaml

from kdalign.distillation.ablation_runner import _prepare_arms
from kdalign.errors import UsageError
from kdalign.runs.ablation_spec import arms_without_cache, build_ablation
from support.served_setting import save_pair

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


MOVING = {"from": "soft", "objective.temperature": 4, "objective.schedule.temperature": {"to": 1}}
OWN = {"on_policy.share": 1.0, "on_policy.max_new_tokens": 4}


def written(folder, arms):
    """A recipe file of arms on a task of texts, with a cache."""
    base = {"teacher": "a", "student": "b", "data": {"task": ["lm"]}, "cache": {"folder": "auto"}}
    (folder / "arms.yaml").write_text(yaml.safe_dump({**base, "arms": arms, "seeds": [0, 1]}))
    return build_ablation(folder / "arms.yaml", {})


def test_arms_that_cannot_use_the_cache_train_without_it_and_say_why(tmp_path):
    others = {"alone": {"teacher": "none", "objective.alpha": 0, "objective.beta": 0}, "moving": MOVING}
    trials = written(tmp_path, {"soft": {"from": "soft"}, "own": {"from": "soft", **OWN}, **others}).trials(tmp_path)
    assert {trial.arm for trial in trials if trial.recipe.cache.folder == "auto"} == {"soft"}
    assert all(trial.recipe.cache.folder is None for trial in trials if trial.arm != "soft")
    assert arms_without_cache(trials) == [
        "arm 'alone' trains without the cache: --cache keeps a teacher's outputs, and there is no teacher",
        "arm 'moving' trains without the cache: its temperature changes during training, and a cache keeps tokens at "
        "fixed ones",
        "arm 'own' trains without the cache: it trains on texts that the student has yet to write, which a "
        "cache cannot hold",
    ]


@pytest.mark.slow
def test_an_ablation_with_an_arm_on_own_texts_and_a_cache_says_so_and_runs(kdalign, tmp_path):
    save_pair(tmp_path)
    base = {"teacher": "teacher", "student": "student", "data": {"task": ["lm"], "folder": "texts", "max_length": 32}}
    base["train"] = {"max_steps": 2, "batch_size": 4, "samples": 0, "precision": "fp32", "device": "cpu"}
    arms = {"soft": {"from": "soft"}, "own": {"from": "soft", **OWN}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump({**base, "arms": arms, "seeds": [0]}))
    given = ("ablate", "--recipe", "arms.yaml", "--cache", "kept", "--out", "out")
    status, out, err = kdalign(*given, "--dry-run")
    assert (status, "arm 'own' trains without the cache: it trains on texts" in " ".join(out.split())) == (0, True), err
    status, _, err = kdalign(*given)
    assert (status, "arm 'own' trains without the cache: it trains on texts" in " ".join(err.split())) == (0, True), err
    found = {log.parent.name: "cache: the teacher reads" in log.read_text() for log in Path("out").glob("*/log.txt")}
    assert found == {"soft-seed0": True, "own-seed0": False}


def test_an_arm_that_names_a_cache_it_cannot_use_is_refused(tmp_path):
    alone = {"teacher": "none", "objective.alpha": 0, "objective.beta": 0, "cache.folder": "auto"}
    with pytest.raises(UsageError, match=r"arm 'alone': .* there is no teacher: leave out --cache"):
        written(tmp_path, {"soft": {"from": "soft"}, "alone": alone})


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
