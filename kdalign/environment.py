"""What a run ran on, and where kdalign keeps what it can make again."""

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
