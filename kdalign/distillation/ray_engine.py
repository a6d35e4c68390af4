"""Run an ablation on a Ray cluster: each trial is a task with its resources, tried again where its node is lost.

The nodes are the user's own machines, with the same kdalign and the same paths. What a trial leaves comes back through
Ray's object store where the ablation's folder is not on a shared file system. Keys are not sent: a node has its own
environment.
"""

import hashlib
import logging
import os
import platform
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from kdalign.distillation.engines import PoolSettings
from kdalign.distillation.ray_node import MARK, RemoteTrial, missing_files, needed_files, run_remote_trial
from kdalign.environment import available_cores
from kdalign.errors import RunError, UsageError, cause_of, library_errors
from kdalign.files import atomic_file, write_text
from kdalign.metrics.arrays import Array
from kdalign.registry import trust
from kdalign.runs.ablation_spec import Trial
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import BEGUN, RECORD
from kdalign.version import __version__, code_digest

MAX_RETRIES = 3
"""Times that a trial is tried again where its node or process is lost."""
CONNECT_SECONDS = 10.0
"""Seconds in which the address of a cluster must answer."""
ANSWER_SECONDS = 120.0
"""Seconds in which a node must say whether it has what the runs need."""


@dataclass
class RayEngine:
    """Runs trials on the nodes of a Ray cluster; a context manager of the connection to it.

    Attributes:
        address: ``auto`` or ``HOST:PORT`` of a cluster that this machine belongs to; without one, ``$RAY_ADDRESS``, or
            a cluster of this machine alone, which ends with the command.
        jobs: number of trials at a time; as many as the nodes have room for when left out.
        cpus: cores of a trial; when left out, one with GPUs, and without them those of the smallest node.
        gpus: GPUs of a trial, which may be a part of one; when left out, one if any node has one.
    """

    address: str | None = None
    jobs: int | None = None
    cpus: int | None = None
    gpus: float | None = None

    def __enter__(self) -> "RayEngine":
        """Connect to the cluster, or start one.

        Raises:
            UsageError: Ray is not installed, there is no cluster at the address, or no node has room for a trial.
        """
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        if "://" in address:
            raise UsageError(f"--ray-address takes auto or HOST:PORT of a cluster of this machine; given {address!r}")
        _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run leaves the user's machines
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs a package: pip install 'kdalign[ray]'") from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        started = {"num_cpus": available_cores(), "include_dashboard": False} if address == "local" else {}
        handler = signal.getsignal(signal.SIGTERM)
        with library_errors(f"no Ray cluster at {address!r}", "ray start --head starts one on this machine"):
            ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **started)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has set its own
        nodes = _live_nodes().values()
        if self.gpus is None:
            self.gpus = float(any(node.gpus for node in nodes))
        if self.cpus is None:
            self.cpus = 1 if self.gpus else int(min((node.cpus for node in nodes if node.cpus >= 1), default=1))
        if not any(self.room(node) for node in nodes):
            ray.shutdown()
            has = ", ".join(f"{node.name}: {node.cpus:g} cores, {node.gpus:g} GPUs" for node in nodes)
            raise UsageError(f"a run asks for {self.cpus} cores and {self.gpus:g} GPUs, and no node has them ({has})")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        ray.shutdown()

    def room(self, node: "Node") -> int:
        """Return how many trials a node has room for."""
        assert self.cpus is not None
        assert self.gpus is not None
        by_cores = node.cpus // self.cpus
        return int(min(by_cores, node.gpus // self.gpus) if self.gpus else by_cores)

    def check(self, trials: Iterable[Trial]) -> None:
        """Check that every node has the same kdalign, and the models, data and code that the trials name.

        Raises:
            UsageError: the line names the node, and what it lacks.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        needed = list(dict.fromkeys(file for trial in trials for file in needed_files(trial.recipe)))
        nodes = {name: node for name, node in _live_nodes().items() if self.room(node)}
        answers = {}
        for name in nodes:
            strategy = NodeAffinitySchedulingStrategy(name, soft=False)
            remote = _task(num_cpus=0, scheduling_strategy=strategy)
            answers[remote.remote(*_same_code(), ray.cloudpickle.dumps((missing_files, (needed, os.getcwd()))))] = name
        begun = time.monotonic()
        for answer, name in answers.items():
            try:
                refused, lacks = ray.get(answer, timeout=max(0.1, ANSWER_SECONDS - (time.monotonic() - begun)))
            except ray.exceptions.RayError as error:
                refused, lacks = f"it does not answer: {_first_line(error)}", ""
            if refused or lacks:
                raise UsageError(f"node {nodes[name].name}: {refused or lacks}")

    def open(self, settings: PoolSettings) -> "RayPool":
        """Make a pool of trials on the cluster."""
        return RayPool(self, settings)


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: its address and host name.
        cpus: its cores, as Ray counts them.
        gpus: its GPUs.
    """

    name: str
    cpus: float
    gpus: float


def _check_address(address: str) -> None:
    """Refuse the address of a machine on which nothing answers, to which Ray would go on connecting for minutes.

    Raises:
        UsageError: the address.
    """
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()):  # auto, or local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address!r}: {cause_of(error)}") from None


def _live_nodes() -> dict[str, Node]:
    """The nodes that are alive, by Ray's id."""
    import ray

    return {
        node["NodeID"]: Node(
            f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})",
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def _same_code() -> tuple[str, str]:
    return __version__, code_digest()


def _task(**options: Any) -> Any:
    """A Ray task that calls a pickled function if the node has the same kdalign as this machine.

    It returns why the function was not called, or an empty text, and what the function returned.
    """
    import ray

    # A function within a function is sent by its code: the node need not have kdalign to say that it has not.
    def call(version: str, digest: str, pickled: bytes) -> tuple[str, Any]:
        try:
            from kdalign import version as there

            own = there.__version__, there.code_digest()
        except (ImportError, AttributeError) as error:
            return f"it has no kdalign {version} ({error})", None
        if own != (version, digest):
            return f"it has kdalign {own[0]} (code {own[1]}), and this machine {version} (code {digest})", None
        from ray import cloudpickle

        function, arguments = cloudpickle.loads(pickled)
        return "", function(*arguments)

    return ray.remote(max_retries=0, **options)(call)


@dataclass
class RayPool:
    """Trials on a cluster; a context manager that ends those that still run."""

    engine: RayEngine
    settings: PoolSettings
    _running: dict[Any, Trial] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _told: set[Any] = field(default_factory=set)
    _nodes: dict[str, Node] = field(default_factory=dict)

    def __enter__(self) -> "RayPool":
        self._nodes = _live_nodes()
        write_text(self.settings.out / MARK, self._mark)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for reference in self._running:
            with suppress(ray.exceptions.RayError):  # the cluster itself may be lost
                ray.cancel(reference, force=True)
        (self.settings.out / MARK).unlink(missing_ok=True)

    @property
    def _mark(self) -> str:
        """Hash that tells this folder from one of the same path on another machine, the same when a command resumes."""
        place = f"{uuid.getnode()} {platform.node()} {self.settings.out.resolve()}"
        return hashlib.sha256(place.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of trials that the nodes have room for now, or that were asked for."""
        room = self.engine.jobs or sum(map(self.engine.room, _live_nodes().values()))
        return max(1, min(room, self.settings.most))

    def give(self, trial: Trial) -> None:
        """Send a trial to the cluster, where it waits for a node with room."""
        import ray

        assert self.engine.cpus is not None
        remote = RemoteTrial(
            recipe=trial.recipe.model_dump(mode="json"),
            directory=os.getcwd(),
            out=str(self.settings.out),
            mark=self._mark,
            threads=self.engine.cpus,
            keep_student=self.settings.keep_students,
            needed=needed_files(trial.recipe),
            trusted=trust().silent,
            run_observer=self.settings.run_observer,
        )
        task = _task(num_cpus=self.engine.cpus, num_gpus=self.engine.gpus)
        self._running[task.remote(*_same_code(), ray.cloudpickle.dumps((_run_named, (remote,))))] = trial

    def poll(self, seconds: float) -> list[tuple[Trial, str]]:
        """Wait for trials to end, at most this long, and write what they leave; tell of nodes that are lost."""
        import ray

        self._tell_lost_nodes()
        if not self._running:
            return []
        ready, _ = ray.wait(list(self._running), timeout=seconds)
        ended = []
        for reference in ready:
            trial = self._running.pop(reference)
            reason = self._result(reference, trial)
            if reason is None:
                self.give(trial)
            else:
                ended.append((trial, reason))
        return ended

    def cancel(self, trial: Trial) -> None:
        """Interrupt one trial; a run that trains saves its state first."""
        import ray

        for reference, running in self._running.items():
            if running == trial and reference not in self._told:
                self._told.add(reference)
                ray.cancel(reference)

    def stop(self) -> None:
        """Interrupt all trials once; a run that trains saves its state first."""
        for trial in list(self._running.values()):
            self.cancel(trial)

    def _result(self, reference: Any, trial: Trial) -> str | None:
        """The reason why a trial failed, or an empty one once its files are here; None if it is to be tried again.

        Raises:
            RunError: this machine has lost the cluster.
        """
        import ray

        lost = (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError, ray.exceptions.ObjectLostError)
        stopped = reference in self._told
        try:
            result = ray.get(reference)
        except ray.exceptions.TaskCancelledError:
            return "stopped"
        except (*lost, ray.exceptions.WorkerCrashedError) as error:
            tries = self._tries[trial.name] = self._tries.get(trial.name, 0) + 1
            if stopped or tries > MAX_RETRIES:
                return "stopped" if stopped else f"its node or process was lost {tries} times"
            what = "process ended" if isinstance(error, ray.exceptions.WorkerCrashedError) else "node was lost"
            self.settings.announce(f"{trial.name}: its {what}; it is tried again ({tries} of {MAX_RETRIES})")
            return None
        except ray.exceptions.RaySystemError as error:
            raise RunError(f"the Ray cluster was lost: {_first_line(error)}; the same command resumes") from None
        except ray.exceptions.RayError as error:
            return _first_line(error)
        refused, made = result
        if refused:
            return f"a node refused it: {refused}"
        reason, files = made
        if files:
            _write_run(RunFolder(Path(str(trial.recipe.out))), files)
        return str(reason)

    def _tell_lost_nodes(self) -> None:
        nodes = _live_nodes()
        for name in self._nodes.keys() - nodes.keys():
            self.settings.announce(f"node {self._nodes[name].name} was lost")
        self._nodes = nodes


def _run_named(remote: RemoteTrial) -> tuple[str, dict[str, Array]]:
    """Run a trial on a node; a reason that it failed names the node."""
    import ray

    reason, files = run_remote_trial(remote)
    if reason and reason != "stopped":
        reason = f"{reason} (on node {ray.util.get_node_ip_address()}, {platform.node()})"
    return reason, files


def _write_run(folder: RunFolder, files: Mapping[str, Array]) -> None:
    """Write the files of a run that was made on another machine, so that it can be resumed wherever a kill cuts it off.

    The recipe makes the folder a run's, and the record a finished one's. The hashes that the run began with come after
    the files that they are of, which would count as lost.
    """
    order = {"recipe.yaml": 0, BEGUN: 2, RECORD: 3}
    for name, content in sorted(files.items(), key=lambda file: order.get(file[0], 1)):
        with atomic_file(folder.path / name) as temporary:
            content.tofile(temporary)


def _first_line(error: BaseException) -> str:
    """The cause of a Ray error, without the traceback that Ray puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return cause_of(RunError(lines[-1])) if lines else type(error).__name__
