"""Checks of loaded weights: all there, none new, none NaN."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from kdalign.errors import UsageError, library_errors
from kdalign.models.architecture import block_paths, first_non_finite
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.weight_files import weight_files


def check_numbers(checkpoint: Checkpoint) -> None:
    """Refuse a folder whose weights hold NaN or infinity; those in the hub's cache are checked once loaded."""
    if checkpoint.revision is not None:
        return
    for file in weight_files(Path(checkpoint.path), checkpoint.name):
        with library_errors(f"cannot read the weights of {checkpoint.name!r}"), safe_open(file, "pt") as opened:
            for name in opened.keys():  # a safetensors file is not a dictionary
                tensor = opened.get_tensor(name)
                if tensor.dtype in _CHECKED and not bool(tensor.isfinite().all()):
                    raise _no_numbers(checkpoint, name)


_CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_finite(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """Return a model if all its weights are finite, as those of shapes alone are.

    Raises:
        UsageError: the first weight that is not.
    """
    bad = "" if model.device.type == "meta" else first_non_finite(model)
    if bad:
        raise _no_numbers(checkpoint, bad)
    return model


def _no_numbers(checkpoint: Checkpoint, weight: str) -> UsageError:
    return UsageError(
        f"model {checkpoint.name!r} gives NaN: its weight {weight!r} holds NaN or infinite numbers (a training that "
        f"diverged, or a damaged file); take another checkpoint"
    )


@dataclass(frozen=True)
class LoadReport:
    """A model, and Transformers' report on the names in its weights.

    Attributes:
        missing: parameters that the weights lack, or have in another shape.
        unexpected: names in the weights that the model has no place for.
        shapes: shapes in the weights and in the configuration, if they differ.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def check_complete(checkpoint: Checkpoint, loaded: LoadReport, fresh_head: bool) -> None:
    """Refuse a model with parts that would start from random weights.

    Args:
        checkpoint: the model's checkpoint.
        loaded: the model, with the report.
        fresh_head: True if its head may be new; its body and embeddings may not.
    """
    name, model = checkpoint.name, loaded.model
    missing = [each for each in loaded.missing if not _may_be_new(each, model, fresh_head)]
    if not missing:
        _check_all_layers(name, loaded)
        return
    if missing[0] in loaded.shapes:
        held, asked = loaded.shapes[missing[0]]
        raise UsageError(
            f"the weights of {name!r} are not those of its configuration: {missing[0]!r} has the shape {held} there, "
            f"and {asked} is asked for"
        )
    other = next((name for name in loaded.unexpected if name.endswith(f".{missing[0]}")), None)
    if other is not None:
        before = other.removesuffix(missing[0])
        saved = "saved from a compiled model" if before == "_orig_mod." else "saved from inside another module"
        raise UsageError(
            f"the weights of {name!r} have {before!r} before every name ({saved}): "
            f"save them without it, such as {missing[0]!r}"
        )
    of_all = " all" if len(missing) == len(model.state_dict()) else ""
    raise UsageError(
        f"the weights of {name!r} lack{of_all} {len(missing):,} tensors of a {checkpoint.config.model_type} "
        f"model, such as {missing[0]!r}, which would start at random"
    )


def _may_be_new(parameter: str, model: PreTrainedModel, fresh_head: bool) -> bool:
    """Return whether a parameter may be random: of a pooler that nothing reads, or of a new head."""
    if model.base_model is model:
        return parameter.startswith("pooler.")
    return fresh_head and (".pooler." in parameter or not parameter.startswith(f"{model.base_model_prefix}."))


def _check_all_layers(name: str, loaded: LoadReport) -> None:
    """Refuse weights of more layers than the configuration has, which would be dropped silently."""
    for path in block_paths(loaded.model).values():
        numbers = [
            int(found[1])
            for each in loaded.unexpected
            if (found := re.search(rf"(?:^|\.){re.escape(path)}\.(\d+)\.", each)) is not None
        ]
        layers = len(list(loaded.model.get_submodule(path).children()))
        if numbers and max(numbers) >= layers:
            raise UsageError(
                f"the weights of {name!r} have {max(numbers) + 1} layers, and its configuration {layers}: correct "
                "config.json (kdalign cuts a model itself: --student layers=N)"
            )
