"""The student: cut out of the teacher, or a checkpoint of its own; its weights are float32."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from kdalign.alignment.layer_maps import choose_layers
from kdalign.data.token_matching import spelled
from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import (
    Architecture,
    Layer,
    Stack,
    attention_of,
    auto_class,
    block_paths,
    blocks,
    embedding_weights,
    head_of_class,
    skeleton,
    with_layers,
    with_tokenizer,
)
from kdalign.models.pruning import Narrowing, narrow, narrow_config


@dataclass(frozen=True)
class Cut:
    """What a student that is made out of its teacher keeps: so many layers of each stack, and their sizes."""

    layers: Mapping[str, int]
    narrowing: Narrowing = field(default_factory=Narrowing)

    @property
    def narrows(self) -> bool:
        """Whether any size is asked for."""
        return self.narrowing != Narrowing()

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """The student's configuration.

        Raises:
            UsageError: a size that the family cannot have.
        """
        config = with_layers(teacher, {stack: range(number) for stack, number in self.layers.items()})
        return narrow_config(config, self.narrowing) if self.narrows else config


_SIZES = tuple(size.name for size in fields(Narrowing))


def is_cut(student: str) -> bool:
    """Whether a student is described as a cut of its teacher, such as ``layers=3`` or ``layers=half,width=192``."""
    return student.partition("=")[0] in ("layers", *_SIZES) and "=" in student


def cut_of(student: str, teacher: Architecture) -> Cut | None:
    """The cut that ``--student`` describes; None where the student is a checkpoint or new.

    ``layers=3`` and ``layers=half`` cut every stack, ``layers=encoder:4,decoder:2`` one by one; ``width``, ``heads``,
    ``kv_heads`` and ``feed_forward`` make what is left narrower.

    Raises:
        UsageError: not a number of layers that the teacher has, or an unknown size.
    """
    if not is_cut(student):
        if re.fullmatch(r"layers?\s*[=:]?\s*\w*", student):
            raise UsageError(f"--student {student!r}; did you mean 'layers=N', N of the teacher's, or 'layers=half'?")
        return None
    given: dict[str, str] = {}
    for part in re.split(r",(?=\w+=)", student):
        key, _, value = part.partition("=")
        if key not in ("layers", *_SIZES):
            raise unknown(f"part of --student {student!r}:", key, ("layers", *_SIZES))
        if key in given:
            raise UsageError(f"--student {student!r} gives {key} twice")
        given[key] = value
    for key in _SIZES:
        if key in given and not re.fullmatch("[1-9][0-9]{0,6}", given[key]):
            raise UsageError(f"--student {student!r}: {key} is a whole number from 1 to 9999999")
    wanted = given.pop("layers", "")
    words = {stack.name: wanted or str(stack.layers) for stack in teacher.stacks}
    if ":" in wanted:
        parts = [part.partition(":")[::2] for part in wanted.split(",")]
        chosen = dict(parts)
        if set(chosen) != set(words) or len(chosen) < len(parts):
            raise UsageError(f"--student {student!r}: name every stack once ({', '.join(words)})")
        words = chosen
    layers = {stack.name: _number(student, words[stack.name], stack) for stack in teacher.stacks}
    return Cut(layers, Narrowing(**{key: int(value) for key, value in given.items()}))


def _number(student: str, word: str, stack: Stack) -> int:
    if word == "half":
        return max(1, stack.layers // 2)
    if not re.fullmatch(r"[0-9]{1,9}", word) or not 1 <= int(word) <= stack.layers:
        raise UsageError(
            f"--student {student!r}: accepted are layers=1 to layers={stack.layers} ({stack.name}), or layers=half"
        )
    return int(word)


def starting_layers(init: str, layers: Mapping[str, int], teacher: Architecture) -> dict[str, tuple[int, ...]] | None:
    """For each stack, the teacher layers that a cut student starts from; None for ``random``."""
    if init == "random":
        return None
    return {
        name: choose_layers(init, number, teacher.stack(name).layers, ("random",)) for name, number in layers.items()
    }


def check_cut(config: PretrainedConfig, layers: Mapping[str, Sequence[int]]) -> None:
    """Refuse to move a layer to a place where the family's layers are made of other parts, before weights load.

    ModernBERT's first layer has no norm before its attention; some mixtures of experts begin with layers of another
    kind. What T5's first layers have beside (relative positions) stays with the first.

    Raises:
        UsageError: the layer, and what is accepted.
    """
    source, target = blocks(skeleton(config)), blocks(skeleton(with_layers(config, layers)))
    for (stack, place), block in target.items():
        moved = Layer(stack, layers[stack][place])
        ours, theirs = (
            {name for name, _ in each.named_parameters() if "relative_attention_bias" not in name}
            for each in (block, source[moved])
        )
        if ours != theirs:
            differs = sorted(ours ^ theirs)[0]
            raise UsageError(
                f"layer {moved} of {config.model_type} cannot become the student's layer {place}: they differ in "
                f"{differs!r}; start from others, such as --init first or --init skip"
            )


def cut(teacher: PreTrainedModel, layers: Mapping[str, Sequence[int]]) -> PreTrainedModel:
    """A student made of these teacher layers, with the teacher's embeddings and head, in float32.

    What only a stack's first layer has (T5's relative positions) stays there.
    """
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
    return _writing_as(teacher, student)


def _writing_as(teacher: PreTrainedModel, student: PreTrainedModel) -> PreTrainedModel:
    """The student with its teacher's settings for writing: every token that ends a text, forced and suppressed ones."""
    if student.can_generate() and teacher.generation_config is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student


def made(
    teacher: PreTrainedModel,
    wanted: Cut,
    start: Mapping[str, Sequence[int]] | None,
    by: str,
    texts: Iterable[Mapping[str, Tensor]],
    seed: int,
) -> PreTrainedModel:
    """A student made out of its teacher, in float32.

    Args:
        teacher: in float32.
        wanted: what is kept.
        start: for each stack, the teacher layers that are copied; None draws every weight by the seed.
        by: how it is narrowed, one of ``narrowing.METHODS``.
        texts: a few that the teacher reads, by which it is narrowed.
        seed: of what is drawn.
    """
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _writing_as(teacher, _empty(teacher, wanted.config(teacher.config)))
    # Narrowed first: what its layers do is seen best in the teacher as it is.
    source = narrow(teacher, wanted.narrowing, by, texts, seed) if wanted.narrows else teacher
    return _writing_as(teacher, cut(source, start))


def with_vocabulary(
    model: PreTrainedModel, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A model with one tokenizer's vocabulary made into one with another's, everything else as it is.

    An entry starts as the mean of the entries that its text was made of (fast vocabulary transfer, Gee et al. 2022,
    arXiv:2402.09977, section 3.2); what is no text, as the mean of all.
    """
    student = _empty(model, with_tokenizer(model.config, ours))
    larger = copy.deepcopy(model.config)
    larger.vocab_size += 1
    with torch.device("meta"):
        grown = _empty(model, larger).state_dict()
    pieces, source, target = spelled(ours, theirs), model.state_dict(), student.state_dict()
    for name in target:
        old = source[name].to(torch.float32)
        if grown[name].shape == old.shape:
            target[name] = old
        else:  # it grows with the vocabulary
            target[name] = torch.stack([old[ids].mean(dim=0) if ids else old.mean(dim=0) for ids in pieces])
    student.load_state_dict(target)
    student.tie_weights()
    return student


def with_dropout(model: PreTrainedModel, dropout: float | None) -> PreTrainedModel:
    """Set every dropout of a model, for training; None leaves its own."""
    if dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
            for name, value in vars(module).items():  # BART, OPT, T5 and Llama keep a number, and call a function
                if "dropout" in name and isinstance(value, float | int) and not isinstance(value, bool):
                    setattr(module, name, dropout)
    return model


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    """The model, some parts of which are not trained.

    Args:
        model: may be a skeleton.
        parts: ``embeddings``, ``head`` (all that is beside the body), ``layers=N``, ``layers=N-M``, or those of one
            stack, ``layers=STACK:N-M``. Where a head is tied to the embeddings, it is theirs.

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
    """The layers of ``N``, ``N-M`` or ``STACK:N-M``; without a stack's name, those of all."""
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


def adapted(model: PreTrainedModel, rank: int, seed: int) -> PreTrainedModel:
    """The model with low-rank adapters on every linear map of its layers, the only thing in them that is trained.

    LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1, by peft, scaled by 2. Embeddings are frozen, too; what lies
    beside them and the layers (a classification head, a final norm) is trained whole.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for block in blocks(model).values() for module in block.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, torch.nn.Linear | Conv1D)
    ]
    of_layers = {id(parameter) for block in blocks(model).values() for parameter in block.parameters()}
    frozen = of_layers | {id(parameter) for parameter in embedding_weights(model)}
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear, fan_in_fan_out=turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or id(parameter) not in frozen)
    return model


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """An adapted model as a stock one, each adapter added to the weights beside it."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    return model


def _empty(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    auto = auto_class(head_of_class(type(teacher).__name__))
    model: PreTrainedModel = auto.from_config(config, attn_implementation=attention_of(config), dtype=torch.float32)
    return model
