"""Runs in processes of their own, stopped and resumed."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path


def environment():
    """For a process of its own, which may import what the tests share."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def run(words, **more):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment(), **more)


def steps_done(out: Path) -> int:
    history = out / "history.jsonl"
    if not history.is_file():
        return 0
    return sum('"kind": "step"' in line for line in history.read_text().splitlines())


def stop_after(words, out, step, signal_):
    """Start a run and send it a signal once it has taken so many steps."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=environment())  # fmt: skip
    while steps_done(out) < step and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal_)
    _, err = process.communicate()
    return process.returncode, err


def each_step(out: Path, key: str) -> list[float]:
    events = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [event[key] for event in events if event["kind"] == "step"]


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as opened:
        opened.bind(("localhost", 0))
        return int(opened.getsockname()[1])


def on_ranks(count, work, *args):
    """Fork so many processes, connected as by torchrun, that each do some work; return what the first one's gives."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_as_rank, args=(rank, count, port, results, work, args)) for rank in range(count)]
    for process in ranks:
        process.start()
    said = [results.get(timeout=300) for _ in ranks]
    for process in ranks:
        process.join()
    failed = [line for _, line, _ in said if line]
    assert not failed, failed[0]
    [first] = [result for rank, _, result in said if rank == 0]
    return first


def _as_rank(rank, count, port, results, work, args):
    import torch
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one was forked from
    os.environ.update(
        {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "RANK": str(rank),
         "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    torch.set_num_threads(1)  # a fork has none of its parent's
    try:
        results.put((rank, "", work(*args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
    finally:
        results.close()
        results.join_thread()
        os._exit(0)
