"""The weights of the best steps so far, in files next to the checkpoints, which name them by step and hash.

Each step has a file of its own, so that a run that resumes from an earlier step finds the weights that were the best
then, whatever a later step wrote before it was killed.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdalign.errors import UsageError, cause_of
from kdalign.files import atomic_file, sha256
from kdalign.runs.folder import RunFolder
from kdalign.training.tensor_files import load_weights, save_weights

if TYPE_CHECKING:
    from kdalign.training.checkpoint import TrainState

_OLDER = "best.safetensors"
"""The file of a run that an older version began, which later steps overwrote."""


def best_file(folder: RunFolder, step: int) -> Path:
    """File with the weights of a step that was the best so far."""
    return folder.checkpoints / f"best-{step}.safetensors"


def save_best(
    folder: RunFolder, module: nn.Module, progress: "TrainState", tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write the weights of the best step so far, and their hash into the progress.

    Args:
        folder: of the run.
        module: all that is trained.
        progress: steps taken.
        tensors: its tensors, if they were gathered from several ranks.
    """
    file = best_file(folder, progress.step)
    if tensors is None:
        save_weights(file, module, progress.step)
    else:
        with atomic_file(file) as temporary:
            save_file(dict(tensors), temporary, {"step": str(progress.step)})
    progress.best_hash = sha256(file)


def load_best(folder: RunFolder, module: nn.Module, progress: "TrainState") -> None:
    """Load the weights of the best step.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        check_best(folder, progress)
        load_weights(_file_of(folder, progress), module)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UsageError(f"{cause_of(error)}{hint(folder)}") from None


def check_best(folder: RunFolder, progress: "TrainState") -> None:
    """Check that the best weights are those of the progress; an older version's may be of a later step, too.

    Raises:
        UsageError: the file is missing or was changed.
    """
    file = _file_of(folder, progress)
    if not file.is_file():
        raise UsageError(f"{file.name} is missing")
    if not progress.best_hash or hash_once(file) == progress.best_hash:
        return
    try:
        with safe_open(file, "np") as opened:
            step = int((opened.metadata() or {})["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        step = 0
    if file.name != _OLDER or step <= progress.step:
        raise UsageError(f"{file.name} was changed")


def forget_best(folder: RunFolder, kept: Collection[int]) -> None:
    """Remove the best weights of all steps but some."""
    named = [best_file(folder, step) for step in kept]
    for file in folder.checkpoints.glob("best-*.safetensors"):
        if file not in named:
            file.unlink(missing_ok=True)


def _file_of(folder: RunFolder, progress: "TrainState") -> Path:
    file, older = best_file(folder, progress.best_step), folder.checkpoints / _OLDER
    return older if older.is_file() and not file.is_file() else file


def hash_once(file: Path) -> str:
    """A file's SHA-256, computed once while the file is unchanged: resuming needs it three times, for gigabytes."""
    now = file.stat()
    return _hash_of(file, now.st_ino, now.st_size, now.st_ctime_ns)


@lru_cache(maxsize=64)
def _hash_of(file: Path, *_state: int) -> str:
    return sha256(file)


def hint(folder: RunFolder) -> str:
    """How to go on where nothing can be resumed."""
    return f"; start again with --overwrite, or remove {str(folder.path)!r}"
