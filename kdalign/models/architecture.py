"""Read a model's architecture from its configuration, without weights.

Only ``layouts``, this module, ``capture``, ``lm_head`` and ``pruning_layouts`` know where a family keeps its
modules. A new family is one row in ``layouts.LAYOUTS``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kdalign.errors import UsageError, did_you_mean, library_errors
from kdalign.models.heads import LANGUAGE_HEADS, HeadKind, auto_class, head_of
from kdalign.models.layouts import LAYOUTS, AttentionLayout, Layout, StackLayout

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stack:
    """Layers of one kind, such as the encoder of a BERT."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    widths: tuple[int, ...] = ()
    """Width of each layer's output, where they differ; ``width`` is the last one's."""

    def width_of(self, layer: int) -> int:
        """Return the width of a layer's output."""
        return self.widths[layer] if self.widths else self.width

    @property
    def all_layers(self) -> "tuple[Layer, ...]":
        """Its layers, from the bottom."""
        return tuple(Layer(self.name, number) for number in range(self.layers))


@dataclass(frozen=True)
class Architecture:
    """A model's shape: its family (``masked``, ``causal``, ...), stacks, vocabulary and parameters (tied once).

    ``attention`` says what can be taken of its attention.
    """

    model_type: str
    family: str
    stacks: tuple[Stack, ...]
    vocabulary: int
    parameters: int
    tied: bool
    attention: AttentionLayout = AttentionLayout.INTERFACE
    joint_width: int = 0
    """Width of the space that a dual encoder maps images and texts to; 0 for others."""

    def reads_target(self, stack: str) -> bool:
        """Return whether a stack reads the target: an encoder-decoder's decoder."""
        return self.family == "seq2seq" and stack == "decoder"

    def looks_back(self, stack: str) -> bool:
        """Return whether a position of a stack sees only those before it."""
        reads_text = self.family == "dual" and stack == "text"
        back = reads_text and not LAYOUTS[self.model_type].reads_padding
        return back or self.family == "causal" or self.reads_target(stack)

    def stack(self, name: str) -> Stack:
        """Return the stack of that name."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        names = ", ".join(stack.name for stack in self.stacks)
        raise UsageError(f"a {self.model_type} model has no stack {name!r} (it has: {names})")


class Layer(NamedTuple):
    """One layer of a model: its stack's name and its number there, from 0."""

    stack: str
    number: int

    def __str__(self) -> str:
        return f"{self.stack}.{self.number}"


def stack_of_teacher(number: int, stack: str) -> str:
    """Name a stack of the teacher of this number, from 0; the first teacher's stacks keep their own names."""
    return f"{number + 1}:{stack}" if number else stack


def split_stack(name: str) -> tuple[int, str]:
    """Split a name of ``stack_of_teacher`` into the teacher's number and the stack's own name."""
    number, _, stack = name.rpartition(":")
    return (int(number) - 1, stack) if number.isdecimal() else (0, name)


def join_teachers(teachers: Sequence[Architecture]) -> Architecture:
    """Join several teachers into one architecture with the stacks of all, whose attention is what all of them give."""
    first = teachers[0]
    if len(teachers) == 1:
        return first
    closed = AttentionLayout.CLOSED
    return replace(
        first,
        model_type=" and ".join(each.model_type for each in teachers),
        stacks=tuple(
            replace(stack, name=stack_of_teacher(number, stack.name))
            for number, each in enumerate(teachers)
            for stack in each.stacks
        ),
        parameters=sum(each.parameters for each in teachers),
        attention=closed if any(each.attention is closed for each in teachers) else first.attention,
    )


def layout_of(config: "PretrainedConfig") -> Layout:
    """Return a model type's layout: its row in ``LAYOUTS``, or one derived from the usual names of fields.

    Raises:
        UsageError: kdalign cannot read this model, as something is missing.
    """
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        if config.model_type not in _derived:
            with library_errors(f"{config.model_type!r} is not supported: its configuration cannot be read"):
                _derived[config.model_type] = _derive(config)
        layout = _derived[config.model_type]
    if config.model_type == "deberta-v2" and getattr(config, "conv_kernel_size", 0):
        raise UsageError("deberta-v2 with a convolution after its first layer is not supported (accepted: without)")
    if config.model_type == "siglip":
        _check_siglip(config)
    groups = getattr(config, "num_hidden_groups", 1), getattr(config, "inner_group_num", 1)
    if layout.shared and groups != (1, 1):
        raise UsageError(
            f"{config.model_type} with groups of layers is not supported (accepted: one group of one layer)"
        )
    return layout


def _check_siglip(config: "PretrainedConfig") -> None:
    """Refuse a SigLIP whose towers do not end in embeddings that can be compared."""
    images, texts = config.vision_config, config.text_config
    if not images.vision_use_head or images.hidden_size != texts.projection_size:
        raise UsageError(
            f"siglip with vision_use_head={images.vision_use_head}, images of width {images.hidden_size} and texts of "
            f"projection_size {texts.projection_size} is not supported (accepted: with a head, and equal widths)"
        )


_derived: dict[str, Layout] = {}
_USUAL = ("hidden_size", "num_hidden_layers", "num_attention_heads")


def _derive(config: "PretrainedConfig") -> Layout:
    """Derive the layout of a type without a row, from its one list of layers with an attention in each."""
    from torch import nn
    from transformers.models.auto import modeling_auto

    def refused(why: str) -> UsageError:
        near = did_you_mean(config.model_type, LAYOUTS)
        return UsageError(
            f"model type {config.model_type!r} is not supported: {why}{near} (known: {', '.join(LAYOUTS)})"
        )

    if config.is_encoder_decoder or getattr(config, "text_config", None) is not None:
        raise refused("it is made of several models")
    masked = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    if not masked and type(config) not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refused("Transformers has no masked or causal language model of it")
    missing = [field for field in _USUAL if not isinstance(getattr(config, field, None), int)]
    if missing:
        raise refused(f"its configuration has no {' and no '.join(missing)}")
    model = _shaped(config, HeadKind.NONE, "eager").base_model
    lists = [
        (name, module[0])
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    found = next(((name, path) for name, layer in lists if (path := _attention_path(layer))), None)
    embeddings = next((name for name, each in model.named_modules() if each is model.get_input_embeddings()), None)
    if found is None or embeddings is None:
        raise refused(f"its modules hold no list of {config.num_hidden_layers} layers with an attention in each")
    stack = StackLayout("encoder" if masked else "decoder", *found)
    attention = AttentionLayout.INTERFACE if model._supports_sdpa else AttentionLayout.CLOSED
    if attention is AttentionLayout.CLOSED and not masked:
        # Eager attention would add the masks of packed documents, which are booleans, to its scores.
        raise refused("its attention is code of its own")
    return Layout("masked" if masked else "causal", (stack,), (embeddings,), attention)


def _attention_path(layer: "nn.Module") -> str:
    """Return the path of a layer's attention, innermost of the first modules so named; empty if there is none."""
    path = ""
    for name, module in layer.named_modules():
        if "ttention" in type(module).__name__ and (not path or name.startswith(f"{path}.")):
            path = name
    return path


def vocabulary_size(config: "PretrainedConfig") -> int:
    """Return the number of entries of a model's vocabulary, or of its text model's; 0 without one."""
    return int(getattr(config.get_text_config(), "vocab_size", 0))


def describe(config: "PretrainedConfig") -> Architecture:
    """Read a model's architecture from its configuration.

    Parameters are counted on a model without storage (torch's meta device), so even a large one costs no memory; once
    for each configuration, since building it takes a while.

    Raises:
        UsageError: the model type is unknown.
    """
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _described:
        _described[key] = _describe(config)
    return _described[key]


_described: dict[tuple[type, str], Architecture] = {}


def _describe(config: "PretrainedConfig") -> Architecture:
    return Architecture(
        model_type=config.model_type,
        family=layout_of(config).family,
        stacks=tuple(_stack(config, layout) for layout in layout_of(config).stacks),
        vocabulary=vocabulary_size(config),
        parameters=count_parameters(meta_model(config)),
        tied=vocabulary_size(config) > 0 and bool(getattr(config, "tie_word_embeddings", False)),
        attention=layout_of(config).attention,
        joint_width=joint_width(config) if layout_of(config).family == "dual" else 0,
    )


def joint_width(config: "PretrainedConfig") -> int:
    """Return the width of a dual encoder's embeddings."""
    if config.model_type == "siglip":
        return int(config.text_config.projection_size)
    return int(config.projection_dim)


def stack_config(config: "PretrainedConfig", layout: StackLayout) -> "PretrainedConfig":
    """Return the configuration that holds a stack's fields: the model's, or that of its part."""
    found: PretrainedConfig = getattr(config, layout.config) if layout.config else config
    return found


def _stack(config: "PretrainedConfig", layout: StackLayout) -> Stack:
    config = stack_config(config, layout)
    if layout.widths:
        widths = stage_widths(config, layout)
        return Stack(layout.name, len(widths), widths[-1], 1, 1, widths[-1], 4 * widths[-1], widths)
    width, heads = int(getattr(config, layout.width)), int(getattr(config, layout.heads))
    return Stack(
        name=layout.name,
        layers=int(getattr(config, layout.layers)),
        width=width,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or width // heads),
        # GPT-2 leaves out what is 4 x width.
        feed_forward=int(getattr(config, layout.feed_forward, None) or 4 * width),
    )


def stage_widths(config: "PretrainedConfig", layout: StackLayout) -> tuple[int, ...]:
    """Return the width of each stage's output."""
    given = getattr(config, layout.widths)
    if isinstance(given, int):  # of a pyramid whose width doubles from stage to stage, where the next one begins
        stages = len(config.depths)
        given = [given * 2 ** min(stage + 1, stages - 1) for stage in range(stages)]
    return tuple(given)


def meta_model(
    config: "PretrainedConfig", attention: str | None = None, device: str = "meta", head: "HeadKind | None" = None
) -> "PreTrainedModel":
    """Build the model of a configuration on the meta device: shapes without storage.

    The class is that of the ``head``, or the one that ``config.architectures`` names; the bare body where it names
    none.
    """
    return _shaped(config, head_of(config) if head is None else head, attention or attention_of(config), device)


def _shaped(config: "PretrainedConfig", head: "HeadKind", attention: str, device: str = "meta") -> "PreTrainedModel":
    import torch

    with library_errors(f"no {config.model_type} model can be made of this configuration"), torch.device(device):
        model = auto_class(head, config.model_type).from_config(copy.deepcopy(config), attn_implementation=attention)
        model.tie_weights()
    return model.eval()


def new_model(auto: Any, config: "PretrainedConfig") -> "PreTrainedModel":
    """Build a float32 model of a configuration by one of Transformers' auto classes, with weights of its own.

    Inside ``without_storage`` none of them has storage, not even XLNet's, which Transformers allocates all the same.
    """
    import torch

    model: PreTrainedModel = auto.from_config(config, attn_implementation=attention_of(config), dtype=torch.float32)
    if torch.get_default_device().type == "meta":
        model.to("meta").tie_weights()
    return model


def attention_of(config: "PretrainedConfig") -> str:
    """Return the attention implementation to load a model with: SDPA, or eager if it has code of its own.

    A type that Transformers has no SDPA for (Gemma 2, whose scores are capped) is computed by ``kdalign.attention``:
    eager attention would add a mask of booleans to the scores.
    """
    if layout_of(config).attention is not AttentionLayout.INTERFACE:
        return "eager"
    if auto_class(HeadKind.NONE, config.model_type)._model_mapping[type(config)]._supports_sdpa:
        return "sdpa"
    from kdalign.models.attention import ATTENTION

    return ATTENTION


def language_model_class(config: "PretrainedConfig") -> str:
    """Return the class name of a model type's language model."""
    auto = auto_class(LANGUAGE_HEADS[layout_of(config).family], config.model_type)
    return str(auto._model_mapping[type(config)].__name__)


def first_non_finite(model: "nn.Module") -> str:
    """Return the name of the first weight that is NaN or infinite; empty if all are finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.detach().isfinite().all()):
            return name
    return ""


def count_parameters(model: "nn.Module") -> int:
    """Count parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(model: "PreTrainedModel") -> dict[Layer, "nn.Module"]:
    """Return the model's layers in order, stack by stack; layers that share a module all map to it."""
    found: dict[Layer, nn.Module] = {}
    for stack in layout_of(model.config).stacks:
        listed = list(_block_list(model, stack))
        listed *= int(getattr(model.config, stack.layers)) if layout_of(model.config).shared else 1
        found |= {Layer(stack.name, number): block for number, block in enumerate(listed)}
    return found


CROSS = "cross"
"""Stack name for the attention from a decoder's layers to the encoder."""


def attention_modules(model: "PreTrainedModel") -> dict[Layer, "nn.Module"]:
    """Return each layer's self-attention module; under ``CROSS``, its attention to the encoder."""
    found = {}
    stacks = {stack.name: stack for stack in layout_of(model.config).stacks}
    for layer, block in blocks(model).items():
        if not stacks[layer.stack].attention:
            continue
        found[layer] = block.get_submodule(stacks[layer.stack].attention)
        if stacks[layer.stack].cross:
            found[Layer(CROSS, layer.number)] = block.get_submodule(stacks[layer.stack].cross)
    return found


def block_paths(model: "PreTrainedModel") -> dict[str, str]:
    """Return the path of each stack's list of layers in the state dict, such as ``bert.encoder.layer``."""
    found = {id(_block_list(model, stack)): stack.name for stack in layout_of(model.config).stacks}
    return {found[id(module)]: name for name, module in model.named_modules() if id(module) in found}


def _block_list(model: "PreTrainedModel", stack: StackLayout) -> "nn.ModuleList":
    module: nn.ModuleList = model.base_model.get_submodule(stack.blocks)
    return module


def embedding_weights(model: "PreTrainedModel") -> list["nn.Parameter"]:
    """Return the parameters of the embeddings."""
    modules = [model.base_model.get_submodule(path) for path in layout_of(model.config).embeddings]
    return [parameter for module in modules for parameter in module.parameters()]


def embedding_parameters(model: "PreTrainedModel") -> int:
    """Count the parameters of the embeddings."""
    return sum(parameter.numel() for parameter in embedding_weights(model))


def with_layers(config: "PretrainedConfig", layers: Mapping[str, Sequence[int]]) -> "PretrainedConfig":
    """Copy a configuration, keeping the layers of these numbers in each stack."""
    changed = copy.deepcopy(config)
    for stack in layout_of(config).stacks:
        kept = layers[stack.name]
        setattr(stack_config(changed, stack), stack.layers, len(kept))
        if stack.config:
            continue
        for name, kinds in config.to_dict().items():  # such as sliding and full attention, one for each layer
            if "layer" in name and isinstance(kinds, list) and len(kinds) == getattr(config, stack.layers):
                setattr(changed, name, [kinds[number] for number in kept])
    return changed


def with_tokenizer(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """Copy a configuration for another tokenizer: its vocabulary size and the ids of its special tokens.

    Raises:
        UsageError: positions are counted from after the padding id, which would move; or targets begin or end with a
            token that the tokenizer lacks.
    """
    pad = config.pad_token_id
    if config.model_type in ("roberta", "xlm-roberta", "camembert") and tokenizer.pad_token_id != pad:
        raise UsageError(
            f"a {config.model_type} model counts positions from after its padding id, {pad}, and the tokenizer's is "
            f"{tokenizer.pad_token_id} (accepted: a tokenizer that pads with {pad})"
        )
    changed, own = copy.deepcopy(config), config.to_dict()
    changed.vocab_size = len(tokenizer)
    roles = {
        f"{role}_token_id": own.get(f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
    }
    for name in roles.keys() & own.keys():
        setattr(changed, name, getattr(tokenizer, name))
    for name in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        if own.get(name) is not None:
            role = next((role for role, number in roles.items() if number == own[name]), None)
            if role is None or getattr(tokenizer, role) is None:
                raise UsageError(
                    f"the {config.model_type} model's {name} is {own[name]}, which is none of its special tokens that "
                    "the other tokenizer has, too (accepted: the model's own tokenizer)"
                )
            setattr(changed, name, getattr(tokenizer, role))
    return changed
