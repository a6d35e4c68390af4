"""Names that stand for code: only what a user wrote himself, or allowed, is loaded, and it is told before."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from kdalign.distillation.map_layers import shape_plan
from kdalign.distillation.pipeline import distill
from kdalign.errors import UsageError
from kdalign.models import checkpoint_files
from kdalign.models.student_source import StudentOptions, find_student
from kdalign.recipe import build_recipe
from kdalign.registry import Trust, Untrusted, allow_code, code_named, names_code, resolve, trusting, trusting_caller
from kdalign.runs.ablation_spec import build_ablation, read_ablation, write_ablation
from kdalign.runs.archive import archive_run
from kdalign.runs.folder import seal_of
from support.covering import each_once
from support.tiny import one_line

EVIL = """
import sys
from pathlib import Path
Path(__file__).with_name("RAN").write_text("")
print("evil is loaded", file=sys.stderr)
from kdalign.metrics.classification import METRICS
X = METRICS["accuracy"]
def F(alike):
    return [(s, t, 1.0) for s in range(len(alike)) for t in range(len(alike[0]))]
"""
NAME, MODULE = "s/evil.py:X", "evil_module:X"
QUICK = {"train.max_steps": 2, "train.batch_size": 8, "train.device": "cpu", "train.precision": "fp32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, teacher, data):
    """Two finished runs of one recipe but for the learning rate."""
    root = tmp_path_factory.mktemp("made")
    for number in (0, 1):
        flags = {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
        distill(
            build_recipe(None, QUICK | flags | {"train.lr": (1 + number) * 1e-4, "out": str(root / f"run{number}")})
        )
    return root


@pytest.fixture
def place(kdalign, tmp_path, monkeypatch):
    """The folder in which commands run, with code that leaves a file where it is loaded."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "evil.py").write_text(EVIL)
    (tmp_path / "s" / "evil_module.py").write_text(EVIL)
    (tmp_path / "s" / "task.yaml").write_text(
        f"name: sst2\ncolumns: [sentence]\nlabels: [negative, positive]\nmetrics: ['{NAME}']\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "s")
    return tmp_path


def ran(place):
    return (place / "s" / "RAN").is_file()


def sealed(run, change):
    """Change a run's record and recipe, and seal it again as anybody can."""
    file = run / "record.json"
    tree = json.loads(file.read_text())
    change(tree)
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree["recipe"]))
    tree["files"].pop("recipe.yaml", None)
    tree.pop("seal")
    file.write_text(json.dumps({**tree, "seal": seal_of(tree)}))


HOSTILE = {
    "record.metrics": lambda tree: tree.update(metrics=[NAME]),
    "record.metrics by module": lambda tree: tree.update(metrics=[MODULE]),
    "objective.terms": lambda tree: tree["recipe"]["objective"].update(terms={NAME: {"weight": 1}}),
    "align.map": lambda tree: tree["recipe"]["align"].update(map="s/evil.py:F"),
    "data.task": lambda tree: tree["recipe"]["data"].update(task=["s/task.yaml"]),
}


@pytest.fixture(params=HOSTILE)
def hostile(request, made, place):
    """The word for a part of a stranger's runs that names code; the runs lie in the folders a0 and a1."""
    for number in (0, 1):
        shutil.copytree(made / f"run{number}", place / f"a{number}")
        sealed(place / f"a{number}", HOSTILE[request.param])
    return request.param


def reading(data):
    """Commands that read runs; what is refused says how it would be allowed."""
    return {
        "compare": ("compare", "a0", "a1"),
        "against": ("compare", "a0", "a1", "--against", "a0"),
        "verify": ("compare", "a0", "--verify"),
        "html": ("compare", "a0", "--out", "x.html"),
        "plots": ("compare", "a0", "--plots", "pictures"),
        "gates": ("compare", "a0", "--require", "sst2/accuracy>=0"),
        "json": ("compare", "a0", "--json", "--baseline", "a1", "--max-drop", "accuracy=100"),
        "card": ("card", "a0"),
        "profile": ("profile", "a0", "--no-weights"),
        "inspect": ("inspect", "a0", "--device", "cpu"),
        "eval": ("eval", "a0", "--device", "cpu", "--data", data),
        "recipe dump": ("recipe", "dump", "--recipe", "a0/recipe.yaml"),
    }


@pytest.mark.parametrize(("hostile", "word"), each_once(HOSTILE, reading("")), indirect=["hostile"])
def test_no_command_that_reads_loads_what_a_strangers_run_names(kdalign, place, hostile, data, word):
    status, _, err = kdalign(*reading(data)[word])
    assert not ran(place), f"{hostile} ran code by {word}"
    assert "Traceback" not in err
    assert status == 0 or (status == 2 and "--allow code" in one_line(err)), (hostile, word, err)


@pytest.mark.parametrize("command", ["distill", "ablate"])
def test_a_strangers_recipe_loads_nothing_by_a_dry_run_nor_by_a_run(kdalign, place, hostile, data, command):
    if hostile.startswith("record"):
        pytest.skip("a recipe has no metrics")
    for more in (("--dry-run",), ()):
        words = (command, "--recipe", "a0/recipe.yaml", "--data", data, "--out", "new", *more)
        status, _, err = kdalign(*words)
        assert status == 2
        assert "--allow code" in one_line(err)
        assert not ran(place)
        assert not (place / "new").exists()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_cache_of_a_strangers_recipe_is_neither_built_nor_verified_by_his_code(kdalign, place, hostile, data, more):
    if hostile not in ("objective.terms", "align.map"):
        pytest.skip("a cache asks for no metric")
    recipe = ("--recipe", "a0/recipe.yaml", "--data", data)
    status, _, err = kdalign("cache", "build", *recipe, "--out", "new", *more)
    assert status == 2
    assert "--allow code" in one_line(err)
    assert not (place / "new").exists()
    (place / "kept").mkdir()
    (place / "kept/cache.json").write_text("{}")
    status, _, err = kdalign("cache", "verify", "kept", *recipe)
    assert status == 2
    one_line(err)
    assert not ran(place)


def test_generating_resolves_no_name_of_code_at_all(kdalign, place, teacher, data):
    words = ("generate", "--teacher", teacher, "--data", data, "--out", "new")
    for more in (
        ("--task", "s/task.yaml"),
        ("--task", "lm:sentence", "--best-of", NAME),
        ("--task", "lm:sentence", "--keep", f"{NAME}>=0"),
    ):
        status, _, err = kdalign(*words, *more)
        assert status == 2
        one_line(err)
        assert not ran(place)
        assert not (place / "new").exists()


def test_code_that_files_name_is_run_where_it_is_allowed_and_is_named_before(kdalign, made, place, data):
    shutil.copytree(made / "run0", place / "a0")
    sealed(place / "a0", HOSTILE["record.metrics"])
    status, out, err = kdalign("compare", "a0", "--verify")
    assert status == 0, err
    assert "is code from 's/evil.py', which runs only with --allow code: its scores were not computed" in " ".join(
        out.split()
    )
    assert not ran(place)
    status, out, err = kdalign("compare", "a0", "--verify", "--allow", "code")
    assert status == 0, err
    assert ran(place)
    assert err.index(f"runs code: s/evil.py (for metric {NAME})") < err.index("evil is loaded")
    assert kdalign("compare", "a0", "--allow", "cod")[0] == 2


def test_what_a_kept_result_of_an_ablation_names_is_not_loaded(kdalign, place, made, data, teacher):
    flags = QUICK | {"teacher": str(teacher), "student": "layers=2", "data.task": "sst2", "data.folder": str(data)}
    ablation = build_ablation(None, flags, arms="labels,joint", seeds="1")
    out = place / "ablation"
    write_ablation(ablation, out)
    for trial in read_ablation(out).trials(out):
        folder = Path(trial.recipe.out)
        shutil.copytree(made / "run0", folder)
        sealed(folder, lambda tree, recipe=trial.recipe: tree.update(recipe=recipe.model_dump(mode="json")))
        sealed(folder, HOSTILE["record.metrics"])
        archive_run(trial, out / "kept")
        shutil.rmtree(folder)
    for more in ((), ("--against", "labels"), ("--verify",), ("--out", "x.html")):
        status, _, err = kdalign("compare", "ablation", *more)
        assert status == 0, err
        assert not ran(place)


@pytest.mark.parametrize("choice", [NAME.replace(":X", ":F"), "evil_module:F", "os:system"])
def test_a_plans_choice_is_a_shipped_name_or_the_plan_is_refused(kdalign, place, teacher, data, choice):

    found = checkpoint_files.find_checkpoint(str(teacher))
    plan = shape_plan([found], find_student(StudentOptions("layers=2"), found), "cka")
    tree = json.loads(plan.to_json())
    assert tree["choice"] == "cka"
    (place / "plan.json").write_text(json.dumps(tree | {"choice": choice}))
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    for more in (("--dry-run",), ("--max-steps", "2")):
        status, _, err = kdalign(*words, "--plan", "plan.json", "--out", "new", *more)
        assert status == 2
        assert choice in one_line(err)
        assert not ran(place)
        assert not (place / "new").exists()
    (place / "plan.json").write_text(json.dumps(tree | {"choice": "ckka"}))
    status, _, err = kdalign(*words, "--plan", "plan.json", "--dry-run")
    assert status == 2
    assert "did you mean 'cka'" in one_line(err)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--map", "s/evil.py:F"), "runs code: s/evil.py (for map s/evil.py:F)"),
        (("--set", "align.map=evil_module:F"), "runs code: evil_module (for map evil_module:F)"),
        (("--set", "align.map=s/evil.py:F", "--dry-run"), "runs code: s/evil.py (for map s/evil.py:F)"),
        (("--term", "s/evil.py:X=1"), "runs code: s/evil.py (for term s/evil.py:X)"),
        (("--set", "objective.terms={s/evil.py:X: 1}"), "runs code: s/evil.py (for term s/evil.py:X)"),
    ],
)
def test_own_code_that_is_named_on_the_command_line_is_told_of_before_it_is_loaded(
    kdalign, place, teacher, data, words, line
):
    base = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run")
    _, _, err = kdalign(*base, *dict.fromkeys(words))
    assert err.count(line) == 1
    assert err.index(line) < err.index("evil is loaded")


def test_a_cache_is_built_by_own_code_that_is_told_of_before_it_is_loaded(kdalign, place, teacher, data):
    options = ("--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--dry-run")
    _, _, err = kdalign("cache", "build", *options, "--term", "s/evil.py:X=1")
    line = "runs code: s/evil.py (for term s/evil.py:X)"
    assert err.count(line) == 1
    assert err.index(line) < err.index("evil is loaded")


def test_a_map_of_pythons_own_is_refused_before_anything_is_written(kdalign, place, teacher, data):
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    status, _, err = kdalign(*words, "--map", "os:system", "--out", "new")
    assert status == 2
    assert "'os' is part of Python and has no map" in one_line(err)
    assert not (place / "new").exists()


def test_a_map_that_gives_no_pairs_is_refused_before_anything_is_written(kdalign, place, teacher, data):
    (place / "none.py").write_text("def none(alike):\n    return 3\n")
    words = ("distill", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data)
    status, _, err = kdalign(*words, "--map", "none.py:none", "--out", "new")
    assert status == 2
    assert "accepted is a function that gives (student layer, teacher layer, weight)" in err
    assert not (place / "new").exists()


def test_a_metric_in_a_task_file_needs_leave_and_then_scores(kdalign, place, teacher, data):
    words = ("eval", teacher, "--task", "s/task.yaml", "--data", data, "--device", "cpu", "--out", "e.json")
    status, _, err = kdalign(*words)
    assert status == 2
    assert "--allow code" in one_line(err)
    assert not ran(place)
    assert not (place / "e.json").exists()
    assert kdalign(*words, "--metrics", "accuracy")[0] == 0, "its texts and labels need no code"
    assert not ran(place)
    status, _, err = kdalign(*words, "--allow", "code")
    assert status == 0, err
    assert ran(place)


def test_what_is_trusted_goes_to_another_process_without_whoever_is_told():
    given = Trust(frozenset([NAME]), True, print)
    assert pickle.loads(pickle.dumps(given.silent)) == Trust(frozenset([NAME]), True)


def test_nothing_is_trusted_unless_somebody_says_so(tmp_path):
    (tmp_path / "mine.py").write_text("answer = 42\n")
    name = f"{tmp_path}/mine.py:answer"
    with pytest.raises(Untrusted):
        resolve(name, {}, "number")
    with trusting_caller():
        assert resolve(name, {}, "number") == 42
    with trusting(Trust()), trusting_caller(), pytest.raises(Untrusted):
        resolve(name, {}, "number")
    with trusting(Trust(frozenset([name]))):
        assert resolve(name, {}, "number") == 42
        with pytest.raises(Untrusted):
            resolve(f"{tmp_path}/mine.py:other", {}, "number")
    with allow_code():
        assert resolve(name, {}, "number") == 42
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(_error_of(name)))
        thread.start()
        thread.join()
        assert isinstance(found[0], Untrusted), "a thread of its own begins with nothing"
    with pytest.raises(UsageError):
        resolve(name, {}, "number")


def _error_of(name):
    try:
        return resolve(name, {}, "number")
    except UsageError as error:
        return error


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("own.py:Loss", True),
        ("a/b c/own.py:Loss", True),
        ("package.module:Name", True),
        ("0:1", False),
        ("0:1 1:3", False),
        ("cka", False),
        ("own.py", False),
        (".relative:Name", False),
        ("own.py:", False),
    ],
)
def test_what_has_the_form_of_a_name_of_code(name, is_one):
    assert names_code(name) is is_one
    assert code_named({"terms": [{name: 1}]}) == (frozenset([name]) if is_one else frozenset())


def test_a_module_of_an_earlier_version_is_refused_with_the_import_that_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("from kdalign.terms import Signal\n")
    said = r"No module named 'kdalign.terms'\); .* import from kdalign.plugins"
    with allow_code(), pytest.raises(UsageError, match=said):
        resolve("own.py:Loss", {}, "term")
