"""Clusters of two Ray nodes on one machine, each node with processes of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from support.ranks import environment


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
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield TwoNodes(cluster, cluster.add_node(num_cpus=1))
    finally:
        cluster.shutdown()


def start(words, folder) -> subprocess.Popen:
    """Start a kdalign command in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "kdalign", *map(str, words)], cwd=folder, env={**environment(), "COLUMNS": "100"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
