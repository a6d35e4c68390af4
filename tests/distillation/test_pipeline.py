"""The steps of a run, and how it says that it can be resumed."""

from types import SimpleNamespace

import pytest

from kdalign.distillation.pipeline import _resume_hint, _withdrawn_if_refused
from kdalign.errors import Interrupted, RefusedRun, Unwritten, UsageError
from kdalign.recipe import ObjectiveWeights
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import RECORD


def runs():
    recipe = SimpleNamespace(objective=ObjectiveWeights(), align=SimpleNamespace(map="uniform"))
    return [SimpleNamespace(recipe=recipe, task=SimpleNamespace(metrics=("accuracy",)))] * 2


def test_a_stop_anywhere_in_a_run_names_the_command_that_resumes_it(tmp_path):
    with pytest.raises(Interrupted) as stop, _resume_hint(RunFolder(tmp_path), runs()):
        raise Interrupted("stopped; step 3 of 9 is saved", 15)
    assert str(stop.value) == f"stopped; step 3 of 9 is saved; resume with: kdalign distill --out {tmp_path} --resume"
    assert stop.value.signal == 15


def test_a_full_disk_names_the_command_once_the_run_has_begun(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(Unwritten, match=r"^cannot write$"), _resume_hint(folder, runs()):
        raise Unwritten("cannot write")
    folder.recipe.write_text("teacher: t\n")
    hint = r"make room, then: kdalign distill --out .* --resume$"
    with pytest.raises(Unwritten, match=hint), _resume_hint(folder, runs()):
        raise Unwritten("cannot write")


def files(folder):
    return sorted(file.name for file in folder.path.iterdir())


@pytest.mark.parametrize("kind", [RefusedRun, UsageError])
def test_a_run_that_is_refused_before_its_first_step_takes_back_what_it_wrote(tmp_path, kind):
    folder = RunFolder(tmp_path / "run")
    own = [SimpleNamespace(folder=folder)]

    def refuse(event=None):
        if event is not None:
            folder.begin("teacher: t\n", {"teacher": "1"}, keep=False)
            folder.append_history({"kind": event, "step": 1})
        raise kind("it cannot be carried out")

    with pytest.raises(kind), _withdrawn_if_refused(folder, own, True):
        refuse("finding")
    assert "recipe.yaml" in files(folder), "a run that is resumed keeps what it has"
    with pytest.raises(kind), _withdrawn_if_refused(folder, own, False):
        refuse("finding")
    assert files(folder) == []
    folder.begin("teacher: another\n", {}, keep=False)
    before = files(folder)
    with pytest.raises(kind), _withdrawn_if_refused(folder, own, False):
        refuse()
    assert files(folder) == before, "it has not begun here"
    with pytest.raises(kind), _withdrawn_if_refused(folder, own, False):
        refuse("step")
    assert files(folder) == sorted([*before, "history.jsonl"]), "it has trained"


@pytest.mark.parametrize("ended", ["complete", "trained", ""])
def test_a_refused_task_takes_back_its_own_files_and_those_above_only_if_no_sibling_has_any(tmp_path, ended):
    group = RunFolder(tmp_path / "run")
    first, second = (RunFolder(group.path / task) for task in ("rte", "cola"))
    own = [SimpleNamespace(folder=folder) for folder in (first, second)]

    def refuse():
        for folder in (first, second):
            folder.begin("teacher: t\n", {"teacher": "1"}, keep=False)
        group.begin_above("teacher: t\n", keep=False)
        if ended == "complete":
            (first.path / RECORD).write_text("{}")
        if ended == "trained":
            first.append_history({"kind": "step", "step": 1})
        raise RefusedRun("the second cannot be carried out")

    with pytest.raises(RefusedRun), _withdrawn_if_refused(group, own, False):
        refuse()
    assert [folder.recipe.is_file() for folder in (first, second, group)] == [bool(ended), False, bool(ended)]
