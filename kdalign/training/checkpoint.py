"""Checkpoints: weights, optimizer state and a step number; the rest of a run's state is a function of the step."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import nn

from kdalign.errors import UsageError, cause_of
from kdalign.files import read_json, write_json, writing
from kdalign.ranks import on_every_rank, on_first_rank, rank_and_size
from kdalign.runs.folder import RunFolder
from kdalign.runs.record import BEGUN
from kdalign.runs.seal import seal_of
from kdalign.training.best_weights import check_best, forget_best, hash_once, hint
from kdalign.training.tensor_files import FILES, OF_EACH_WEIGHT, read_tensors, write_tensors

_PROGRESS = "progress.json"


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
        parallelism: how many ``ranks`` trained from each ``step`` on, with which ``sharding``, oldest first; without
            the steps that an older version took.
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
    parallelism: list[dict[str, Any]] = field(default_factory=list)

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

    def continue_on(self, ranks: int, sharding: str) -> None:
        """Note the number of ranks that take the next steps, and their sharding, if they differ from before."""
        now = {"step": self.step, "ranks": ranks, "sharding": sharding}
        self.parallelism = [each for each in self.parallelism if each["step"] < self.step]
        if not self.parallelism or {**self.parallelism[-1], "step": self.step} != now:
            self.parallelism.append(now)

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


def save_checkpoint(
    folder: RunFolder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainState,
    keep: int,
    parts: Sequence[RunFolder] = (),
    in_parts: bool = False,
) -> None:
    """Write a checkpoint, then drop older ones.

    Its ``progress.json`` holds the SHA-256 of its other files and of the histories so far, and a seal over itself.

    Args:
        folder: of the run.
        module: all that is trained.
        optimizer: optimizer of its parameters.
        progress: steps taken, scores and time.
        keep: number of checkpoints that are kept, the newest.
        parts: folders with the run's histories; by default its own.
        in_parts: true if the module is sharded over ranks, which all call this, and write their own rows each; else the
            first rank alone writes all.

    Raises:
        Unwritten: the disk is full or read-only; earlier checkpoints are unchanged.
    """
    final, draft = (folder.checkpoints / name for name in (f"step-{progress.step}", f".step-{progress.step}.tmp"))
    if in_parts:
        _save_shards(folder, module, optimizer, progress, keep, parts)
    elif not final.exists():
        try:
            with writing(final):
                _begin(draft, final)
                files = write_tensors(draft, module, optimizer)
                _complete(draft, final, files, folder, progress, keep, parts)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _save_shards(
    folder: RunFolder,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: TrainState,
    keep: int,
    parts: Sequence[RunFolder],
) -> None:
    """Write a checkpoint of which each rank writes its own rows; what fails on one rank fails on all."""
    final, draft = (folder.checkpoints / name for name in (f"step-{progress.step}", f".step-{progress.step}.tmp"))
    if on_first_rank(final.exists):
        return

    def write_own() -> dict[str, str]:
        with writing(final):
            return write_tensors(draft, module, optimizer, rank_and_size())

    try:
        on_first_rank(partial(_begin, draft, final))
        files = {name: digest for own in on_every_rank(write_own) for name, digest in own.items()}
        on_first_rank(partial(_complete, draft, final, files, folder, progress, keep, parts))
    finally:
        if rank_and_size()[0] == 0:
            shutil.rmtree(draft, ignore_errors=True)


def _begin(draft: Path, final: Path) -> None:
    """Make an empty folder for a checkpoint that is being written."""
    shutil.rmtree(draft, ignore_errors=True)
    with writing(final):
        draft.mkdir(parents=True)


def _complete(
    draft: Path,
    final: Path,
    files: Mapping[str, str],
    folder: RunFolder,
    progress: TrainState,
    keep: int,
    parts: Sequence[RunFolder],
) -> None:
    """Write the progress of a checkpoint whose other files are written, give it its name, and drop older ones."""
    tree = asdict(progress) | {
        "files": dict(files),
        "histories": {checkpoint_name(part, folder): part.history_seal() for part in parts or (folder,)},
        "run": folder.identity,
    }
    with writing(final):
        write_json(draft / _PROGRESS, {**tree, "seal": seal_of(tree)})
        draft.replace(final)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    forget_best(folder, [_best_step(path) for path in _steps(folder)])


def _best_step(path: Path) -> int:
    """The best step that a checkpoint names; 0 for a damaged one."""
    try:
        return int(read_json(path / _PROGRESS)["best_step"])
    except (UsageError, TypeError, KeyError, ValueError):
        return 0


@dataclass(frozen=True)
class SavedCheckpoint:
    """The newest sound checkpoint.

    Attributes:
        path: its folder; None if no step was saved yet.
        progress: steps taken, scores and time.
        histories: size in bytes of each folder's history; empty in checkpoints without checksums.
        files: names of its files of tensors.
        skipped: newer ones that are damaged, each with the reason.
    """

    path: Path | None = None
    progress: TrainState = field(default_factory=TrainState)
    histories: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = FILES
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
            return replace(saved, skipped=tuple(skipped))
    if skipped:
        raise UsageError(f"run {str(folder.path)!r} has no sound checkpoint: {', '.join(skipped)}{hint(folder)}")
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
            moments = read_tensors(saved.path, saved.files, module, accelerator.device)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UsageError(
                f"checkpoint {str(saved.path)!r} cannot be read: {cause_of(error)}{hint(folder)}"
            ) from None
        parameters = dict(module.named_parameters())
        for key, value in moments.items():
            name, _, what = key.rpartition("/")
            other = name in parameters and what in OF_EACH_WEIGHT and value.shape != parameters[name].shape
            if name not in parameters or other:
                raise UsageError(f"checkpoint {str(saved.path)!r} is of another student: {key!r}{hint(folder)}")
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
        check_best(folder, progress)
    sizes = {name: seal["bytes"] for name, seal in tree["histories"].items()}
    return SavedCheckpoint(path, progress, sizes, tuple(sorted(tree["files"])))


def _check_unsealed(folder: RunFolder, path: Path) -> None:
    """Check a checkpoint without checksums, which only older versions wrote."""
    begun = folder.begun
    if begun is not None and not begun.get("older", False):
        raise UsageError(f"{_PROGRESS} has no checksums")
    for name in FILES:
        try:
            with safe_open(path / name, "np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{name}: {cause_of(error)}") from None


def _check_files(path: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        if not (path / name).is_file():
            raise UsageError(f"{name} is missing")
        if hash_once(path / name) != digest:
            raise UsageError(f"{name} was changed")


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
