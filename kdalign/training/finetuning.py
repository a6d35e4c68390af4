"""Give a teacher without a head for the task one that knows it: fine-tune it first, and keep it for the next run."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kdalign.alignment.projections import Projections
from kdalign.data.batches import TokenizedSplit
from kdalign.data.tasks import ClassificationTask
from kdalign.environment import cache_folder
from kdalign.errors import UsageError
from kdalign.files import read_json, sha256, write_json, writing
from kdalign.models import checkpoint_files, loading
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.objective.objective import Objective
from kdalign.objective.terms import HardLabels
from kdalign.observer import Observer
from kdalign.recipe import FinetuneSettings, TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.learner import Learner
from kdalign.training.loop import train
from kdalign.training.task_trainer import Stage, TrainTask

KEY_VERSION = 2
"""Counts up when the same settings would fine-tune another teacher."""
_HASHES = "made.json"
"""SHA-256 of the weights of a teacher that is kept: one that is damaged is made once more."""


def finetune_teacher(
    checkpoint: Checkpoint,
    task: ClassificationTask,
    encoded: TokenizedSplit,
    settings: FinetuneSettings,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    bf16: bool,
    observer: Observer,
) -> tuple[PreTrainedModel, str]:
    """The checkpoint fine-tuned on the task with its labels, from the cache where it was made before.

    Args:
        checkpoint: without a head for the task.
        task: what to learn.
        encoded: its training examples.
        settings: how to train.
        tokenizer: saved beside it.
        accelerator: device and ranks.
        bf16: whether to train in bfloat16.
        observer: who watches.

    Returns:
        The model in float32, and a line for the record.
    """
    folder = cached_teacher_path(
        checkpoint, task, encoded, settings, accelerator.num_processes, accelerator.device.type, bf16
    )
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    # Of several runs that need the same teacher at the same time, one makes it and the others wait.
    with FileLock(f"{folder}.lock") if accelerator.is_main_process else nullcontext():
        [there] = broadcast_object_list([_is_whole(folder)])
        if there:
            observer.announce(f"teacher {checkpoint.name} was fine-tuned on {task.name} before: {folder}")
        else:
            observer.announce(
                f"teacher {checkpoint.name} has no head for {task.name}: fine-tuning it first "
                f"({settings.epochs:g} epochs of {len(encoded):,} examples), kept for the next run"
            )
            _make(folder, checkpoint, task, encoded, settings, tokenizer, accelerator, bf16, observer)
    model = loading.load_classifier(
        checkpoint_files.find_checkpoint(str(folder)), task, fresh_head=False, seed=settings.seed
    )
    return model, f"fine-tuned on {task.name}: {settings.epochs:g} epochs, lr {settings.lr:g}, seed {settings.seed}"


def _make(
    folder: Path,
    checkpoint: Checkpoint,
    task: ClassificationTask,
    encoded: TokenizedSplit,
    settings: FinetuneSettings,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    bf16: bool,
    observer: Observer,
) -> None:
    draft = RunFolder(folder.with_name(f"{folder.name}.unfinished"))
    if accelerator.is_main_process:
        with writing(draft.path):
            draft.path.mkdir(parents=True, exist_ok=True)
    model = loading.load_classifier(checkpoint, task, fresh_head=True, seed=settings.seed)
    order = loading.output_order(model.config, task)
    assert order is not None, "a fresh head is the task's"
    objective = Objective({"hard": (1.0, HardLabels(task.regression))})
    learner = Learner(model, Projections((), settings.seed), None, objective, order, bf16)
    accelerator.wait_for_everyone()
    course = TrainTask(task.name, learner, None, [Stage(0, objective)], encoded, draft)
    train(course, _train(settings), accelerator, observer, f"fine-tuning the teacher on {task.name}", True)
    if accelerator.is_main_process:
        with writing(folder):
            model.save_pretrained(draft.student)
            tokenizer.save_pretrained(draft.student)
            hashes = {file.name: sha256(file) for file in draft.student.glob("*.safetensors")}
            write_json(draft.student / _HASHES, hashes)
            shutil.rmtree(folder, ignore_errors=True)  # one that was damaged
            draft.student.replace(folder)
        shutil.rmtree(draft.path)
    accelerator.wait_for_everyone()


def _is_whole(folder: Path) -> bool:
    """Whether a teacher lies there as it was made; older versions wrote no hashes."""
    if not (folder / "config.json").is_file():
        return False
    try:
        hashes = read_json(folder / _HASHES) if (folder / _HASHES).is_file() else {}
        return all((folder / name).is_file() and sha256(folder / name) == made for name, made in hashes.items())
    except (UsageError, AttributeError):
        return False


def _train(settings: FinetuneSettings) -> TrainSettings:
    return TrainSettings(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
        seed=settings.seed,
    )


def cached_teacher_path(
    checkpoint: Checkpoint,
    task: ClassificationTask,
    encoded: TokenizedSplit,
    settings: FinetuneSettings,
    ranks: int,
    device: str,
    bf16: bool,
) -> Path:
    """Where a fine-tuned teacher is kept, whether it was made or not: by a hash of all that decides its weights.

    Args:
        checkpoint: without a head for the task.
        task: what it learns.
        encoded: its training examples.
        settings: how it is trained.
        ranks: processes that train it together.
        device: their kind, such as ``cpu``.
        bf16: whether it is trained in bfloat16.
    """
    content = {
        "version": KEY_VERSION,
        "teacher": checkpoint.hash,
        "config": checkpoint.config.to_dict(),
        "labels": task.labels,
        "tokens": encoded.columns,
        "answers": None if encoded.labels is None else encoded.labels.tolist(),
        "settings": settings.model_dump(),
        "ranks": ranks,
        "device": device,
        "bf16": bf16,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return cache_folder() / "teachers" / key
