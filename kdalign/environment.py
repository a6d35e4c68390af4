"""Versions and hardware for a record, the cache folder, and memory that glibc holds back."""

import ctypes
import math
import os
import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdalign.errors import UsageError

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "scikit-learn", "scipy")


def cache_folder() -> Path:
    """Return ``$KDALIGN_CACHE``, or ``kdalign`` in the user's cache folder."""
    given = os.environ.get("KDALIGN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdalign"


def rank() -> int:
    """Return this process's number among those that train together: ``$RANK``, which torchrun sets, or 0.

    Raises:
        UsageError: it is not a number.
    """
    return _from_launcher("RANK", 0)


def world_size() -> int:
    """Return the number of processes that train together: ``$WORLD_SIZE``, which torchrun sets, or 1.

    Raises:
        UsageError: it is not a number.
    """
    return _from_launcher("WORLD_SIZE", 1)


def ranks_here() -> int:
    """Return how many of these processes are on this machine: ``$LOCAL_WORLD_SIZE``, which torchrun sets, or 1.

    Raises:
        UsageError: it is not a number.
    """
    return _from_launcher("LOCAL_WORLD_SIZE", 1)


def program() -> str:
    """Return how a command of as many processes as this one's begins: ``kdalign``, or ``torchrun ... -m kdalign``."""
    ranks = world_size()
    return f"torchrun --nproc_per_node {ranks} -m kdalign" if ranks > 1 else "kdalign"


def _from_launcher(name: str, default: int) -> int:
    given = os.environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise UsageError(f"the environment's {name} is {given!r}: a number is expected, as torchrun sets it")
    return int(given)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide numbers."""
    return {name: found for name in _LIBRARIES if (found := _version(name))}


@cache  # which reads files, and each of a run's results names the versions
def _version(name: str) -> str:
    """Return an installed library's version; empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def environment(device: Any) -> dict[str, Any]:
    """Collect versions and hardware for a record."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": library_versions(),
    }


def machine(device: Any) -> dict[str, Any]:
    """Return what decides, beside the code, the last digits of a result and how long it takes to compute."""
    import torch

    facts, cuda = environment(device), str(device).startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    kept = {key: facts[key] for key in ("device", "cpus", "threads", "libraries")}
    return kept | {"processor": name, "products": torch.get_float32_matmul_precision()}


@cache
def _processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor()


SPINS = 1000
"""Turns for which a thread of OpenMP waits awake for the others; its library's own default is 300,000."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def set_thread_defaults() -> None:
    """Set OpenMP's environment for this process and those that it starts; the user's own settings win.

    To be called before torch is loaded. There are as many threads as cores that this process may use: a container with
    4 of 64 cores would get 64. And a thread that waits for another soon sleeps: where the other one waits for a core,
    as beside a second run, threads that wait awake take the very core away.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    cores = available_cores()
    if cores < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))


def available_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use, by its affinity and by the quota of its container.

    Args:
        groups: folder of the control groups, as a container sees its own (version 2, or 1).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_numbers(groups / "cpu.max"), _numbers(groups / "cpu/cpu.cfs_quota_us", groups / "cpu/cpu.cfs_period_us")]
    allowed = [math.ceil(quota / period) for quota, period in filter(None, quotas) if quota > 0]
    return max(1, min([affinity, *allowed]))


def _numbers(*files: Path) -> tuple[int, int] | None:
    """Read a quota and its period, in microseconds; None if there is no such file, or no quota."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return int(quota), int(period)
    except (OSError, ValueError):  # "max" is no quota
        return None


def busy_seconds() -> float:
    """Return the seconds for which the cores ran any process since the machine was started."""
    import psutil

    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))  # Windows has no nice ones


def keep_heap() -> None:
    """Let glibc keep freed buffers for the next ones of their size, where it would unmap and fault them in again.

    A step of training frees and takes the same large buffers many times: on two cores without this, a step of a
    language model took a sixth longer. ``trim_heap`` returns what is free. The user's own settings of malloc win.
    """
    if _mallopt is not None and not _has_own_settings():
        # Older ones accept 32 MiB at most; one that accepts neither is left as it is, as it adapts by itself.
        if _mallopt(_MMAP_THRESHOLD, 2**30) or _mallopt(_MMAP_THRESHOLD, 2**25):
            _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def map_buffers() -> None:
    """Let glibc map each buffer of a MiB or more by itself, and unmap it when freed: the opposite of ``keep_heap``.

    Where buffers of every size come and go in each layer, the heap's gaps grow to several times what is in use.
    """
    if _mallopt is not None and not _has_own_settings():
        _mallopt(_MMAP_THRESHOLD, 2**20)
        _mallopt(_TRIM_THRESHOLD, 2**20)


def _has_own_settings() -> bool:
    """True if the user has set malloc's thresholds."""
    return any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"))


def trim_heap() -> None:
    """Return freed memory to the system if its C library is glibc.

    Allocations of varying sizes fragment the heap, and glibc does not return the gaps.
    """
    if _trim is not None:
        _trim(0)


def reset_peak_memory(device: Any) -> None:
    """Begin to measure ``peak_memory`` anew, so that an earlier run in this process does not count."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        return  # the peak is then that of the whole process


def peak_memory(device: Any) -> int | None:
    """Return the most memory in bytes of this process, or of its tensors on a GPU; None if the system does not tell.

    Linux counts it for the program; ``getrusage`` would also count what its parent had when it was started.
    """
    if str(device).startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):  # some sandboxes have no such line
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of malloc's parameters in ``malloc.h``."""
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
