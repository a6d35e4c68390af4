"""Choose the source of a run's teacher: weights in memory, a cache, or a server."""

import gc
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from kdalign.alignment.plan import Plan
from kdalign.distillation.checks import shards
from kdalign.distillation.load import LoadedModels
from kdalign.distillation.several_teachers import mixing_of
from kdalign.distillation.teacher_cache import use_cache
from kdalign.distillation.tokenize import OpenedRun
from kdalign.environment import trim_heap
from kdalign.objective.checks import check_teacher
from kdalign.objective.objective import Objective
from kdalign.observer import Observer
from kdalign.teachers.base import Teacher
from kdalign.teachers.computed import ComputedTeacher
from kdalign.teachers.several import SeveralTeachers


def computed_teacher(loaded: LoadedModels, accelerator: Accelerator) -> ComputedTeacher | SeveralTeachers | None:
    """Bring the teachers whose weights are loaded to the precision of training; None without a teacher."""
    run, rounded = loaded.opened.run, product_dtype(loaded.opened) or torch.float32
    # Ranks that fill a cache read other rows, one more than another.
    sharded = shards(run.recipe) and run.recipe.cache.folder is None
    computed = [
        ComputedTeacher(
            teacher.model, run.adapter.output_order(teacher.model), rounded, accelerator.device, sharded, teacher.shapes
        )
        for teacher in loaded.teachers
    ]
    loaded.teachers = tuple(
        replace(teacher, model=brought.model, shapes=None)
        for teacher, brought in zip(loaded.teachers, computed, strict=True)
    )
    if sharded:  # the models in float32 are in circles of references
        gc.collect()
        trim_heap()
    if len(computed) > 1:
        return SeveralTeachers(tuple(computed), mixing_of(run.recipe))
    return computed[0] if computed else None


def training_teacher(
    loaded: LoadedModels,
    computed: ComputedTeacher | SeveralTeachers | None,
    served: Teacher | None,
    objectives: Sequence[Objective],
    plan: Plan | None,
    accelerator: Accelerator,
    observer: Observer,
) -> Teacher | None:
    """Return the teacher of the training loop: the computed one, or one that reads kept outputs.

    Args:
        loaded: both models.
        computed: teacher whose weights are loaded; None for one behind an API, or without a teacher.
        served: teacher behind an API, whose answers are kept.
        objectives: objective of each stage.
        plan: layers that are compared.
        accelerator: device and ranks.
        observer: receives progress.

    Raises:
        UsageError: a term asks for what the teacher cannot give, and which one could.
    """
    teacher: Teacher | None = computed if computed is not None else served
    if teacher is None:
        return None
    cached = loaded.opened.recipe.cache.folder is not None
    if isinstance(computed, ComputedTeacher) and loaded.teacher is not None and cached:
        weights = loaded.teacher.weights
        teacher = use_cache(loaded.opened, computed, weights, objectives, plan, accelerator, observer) or computed
    for objective in objectives:
        check_teacher(objective, teacher, plan, samples=loaded.opened.recipe.on_policy.share > 0)
    return teacher


def product_dtype(opened: OpenedRun) -> torch.dtype | None:
    """Return the precision of the largest matrix products; None for float32."""
    return torch.bfloat16 if opened.bf16 else None
