"""A run that is damaged is refused in one line, or goes on to the same weights: never another run without a word."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from kdalign import files
from kdalign.distillation.pipeline import distill
from kdalign.errors import Unwritten, UsageError
from kdalign.files import append_text, atomic_file, write_text, writing
from kdalign.observer import NullObserver
from kdalign.recipe import build_recipe
from kdalign.runs.folder import RunFolder, seal_of
from kdalign.runs.locks import exclusive
from kdalign.training.checkpoint import newest_sound
from support.ranks import stop_after
from support.tiny import one_line

STEPS = 9
FINAL = ("student/model.safetensors", "projections.safetensors", "history.jsonl", "predictions/validation.parquet")


class Stops(NullObserver):
    """Ends the process, as a kill would, once a step was taken."""

    def __init__(self, step):
        self.step = step

    def into(self, log):
        return self

    def stepped(self, report):
        if report.step == self.step:
            raise SystemExit(9)


@pytest.fixture(scope="module")
def recipe(teacher, data, tmp_path_factory):
    """Nine steps with an evaluation and a checkpoint after each third."""
    from support.tiny import save_model

    narrow = save_model(tmp_path_factory.mktemp("narrow"), "bert", layers=2, width=24, knows=False)
    return build_recipe(
        flags={
            **{"teacher": str(teacher), "student": str(narrow), "data.task": "sst2", "data.folder": str(data)},
            **{"objective.hard": 1.0, "objective.alpha": 0.0, "objective.beta": 0.05, "objective.gamma": 0.02},
            **{"objective.delta": 0.0, "train.max_steps": STEPS, "train.batch_size": 16, "train.precision": "fp32"},
            **{"train.device": "cpu", "train.lr": 0.001, "train.eval_every": 3, "train.checkpoint_every": 3},
        }
    )


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """A whole run, and the same killed after step 8: with checkpoints of steps 3 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    distill(recipe.with_changes(out=str(folder / "whole")))
    with pytest.raises(SystemExit):
        distill(recipe.with_changes(out=str(folder / "killed")), Stops(8))
    assert sorted(one.name for one in (folder / "killed/checkpoints").iterdir()) == ["step-3", "step-6"]
    return folder


@pytest.fixture(scope="module")
def selecting(recipe, tmp_path_factory):
    """A run that exports its best step, killed after step 4, when step 3 is the best."""
    out = tmp_path_factory.mktemp("selecting") / "run"
    train = recipe.train.model_dump() | {"select": "best"}
    with pytest.raises(SystemExit):
        distill(recipe.with_changes(out=str(out), train=train), Stops(5))
    return out


@pytest.fixture
def killed(runs, tmp_path, monkeypatch):
    """A copy of the killed run, by the name that it had."""
    shutil.copytree(runs / "killed", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def finished(runs, tmp_path):
    """A copy of the whole run."""
    shutil.copytree(runs / "whole", tmp_path / "run")
    return tmp_path / "run"


def flipped(content, place=-100):
    """One bit is another."""
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def rows(change):
    """The history with its rows changed."""
    return lambda content: b"".join(change(content.splitlines(keepends=True)))


ANY = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "its end lost": lambda content: content[:-2],
    "a bit flipped": lambda content: flipped(content, len(content) // 2),
    "zeros": lambda content: bytes(len(content)),
    "binary": lambda content: bytes(range(256)),
    "a list": lambda content: b"[1, 2]\n",
    "null": lambda content: b"null\n",
    "missing": None,
}
HISTORY = {
    "a row lost": rows(lambda lines: [*lines[:2], *lines[3:]]),
    "a row twice": rows(lambda lines: [*lines[:3], *lines[2:]]),
    "a row of a number": rows(lambda lines: [lines[0], b"7\n", *lines[1:]]),
    "a row without a step": rows(lambda lines: [lines[0], b'{"kind": "step"}\n', *lines[1:]]),
    "another row": rows(lambda lines: [lines[0].replace(b"0", b"1"), *lines[1:]]),
}


def others(file):
    """The same names with other numbers: a file that is whole in itself."""
    save_file({name: np.asarray(values + 1, values.dtype) for name, values in load_file(file).items()}, file)


def damage(file, change):
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))


def tree_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def resumed(kdalign, run, *words):
    return kdalign("distill", "--out", run, "--resume", *words)


def refuses(kdalign, run, name):
    """One line that names the file and the way on; all is as it was."""
    before = tree_of(run)
    status, out, err = resumed(kdalign, run)
    line = one_line(err)
    assert (status, out) == (2, "")
    assert name in line
    assert "--overwrite" in line
    assert tree_of(run) == before
    return line


def ends_alike(run, runs):
    for name in FINAL:
        assert (run / name).read_bytes() == (runs / "whole" / name).read_bytes(), name
    assert not [file for file in run.rglob("*") if file.name.endswith((".tmp", ".lock"))]


def test_a_killed_run_goes_on_from_its_newest_checkpoint_and_ends_in_the_same_weights(kdalign, killed, runs):
    with (killed / "history.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # as a kill leaves it
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    assert "resumed after step 6" in err
    assert "damaged" not in err
    ends_alike(killed, runs)


@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json", "plan.json", "begun.json"])
@pytest.mark.parametrize("how", ANY)
def test_what_a_run_began_with_is_refused_where_it_was_changed(kdalign, killed, name, how):
    damage(killed / name, ANY[how])
    if name == "recipe.yaml" and how == "missing":
        status, _, err = resumed(kdalign, killed)
        assert status == 2
        assert "no run" in one_line(err)
        return
    refuses(kdalign, killed, name)


@pytest.mark.parametrize("value", [[], {"a": 1}, 5])
def test_hashes_of_another_kind_are_refused_though_the_seal_fits_them(kdalign, killed, value):
    begun = json.loads((killed / "begun.json").read_text()) | {"plan.json": value}
    (killed / "begun.json").write_text(json.dumps({**begun, "seal": seal_of(begun)}))
    refuses(kdalign, killed, "begun.json does not hold hashes by name")


def test_a_recipe_of_which_the_last_keys_are_lost_is_refused_before_the_first_checkpoint_too(kdalign, killed):
    shutil.rmtree(killed / "checkpoints")
    lines = (killed / "recipe.yaml").read_text().splitlines(keepends=True)
    (killed / "recipe.yaml").write_text("".join(lines[:-3]))
    refuses(kdalign, killed, "recipe.yaml was changed after the run began")


CHECKPOINT = [
    *[(name, how) for name in ("model.safetensors", "optimizer.safetensors", "progress.json") for how in ANY],
    *[(name, "others") for name in ("model.safetensors", "optimizer.safetensors")],
    *[("progress.json", step) for step in (13, 10**9, -5, "x", None)],
    *[("progress.json", key) for key in ("unknown", "examples", "no seal", "not sealed again")],
]


def damage_checkpoint(folder, name, how):
    file = folder / name
    if how in ANY:
        damage(file, ANY[how])
    elif how == "others":
        others(file)
    else:
        tree = json.loads(file.read_text())
        changes = {"unknown": {"colour": 1}, "examples": {"examples": "many"}, "not sealed again": {"examples": 1}}
        tree = {**tree, **changes.get(how, {} if how == "no seal" else {"step": how})}
        if how != "not sealed again":  # whoever can change a file can seal it, too
            tree["seal"] = seal_of(tree)
        if how == "no seal":
            tree = {key: value for key, value in tree.items() if key not in ("seal", "files", "histories", "run")}
        file.write_text(json.dumps(tree))


@pytest.mark.parametrize(("name", "how"), CHECKPOINT)
def test_a_damaged_checkpoint_is_passed_over_and_where_all_are_the_run_is_refused(kdalign, killed, name, how):
    folder = RunFolder(killed)
    damage_checkpoint(killed / "checkpoints/step-6", name, how)
    found = newest_sound(folder)
    assert found.progress.step == 3
    [line] = found.skipped
    assert line.startswith("step-6 (")
    assert "\n" not in line
    damage_checkpoint(killed / "checkpoints/step-3", name, how)
    refuses(kdalign, killed, "no sound checkpoint: step-6")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"), [("model.safetensors", "a bit flipped"), ("optimizer.safetensors", "missing")]
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(kdalign, killed, runs, name, how):
    damage(killed / "checkpoints/step-6" / name, ANY[how])
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    assert f"checkpoints/step-6 ({name}" in err
    assert "resumed after step 3" in err
    assert "skipped a damaged checkpoint" in (killed / "log.txt").read_text()
    ends_alike(killed, runs)


def test_a_folder_that_has_no_checkpoints_name_is_passed_over_and_said(kdalign, killed, runs):
    (killed / "checkpoints/step-6").rename(killed / "checkpoints/step-abc")
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    assert "step-abc (no checkpoint's name)" in err
    ends_alike(killed, runs)


def test_a_checkpoint_of_another_run_is_not_taken(kdalign, killed):
    begun = json.loads((killed / "begun.json").read_text())
    begun["inputs.json"] = "0" * 64
    del begun["seal"]
    (killed / "begun.json").write_text(json.dumps({**begun, "seal": seal_of(begun)}))
    with pytest.raises(UsageError, match="it is of another run"):
        newest_sound(RunFolder(killed))


@pytest.mark.parametrize("how", [*ANY, *HISTORY])
def test_a_history_that_was_changed_before_the_checkpoint_is_refused(kdalign, killed, how):
    file, folder = killed / "history.jsonl", RunFolder(killed)
    whole = file.read_bytes()
    damage(file, (ANY | HISTORY)[how])
    left = file.read_bytes() if file.exists() else b""
    for step in (6, 3):  # what a checkpoint saw of it may be whole
        tree = json.loads((killed / f"checkpoints/step-{step}/progress.json").read_text())
        size = tree["histories"]["."]["bytes"]
        assert f'"step": {step},' in whole[:size].decode().splitlines()[-1]
        if left[:size] == whole[:size]:
            assert newest_sound(folder).progress.step == step
            return
    refuses(kdalign, killed, "history.jsonl is not as it was then")


def test_a_damaged_row_after_the_checkpoint_is_cut_away(kdalign, killed, runs):
    with (killed / "history.jsonl").open("ab") as file:
        file.write(b'7\n\xff\xfe\n{"kind": "step"}\n')
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    ends_alike(killed, runs)


@pytest.mark.parametrize("how", ANY)
def test_the_best_weights_so_far_are_checked(selecting, tmp_path, how):
    run = shutil.copytree(selecting, tmp_path / "run")
    assert newest_sound(RunFolder(run)).progress.best_step == 3
    damage(run / "checkpoints/best-3.safetensors", ANY[how])
    with pytest.raises(UsageError, match=r"no sound checkpoint: step-3 \(best-3\.safetensors"):
        newest_sound(RunFolder(run))


def test_best_weights_of_a_later_step_than_the_checkpoints_are_saved_once_more(selecting, tmp_path):
    run = shutil.copytree(selecting, tmp_path / "run")
    own = run / "checkpoints/best-3.safetensors"
    save_file(load_file(own), run / "checkpoints/best-4.safetensors", {"step": "4"})
    assert newest_sound(RunFolder(run)).progress.step == 3
    best = own.rename(run / "checkpoints/best.safetensors")  # as an older version kept them
    save_file({name: values + 1 for name, values in load_file(best).items()}, best, {"step": "4"})
    assert newest_sound(RunFolder(run)).progress.step == 3
    save_file(load_file(best), best, {"step": "3"})
    with pytest.raises(UsageError, match=r"best\.safetensors was changed"):
        newest_sound(RunFolder(run))


def older(run):
    """The run as a version before checksums left it."""
    (run / "begun.json").unlink()
    for file in run.glob("checkpoints/step-*/progress.json"):
        tree = json.loads(file.read_text())
        file.write_text(
            json.dumps({k: v for k, v in tree.items() if k not in ("seal", "files", "histories", "run", "best_hash")})
        )


def test_a_run_that_an_older_version_began_goes_on_with_a_word(kdalign, killed, runs):
    older(killed)
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    assert "by an older kdalign, without checksums" in err
    ends_alike(killed, runs)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("recipe.yaml", lambda content: content[: content.index(b"\ntrain:") + 1], "recipe.yaml lacks"),
        ("inputs.json", ANY["half"], "not JSON"),
        ("inputs.json", ANY["a list"], "does not hold fingerprints"),
        ("checkpoints/step-6/model.safetensors", ANY["half"], "passed"),
        ("history.jsonl", HISTORY["a row of a number"], "line 2 is not an event of a run"),
    ],
)
def test_what_can_be_seen_of_damage_without_checksums_is_refused(kdalign, killed, name, change, said):
    older(killed)
    damage(killed / name, change)
    if said == "passed":
        assert newest_sound(RunFolder(killed)).progress.step == 3
        return
    status, _, err = resumed(kdalign, killed)
    assert status == 2
    assert said in err.splitlines()[-1]


def test_a_run_without_a_checkpoint_begins_anew_whatever_its_history_holds(kdalign, killed, runs):
    shutil.rmtree(killed / "checkpoints")
    damage(killed / "history.jsonl", ANY["a bit flipped"])
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    ends_alike(killed, runs)


@pytest.mark.parametrize("how", ["half", "a bit flipped", "missing"])
@pytest.mark.parametrize(
    "name", ["record.json", "inputs.json", "plan.json", "history.jsonl", "predictions/validation.parquet", "begun.json"]
)
@pytest.mark.parametrize("command", ["eval", "card", "inspect", "resume"])
def test_a_finished_run_that_was_changed_is_refused_by_whatever_reads_it(kdalign, finished, command, name, how):
    if (name, how, command) == ("record.json", "missing", "resume") or (name, how) == ("begun.json", "missing"):
        return  # it is unfinished then; or of an older version
    damage(finished / name, ANY[how])
    before = tree_of(finished)
    words = ("distill", "--out", finished, "--resume") if command == "resume" else (command, finished)
    status, out, err = kdalign(*words)
    assert (status, out) == (2, "")
    line = one_line(err)
    assert str(finished) in line
    assert tree_of(finished) == before


@pytest.mark.parametrize("command", ["eval", "inspect", "resume"])
def test_weights_of_a_finished_run_are_checked_where_they_are_read_or_called_finished(kdalign, finished, command):
    damage(finished / "student/model.safetensors", ANY["a bit flipped"])
    words = ("distill", "--out", finished, "--resume") if command == "resume" else (command, finished)
    status, _, err = kdalign(*words)
    assert status == 2
    assert "student/model.safetensors was changed" in one_line(err)


def test_numbers_that_were_changed_in_a_record_are_not_printed_by_its_card(kdalign, finished):
    text = (finished / "record.json").read_text()
    (finished / "record.json").write_text(text.replace('"parameters": ', '"parameters": 9', 1))
    status, out, err = kdalign("card", finished)
    assert (status, out) == (2, "")
    assert "its seal does not fit it" in one_line(err)


@pytest.mark.parametrize("how", ["--resume", "--overwrite", "fresh"])
def test_a_second_process_is_refused_and_touches_nothing(kdalign, killed, how):
    words = ["distill", "--out", killed] + ([] if how == "fresh" else [how])
    if how != "--resume":
        recipe = shutil.copy(killed / "recipe.yaml", killed.parent / "recipe.yaml")
        words += ["--recipe", recipe]
    if how == "fresh":
        shutil.rmtree(killed)
    with exclusive(killed):
        before = tree_of(killed)
        status, _, err = kdalign(*words)
        assert status == 2
        assert f"another process works in {str(killed)!r} (process {os.getpid()} on " in one_line(err)
        assert tree_of(killed) == before
    assert not (killed / ".lock").exists()


def test_scores_are_written_by_one_process_at_a_time(kdalign, finished, tmp_path):
    with FileLock(tmp_path / ".scores.json.lock"):
        status, _, err = kdalign("eval", finished, "--out", tmp_path / "scores.json")
    assert status == 2
    assert "another process works in" in one_line(err)
    assert not (tmp_path / "scores.json").exists()


def test_a_lock_makes_no_folder_that_stays_and_none_that_blocks(tmp_path):
    run = tmp_path / "runs" / "mine"
    with exclusive(run):
        assert run.is_dir()
        assert not RunFolder(run).started
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    for left in (".lock", "begun.json", "inputs.json", ".recipe.yaml.7.0123abcd.tmp"):
        (run / left).write_text("")
    assert not RunFolder(run).started, "a run that was killed before its recipe was written blocks no other"
    with exclusive(run):
        assert not (run / ".recipe.yaml.7.0123abcd.tmp").exists(), "nobody writes it any more"
        (run / "recipe.yaml").write_text("")
    assert RunFolder(run).started


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import sys,time; from pathlib import Path; from kdalign.runs.locks import exclusive\n"
    code += "with exclusive(Path(sys.argv[1])):\n print('here', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        with pytest.raises(UsageError, match=f"process {process.pid} on"), exclusive(tmp_path / "run"):
            pass
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "run/.lock").exists()
    with exclusive(tmp_path / "run") as note:
        assert note == ""


def fail_to_write(file, error):
    with atomic_file(file) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_what_the_system_refuses_to_write_is_one_line_with_the_file(tmp_path, number):
    errors = [
        OSError(number, os.strerror(number)),
        OSError(f"[Errno {number}] Error writing bytes to file. Detail: [errno {number}] x"),  # as Arrow says it
        RuntimeError(f"Error while serializing: I/O error: x (os error {number})"),  # as libraries in Rust do
    ]
    for error in errors:
        with pytest.raises(Unwritten) as caught:
            fail_to_write(tmp_path / "x.bin", error)
        assert str(caught.value) == f"cannot write {str(tmp_path / 'x.bin')!r}: {os.strerror(number)}"
        assert list(tmp_path.iterdir()) == []


def test_an_error_of_our_own_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        1 / 0  # noqa: B018
    with pytest.raises(Unwritten, match="No such file"):
        append_text(tmp_path / "no" / "file", "x")


class Small:
    """So many bytes may a file have."""

    def __init__(self, largest):
        self.largest = largest

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_goes_on_with_room(kdalign, killed, runs, monkeypatch):
    size = (killed / "checkpoints/step-6/model.safetensors").stat().st_size
    earlier = tree_of(killed / "checkpoints/step-6")
    with Small(size + 1000):  # room for the weights, not for the moments
        status, _, err = resumed(kdalign, killed, "--allow", "file-size")
    assert status == 2, "another recipe"
    with Small(size + 1000):
        status, _, err = resumed(kdalign, killed)
    assert status == 2
    assert "ulimit -f" in one_line(err)
    recipe = build_recipe(killed / "recipe.yaml").with_changes(out=str(killed))
    monkeypatch.setattr(
        "kdalign.distillation.preflight._limit_of_files", lambda: None
    )  # as a disk that fills up meanwhile
    with Small(size + 1000), pytest.raises(Unwritten) as caught:
        distill(recipe, resume=True)
    line = str(caught.value)
    assert "checkpoints/step-9': File too large" in line
    assert line.endswith(f"make room, then: kdalign distill --out {killed} --resume")
    assert tree_of(killed / "checkpoints/step-6") == earlier
    assert not list(killed.rglob("*.tmp"))
    assert not list((killed / "checkpoints").glob(".*"))
    status, _, err = resumed(kdalign, killed)
    assert status == 0, err
    ends_alike(killed, runs)


def test_scores_that_do_not_fit_are_one_line(kdalign, finished, tmp_path):
    with Small(10):
        status, _, err = kdalign("card", finished, "--out", tmp_path / "card.md")
    assert status == 1
    assert f"cannot write {str(tmp_path / 'card.md')!r}: File too large" in one_line(err)
    assert not (tmp_path / "card.md").exists()
    assert not list(tmp_path.glob(".*"))


def test_sigterm_outside_of_training_is_said_and_has_its_status():
    code = "import time, kdalign.cli as cli\n"
    code += "cli.app = lambda **_: (print('here', flush=True), time.sleep(600))\ncli.main()"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert (process.returncode, err) == (143, "kdalign: stopped by SIGTERM\n")


def command(recipe, out, *more):
    return [sys.executable, "-m", "kdalign", "distill", "--recipe", str(recipe), "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_runs_that_are_killed_at_random_moments_end_in_the_same_weights(runs, tmp_path, seed):
    import random

    chance, out, recipe = random.Random(seed), tmp_path / "run", runs / "whole/recipe.yaml"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(4):
        more = ["--resume"] if (out / "recipe.yaml").is_file() else []
        stop_after(command(recipe, out, *more)[1:], out, chance.randrange(14), signal.SIGKILL)
    more = ["--resume"] if (out / "recipe.yaml").is_file() else []
    done = subprocess.run(command(recipe, out, *more), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ends_alike(out, runs)


@pytest.mark.slow
def test_two_processes_that_resume_one_run_train_it_once(killed, runs):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "kdalign", "distill", "--out", str(killed), "--resume"]
    both = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(status for _, status in ends) in ([0, 0], [0, 2]), ends  # one after the other, or one refused
    ends_alike(killed, runs)
    assert files.sha256(Path(killed) / "history.jsonl") == files.sha256(runs / "whole/history.jsonl")


@pytest.mark.slow
def test_a_long_run_has_fewer_rows_at_its_end_and_resumes_to_the_same_history(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("kdalign.runs.history_rows.HISTORY_STEPS", 3)
    with pytest.raises(SystemExit):
        distill(recipe.with_changes(out=str(tmp_path / "killed")), Stops(8))
    for out, resume in (("whole", False), ("killed", True)):
        distill(recipe.with_changes(out=str(tmp_path / out)), resume=resume)
    rows_ = RunFolder(tmp_path / "whole").read_history()
    assert [row["step"] for row in rows_ if row["kind"] == "step"] == [1, 2, 3, STEPS], "the last step has one"
    assert (tmp_path / "whole/history.jsonl").read_bytes() == (tmp_path / "killed/history.jsonl").read_bytes()


def test_a_text_is_written_with_the_same_line_ends_everywhere(tmp_path):
    write_text(tmp_path / "x", "a\nb\n")
    assert (tmp_path / "x").read_bytes() == b"a\nb\n"


@pytest.mark.slow
def test_a_kept_teacher_that_was_damaged_is_made_once_more(kdalign, data, tmp_path, monkeypatch):
    from transformers import AutoModel

    from support.tiny import save_model

    monkeypatch.setenv("KDALIGN_CACHE", str(tmp_path / "cache"))
    body = save_model(tmp_path / "body", "bert")
    AutoModel.from_pretrained(body).save_pretrained(body)
    words = ["distill", "--teacher", body, "--student", "layers=2", "--task", "sst2", "--data", data, "--limit", 16]
    words += ["--max-steps", 1, "--device", "cpu", "--precision", "fp32", "--set", "finetune.epochs=1"]
    made = []
    for out, damaged in (("1", None), ("2", "model.safetensors"), ("3", "config.json"), ("4", "made.json"), ("5", "")):
        status, _, err = kdalign(*words, "--out", tmp_path / out)
        assert status == 0, err
        [teacher] = (tmp_path / "cache/teachers").glob("*/model.safetensors")
        made.append(teacher.read_bytes())
        assert ("fine-tuning it first" in err) == (out != "2")
        if damaged:
            damage(teacher.with_name(damaged), ANY["a bit flipped"])
    assert len(set(made)) == 1
