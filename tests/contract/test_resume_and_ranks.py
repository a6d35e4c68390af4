"""Real processes: killed and resumed runs end in the same weights, and ranks share a step without changing it."""

import json
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from support.commands import run_in
from support.covering import first_only
from support.ranks import each_step, environment, on_ranks, run, steps_done, stop_after

STEPS = 24
FEATURES_ONLY = ("--hard", "0", "--alpha", "0")


def command(teacher, data, out, *more):
    return [
        "-m", "kdalign", "distill", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2",
        "--data", str(data), "--max-steps", str(STEPS), "--batch-size", "16", "--micro-batch", "8",
        "--precision", "fp32", "--device", "cpu", "--eval-every", "4", "--set",
        "train.checkpoint_every=4", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_killed_twice_and_resumed_ends_in_the_weights_of_one_never_stopped(teacher, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(command(teacher, data, whole))
    assert done.returncode == 0, done.stderr
    for step, more in ((6, ()), (14, ("--resume",))):
        status, _ = stop_after(command(teacher, data, killed, *more), killed, step, signal.SIGKILL)
        assert status == -signal.SIGKILL, "it was killed in the middle"
        assert not (killed / "record.json").exists()
        assert list((killed / "checkpoints").glob("step-*"))
    done = run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"])
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stderr
    for name in ("student/model.safetensors", "history.jsonl", "plan.json", "predictions/validation.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(teacher, data, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    # Projections, early stopping's counter and the best weights must survive too.
    more = ("--select", "best", "--patience", "50")
    assert run(command(teacher, data, whole, *more)).returncode == 0
    status, err = stop_after(command(teacher, data, stopped, *more), stopped, 5, signal.SIGINT)
    assert status == 130
    assert "Traceback" not in err
    assert f"kdalign distill --out {stopped} --resume" in err
    done = run(["-m", "kdalign", "distill", "--out", str(stopped), "--resume"])
    assert done.returncode == 0, done.stderr
    assert (whole / "student/model.safetensors").read_bytes() == (stopped / "student/model.safetensors").read_bytes()
    assert (whole / "history.jsonl").read_bytes() == (stopped / "history.jsonl").read_bytes()


@pytest.mark.slow
def test_projections_survive_a_kill(teacher, data, tmp_path, tmp_path_factory):
    from support.tiny import save_model

    narrow = save_model(tmp_path_factory.mktemp("narrow"), "bert", layers=2, width=24, heads=4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--student", str(narrow))
    assert run(command(teacher, data, whole, *more)).returncode == 0
    status, _ = stop_after(command(teacher, data, killed, *more), killed, 9, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"]).returncode == 0
    one, other = load_file(whole / "projections.safetensors"), load_file(killed / "projections.safetensors")
    assert set(one) == {"maps.encoder_0_to_encoder_1.weight", "maps.encoder_1_to_encoder_3.weight"}
    assert all((one[name] == other[name]).all() for name in one)
    assert not any("maps" in name for name in load_file(whole / "student" / "model.safetensors"))


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped_when_it_is_resumed(teacher, data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = (
        "--patience",
        "1",
        "--lr",
        "1e-9",
        "--eval-every",
        "2",
        "--set",
        "train.checkpoint_every=2",
    )  # nothing is learnt: no evaluation gains
    assert run(command(teacher, data, whole, *more)).returncode == 0
    assert len(each_step(whole, "loss")) == 2
    assert run(command(teacher, data, killed, *more)).returncode == 0
    (killed / "record.json").unlink()  # as if killed while it exported
    done = run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"])
    assert done.returncode == 0, done.stderr
    assert (whole / "history.jsonl").read_bytes() == (killed / "history.jsonl").read_bytes()


STAGED = ("--hard", "1", "--alpha", "0", "--set", "objective.align_first=0.5")


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed_at",
    first_only([6, 14], 0),
    ids=["while layers are aligned", "while labels are learnt"],
)
def test_a_run_in_two_stages_killed_and_resumed_ends_in_the_same_weights(teacher, data, tmp_path, killed_at):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(command(teacher, data, whole, *STAGED)).returncode == 0
    status, _ = stop_after(command(teacher, data, killed, *STAGED), killed, killed_at, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"]).returncode == 0
    for name in ("student/model.safetensors", "history.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    events = [json.loads(line) for line in (whole / "history.jsonl").read_text().splitlines()]
    terms = [set(event["parts"]) for event in events if event["kind"] == "step"]
    assert terms == [{"cosine", "euclid", "attention"}] * 12 + [{"hard"}] * 12


@pytest.mark.slow
def test_a_run_in_two_stages_teaches_its_head_in_the_second(teacher, data, tmp_path):
    staged = tmp_path / "staged"
    assert run(command(teacher, data, staged, *STAGED)).returncode == 0
    before, after = load_file(teacher / "model.safetensors"), load_file(staged / "student" / "model.safetensors")
    assert (before["classifier.weight"] != after["classifier.weight"]).any()


LIMITED = ("--set", "train.dropout=0", "--limit", "250")  # 250 = 15 batches of 16 and a short one of 10


def check_same_steps(one, two):
    assert json.loads((one / "record.json").read_text())["training"]["ranks"] == 1
    assert json.loads((two / "record.json").read_text())["training"]["ranks"] == 2
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-5)
    # AdamW and clipping hide a gradient of the wrong scale; its norm does not.
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)
    assert len(each_step(one, "loss")) == STEPS
    first, second = (load_file(run_ / "student" / "model.safetensors") for run_ in (one, two))
    for name, weight in first.items():
        # Attention does not depend on the bias of keys: AdamW moves it by rounding errors, at its full rate.
        if not name.endswith("attention.self.key.bias"):
            assert abs(weight - second[name]).max() < 1e-5, name


def test_two_ranks_take_the_steps_of_one_process(teacher, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    more = (*FEATURES_ONLY, *LIMITED)  # of which ranks wait for some parameters alone
    run_in(tmp_path, *command(teacher, data, one, *more)[2:])
    on_ranks(2, run_in, tmp_path, *command(teacher, data, two, *more)[2:])
    check_same_steps(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), FEATURES_ONLY, STAGED], ids=["all terms", "features only", "two stages"])
def test_two_ranks_in_one_launch_take_the_steps_of_one_process(teacher, data, tmp_path, more):
    one, two = tmp_path / "one", tmp_path / "two"
    done = run(command(teacher, data, one, *more, *LIMITED))
    assert done.returncode == 0, done.stderr
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    done = run([*torchrun, *command(teacher, data, two, *more, *LIMITED)])
    assert done.returncode == 0, done.stderr
    check_same_steps(one, two)


@pytest.mark.slow
def test_two_ranks_of_which_one_is_killed_resume_to_the_weights_of_two_never_stopped(teacher, data, tmp_path):
    import psutil

    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run([*torchrun, *command(teacher, data, whole)])
    assert done.returncode == 0, done.stderr
    for number, step in ((1, 6), (0, 14)):
        more = ("--resume",) if (killed / "recipe.yaml").exists() else ()
        words = [sys.executable, *torchrun, *command(teacher, data, killed, *more)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment()) as launcher:
            while steps_done(killed) < step and launcher.poll() is None:
                time.sleep(0.002)
            ranks = psutil.Process(launcher.pid).children()
            next(rank for rank in ranks if rank.environ()["RANK"] == str(number)).kill()
            _, err = launcher.communicate()
        assert launcher.returncode != 0
        assert "a fault of kdalign" not in err
        assert not (killed / "record.json").exists()
    done = run([*torchrun, "-m", "kdalign", "distill", "--out", str(killed), "--resume"])
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stderr
    for name in ("student/model.safetensors", "history.jsonl", "predictions/validation.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.slow
def test_two_ranks_with_little_memory_keep_the_same_weights_as_one_process(teacher, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    little = ("--set", "train.gradient_checkpointing=true", "--set", "train.optimizer_state=bf16")
    more = (*little, "--set", "train.dropout=0", "--limit", "256")
    assert run(command(teacher, data, one, *more)).returncode == 0
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    done = run([*torchrun, *command(teacher, data, two, *more)])
    assert done.returncode == 0, done.stderr
    # Noise that differed between ranks would set their weights, and so the losses, apart.
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-4)


@pytest.mark.slow
def test_two_ranks_fill_a_cache_that_one_process_reads_and_a_killed_run_ends_in_the_same_weights(
    teacher, data, tmp_path
):
    one, two, killed, kept = (tmp_path / name for name in ("one", "two", "killed", "kept"))
    more = ("--set", "train.dropout=0", "--limit", "250", "--cache", str(kept))
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--rdzv_backend", "c10d",
                "--rdzv_endpoint", "localhost:0"]  # fmt: skip
    done = run([*torchrun, *command(teacher, data, two, *more)])
    assert done.returncode == 0, done.stderr
    assert list(kept.glob("shard-*.safetensors"))
    done = run(command(teacher, data, one, *more))
    assert done.returncode == 0, done.stderr
    assert "on 250 rows are there" in done.stderr
    assert each_step(two, "loss") == pytest.approx(each_step(one, "loss"), abs=1e-5)
    assert each_step(two, "gradient_norm") == pytest.approx(each_step(one, "gradient_norm"), rel=1e-3, abs=1e-5)
    status, _ = stop_after(command(teacher, data, killed, *more), killed, 9, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert run(["-m", "kdalign", "distill", "--out", str(killed), "--resume"]).returncode == 0
    for name in ("student/model.safetensors", "history.jsonl"):
        assert (one / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_pass_of_the_teacher_keeps_its_shards_and_the_same_command_goes_on(teacher, data, tmp_path):
    kept = tmp_path / "kept"
    words = ["-m", "kdalign", "cache", "build", "--teacher", str(teacher), "--student", "layers=2", "--task", "sst2"]
    words += ["--data", str(data), "--precision", "fp32", "--device", "cpu", "--out", str(kept)]
    assert run([*words, "--limit", "100"]).returncode == 0  # as the shards that a killed pass had finished
    (kept / ".shard-0.safetensors.1.tmp").write_bytes(b"half a shard")
    done = run([*words, "--json"])
    assert done.returncode == 0, done.stderr
    assert "reads 156 of 256 rows once" in done.stderr
    assert json.loads(done.stdout)["rows"] == 256
    assert not list(kept.glob(".shard-*"))
