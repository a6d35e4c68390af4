"""Clusters of Ray nodes on one machine, each node with processes of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.ranks import environment

SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class TwoNodes:
    """A head and a second node, of one core each."""

    cluster: Any
    second: Any

    @property
    def address(self) -> str:
        return self.cluster.address

    def lose_second(self) -> None:
        """Kill all processes of the second node."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    with _head(1) as cluster:
        yield TwoNodes(cluster, cluster.add_node(num_cpus=1))


@contextmanager
def _head(cores: int) -> Iterator[Any]:
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def node_without(folder: Path) -> Iterator[str]:
    """A cluster whose only node with a core has an empty file system of its own at a folder; yield its address."""
    with _head(0) as cluster:
        ray = Path(sys.executable).with_name("ray")
        joined = f"{ray} start --address {cluster.address} --num-cpus 1 --block"
        words = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {folder} && cd / && exec {joined}"]
        node = subprocess.Popen(
            words, env=environment() | SETTINGS, start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_for(cluster.address, 2)
            yield cluster.address
        finally:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait()


def _wait_for(address: str, number: int) -> None:
    """Wait until so many nodes have joined."""
    import ray

    ray.init(address, log_to_driver=False, logging_level="ERROR")
    while sum(node["Alive"] for node in ray.nodes()) < number:
        time.sleep(0.2)
    ray.shutdown()


def can_mount() -> bool:
    """Return whether this user may mount a file system for one process."""
    words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return sys.platform == "linux" and subprocess.run(words, capture_output=True).returncode == 0


def start(words, folder) -> subprocess.Popen:
    """Start a kdalign command in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdalign", *map(str, words)], cwd=folder,
        env=environment() | SETTINGS | {"COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
