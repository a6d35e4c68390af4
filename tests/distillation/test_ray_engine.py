"""An ablation on a Ray cluster leaves what it leaves on one machine, and says what a node lacks."""

import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from kdalign.distillation.ray_engine import _write_run
from kdalign.distillation.ray_node import NeededFile, _files_of, _OwnFolder, missing_files, needed_files
from kdalign.distillation.run_folders import claim
from kdalign.errors import UsageError
from kdalign.recipe import load_recipe
from kdalign.runs.ablation_spec import build_ablation
from kdalign.runs.archive import read_all_archived
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import read_record
from support import records
from support.clusters import can_mount, node_without, start, two_nodes
from support.ranks import free_port, steps_done
from support.tiny import one_line


def words_of(teacher, data, *more, steps=200):
    return [
        "ablate", "--teacher", teacher, "--student", "layers=2", "--task", "sst2", "--data", data, "--max-steps", steps,
        "--batch-size", "16", "--precision", "fp32", "--device", "cpu", "--arms", "labels,joint", "--seeds", "1",
        "--set", "train.checkpoint_every=5", "--no-profile", "--out", "a", *more,
    ]  # fmt: skip


def finished(process):
    out, err = process.communicate(timeout=170)
    return process.returncode, out, err


def wait_for_steps(process, folder, steps, runs):
    while process.poll() is None and sum(steps_done(one) >= steps for one in folder.glob("a/*-seed0")) < runs:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[1]


def assert_same_results(ours: Path, theirs: Path) -> None:
    """The same scores, predictions, inputs and evaluations while training, bit for bit; times differ."""
    made, expected = read_all_archived(ours), read_all_archived(theirs)
    assert len(made) == len(expected) > 0
    assert sorted(file.name for file in (ours / "kept").iterdir()) == sorted(
        file.name for file in (theirs / "kept").iterdir()
    )
    for one, other in zip(made, expected, strict=True):
        assert one.record.scores == other.record.scores
        assert (one.inputs, one.watched) == (other.inputs, other.watched)
        assert one.record.recipe == other.record.recipe
        for split, columns in other.answers.items():
            for name, values in columns.items():
                assert np.array_equal(one.answers[split][name], values, equal_nan=True), (split, name)


@pytest.mark.slow
def test_an_ablation_on_two_nodes_of_which_one_is_lost_is_the_one_of_this_machine(teacher, data, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (kdalign[ray])")
    words = words_of(teacher, data)
    (tmp_path / "local").mkdir()
    status, _, err = finished(start(words, tmp_path / "local"))
    assert status == 0, err
    with two_nodes() as nodes:
        process = start([*words, "--engine", "ray", "--ray-address", nodes.address], tmp_path)
        wait_for_steps(process, tmp_path, 10, runs=2)
        nodes.lose_second()
        status, out, err = finished(process)
    assert status == 0, err
    assert err.count("it is tried again (1 of 3)") == 1
    assert err.count("was lost; it is tried again") + err.count("process ended; it is tried again") == 1
    assert "joint − labels" in " ".join(out.split())
    assert_same_results(tmp_path / "a", tmp_path / "local/a")
    for run in (tmp_path / "a").glob("*-seed0"):
        steps = [event["step"] for event in RunFolder(run).read_history() if event["kind"] == "step"]
        assert steps == list(range(1, 201)), "the lost run went on from a checkpoint"
    assert not (tmp_path / "a/.cluster").exists()


@pytest.mark.slow
def test_a_node_without_the_ablations_folder_sends_its_runs_back(teacher, data, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (kdalign[ray])")
    if not can_mount():
        pytest.skip("mounting a file system for one process needs root")
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "local").mkdir()
    words = words_of(teacher, data, steps=6)
    status, _, err = finished(start(words, tmp_path / "local"))
    assert status == 0, err
    with node_without(here) as address:
        from_node = ["--engine", "ray", "--ray-address", address]
        status, _, err = finished(start([*words, *from_node], here))
        assert status == 0, err
        assert_same_results(here / "a", tmp_path / "local/a")
        ours, theirs = (where / "a/joint-seed0/student/model.safetensors" for where in (here, tmp_path / "local"))
        assert ours.read_bytes() == theirs.read_bytes()
        shutil.copytree(data, here / "sst2")
        status, _, err = finished(start([*words, *from_node, "--data", "sst2", "--out", "b", "--dry-run"], here))
    assert status == 2, err
    assert "it has no 'sst2': models and data are at the same paths on every node" in one_line(err)


@pytest.mark.slow
def test_a_stop_saves_the_runs_of_a_cluster_which_the_same_command_resumes(teacher, data, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (kdalign[ray])")
    words = words_of(teacher, data, "--set", "train.checkpoint_every=100000", steps=4000)
    process = start([*words, "--engine", "ray"], tmp_path)
    wait_for_steps(process, tmp_path, 10, runs=1)
    process.send_signal(signal.SIGINT)
    status, _, err = finished(process)
    assert status == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("stopped; 0 of 2 runs are kept; the same command resumes")
    saved = list(tmp_path.glob("a/*/checkpoints/step-*"))
    assert saved, "it trained until it was told to stop, and saved then"


def test_a_node_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("x = 1\n")
    ablation = build_ablation(
        None, {"teacher": str(tmp_path), "data.task": "rte", "align.map": "own.py:choose"}, arms="joint", seeds="1"
    )
    (trial,) = ablation.trials(Path("a"))
    needed = needed_files(trial.recipe)
    assert [file.path for file in needed] == [str(tmp_path), "own.py"]
    assert missing_files(needed, str(tmp_path)) == ""
    Path("own.py").write_text("x = 2\n")
    assert missing_files(needed, str(tmp_path)) == "its 'own.py' has another content than here"
    elsewhere = missing_files(needed, str(tmp_path / "no such folder"))
    assert elsewhere.startswith("it has no 'own.py'")
    assert Path.cwd() == tmp_path
    assert missing_files([NeededFile("no/teacher")], str(tmp_path)).startswith("it has no 'no/teacher'")


def test_a_folder_of_the_nodes_own_is_left_alone_and_one_of_another_trial_is_not(tmp_path):
    run = RunFolder(tmp_path / "a/joint-seed0/rte")
    own = _OwnFolder(run, tmp_path / "a")
    run.path.mkdir(parents=True)
    (run.path / "record.json").write_text("{}")
    with pytest.raises(UsageError, match=r"it has a folder .*rte' of its own"):
        own.claim("this trial")
    assert (run.path / "record.json").is_file()
    (run.path / "record.json").unlink()
    own.claim("this trial")
    (run.path / "history.jsonl").write_text("")
    own.claim("this trial")
    assert run.started, "it is resumed"
    own.claim("another trial")
    assert not run.started
    own.remove()
    assert list(tmp_path.iterdir()) == []


class Sent:
    """A file that came back from a node; the command is killed before it writes more of them than it may."""

    def __init__(self, content, may_write):
        self.content, self.may_write = content, may_write

    def tofile(self, path):
        if not self.may_write:
            raise KeyboardInterrupt
        self.may_write.pop()
        self.content.tofile(path)


def test_a_run_that_was_cut_off_on_its_way_back_is_resumed(tmp_path):
    made = RunFolder(tmp_path / "node")
    records.run(made.path, "rte", {"accuracy": 90.0}, {"accuracy": 91.0})
    record, recipe = read_record(made.path), load_recipe(made.recipe)
    (made.path / "record.json").unlink()
    made.write_plan("{}")
    made.append_history({"kind": "step", "step": 1})
    made.student.mkdir()
    (made.student / "config.json").write_text("{}")
    made.write_record(record)
    files = _files_of(made, ())
    assert len(files) == 7
    for count in range(len(files) + 1):
        here, may_write = RunFolder(tmp_path / f"{count} of them"), [None] * count
        with suppress(KeyboardInterrupt):
            _write_run(here, {name: Sent(content, may_write) for name, content in files.items()})
        claim(here, recipe, resume=here.started, overwrite=False, inputs=made.read_inputs())
        assert here.complete == (count == len(files))
    assert {name: content.tobytes() for name, content in _files_of(here, ()).items()} == {
        name: content.tobytes() for name, content in files.items()
    }


def test_a_node_with_another_kdalign_is_refused_by_its_own_words():
    pytest.importorskip("ray", reason="Ray is not installed (kdalign[ray])")
    from ray import cloudpickle

    from kdalign.distillation.ray_engine import _same_code, _task

    call = _task()._function
    version, digest = _same_code()
    assert call(version, digest, cloudpickle.dumps((max, (1, 2)))) == ("", 2)
    refused, value = call(version, "another", b"not read")
    assert (refused, value) == (
        f"it has kdalign {version} (code {digest}), and this machine {version} (code another)",
        None,
    )


def test_options_of_a_cluster_are_for_a_cluster(kdalign, teacher, data, tmp_path, monkeypatch):
    flags = ("ablate", "--teacher", teacher, "--task", "sst2", "--data", data)
    for more, said in (
        (("--gpus-per-run", "1"), "--gpus-per-run is for --engine ray"),
        (("--engine", "rya"), "unknown engine 'rya'; did you mean 'ray'?"),
        (("--engine", "ray", "--ray-address", "ray://there:1"), "--ray-address takes auto or HOST:PORT"),
        (("--engine", "ray", "--ray-address", f"127.0.0.1:{free_port()}"), "no Ray cluster answers at '127.0.0.1:"),
    ):
        status, _, err = kdalign(*flags, *more)
        assert (status, said in one_line(err)) == (2, True), err
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = kdalign(*flags, "--engine", "ray")
    assert (status, "--engine ray needs a package: pip install 'kdalign[ray]'" in one_line(err)) == (2, True), err
    assert list(tmp_path.iterdir()) == []
