"""The examples for clusters, with processes on this machine in place of machines."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from support.ranks import environment, steps_done

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
STEPS = 120
SRUN = """#!/bin/bash
# Starts the command once for each machine, passes SIGTERM on to all, and fails if one fails.
while [[ $1 == --* ]]; do shift; done
tasks=()
trap 'kill -TERM "${tasks[@]}"' TERM
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node SLURM_PROCID=$node "$@" & tasks+=($!); done
status=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do wait "$task" && rc=0 || rc=$?; done
    [ "${rc:-0}" = 0 ] || status=$rc
done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; echo elsewhere; else echo "$@" >> requeued; fi
"""


@pytest.fixture
def recipe(teacher, data, tmp_path):
    tree = {
        "teacher": str(teacher), "student": "layers=2", "data": {"task": ["sst2"], "folder": str(data)},
        "train": {"max_steps": STEPS, "batch_size": 16, "precision": "fp32", "device": "cpu", "checkpoint_every": 4,
                  "profile": False},
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def steps_and_ranks(out):
    training = json.loads((out / "record.json").read_text())["training"]
    return training["steps"], training["ranks"]


@pytest.mark.slow
def test_a_slurm_job_that_is_stopped_queues_again_and_the_same_command_ends_the_run(recipe, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "any", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "PROCESSES_PER_NODE": "1"}
    own = {**environment(), **slurm, "PATH": f"{programs}:{os.environ['PATH']}"}
    words, out = ["bash", str(FOLDER / "slurm.sh"), str(recipe), "run"], tmp_path / "run"
    job = subprocess.Popen(words, env=own, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while steps_done(out) < 6 and job.poll() is None:
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate()
    assert job.returncode == 0, err
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert 6 <= steps_done(out) < STEPS
    done = subprocess.run(words, env=own, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stderr
    assert steps_and_ranks(out) == (STEPS, 2)


def kubernetes():
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def test_the_pods_of_the_kubernetes_job_find_the_first_one_by_its_service():
    service, job = kubernetes()
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert (service["spec"]["clusterIP"], job["spec"]["completionMode"]) == ("None", "Indexed")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert variables["FIRST"] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(variables["NODES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(variables["PROCESSES_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claims


@pytest.mark.slow
def test_the_command_of_the_kubernetes_job_trains_with_a_process_for_each_pod(recipe, tmp_path):
    [container] = kubernetes()[1]["spec"]["template"]["spec"]["containers"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = {each["name"]: each["value"] for each in container["env"]}
    given |= {"PROCESSES_PER_NODE": "1", "FIRST": "localhost", "PORT": str(port), "RECIPE": str(recipe), "OUT": "run"}
    pods = [
        subprocess.Popen([*container["command"], *container["args"]], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                         env={**environment(), **given, "JOB_COMPLETION_INDEX": str(index)})
        for index in range(int(given["NODES"]))
    ]  # fmt: skip
    for pod in pods:
        _, err = pod.communicate()
        assert pod.returncode == 0, err
    assert steps_and_ranks(tmp_path / "run") == (STEPS, 2)


@pytest.mark.parametrize("name", ["slurm.sh", "ray-job.sh"])
def test_the_scripts_are_bash(name):
    assert subprocess.run(["bash", "-n", str(FOLDER / name)], capture_output=True).returncode == 0
