"""The student: cut out of the teacher, or a checkpoint of its own; its weights are float32."""

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from kdalign.alignment import choose_layers
from kdalign.architecture import describe, layout_of, with_layers
from kdalign.errors import UsageError


def layers_of_cut(student: str, teacher_layers: int) -> int | None:
    """The number of layers that ``layers=N`` or ``layers=half`` asks for; None where the student is a checkpoint.

    Raises:
        UsageError: not a number of layers that the teacher has.
    """
    if not student.startswith("layers="):
        if re.fullmatch(r"layers?\s*[=:]?\s*\w*", student):
            raise UsageError(f"--student {student!r}; did you mean 'layers=N', N of the teacher's, or 'layers=half'?")
        return None
    word = student.removeprefix("layers=")
    if word == "half":
        return max(1, teacher_layers // 2)
    if not re.fullmatch(r"\d+", word) or not 1 <= int(word) <= teacher_layers:
        raise UsageError(f"--student {student!r}: accepted are layers=1 to layers={teacher_layers}, or layers=half")
    return int(word)


def starting_layers(init: str, student: int, teacher: int) -> tuple[int, ...] | None:
    """The teacher layers that a cut student starts from; None for ``random``."""
    return None if init == "random" else choose_layers(init, student, teacher, ("random",))


def cut(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """A student made of these teacher layers, with the teacher's embeddings and head, in float32."""
    student = _empty(teacher, len(layers))
    blocks = f"{teacher.base_model_prefix}.{layout_of(teacher.config).blocks}."
    source = teacher.state_dict()
    state: dict[str, Tensor] = {}
    for name in student.state_dict():
        origin = name
        if name.startswith(blocks):
            number, _, rest = name.removeprefix(blocks).partition(".")
            origin = f"{blocks}{layers[int(number)]}.{rest}"
        state[name] = source[origin].to(torch.float32)
    student.load_state_dict(state)
    return student


def at_random(teacher: PreTrainedModel, layers: int, seed: int) -> PreTrainedModel:
    """A student of the teacher's width and so many layers, every weight drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _empty(teacher, layers)


def with_dropout(model: PreTrainedModel, dropout: float | None) -> PreTrainedModel:
    """Set every dropout of a model, for training; None leaves its own."""
    if dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
    return model


def _empty(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    config = with_layers(copy.deepcopy(teacher.config), layers)
    assert describe(config).stacks[0].layers == layers
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
