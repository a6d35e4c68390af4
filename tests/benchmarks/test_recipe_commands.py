"""The commands that measure any recipe, on a tiny one."""

import json

import pytest

from support.ranks import run

RECIPE = """
teacher: {teacher}
student: layers=2
data: {{task: [sst2], folder: {data}, max_length: 32}}
train: {{batch_size: 16, device: cpu, precision: fp32}}
"""


@pytest.mark.parametrize("command", ["step", "memory"])
def test_it_takes_steps_and_tells_what_they_cost(teacher, data, tmp_path, command):
    (tmp_path / "it.yaml").write_text(RECIPE.format(teacher=teacher, data=data))
    done = run(["-m", f"benchmarks.{command}", str(tmp_path / "it.yaml"), "train.lr=1e-4", "--steps", "2", "--json"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if command == "memory":
        assert found["ratio"] == found["predicted"] / found["measured"]
        assert 0.9 < found["ratio"] < 1.5  # the 128 MiB for the heap are much beside a tiny model
        assert sum(found["parts"].values()) == found["predicted"]
        assert not found["missing"]
    else:
        assert 0 < found["share_of_peak"] < 1
        assert found["gflops_of_products"] / found["gflops_of_peak"] == pytest.approx(found["share_of_peak"])
