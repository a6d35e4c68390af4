"""Versions and hardware for a record, the cache folder, and memory that glibc holds back."""

import ctypes
import hashlib
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


def _from_launcher(name: str, default: int) -> int:
    given = os.environ.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise UsageError(f"the environment's {name} is {given!r}: a number is expected, as torchrun sets it")
    return int(given)


def environment(device: Any) -> dict[str, Any]:
    """Collect versions and hardware for a record."""
    import torch

    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "libraries": libraries,
    }


@cache
def code_fingerprint() -> str:
    """Hash the source of this package: results of other code are not mistaken for its own."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def machine(device: Any) -> dict[str, Any]:
    """Return what decides, beside the code, the last digits of a result and how long it takes to compute."""
    import torch

    facts, cuda = environment(device), str(device).startswith("cuda")
    name = torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability()
    return {key: facts[key] for key in ("device", "cpus", "threads", "libraries")} | {"processor": name}


def keep_heap() -> None:
    """Let glibc keep freed buffers for the next ones of their size, where it would unmap and fault them in again.

    A step of training frees and takes the same large buffers many times: on two cores without this, a step of a
    language model took a sixth longer. ``trim_heap`` returns what is free. The user's own settings of malloc win.
    """
    own = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if _mallopt is not None and not any(name in os.environ for name in own):
        _mallopt(_MMAP_THRESHOLD, 2**30)
        _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def trim_heap() -> None:
    """Return freed memory to the system if its C library is glibc.

    Allocations of varying sizes fragment the heap, and glibc does not return the gaps.
    """
    if _trim is not None:
        _trim(0)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Numbers of malloc's parameters in ``malloc.h``."""
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
