"""Student and teacher sharded over ranks: the steps, scores and files of one process. Several families in a launch."""

import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdalign import distill
from kdalign.distillation import memory
from kdalign.runs.record import read_record
from support import sharding_setting
from support.logprob_server import logprob_server
from support.ranks import environment, steps_done
from support.sharding_setting import STEPS, events, recipe

SCRIPT = str(Path(sharding_setting.__file__).resolve())
NAMES = ("bert", "llama", "t5", "projections", "stages", "map", "adapters", "own texts", "new",
         "teachers", "cache", "moments", "sentences", "stream", "served", "served own texts")  # fmt: skip
ON_FOUR = ("bert", "llama", "t5", "projections")
LAUNCHERS = {
    "torchrun": "torch.distributed.run --master_port 0 --rdzv_backend c10d --rdzv_endpoint localhost:0 "
                "--nproc_per_node",
    "accelerate": "accelerate.commands.accelerate_cli launch --multi_gpu --main_process_port 0 --num_processes",
}  # fmt: skip


def launch(ranks, *words, launcher="torchrun"):
    words = ["-m", *LAUNCHERS[launcher].split(), str(ranks), SCRIPT, *map(str, words)]
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment())  # fmt: skip


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out, err


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharding") / "inputs"
    sharding_setting.make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def served(inputs):
    """A server of a teacher, whose address the recipes find."""
    model, tokenizer = (
        kind.from_pretrained(inputs / "served/teacher") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    with logprob_server(model, tokenizer) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv(sharding_setting.SERVER, server.url)
        yield server


@pytest.fixture(scope="module")
def alone(inputs, served):
    """The folder of a recipe's run by one process, which is made when it is first asked for."""
    out = inputs.parent / "alone"

    @cache
    def run_of(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(memory, "_trace", sharding_setting.uncounted)
            patch.setenv("KDALIGN_CACHE", str(inputs.parent / "caches"))
            distill(recipe(inputs, name, out))
        return out / name

    return run_of


def assert_same_run(found, expected, exact=True):
    """Losses and norms of each step, monitored scores, samples, layer maps, and the exported student."""
    for key, most in (("loss", 1e-5), ("gradient_norm", 1e-3)):
        ours, theirs = ([event[key] for event in events(run, "step")] for run in (found, expected))
        assert len(ours) == STEPS
        assert ours == pytest.approx(theirs, rel=most if exact else 1e-3), f"{found}: {key}"
    for ours, theirs in zip(events(found, "evaluation"), events(expected, "evaluation"), strict=True):
        numbers, others = (
            {key: value for key, value in event.items() if isinstance(value, float)} for event in (ours, theirs)
        )
        assert numbers == pytest.approx(others, rel=1e-4)
        assert ours.get("samples") == theirs.get("samples")
    assert events(found, "map") == events(expected, "map")
    for name in ("student/config.json", "student/tokenizer.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
    ours, theirs = (load_file(run / "student" / "model.safetensors") for run in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert abs(weight - ours[name]).max() < 3e-4, name  # AdamW moves what has no gradient by its rounding errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "names", "launcher"),
    [(2, NAMES[:9], "torchrun"), (2, NAMES[9:], "torchrun"), (4, ON_FOUR, "torchrun"), (2, ("bert",), "accelerate")],
    ids=["two ranks", "two ranks, further recipes", "four ranks", "accelerate"],
)
def test_ranks_that_share_the_models_take_the_steps_of_one_process_and_export_its_student(
    inputs, alone, tmp_path, ranks, names, launcher
):
    said, _ = finish(launch(ranks, inputs, tmp_path, "begin", *names, launcher=launcher))
    assert said.count(f"{names[0]}: done") == ranks
    assert "the history has no gradient norms by term" in said
    for name in names:
        assert events(alone(name), "gradients")
        assert not events(tmp_path / name, "gradients")
        assert_same_run(tmp_path / name, alone(name), exact=name != "moments")  # whose rounding differs by ranks
        parts = [file.name for file in sorted((tmp_path / name / "checkpoints" / f"step-{STEPS}").glob("model*"))]
        assert parts == [f"model-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)]
    if "bert" in names:
        both = (tmp_path / "bert", alone("bert"))
        [ours], [theirs] = (sorted(run.glob("checkpoints/best-*.safetensors"))[-1:] for run in both)
        assert (ours.name, load_file(ours).keys()) == (theirs.name, load_file(theirs).keys())


@pytest.mark.slow
def test_a_teacher_that_is_rounded_once_it_is_shared_teaches_as_one_that_is_whole(inputs, alone, tmp_path):
    finish(launch(2, inputs, tmp_path, "begin", "rounded"))
    ours, theirs = (
        [event["loss"] for event in events(run, "step")] for run in (tmp_path / "rounded", alone("rounded"))
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours == pytest.approx(theirs, rel=1e-2)


def kill_after(process, run, step):
    """Kill a launch with all its ranks once the run has taken so many steps."""
    while steps_done(run) < step and process.poll() is None:
        time.sleep(0.002)
    ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    for number in (process.pid, *map(int, ranks.split())):
        os.kill(number, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["projections", "llama"])
def test_a_run_killed_on_four_ranks_goes_on_with_two_and_with_one(inputs, alone, tmp_path, name):
    run = tmp_path / name
    kill_after(launch(4, inputs, tmp_path, "begin", name), run, 3)
    assert steps_done(run) < STEPS
    kill_after(launch(2, inputs, tmp_path, "resume", name), run, 5)
    assert 5 <= steps_done(run) < STEPS
    assert list(run.glob("checkpoints/step-*/model-00001-of-00002.safetensors"))
    finish(launch(1, inputs, tmp_path, "resume", name))
    assert (run / "checkpoints" / f"step-{STEPS}" / "model.safetensors").is_file()
    assert_same_run(run, alone(name))
    told = read_record(run).training["parallelism"]
    assert [(each["ranks"], each["sharding"]) for each in told] == [(4, "fsdp2"), (2, "fsdp2"), (1, "none")]
    first, second, third = (each["step"] for each in told)
    assert (first, 3 <= second + 2, second < third < STEPS) == (0, True, True)
    assert (
        f"- Ranks: 4 from step 0 (fsdp2), 2 from step {second} (fsdp2), 1 from step {third}"
        in (run / "student" / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_run_killed_alone_goes_on_with_two_ranks_and_a_damaged_part_falls_back_to_the_checkpoint_before(
    inputs, alone, tmp_path
):
    run = tmp_path / "bert"
    kill_after(launch(1, inputs, tmp_path, "begin", "bert"), run, 3)
    assert list(run.glob("checkpoints/step-*/model.safetensors"))
    kill_after(launch(2, inputs, tmp_path, "resume", "bert"), run, 7)
    newest = run / "checkpoints" / "step-6"
    part = newest / "optimizer-00001-of-00002.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    said, _ = finish(launch(4, inputs, tmp_path, "resume", "bert"))
    assert_same_run(run, alone("bert"))
    assert "step-6 (optimizer-00001-of-00002.safetensors was changed)" in said
