"""Choose the source of what a run's teacher says, by the door in ``teachers``."""

import torch
from accelerate import Accelerator

from kdalign.distillation.load import LoadedModels
from kdalign.distillation.tokenize import OpenedRun
from kdalign.teachers.computed import ComputedTeacher


def computed_teacher(loaded: LoadedModels, accelerator: Accelerator) -> ComputedTeacher | None:
    """Return the teacher whose weights are loaded, at the precision of training; None without a teacher."""
    if loaded.teacher is None:
        return None
    model, rounded = loaded.teacher.model, product_dtype(loaded.opened) or torch.float32
    return ComputedTeacher(model, loaded.opened.run.adapter.output_order(model), rounded, accelerator.device)


def product_dtype(opened: OpenedRun) -> torch.dtype | None:
    """Return the precision of the largest matrix products; None for float32."""
    return torch.bfloat16 if opened.bf16 else None
