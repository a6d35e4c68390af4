"""What a run ran on, where kdalign keeps what it can make again, and memory that is no longer needed."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "scikit-learn", "scipy")


def cache_folder() -> Path:
    """``$KDALIGN_CACHE``, or ``kdalign`` below the user's cache folder."""
    given = os.environ.get("KDALIGN_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdalign"


def environment(device: Any) -> dict[str, Any]:
    """Versions and hardware, for the record."""
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
    """Hand freed memory to the system where its C library (glibc) keeps it; nothing elsewhere.

    Tensors of ever other sizes leave gaps between those in use, which the library holds on to.
    """
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
