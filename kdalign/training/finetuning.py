"""Fine-tune a teacher that has no head for the task, and cache it for the next run."""

import hashlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from transformers import PreTrainedModel

from kdalign.alignment.projections import Projections
from kdalign.data.input_reader import InputReader
from kdalign.data.tasks import ClassificationTask
from kdalign.data.tokenized_split import TokenizedSplit
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

KEY_VERSION = 3
"""Counts up when the same settings would fine-tune another teacher."""
_HASHES = "made.json"
"""SHA-256 of a cached teacher's files; a damaged teacher is fine-tuned again."""


@dataclass(frozen=True)
class FinetuneJob:
    """A teacher's fine-tuning: all that decides its weights.

    Attributes:
        checkpoint: without a head for the task.
        task: what to learn.
        encoded: the task's training examples.
        settings: optimizer and length.
        ranks: number of processes that train together.
        device: their kind, such as ``cpu``.
        bf16: true to train in bfloat16.
    """

    checkpoint: Checkpoint
    task: ClassificationTask
    encoded: TokenizedSplit
    settings: FinetuneSettings
    ranks: int
    device: str
    bf16: bool

    @property
    def key(self) -> str:
        """Hash of all that decides the teacher's weights."""
        content = {
            "version": KEY_VERSION,
            "teacher": self.checkpoint.hash,
            "config": self.checkpoint.config.to_dict(),
            "labels": self.task.labels,
            "tokens": self.encoded.fingerprint(),
            "answers": None if self.encoded.labels is None else self.encoded.labels.tolist(),
            "settings": self.settings.model_dump(),
            "ranks": self.ranks,
            "device": self.device,
            "bf16": self.bf16,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        """Folder of the fine-tuned teacher in the cache, whether it is there yet or not."""
        return cache_folder() / "teachers" / self.key

    def run(self, reader: InputReader, accelerator: Accelerator, observer: Observer) -> tuple[PreTrainedModel, str]:
        """Load the fine-tuned teacher from the cache, or fine-tune it first.

        Args:
            reader: the teacher's, saved with it.
            accelerator: device and ranks.
            observer: receives progress.

        Returns:
            The model in float32, and a line for the record.
        """
        path, name, task, settings = self.path, self.checkpoint.name, self.task, self.settings
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        # Of several runs that need the same teacher at the same time, one fine-tunes it and the others wait.
        with FileLock(f"{path}.lock") if accelerator.is_main_process else nullcontext():
            [cached] = broadcast_object_list([_is_intact(path)])
            if cached:
                observer.announce(f"teacher {name} fine-tuned on {task.name} is in the cache: {path}")
            else:
                observer.announce(
                    f"teacher {name} has no head for {task.name}: fine-tuning it first "
                    f"({settings.epochs:g} epochs of {len(self.encoded):,} examples), cached for the next run"
                )
                self._finetune(path, reader, accelerator, observer)
        cached_checkpoint = checkpoint_files.find_checkpoint(str(path))
        model = loading.load_classifier(cached_checkpoint, task, fresh_head=False, seed=settings.seed)
        return model, f"fine-tuned on {task.name}: {settings.epochs:g} epochs, lr {settings.lr:g}, seed {settings.seed}"

    def _finetune(self, path: Path, reader: InputReader, accelerator: Accelerator, observer: Observer) -> None:
        """Train in a draft folder, resuming what a stopped run left there, then move the teacher to its path."""
        draft = RunFolder(path.with_name(f"{path.name}.unfinished"))
        if accelerator.is_main_process:
            with writing(draft.path):
                draft.path.mkdir(parents=True, exist_ok=True)
        task, settings = self.task, self.settings
        model = loading.load_classifier(self.checkpoint, task, fresh_head=True, seed=settings.seed)
        order = loading.output_order(model.config, task)
        assert order is not None, "a fresh head is the task's"
        objective = Objective({"hard": (1.0, HardLabels(task.regression))})
        learner = Learner(model, Projections((), settings.seed), None, [objective], order, self.bf16)
        learner.keeps_statistics = True
        accelerator.wait_for_everyone()
        training = TrainTask(task.name, learner, None, [Stage(0, objective)], self.encoded, draft)
        what = f"fine-tuning the teacher on {task.name}"
        train(training, TrainSettings(**settings.model_dump()), accelerator, observer, what, resume=True)
        if accelerator.is_main_process:
            with writing(path):
                model.save_pretrained(draft.student)
                reader.save(draft.student)
                write_json(draft.student / _HASHES, _hash_files(draft.student))
                shutil.rmtree(path, ignore_errors=True)  # a damaged one
                draft.student.replace(path)
            shutil.rmtree(draft.path)
        accelerator.wait_for_everyone()


def _hash_files(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != _HASHES}


def _is_intact(folder: Path) -> bool:
    """Return whether a teacher is cached, with all files as they were written."""
    try:
        return (folder / _HASHES).is_file() and bool(read_json(folder / _HASHES) == _hash_files(folder))
    except (OSError, UsageError):
        return False
