"""Build a student out of its teacher's weights, freeze parts of it, and set its dropout."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from kdalign.data.token_matching import source_pieces
from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import (
    Layer,
    block_paths,
    blocks,
    embedding_weights,
    new_model,
    with_layers,
    with_tokenizer,
)
from kdalign.models.heads import auto_class, head_of_class
from kdalign.models.pruning import prune_width
from kdalign.models.student_spec import CutSpec


def copy_layers(teacher: PreTrainedModel, layers: Mapping[str, Sequence[int]]) -> PreTrainedModel:
    """Copy these teacher layers into a student with the teacher's embeddings and head, in float32.

    Parts that only a stack's first layer has (T5's relative positions) stay there.
    """
    with no_init_weights():  # every weight is copied
        student = _empty(teacher, with_layers(teacher.config, layers))
    source = teacher.state_dict()
    origins = {name: name for name in student.state_dict()}
    for stack, path in block_paths(student).items():
        for name in origins:
            if name.startswith(f"{path}."):
                number, _, rest = name.removeprefix(f"{path}.").partition(".")
                moved = f"{path}.{layers[stack][int(number)]}.{rest}"
                origins[name] = moved if moved in source else name
    student.load_state_dict({name: source[origin].to(torch.float32) for name, origin in origins.items()})
    student.tie_weights()
    return _with_generation_settings(teacher, student)


def _with_generation_settings(teacher: PreTrainedModel, student: PreTrainedModel) -> PreTrainedModel:
    """Give the student its teacher's settings for generation: end tokens, forced and suppressed ones."""
    if student.can_generate() and teacher.generation_config is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def build_student(
    teacher: PreTrainedModel,
    wanted: CutSpec,
    start: Mapping[str, Sequence[int]] | None,
    by: str,
    texts: Iterable[Mapping[str, Tensor]],
    seed: int,
) -> PreTrainedModel:
    """Build a student out of its teacher's weights, in float32.

    Args:
        teacher: the teacher, in float32.
        wanted: layers and sizes that are kept.
        start: teacher layers that are copied, by stack; None draws every weight by the seed.
        by: method of width pruning, one of ``pruning.METHODS``.
        texts: the teacher's inputs for a few texts, by which it is pruned.
        seed: seed of random weights.
    """
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _with_generation_settings(teacher, _empty(teacher, wanted.config(teacher.config)))
    # Pruned first: the importance of parts is measured best in the whole teacher.
    source = prune_width(teacher, wanted.narrowing, by, texts, seed) if wanted.narrows else teacher
    return _with_generation_settings(teacher, copy_layers(source, start))


def transfer_vocabulary(
    model: PreTrainedModel, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Exchange a model's vocabulary for another tokenizer's, everything else as it is.

    An entry starts as the mean of the entries that its text was split into (fast vocabulary transfer, Gee et al. 2022,
    arXiv:2402.09977, section 3.2); a special token, as the mean of all.
    """
    student = _empty(model, with_tokenizer(model.config, ours))
    larger = copy.deepcopy(model.config)
    larger.vocab_size += 1
    with torch.device("meta"):
        grown = _empty(model, larger).state_dict()
    pieces, source, target = source_pieces(ours, theirs), model.state_dict(), student.state_dict()
    for name in target:
        old = source[name].to(torch.float32)
        sizes = enumerate(zip(grown[name].shape, old.shape, strict=True))
        axis = next((number for number, (more, fewer) in sizes if more != fewer), None)
        if axis is None:
            target[name] = old
        else:  # it grows with the vocabulary
            old = old.movedim(axis, 0)
            rows = torch.stack([old[ids].mean(dim=0) if ids else old.mean(dim=0) for ids in pieces])
            target[name] = rows.movedim(0, axis)
    student.load_state_dict(target)
    student.tie_weights()
    return student


def with_dropout(model: PreTrainedModel, dropout: float | None) -> PreTrainedModel:
    """Set every dropout of a model, for training; None leaves its own.

    Models of speech also skip layers and mask frames at random, by generators that no seed of a step reaches. Both are
    switched off, as every layer is compared in each step.
    """
    if getattr(model.config, "layerdrop", None) is not None and hasattr(model.config, "apply_spec_augment"):
        model.config.layerdrop, model.config.apply_spec_augment = 0.0, False
    if dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
            for name, value in vars(module).items():  # BART, OPT, T5 and Llama keep a number, and call a function
                if "dropout" in name and isinstance(value, float | int) and not isinstance(value, bool):
                    setattr(module, name, dropout)
    return model


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    """Freeze parts of a model.

    Args:
        model: the student, which may be on the meta device.
        parts: ``embeddings``, ``head`` (all weights outside the body), ``encoder`` (all of an encoder-decoder's),
            ``layers=N``, ``layers=N-M``, or those of one stack, ``layers=STACK:N-M``. A head tied to the embeddings
            counts as theirs.

    Raises:
        UsageError: a part that is not there, or nothing is left to train.
    """
    layers = blocks(model)
    body = {id(parameter) for parameter in model.base_model.parameters()}
    for part in parts:
        name, _, numbers = part.partition("=")
        if name == "embeddings":
            found = embedding_weights(model)
        elif name == "head":
            found = [parameter for parameter in model.parameters() if id(parameter) not in body]
            if not found:
                raise UsageError("train.freeze=head: this student has no weights beside its body and embeddings")
        elif name == "encoder":
            if not model.config.is_encoder_decoder:
                raise UsageError("train.freeze=encoder is for encoder-decoders (accepted: embeddings, head, layers=N)")
            shared = {id(parameter) for parameter in model.get_decoder().parameters()}
            found = [parameter for parameter in model.get_encoder().parameters() if id(parameter) not in shared]
        else:
            named = _named(numbers, list(layers))
            kept = [layer for layer in layers if layer not in named]
            if any(layers[one] is layers[other] for one in named for other in kept):
                raise UsageError(f"train.freeze={part}: all layers of this student are one; name all or none")
            found = [parameter for layer in named for parameter in layers[layer].parameters()]
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"train.freeze={','.join(parts)} leaves nothing to train")
    return model


def _named(text: str, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers of ``N``, ``N-M`` or ``STACK:N-M``; without a stack's name, those of all stacks."""
    stack, _, numbers = text.rpartition(":")
    stacks = list(dict.fromkeys(layer.stack for layer in layers))
    if stack and stack not in stacks:
        raise unknown("stack", stack, stacks)
    first, _, last = numbers.partition("-")
    wanted = range(int(first), int(last or first) + 1)
    for name in [stack] if stack else stacks:
        there = [layer.number for layer in layers if layer.stack == name]
        if not wanted or max(wanted) not in there:
            raise UsageError(f"train.freeze=layers={text}: the student's {name} has layers 0 to {max(there)}")
    return [layer for layer in layers if layer.number in wanted and stack in ("", layer.stack)]


def _empty(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    return new_model(auto_class(head_of_class(type(teacher).__name__), config.model_type), config)
