"""Versions and hardware for a record, the cache folder, and memory that glibc holds back."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "scikit-learn", "scipy")


def cache_folder() -> Path:
    """Return ``$KDALIGN_CACHE``, or ``kdalign`` in the user's cache folder."""
    given = os.environ.get("KDALIGN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdalign"


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


def trim_heap() -> None:
    """Return freed memory to the system if its C library is glibc.

    Allocations of varying sizes fragment the heap, and glibc does not return the gaps.
    """
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
