"""Checkpoints: weights, optimizer state and a step number; the rest of a run's state is a function of the step."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from kdalign.errors import UsageError, cause_of
from kdalign.files import atomic_file, read_json, sha256, write_json, writing
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import BEGUN
from kdalign.runs.seal import seal_of

KEPT = 2
"""Number of checkpoints that are kept, the newest."""
BEST = "best.safetensors"
"""File next to the checkpoints with the weights of the best step so far, if these are to be exported."""
_MODEL, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"


@dataclass
class TrainState:
    """Progress of a training run, which a checkpoint holds next to weights and optimizer state.

    Attributes:
        step: steps taken.
        examples: examples seen.
        tokens: real tokens seen.
        seconds: time spent on steps, without evaluation and checkpoints.
        best_score: score of the best step so far; None before one has a score.
        best_step: number of that step.
        evaluations_without_gain: number of evaluations in a row without a better score.
        parts: each term before its weight, in the last step.
        plan: the current plan as JSON, if layer maps are measured again during training; else empty.
        courses: progress of each task, if several are trained together; else empty.
        best_hash: SHA-256 of the file with the best weights; empty if none is kept.
        sampled: tokens that the student sampled in on-policy steps.
        sampling_seconds: part of ``seconds`` in which it did so.
        watch: numbers by which later samples are judged.
        stream: place of the last step in a stream; empty for data that is held as a whole.
        quick_dropout: whether masks are drawn by ``models.dropout``; false for a run that an older version began.
    """

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    plan: str = ""
    courses: dict[str, "TrainState"] = field(default_factory=dict)
    best_hash: str = ""
    sampled: int = 0
    sampling_seconds: float = 0.0
    watch: dict[str, float] = field(default_factory=dict)
    stream: dict[str, Any] = field(default_factory=dict)
    quick_dropout: bool = True

    def __post_init__(self) -> None:
        self.courses = {  # as read from JSON, or copied by asdict
            name: TrainState(**spent) if isinstance(spent, dict) else spent for name, spent in self.courses.items()
        }

    def add(self, examples: int, tokens: int, seconds: float, parts: dict[str, float]) -> None:
        """Count one step."""
        self.step += 1
        self.examples += examples
        self.tokens += tokens
        self.seconds += seconds
        self.parts = parts

    def of(self, course: str) -> "TrainState":
        """Return the progress of one task of several."""
        return self.courses.setdefault(course, TrainState())

    @property
    def speed(self) -> dict[str, float]:
        """Examples and real tokens per second of training."""
        seconds = max(self.seconds, 1e-9)
        speed = {"samples_per_second": self.examples / seconds, "tokens_per_second": self.tokens / seconds}
        if self.sampled:
            names = ("sampled_per_second", "trained_per_second")
            speed |= zip(names, self.sampling_speed(TrainState()), strict=True)
        return speed

    def sampling_speed(self, since: "TrainState") -> tuple[float, float]:
        """Tokens per second of sampling, and real ones per second of the rest, since a state."""
        seconds = self.sampling_seconds - since.sampling_seconds
        others = self.seconds - since.seconds - seconds
        sampled, tokens = self.sampled - since.sampled, self.tokens - since.tokens
        return sampled / max(seconds, 1e-9), tokens / max(others, 1e-9)


def save_weights(file: Path, module: nn.Module, step: int | None = None) -> None:
    """Write a module's tensors, tied ones once, into an atomic file; the step goes into its header."""
    with atomic_file(file) as temporary:
        save_model(module, str(temporary), None if step is None else {"step": str(step)}, force_contiguous=True)


def load_weights(file: Path, module: nn.Module) -> None:
    """Load what ``save_weights`` wrote."""
    load_model(module, str(file))


def save_best(folder: RunFolder, module: nn.Module, progress: TrainState) -> None:
    """Write the weights of the best step so far, and their hash into the progress."""
    save_weights(folder.checkpoints / BEST, module, progress.step)
    progress.best_hash = sha256(folder.checkpoints / BEST)


def load_best(folder: RunFolder, module: nn.Module, progress: TrainState) -> None:
    """Load the weights of the best step.

    Raises:
        UsageError: the file is missing or damaged.
    """
    try:
        _check_best(folder, progress)
        load_weights(folder.checkpoints / BEST, module)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UsageError(f"{cause_of(error)}{_hint(folder)}") from None


def save_checkpoint(
    folder: RunFolder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainState,
    parts: Sequence[RunFolder] = (),
) -> None:
    """Write a checkpoint, then drop older ones.

    Its ``progress.json`` holds the SHA-256 of its other files and of the histories so far, and a seal over itself.

    Args:
        folder: of the run.
        module: all that is trained.
        optimizer: optimizer of its parameters.
        progress: steps taken, scores and time.
        parts: folders with the run's histories; by default its own.

    Raises:
        Unwritten: the disk is full or read-only; earlier checkpoints are unchanged.
    """
    final = folder.checkpoints / f"step-{progress.step}"
    if final.exists():
        return
    draft = folder.checkpoints / f".step-{progress.step}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with writing(final):
            draft.mkdir(parents=True)
            save_weights(draft / _MODEL, module)
            moments = _moments_of(optimizer, {parameter: name for name, parameter in module.named_parameters()})
            save_file(moments, draft / _OPTIMIZER)
            tree = asdict(progress) | {
                "files": {name: sha256(draft / name) for name in (_MODEL, _OPTIMIZER)},
                "histories": {checkpoint_name(part, folder): part.history_seal() for part in parts or (folder,)},
                "run": folder.identity,
            }
            write_json(draft / _PROGRESS, {**tree, "seal": seal_of(tree)})
            draft.replace(final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


_OF_EACH_WEIGHT = ("exp_avg", "exp_avg_sq", "state1", "state2")
"""Parts of an optimizer's state with a number for each weight; others are counters, scales and tables of codes."""


def _moments_of(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Return an optimizer's state by the names of parameters, each tensor with memory of its own, as files need it."""
    moments: dict[str, Tensor] = {}
    known: set[int] = set()
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            kept = torch.as_tensor(value).detach().cpu().contiguous()
            if kept.data_ptr() in known:  # a table of codes that all parameters share
                kept = kept.clone()
            known.add(kept.data_ptr())
            moments[f"{names[parameter]}/{key}"] = kept
    return moments


@dataclass(frozen=True)
class SavedCheckpoint:
    """The newest sound checkpoint.

    Attributes:
        path: its folder; None if no step was saved yet.
        progress: steps taken, scores and time.
        histories: size in bytes of each folder's history; empty in checkpoints without checksums.
        skipped: newer ones that are damaged, each with the reason.
    """

    path: Path | None = None
    progress: TrainState = field(default_factory=TrainState)
    histories: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def checked(self) -> bool:
        """True if it has checksums; older versions wrote none."""
        return self.path is None or bool(self.histories)


def newest_sound(folder: RunFolder, parts: Sequence[RunFolder] = ()) -> SavedCheckpoint:
    """Find the newest checkpoint whose files and histories are unchanged; nothing is written.

    Args:
        folder: of the run.
        parts: folders with its histories; by default its own.

    Raises:
        UsageError: there are checkpoints, and none is sound.
    """
    known = _steps(folder)
    others = [path for path in folder.checkpoints.glob("step-*") if path not in known]
    skipped = [f"{path.name} (no checkpoint's name)" for path in others]
    for path in reversed(known):
        try:
            saved = _read(folder, path, parts or (folder,))
        except UsageError as error:
            skipped.append(f"{path.name} ({error})")
        else:
            return SavedCheckpoint(path, saved.progress, saved.histories, tuple(skipped))
    if skipped:
        raise UsageError(f"run {str(folder.path)!r} has no sound checkpoint: {', '.join(skipped)}{_hint(folder)}")
    return SavedCheckpoint()


def load_checkpoint(
    folder: RunFolder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    saved: SavedCheckpoint | None = None,
) -> TrainState:
    """Load a checkpoint, the newest sound one by default; without any, training starts at step 0.

    Raises:
        UsageError: none is sound, or it is of other models.
    """
    saved = saved or newest_sound(folder)
    if saved.path is not None:
        try:
            load_weights(saved.path / _MODEL, module)
            moments = load_file(saved.path / _OPTIMIZER, device=str(accelerator.device))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UsageError(
                f"checkpoint {str(saved.path)!r} cannot be read: {cause_of(error)}{_hint(folder)}"
            ) from None
        parameters = dict(module.named_parameters())
        for key, value in moments.items():
            name, _, what = key.rpartition("/")
            other = name in parameters and what in _OF_EACH_WEIGHT and value.shape != parameters[name].shape
            if name not in parameters or other:
                raise UsageError(f"checkpoint {str(saved.path)!r} is of another student: {key!r}{_hint(folder)}")
            # The step counter of a fused optimizer is on the parameter's device; others count in Python.
            counted = value.ndim == 0 and not value.is_floating_point()
            optimizer.state[parameters[name]][what] = int(value) if counted else value
    accelerator.wait_for_everyone()
    return saved.progress


def checkpoint_name(part: RunFolder, folder: RunFolder) -> str:
    """Name of one of the run's folders in its checkpoints."""
    return "." if part.path == folder.path else part.path.name


def forget_after(folder: RunFolder, step: int) -> None:
    """Remove checkpoints of later steps: damaged ones, which training saves again."""
    for path in _steps(folder):
        if _number(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def _read(folder: RunFolder, path: Path, parts: Sequence[RunFolder]) -> SavedCheckpoint:
    """Read a checkpoint's progress, and check that all is as it was when it was saved.

    Raises:
        UsageError: what is missing or was changed.
    """
    tree = read_json(path / _PROGRESS)
    if not isinstance(tree, dict):
        raise UsageError(f"{_PROGRESS} holds no progress")
    own = {name: value for name, value in tree.items() if name not in ("files", "histories", "run", "seal")}
    sealed = "seal" in tree
    if sealed and tree["seal"] != seal_of(tree):
        raise UsageError(f"{_PROGRESS} was changed")
    progress = _progress_of(own)
    if progress.step != _number(path):
        raise UsageError(f"{_PROGRESS} is of step {progress.step}")
    if not sealed:
        _check_unsealed(folder, path)
        return SavedCheckpoint(path, progress)
    if tree["run"] != folder.identity:
        raise UsageError("it is of another run" if folder.identity else f"{BEGUN} is missing, by which it is known")
    _check_files(path, tree["files"])
    for part in parts:
        seal = tree["histories"].get(checkpoint_name(part, folder))
        if seal is None or not part.history_fits(seal):
            raise UsageError(f"{part.history.name} is not as it was then")
    if progress.best_hash:
        _check_best(folder, progress)
    return SavedCheckpoint(path, progress, {name: seal["bytes"] for name, seal in tree["histories"].items()})


def _check_unsealed(folder: RunFolder, path: Path) -> None:
    """Check a checkpoint without checksums, which only older versions wrote."""
    begun = folder.begun
    if begun is not None and not begun.get("older", False):
        raise UsageError(f"{_PROGRESS} has no checksums")
    for name in (_MODEL, _OPTIMIZER):
        try:
            with safe_open(path / name, "np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{name}: {cause_of(error)}") from None


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        if not (path / name).is_file():
            raise UsageError(f"{name} is missing")
        if _sha256(path / name) != digest:
            raise UsageError(f"{name} was changed")


def _sha256(file: Path) -> str:
    """A file's SHA-256, computed once while the file is unchanged: resuming needs it three times, for gigabytes."""
    now = file.stat()
    return _sha256_of(file, now.st_ino, now.st_size, now.st_ctime_ns)


@lru_cache(maxsize=64)
def _sha256_of(file: Path, *_state: int) -> str:
    return sha256(file)


def _check_best(folder: RunFolder, progress: TrainState) -> None:
    """Check that the best weights are those of the progress, or of a later step, which is taken and saved again."""
    file = folder.checkpoints / BEST
    if not file.is_file():
        raise UsageError(f"{file.name} is missing")
    if not progress.best_hash or _sha256(file) == progress.best_hash:
        return
    try:
        with safe_open(file, "np") as opened:
            step = int((opened.metadata() or {})["step"])
    except (OSError, SafetensorError, KeyError, ValueError):
        step = 0
    if step <= progress.step:
        raise UsageError(f"{file.name} was changed")


def _progress_of(tree: Mapping[str, Any]) -> TrainState:
    """Read the progress from JSON.

    Raises:
        UsageError: an unknown key, or a value of another type.
    """
    defaults = TrainState()
    kinds = {part.name: type(getattr(defaults, part.name)) for part in fields(TrainState)}
    for name, value in tree.items():
        kind = kinds.get(name)
        if kind is None:
            raise UsageError(f"{_PROGRESS} has an unknown key {name!r}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            int: number and isinstance(value, int) and value >= 0,
            float: number,
            type(None): value is None or number,
        }.get(kind, isinstance(value, kind))
        if not fits:
            raise UsageError(f"{_PROGRESS} has {name}: {value!r}")
    courses = {name: _progress_of(spent) for name, spent in tree.get("courses", {}).items() if isinstance(spent, dict)}
    return TrainState(**{"quick_dropout": False, **tree, "courses": courses})


def _steps(folder: RunFolder) -> list[Path]:
    """Checkpoints by their names, oldest first."""
    checkpoints = (path for path in folder.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{1,18}", path.name))
    return sorted(checkpoints, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _hint(folder: RunFolder) -> str:
    return f"; start again with --overwrite, or remove {str(folder.path)!r}"
