"""Presets: each is a whole recipe, what is said wins over it, and it refuses what it is not for."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from kdalign.alignment.propose import propose
from kdalign.distillation.run_folders import split_by_task
from kdalign.errors import UsageError
from kdalign.recipe import DataSettings, MultiTask, ObjectiveWeights, Recipe, build_recipe, load_recipe, validate_recipe
from kdalign.recipe.command import distill_command
from kdalign.recipe.presets import FOLDER, preset_named, preset_names
from kdalign.runs.ablation_spec import build_ablation
from support.covering import first_only
from support.shapes import pairs_of, shape
from support.tiny import one_line


def made(preset: str, task: str = "sst2", **changes: object) -> Recipe:
    return validate_recipe({"preset": preset, "teacher": "t", "data": {"task": task}, **changes})


def test_the_default_is_what_a_recipe_without_a_preset_is():
    without = validate_recipe({"teacher": "t", "data": {"task": "sst2"}})
    assert made("feature-alignment").with_changes(preset=None) == without


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_sets_keys_that_a_recipe_has_and_a_dump_of_it_is_itself(name, tmp_path):
    recipe = made(name)
    preset = preset_named(name)
    for key, value in {**preset.recipe, **preset.by_task.get("sst2", {})}.items():
        if isinstance(value, dict):
            section = getattr(recipe, key)
            assert all(getattr(section, inner) == given for inner, given in value.items() if inner != "terms")
        else:
            assert getattr(recipe, key) == value
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.dump(), encoding="utf-8")
    assert load_recipe(file) == recipe
    shown = tmp_path / "shown.yaml"
    shown.write_text(preset_named(name).text(), encoding="utf-8")
    assert build_recipe(shown, {"teacher": "t", "data.task": "sst2"}) == recipe
    assert all(len(line) <= 120 for line in shown.read_text(encoding="utf-8").splitlines())


COMMON = {
    "hard": 0.3, "alpha": 0.7, "beta": 0, "gamma": 0, "delta": 0, "embeddings": 0, "relations": 0,
    "temperature": 2, "align_first": 0, "terms": {}, "init": "uniform", "map": "auto", "of": "values",
}  # fmt: skip
VALUES = {
    "feature-alignment": {"beta": 1, "gamma": 1, "delta": 1},
    "kd": {},
    "pkd": {"temperature": 5, "terms": {"pkd": {"weight": 0.65}}, "init": "first", "map": "uniform"},
    "tinybert": {"hard": 0, "alpha": 1, "gamma": 1, "delta": 1, "embeddings": 1, "temperature": 1, "align_first": 0.7,
                 "map": "uniform"},
    "minilm": {"hard": 1, "alpha": 0, "relations": 1, "align_first": 0.5, "terms": {"attention-kl": {"weight": 1}},
               "map": "top"},
    "minilmv2": {"hard": 1, "alpha": 0, "relations": 3, "align_first": 0.5, "map": "top", "of": "all"},
    "codir": {"terms": {"crd": {"weight": 0.1, "queue": 4096, "negatives": 100}}},
    "distilbert": {"hard": 2, "alpha": 5, "beta": 1, "init": "skip", "map": "top"},
    "glue": {"temperature": 4, "beta": 5, "gamma": 1, "delta": 1},
}  # fmt: skip
"""Written by hand, from the papers and their code."""


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_has_the_numbers_of_its_method(name):
    recipe = made(name)
    found = {key: getattr(recipe.objective, key) for key in COMMON if key not in ("init", "map", "of")}
    found |= {"init": recipe.init, "map": recipe.align.map, "of": recipe.align.relations}
    assert found == COMMON | VALUES[name]
    said = {("objective", key) for key in found} | {("init",), ("align", "map"), ("align", "relations"), ("preset",)}
    flat, default = recipe.flat(), made("feature-alignment").flat()
    assert {tuple(key.split(".")) for key in flat if flat[key] != default[key]} <= said


def test_what_the_recipe_says_wins_and_terms_are_added():
    recipe = made("pkd", objective={"temperature": 2, "terms": {"cka": 1}}, init="last")
    assert (recipe.objective.temperature, recipe.objective.alpha, recipe.init) == (2, 0.7, "last")
    assert recipe.objective.further == {"pkd": 0.65, "cka": 1}
    assert made("pkd", objective={"terms": {"pkd": 5}}).objective.further == {"pkd": 5}
    assert made("pkd", objective={"terms": {}}).objective.further == {}


GLUE = yaml.safe_load((FOLDER / "glue.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "together"])
def test_a_preset_s_keys_of_a_task_are_that_task_s_alone_and_what_is_said_wins(together):
    def recipes(tasks: str, **changes: object) -> dict[str, Recipe]:
        given = {"multi_task": {"together": together}} if "," in tasks else {}
        return {one.data.task[0]: one for one in split_by_task(made("glue", tasks, student="x", **given, **changes))}

    tasks = ",".join(["mrpc", *GLUE["by_task"]])
    for name, recipe in recipes(tasks).items():
        expected = GLUE["recipe"]["objective"] | GLUE["by_task"].get(name, {}).get("objective", {})
        alone = recipes(name)[name]
        for one in (recipe, alone):
            assert {key: getattr(one.objective, key) for key in expected} == expected
        assert bool(recipe.multi_task.tasks) == together
        assert validate_recipe(recipe.model_dump()) == recipe
    assert {one.objective.beta for one in recipes(tasks, objective={"beta": 3}).values()} == {3}
    sections = {
        "data": DataSettings(task=tasks),
        "objective": ObjectiveWeights(beta=3),
        "multi_task": MultiTask(together=together),
    }
    whole = Recipe(preset="glue", teacher="t", student="x", **sections)
    assert {one.objective.beta for one in split_by_task(whole)} == {3}
    own = {"stsb": {"objective.beta": 7}}
    changed = made("glue", "stsb,rte", multi_task={"together": together, "tasks": own})
    assert changed.multi_task.tasks["stsb"]["objective.beta"] == 7
    assert validate_recipe(changed.model_dump()) == changed


def test_flags_win_over_what_a_dump_says_of_each_task(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text(made("glue", "stsb,sst2").dump(), encoding="utf-8")
    for flags, sets in (({"objective.beta": 3}, []), ({}, ["objective.beta=3"])):
        assert {one.objective.beta for one in split_by_task(build_recipe(file, flags, sets))} == {3}
    own = ["objective.beta=3", "multi_task.tasks.stsb.objective.beta=4"]
    assert [one.objective.beta for one in split_by_task(build_recipe(file, {}, own))] == [4, 3]


def test_an_ablation_and_its_search_take_what_differs_for_a_task():
    flags = {"preset": "glue", "teacher": "t", "data.task": "stsb,sst2,rte", "data.folder": "x"}
    ablation = build_ablation(None, flags, ["multi_task.tasks.rte.objective.beta=7"], "joint")
    betas = {trial.task: trial.recipe.objective.beta for trial in ablation.trials(Path("out"))}
    assert betas == {task: made("glue", task).objective.beta for task in ("stsb", "sst2")} | {"rte": 7}
    with pytest.raises(UsageError, match=r"multi_task\.tasks names 'rtee'"):
        build_ablation(None, flags, ["multi_task.tasks.rtee.objective.beta=7"], "joint").trials(Path("out"))


def test_the_keys_of_each_task_are_said_by_show(tmp_path):
    text = preset_named("glue").text()
    (tmp_path / "glue.yaml").write_text(text, encoding="utf-8")
    for task in (*GLUE["by_task"], "my-task"):
        assert build_recipe(tmp_path / "glue.yaml", {"teacher": "t", "data.task": task}) == made("glue", task)
    for task, keys in GLUE["by_task"].items():
        for key, value in keys["objective"].items():
            assert re.search(rf"^# For {task}: .*objective\.{key} {value}\b", text, re.MULTILINE)


def test_a_preset_wins_over_what_a_kind_of_task_begins_with():
    assert validate_recipe({"teacher": "t", "data": {"task": "lm"}}).objective.beta == 1
    recipe = made("kd", "lm")
    assert (recipe.objective.beta, recipe.objective.temperature, recipe.data.max_length) == (0, 1, 256)


@pytest.mark.parametrize(("name", "task"), [("pkd", "lm"), ("tinybert", "masked-lm"), ("minilm", "embedding")])
def test_a_preset_refuses_tasks_that_it_is_not_for(name, task):
    with pytest.raises(UsageError, match=f"preset '{name}' is for tasks of .*'{task}' is of "):
        made(name, task)


def test_an_unknown_preset_has_the_nearest_named(kdalign):
    status, _, err = kdalign("distill", "--teacher", "t", "--task", "sst2", "--preset", "tinybrt")
    assert status == 2
    assert "did you mean 'tinybert'?" in one_line(err)


def test_the_command_names_the_preset_and_leaves_out_what_it_sets():
    command = distill_command(made("distilbert", train={"lr": 1e-3}))
    assert shlex.split(command)[2:4] == ["--preset", "distilbert"]
    assert "--alpha" not in command
    assert "--lr 0.001" in command


def test_the_top_map_is_the_last_pair_alone():
    assert pairs_of(propose(shape(6), shape(3), "top")) == [(2, 5)]


def test_show_is_a_recipe_that_says_what_it_needs(kdalign):
    status, out, _ = kdalign("recipe", "show")
    assert status == 0
    assert all(name in out for name in preset_names())
    _, out, _ = kdalign("recipe", "show", "minilmv2")
    assert "Needs queries, keys and values" in out
    assert yaml.safe_load(out)["align"] == {"map": "top", "relations": "all"}
    _, out, _ = kdalign("recipe", "show", "codir", "--json")
    assert json.loads(out)["recipe"]["objective"]["terms"]["crd"]["negatives"] == 100


@pytest.mark.parametrize("name", first_only(["tinybert", "minilm", *preset_names()]))
def test_every_preset_trains(name, kdalign, teacher, data, tmp_path):
    command = ["--teacher", teacher, "--task", "sst2", "--data", data, "--limit", 24, "--preset", name]
    status, _, err = kdalign("distill", *command, "--max-steps", 3, "--batch-size", 8, "--out", "run")
    assert status == 0, err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["recipe"]["preset"] == name
    assert set(record["training"]["terms"])
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    seen = {term for step in history if step["kind"] == "step" for term in step["parts"]}
    assert seen == TERMS[name]


TERMS = {
    "feature-alignment": {"hard", "soft", "cosine", "euclid", "attention"},
    "kd": {"hard", "soft"},
    "pkd": {"hard", "soft", "pkd"},
    "tinybert": {"soft", "euclid", "attention", "embeddings"},
    "minilm": {"hard", "relations", "attention-kl"},
    "minilmv2": {"hard", "relations"},
    "codir": {"hard", "soft", "crd"},
    "distilbert": {"hard", "soft", "cosine"},
    "glue": {"hard", "soft", "cosine", "euclid", "attention"},
}


def test_a_teacher_without_a_language_head_is_refused(kdalign, teacher, data):
    status, _, err = kdalign(
        "distill", "--teacher", teacher, "--task", "masked-lm:sst2", "--data", data, "--preset", "distilbert"
    )
    assert status == 2
    assert "head" in one_line(err)
