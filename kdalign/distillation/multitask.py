"""Multi-task distillation: one student with a shared body and a head for each task.

After Clark et al. 2019 (BAM!, arXiv:1907.04829, section 3): a teacher for each task teaches one student, whose steps
alternate between the tasks.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.data.epochs import steps_per_epoch
from kdalign.data.tasks.holdout import count_leaks
from kdalign.distillation.build import build_task
from kdalign.distillation.cache_size import check_cache_room
from kdalign.distillation.export import ExportOptions, export_student
from kdalign.distillation.load import LoadedModels, load
from kdalign.distillation.prepare import PreparedRun
from kdalign.distillation.tokenize import begin_folder, open_run
from kdalign.environment import reset_peak_memory
from kdalign.errors import UsageError
from kdalign.files import atomic_file, write_json
from kdalign.observer import Observer
from kdalign.recipe import PRETRAINED, MultiTask, Recipe
from kdalign.runs.folder import RunFolder
from kdalign.runs.integrity import read_whole
from kdalign.runs.record import RunRecord
from kdalign.stopwatch import Stopwatch
from kdalign.training.loop import Trainer
from kdalign.training.trackers import start_trackers

BLOCK = 32
"""Steps after which each task has had its share."""
_BODY, _HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sampling_probabilities(examples: Sequence[int], settings: MultiTask) -> Float[np.ndarray[Any, Any], "tasks"]:
    r"""Sampling probability of each task, from its number of training examples.

    .. math:: p_i = n_i^{1/T} / \sum_j n_j^{1/T}

    T is 1 if tasks are sampled by size, infinite if they are sampled equally. Raffel et al. 2020,
    arXiv:1910.10683, section 3.5.2, there with a limit on n; Clark et al. 2019, arXiv:1907.04829, take T = 4/3.
    """
    power = {"size": 1.0, "equal": 0.0, "temperature": 1 / settings.temperature}[settings.sampling]
    weights = np.asarray(examples, dtype=np.float64) ** power
    return np.asarray(weights / weights.sum())


def task_schedule(
    shares: Float[np.ndarray[Any, Any], "tasks"], seed: int, steps: int
) -> Int[np.ndarray[Any, Any], "steps"]:
    """The task of each step, by number: a function of (seed, step), the same on all ranks.

    Stratified sampling: the unit interval is divided into ``BLOCK`` equal parts, and each step of a block draws from
    another part, in random order. So every step has these probabilities, and a task has its share of every block, give
    or take a step or two.
    """
    generator = np.random.default_rng([seed, 0, 1])
    # Block by block, so that a longer run starts with the turns of a shorter one.
    blocks = [generator.permutation(BLOCK) + generator.random(BLOCK) for _ in range(-(-steps // BLOCK))]
    drawn = np.concatenate(blocks)[:steps] / BLOCK
    return np.minimum(np.searchsorted(np.cumsum(shares), drawn, side="right"), len(shares) - 1)


@dataclass(frozen=True)
class TaskMixture:
    """Distribution of steps over tasks.

    Attributes:
        examples: number of training examples, by task.
        shares: sampling probabilities, by task.
        turns: number of each step's task.
    """

    examples: Mapping[str, int]
    shares: Mapping[str, float]
    turns: tuple[int, ...]

    def steps(self, after: float = 0.0) -> dict[str, int]:
        """Steps of each task, from this share of all steps on."""
        counts = np.bincount(self.turns[round(after * len(self.turns)) :], minlength=len(self.examples))
        return dict(zip(self.examples, counts.tolist(), strict=True))


def plan_mixture(runs: Sequence[PreparedRun]) -> TaskMixture:
    """Distribute the steps of one student over its tasks; without ``max_steps`` they are epochs of all examples."""
    recipe, sizes = runs[0].recipe, [run.an_epoch for run in runs]
    train = recipe.train
    epoch = sum(steps_per_epoch(np.zeros(size), train.batch_size) for size in sizes)
    shares = sampling_probabilities(sizes, recipe.multi_task)
    turns = task_schedule(shares, train.seed, train.max_steps or max(1, round(train.epochs * epoch)))
    names = [run.task.name for run in runs]
    return TaskMixture(
        dict(zip(names, sizes, strict=True)), dict(zip(names, shares.tolist(), strict=True)), tuple(turns.tolist())
    )


def check_together(runs: Sequence[PreparedRun]) -> None:
    """Refuse a mixture in which a task's head is never trained.

    Raises:
        UsageError: the task, and what can be done.
    """
    mixture = plan_mixture(runs)
    for run in runs:
        after = run.recipe.objective.stages[-1][0]
        if not mixture.steps(after)[run.task.name]:
            which = f"{len(mixture.turns):,} steps" + (" in which its head is trained" if after else "")
            raise UsageError(
                f"task {run.task.name!r} would get none of the {which}: train for longer, or sample tasks more "
                f"evenly (multi_task.sampling=equal)"
            )


def find_leaks(runs: Sequence[PreparedRun]) -> list[str]:
    """Find texts that one task is scored on and another is trained on, a line for each split and other task.

    The lines are announced and kept in the records. Texts of the task's own training set are found by ``preflight``.
    """
    splits = [(run, name, split) for run in runs for name, split in run.splits.reported.items()]
    texts = [split for _, _, split in splits]
    counts = {other.task.name: count_leaks(texts, other.splits.train) for other in runs}
    leaks = []
    for number, (run, name, split) in enumerate(splits):
        of = f"of the {len(split):,} texts of {run.task.name}, {name}, are in the training text of"
        found = [(seen[number], other) for other, seen in counts.items() if other != run.task.name]
        leaks += [f"{seen:,} {of} {other}" for seen, other in found if seen]
    return leaks


def distill_together(
    runs: Sequence[PreparedRun],
    recipe: Recipe,
    group: RunFolder,
    accelerator: Accelerator,
    observer: Observer,
    resume: bool,
    watch: Stopwatch,
) -> list[RunRecord]:
    """Train one student on all tasks; return each task's record, from a folder of its own below ``group``.

    Args:
        runs: one per task, checked.
        recipe: recipe of all tasks.
        group: folder of checkpoints and log.
        accelerator: device and ranks.
        observer: receives progress.
        resume: continue a run that stopped.
        watch: counts seconds by phase.
    """
    if resume and all(run.folder.complete for run in runs):
        records = [read_whole(run.folder.path) for run in runs]
        observer.announce(f"the student of {len(runs)} tasks is finished already: {group.path}")
        return records
    main = accelerator.is_main_process
    watch.begin("tokenizing")
    reset_peak_memory(accelerator.device)
    ready = [open_run(run, accelerator) for run in runs]
    for opened in ready:
        check_cache_room(opened)
    mixture = plan_mixture(runs)
    if main:
        inputs = {f"{run.task.name} {key}": value for run in runs for key, value in run.inputs.items()}
        group.begin(recipe.dump(), inputs, resume)
    accelerator.wait_for_everyone()
    loaded = [load(part, accelerator, begin_folder(part, accelerator, observer, resume), watch) for part in ready]
    watch.begin("aligning")
    tie_bodies([part.student for part in loaded], _origin(recipe))
    tasks = []
    for part in loaded:
        part.source += f", shared by {', '.join(mixture.examples)}"
        logged = observer.into(part.opened.run.folder.log) if main else observer
        tasks.append(build_task(part, accelerator, logged, resume))
    observer = observer.into(group.log) if main else observer
    observer.announce(f"one student for {len(runs)} tasks: {_describe(mixture)}")
    for line in (leaks := find_leaks(runs)):
        observer.announce(f"leak: {line}")
    what = f"{'distilling' if recipe.has_teacher else 'training'} {len(runs)} tasks"
    watch.begin("training")
    trainer = Trainer(tasks, mixture.turns, ready[0].recipe.train, accelerator, group, observer)
    progress = trainer.train(what, resume, partial(start_trackers, accelerator, recipe))
    for tracker in accelerator.trackers:
        tracker.finish()
    facts = {
        "multi_task": _facts(recipe, mixture, loaded) | {"seconds": progress.seconds, "leaks": leaks},
        "parallelism": progress.parallelism,  # of the steps of all tasks
    }
    records = []
    for part, task in zip(loaded, tasks, strict=True):
        first = None if part is loaded[0] else tasks[0].folder.student / _BODY
        options = ExportOptions(partial(export_with_body, body=first), facts)
        logged = observer.into(task.folder.log) if main else observer
        spent = progress.of(task.name)
        records.append(export_student(part, task, spent, accelerator, logged, options))
    return records


def tie_bodies(students: Sequence[PreTrainedModel], origin: int = 0) -> None:
    """Let all models share the body of one of them: everything but the head."""
    body = students[origin].base_model
    assert body is not students[origin], "a classifier is a head on a body"
    for model in students:
        setattr(model, model.base_model_prefix, body)


def export_with_body(model: PreTrainedModel, folder: Path, *, body: Path | None) -> None:
    """Write a model as a stock checkpoint in two shards, its body and its head.

    Args:
        model: the model, in float32.
        folder: where to write.
        body: the shard of another model with the same body, to make a hard link to, so that every folder is whole by
            itself and the body is on disk once; it is copied where the file system has no links.
    """
    shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left files with links to them
    model.save_pretrained(folder)
    single = folder / "model.safetensors"
    tensors = load_file(single)
    shards: dict[str, dict[str, Tensor]] = {_BODY: {}, _HEAD: {}}
    for name, tensor in tensors.items():
        shards[_BODY if name.startswith(f"{model.base_model_prefix}.") else _HEAD][name] = tensor
    for name, held in shards.items():
        if name == _BODY and body is not None:
            _link(body, folder / name)
            continue
        with atomic_file(folder / name) as temporary:
            save_file(held, temporary, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})
    single.unlink()


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _origin(recipe: Recipe) -> int:
    """The number of the task whose student's body all tasks share: the first, unless one is named."""
    named = recipe.multi_task.body_from
    return 0 if named == PRETRAINED else recipe.data.task.index(named)


def _describe(mixture: TaskMixture) -> str:
    steps = mixture.steps()
    return ", ".join(
        f"{name} {100 * share:.1f} % (steps: {steps[name]:,}; examples: {mixture.examples[name]:,})"
        for name, share in mixture.shares.items()
    )


def _facts(recipe: Recipe, mixture: TaskMixture, loaded: Sequence[LoadedModels]) -> dict[str, Any]:
    """Facts about the whole for each task's record; the body is counted once, with all heads."""
    parameters = {parameter for part in loaded for parameter in part.student.parameters()}
    settings, steps = recipe.multi_task, mixture.steps()
    return {
        "sampling": settings.sampling,
        "temperature": settings.temperature if settings.sampling == "temperature" else None,
        "body_from": settings.body_from,
        "tasks": {
            name: {"examples": size, "share": mixture.shares[name], "steps": steps[name]}
            for name, size in mixture.examples.items()
        },
        "parameters": sum(parameter.numel() for parameter in parameters),
        "megabytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e6,
        "steps": len(mixture.turns),
    }
