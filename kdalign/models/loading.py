"""Load checkpoints from the hub or a folder: safetensors only, no remote code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
)

from kdalign.data.tasks import ClassificationTask
from kdalign.data.tasks.labels import label_order
from kdalign.errors import UsageError, library_errors
from kdalign.models.architecture import (
    attention_of,
    layout_of,
    meta_model,
    new_model,
)
from kdalign.models.checkpoint_files import SOUND_NAME, Checkpoint, describe_config, is_local, quiet_transformers
from kdalign.models.gguf_files import load_gguf_model
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, auto_class, head_of
from kdalign.models.weight_checks import LoadReport, check_complete, check_finite, check_numbers


@contextmanager
def without_storage() -> Iterator[None]:
    """Inside, checkpoints are loaded and models are built as shapes alone, on the meta device: no tensor is read."""
    with torch.device("meta"):
        yield


def _stores_nothing() -> bool:
    return torch.get_default_device().type == "meta"


def check_head(checkpoint: Checkpoint, task: ClassificationTask) -> None:
    """Refuse a classification head for other labels than the task's, before any weights are loaded."""
    if output_order(checkpoint.config, task) is None:
        names = [checkpoint.config.id2label[i] for i in range(checkpoint.config.num_labels)]
        wanted = ", ".join(task.labels) or "one score"
        mend = _label_mend(list(map(str, names)), task)
        raise UsageError(
            f"model {checkpoint.name!r} has a head for {', '.join(map(str, names))}; "
            f"task {task.name!r} has {wanted}{mend}"
        )


def _label_mend(names: list[str], task: ClassificationTask) -> str:
    """Say how to mend a head with other label names than the task's; empty if it is for another task."""
    if task.order_unknown:
        return "; name the labels in the model's order in a task file"
    if task.labels and len(names) == len(task.labels):
        return (
            f"; which of them is which is not known: name id2label in config.json by the task's labels, each with the "
            f'number of its output, such as {{"0": {json.dumps(task.labels[0])}, ...}}'
        )
    return ""


def has_several_labels(config: PretrainedConfig) -> bool:
    """Return whether a head is for several labels a text, each with a probability of its own."""
    return bool(config.problem_type == "multi_label_classification")


def output_order(config: PretrainedConfig, task: ClassificationTask) -> tuple[int, ...] | None:
    """Match each of the task's outputs with the number of the model's output; None if they do not match."""
    if task.regression:
        return (0,) if config.num_labels == 1 else None
    return label_order([str(config.id2label[number]) for number in range(config.num_labels)], task)


def load_classifier(
    checkpoint: Checkpoint, task: ClassificationTask, *, fresh_head: bool, seed: int
) -> PreTrainedModel:
    """Load a checkpoint as a classifier (or regressor) for a task.

    Args:
        checkpoint: the model.
        task: its labels name the outputs of a fresh head.
        fresh_head: put a new random head on it; otherwise the head must be in the weights.
        seed: seed of the new head.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    config = with_task_head(checkpoint.config, task) if fresh_head else checkpoint.config
    auto = auto_class(HeadKind.CLASSIFIER, config.model_type)
    loaded = _load(auto, checkpoint, config, seed)
    check_complete(checkpoint, loaded, fresh_head)
    return check_finite(_with_fresh_head(loaded.model, seed) if fresh_head else loaded.model, checkpoint)


def load_language_model(checkpoint: Checkpoint, *, fresh_head: bool = False, seed: int = 0) -> PreTrainedModel:
    """Load a checkpoint with its family's language-model head.

    Args:
        checkpoint: the model.
        fresh_head: put a new random head on a body without one; otherwise the head must be in the weights.
        seed: seed of the new head.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    if checkpoint.gguf is not None:
        return check_finite(_load_gguf(checkpoint), checkpoint)
    auto = auto_class(LANGUAGE_HEADS[layout_of(checkpoint.config).family], checkpoint.config.model_type)
    loaded = _load(auto, checkpoint, checkpoint.config, seed)
    check_complete(checkpoint, loaded, fresh_head)
    return check_finite(loaded.model, checkpoint)


def load_body(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint without any head, in float32.

    Raises:
        UsageError: the weights are unreadable, or lack what the configuration promises.
    """
    loaded = _load(auto_class(HeadKind.NONE, checkpoint.config.model_type), checkpoint, checkpoint.config)
    check_complete(checkpoint, loaded, False)
    return check_finite(loaded.model, checkpoint)


def check_weights(checkpoint: Checkpoint, head: HeadKind, *, fresh_head: bool = False) -> None:
    """Refuse weights that cannot be loaded under a head, or that hold NaN, without keeping them in memory.

    Names and shapes are read from the headers, values one tensor at a time. Weights on the hub that are not cached yet
    are checked once they are loaded.

    Args:
        checkpoint: the model.
        head: the head that answers.
        fresh_head: True for a new head; otherwise it must be in the weights.

    Raises:
        UsageError: the weights lack what the configuration promises, have it in another shape, or hold NaN.
    """
    if checkpoint.gguf is not None or not is_local(checkpoint):
        return
    of = f"{checkpoint.path} {checkpoint.hash} {describe_config(checkpoint.config)}"
    if (of, head, fresh_head) not in SOUND_NAME:
        loaded = _load(auto_class(head, checkpoint.config.model_type), checkpoint, checkpoint.config, device="meta")
        check_complete(checkpoint, loaded, fresh_head)
        SOUND_NAME.add((of, head, fresh_head))
    if of not in SOUND_NAME:
        check_numbers(checkpoint)
        SOUND_NAME.add(of)


def _load(
    auto: Any,
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    seed: int = 0,
    device: str | None = None,
) -> LoadReport:
    """Load a checkpoint's model in float32, missing weights drawn by the seed. On the meta device no tensor is read."""
    device = "meta" if _stores_nothing() else device
    place = {} if device is None else {"device_map": device}
    with (
        library_errors(f"cannot load the weights of {checkpoint.name!r}"),
        quiet_transformers(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(seed)
        model, report = auto.from_pretrained(
            checkpoint.path,
            config=config,
            revision=checkpoint.revision,
            dtype=torch.float32,
            attn_implementation=attention_of(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, with their names
            **place,
        )
    _freeze_fixed(model)
    shapes = {name: (tuple(held), tuple(asked)) for name, held, asked in report["mismatched_keys"]}
    missing = {*report["missing_keys"], *shapes}
    return LoadReport(model, tuple(sorted(missing)), tuple(sorted(report["unexpected_keys"])), shapes)


def _freeze_fixed(model: PreTrainedModel) -> None:
    """Keep computed positions from being trained, as in a new model: loading makes parameters of them."""
    for path in layout_of(model.config).fixed:
        model.base_model.get_submodule(path).requires_grad_(False)


def _load_gguf(checkpoint: Checkpoint) -> PreTrainedModel:
    assert checkpoint.gguf_file is not None
    if _stores_nothing():
        return meta_model(checkpoint.config, head=LANGUAGE_HEADS[layout_of(checkpoint.config).family])
    auto = auto_class(LANGUAGE_HEADS[layout_of(checkpoint.config).family], checkpoint.config.model_type)
    with library_errors(f"cannot load the weights of {checkpoint.name!r}"), quiet_transformers():
        return load_gguf_model(checkpoint.gguf_file, auto, checkpoint.config, attention_of(checkpoint.config))


def _with_fresh_head(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Put a head drawn by the seed on the same encoder, even if the checkpoint's head would fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = new_model(auto_class(HeadKind.CLASSIFIER, model.config.model_type), model.config)
    fresh.base_model.load_state_dict(model.base_model.state_dict())
    return fresh


def load_any(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load a checkpoint with the head it has, or none, in float32, for measuring.

    Raises:
        UsageError: the weights are unreadable.
    """
    if checkpoint.gguf is not None:
        return _load_gguf(checkpoint)
    loaded = _load(auto_class(head_of(checkpoint.config), checkpoint.config.model_type), checkpoint, checkpoint.config)
    check_complete(checkpoint, loaded, False)
    return loaded.model


def round_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round a model's weights to a precision, in place, as Transformers does on loading.

    Buffers that are not saved, such as the frequencies of rotary positions, stay as they are: rounded to bfloat16, a
    frequency is wrong by up to 0.4 %, and an angle by that much of a position that may be in the thousands.
    """
    kept = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if name in module._non_persistent_buffers_set
    ]
    model.to(dtype=dtype)
    for module, name, buffer in kept:
        module._buffers[name] = buffer
    return model


def with_task_head(config: PretrainedConfig, task: ClassificationTask) -> PretrainedConfig:
    """Copy a configuration, with the task's head."""
    tree = config.to_dict()
    for key in (
        "num_labels",
        "id2label",
        "label2id",
        "problem_type",
        "architectures",
        "dtype",
        "torch_dtype",
    ):
        tree.pop(key, None)
    labels = task.labels or (task.label,)
    changed = type(config).from_dict(tree)
    changed.num_labels = task.outputs
    changed.id2label = dict(enumerate(labels))
    changed.label2id = {label: number for number, label in enumerate(labels)}
    changed.problem_type = "regression" if task.regression else "single_label_classification"
    return changed
