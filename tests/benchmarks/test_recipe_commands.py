"""The commands that measure any recipe, on a tiny one."""

import json

import pytest

from benchmarks import step
from kdalign.distillation import load as loading
from kdalign.models import hardware
from support.ranks import run

RECIPE = """
teacher: {teacher}
student: layers=2
data: {{task: [sst2], folder: {data}, max_length: 32}}
train: {{batch_size: 16, device: cpu, precision: fp32}}
"""


@pytest.fixture
def recipe(teacher, data, tmp_path):
    file = tmp_path / "it.yaml"
    file.write_text(RECIPE.format(teacher=teacher, data=data))
    return str(file)


def test_steps_are_taken_and_their_speed_is_a_share_of_the_peak(recipe, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "MATRIX", 256)
    for name in ("score_teachers", "measure_costs"):  # replaced by the command, put back after it
        monkeypatch.setattr(loading, name, getattr(loading, name))
    monkeypatch.setattr("sys.argv", ["step", recipe, "train.lr=1e-4", "--steps", "2", "--json"])
    step.main()
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert 0 < found["share_of_peak"] < 1
    assert found["gflops_of_products"] / found["gflops_of_peak"] == pytest.approx(found["share_of_peak"])


@pytest.mark.slow
def test_in_a_process_of_its_own_the_memory_of_steps_is_near_the_prediction(recipe):
    done = run(["-m", "benchmarks.memory", recipe, "train.lr=1e-4", "--steps", "2", "--json"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["ratio"] == found["predicted"] / found["measured"]
    assert 0.9 < found["ratio"] < 1.5  # the 128 MiB for the heap are much beside a tiny model
    assert sum(found["parts"].values()) == found["predicted"]
    assert not found["missing"]


@pytest.mark.slow
def test_each_of_two_ranks_has_about_the_memory_that_is_predicted(recipe):
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = run([*launch, "--rdzv_endpoint", "localhost:0", "-m", "benchmarks.memory", recipe, "--steps", "2", "--json"])
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2
    for each in found:
        assert each["parts"]["gradients' copies for all ranks"] == each["parts"]["student"]
        assert 0.9 < each["ratio"] < 1.5
