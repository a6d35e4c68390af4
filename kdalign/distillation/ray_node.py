"""Work of a Ray node for an ablation: look for the files that a run needs, and make the run.

Where the node sees the ablation's own folder, by a mark in it, the run is made there, and resumes from its
checkpoints. Elsewhere it is made in a folder of the same name on the node, sent back whole and removed.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.distillation.worker_pool import run_recipe
from kdalign.environment import set_thread_defaults
from kdalign.errors import UsageError
from kdalign.files import sha256, write_text
from kdalign.metrics.arrays import Array
from kdalign.observer import Observer
from kdalign.recipe import Recipe, validate_recipe
from kdalign.registry import Trust, code_named
from kdalign.runs.folder import RunFolder
from kdalign.runs.locks import exclusive

MARK = ".cluster"
"""File in the folder of an ablation by which a node recognises it."""
LOCK_SECONDS = 120
"""Seconds for which a run waits for its folder: the node that was lost may hold the lock for a while."""
LARGEST_COMPARED = 2**20
"""Most bytes of a file that is compared as a whole, as code and task files are."""
_PLACES = (
    "teacher", "student", "tokenizer", "data.folder", "data.dataset", "data.unlabelled", "data.augment.model",
    "align.plan",
)  # fmt: skip
"""Keys of a recipe that may name a file or folder."""
_WEIGHTS = ("student", "projections.safetensors")
"""The parts of a run's folder that its result does not need."""


@dataclass(frozen=True)
class NeededFile:
    """A file or folder that every node must have.

    Attributes:
        path: its path, relative to the working directory or absolute.
        digest: SHA-256 of a small file that decides what is computed; None for models and data, whose fingerprints
            are compared once a run has read them.
    """

    path: str
    digest: str | None = None


@dataclass(frozen=True)
class RemoteTrial:
    """A trial as it is sent to a node.

    Attributes:
        recipe: its recipe.
        directory: working directory of the command, which relative paths begin at.
        out: folder of the ablation.
        mark: content of the mark in that folder.
        threads: threads to compute with.
        keep_student: true if the student is sent back, too.
        needed: files that the node must have.
    """

    recipe: Mapping[str, Any]
    directory: str
    out: str
    mark: str
    threads: int
    keep_student: bool
    needed: Sequence[NeededFile]
    trusted: Trust
    run_observer: Callable[[], Observer]


def needed_files(recipe: Recipe) -> list[NeededFile]:
    """List the files and folders that a recipe names and that are here: models, data, task files and own code."""
    flat = recipe.flat()
    named = [text for key in _PLACES for text in _texts(flat[key])]
    named += [task for task in recipe.data.task if task.endswith((".yaml", ".yml"))]
    named += sorted(name.rpartition(":")[0] for name in code_named(flat) if ".py:" in name)
    return [NeededFile(text, _digest_of(Path(text))) for text in dict.fromkeys(named) if Path(text).exists()]


def _digest_of(path: Path) -> str | None:
    return sha256(path) if path.is_file() and path.stat().st_size <= LARGEST_COMPARED else None


def _texts(value: object) -> list[str]:
    return [text for text in (value if isinstance(value, list | tuple) else [value]) if isinstance(text, str)]


def missing_files(needed: Sequence[NeededFile], directory: str) -> str:
    """Describe what a node lacks; empty if it has everything."""
    with _inside(directory):
        for file in needed:
            path = Path(file.path)
            if not path.exists():
                return f"it has no {file.path!r}: models and data are at the same paths on every node, or on the hub"
            if file.digest is not None and (not path.is_file() or sha256(path) != file.digest):
                return f"its {file.path!r} has another content than here"
    return ""


def run_remote_trial(remote: RemoteTrial) -> tuple[str, dict[str, Array]]:
    """Run a trial, or resume it.

    Returns:
        The reason why it failed, or an empty one, and the run's files as bytes by name; none where
        the folder is shared.
    """
    set_thread_defaults()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(remote.threads)
    lacks = missing_files(remote.needed, remote.directory)
    if lacks:
        return lacks, {}
    with _inside(remote.directory):
        recipe = validate_recipe(remote.recipe)
        folder = RunFolder(Path(str(recipe.out)))
        try:
            if _is_shared(remote):
                _wait_until_free(folder.path)
                return run_recipe(recipe, remote.run_observer, remote.trusted), {}
            own = _OwnFolder(folder, Path(remote.out))
            own.claim(recipe.dump() + remote.mark)
        except UsageError as error:
            return str(error), {}
        except KeyboardInterrupt:
            return "stopped", {}
        reason = run_recipe(recipe, remote.run_observer, remote.trusted)
        files = _files_of(folder, () if remote.keep_student and not reason else _WEIGHTS)
        if not reason:
            own.remove()
        return reason, files


@contextlib.contextmanager
def _inside(directory: str) -> Iterator[None]:
    """Work in a directory; in a temporary one if this node does not have it."""
    with contextlib.ExitStack() as stack:
        here = directory if Path(directory).is_dir() else stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(here))
        yield


def _is_shared(remote: RemoteTrial) -> bool:
    try:
        return (Path(remote.out) / MARK).read_text(encoding="utf-8") == remote.mark
    except OSError:
        return False


def _wait_until_free(folder: Path) -> None:
    """Wait until no other process works in a run's folder.

    Raises:
        UsageError: somebody still does after ``LOCK_SECONDS``.
    """
    for _ in range(LOCK_SECONDS):
        with contextlib.suppress(UsageError), exclusive(folder):
            return
        time.sleep(1)
    with exclusive(folder):
        return


@dataclass(frozen=True)
class _OwnFolder:
    """A run's folder on a node that does not see the ablation's.

    Attributes:
        out: folder of that name of the ablation.
    """

    run: RunFolder
    out: Path

    @property
    def _mark(self) -> Path:
        return self.run.path.with_name(f".{self.run.path.name}{MARK}")

    def claim(self, content: str) -> None:
        """Mark the folder as made for a trial; one that was made for another trial is removed.

        Raises:
            UsageError: the folder is the node's own.
        """
        marked = self._mark.is_file()
        if self.run.started and not marked:
            raise UsageError(
                f"it has a folder {str(self.run.path)!r} of its own: remove it there, or give another --out"
            )
        if marked and self._mark.read_text(encoding="utf-8") != content:
            shutil.rmtree(self.run.path, ignore_errors=True)
        write_text(self._mark, content)

    def remove(self) -> None:
        """Remove the run, and the folders that are empty then."""
        shutil.rmtree(self.run.path, ignore_errors=True)
        self._mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for folder in (self.run.path.parent, *self.run.path.parent.parents):
                if folder != self.out and self.out not in folder.parents:
                    break
                folder.rmdir()


def _files_of(folder: RunFolder, without: Sequence[str]) -> dict[str, Array]:
    """Read the files of a run as bytes by name."""
    paths = [path for path in sorted(folder.path.rglob("*")) if path.is_file()]
    parts = {path: path.relative_to(folder.path).parts for path in paths}
    kept = [path for path in paths if parts[path][0] not in ("checkpoints", ".lock", *without)]
    return {"/".join(parts[path]): np.fromfile(path, dtype=np.uint8) for path in kept}
