"""What a model is made of, read from its configuration: no weights are needed.

This file and ``capture.py`` alone know where a family keeps its layers. A new family is one row in ``LAYOUTS``.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdalign.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


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


@dataclass(frozen=True)
class Architecture:
    """A model's shape: its family (``masked``, ``causal``, ...), stacks, vocabulary and parameters (tied once)."""

    model_type: str
    family: str
    stacks: tuple[Stack, ...]
    vocabulary: int
    parameters: int
    tied: bool

    def stack(self, name: str) -> Stack:
        """The stack of that name."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        names = ", ".join(stack.name for stack in self.stacks)
        raise UsageError(f"a {self.model_type} model has no stack {name!r} (it has: {names})")


@dataclass(frozen=True)
class Layout:
    """Where a model type keeps what kdalign reads: configuration fields, and module paths below the base model."""

    blocks: str
    attention: str
    embeddings: str = "embeddings"
    family: str = "masked"
    stack: str = "encoder"
    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"


_BERT = Layout(blocks="encoder.layer", attention="attention.self")

LAYOUTS: Mapping[str, Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Layout(
        blocks="transformer.layer",
        attention="attention",
        layers="n_layers",
        width="dim",
        heads="n_heads",
        feed_forward="hidden_dim",
    ),
}


def layout_of(config: "PretrainedConfig") -> Layout:
    """The layout of a configuration's model type.

    Raises:
        UsageError: kdalign does not know this model type.
    """
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise UsageError(
            f"model type {config.model_type!r} is not supported{did_you_mean(config.model_type, LAYOUTS)} "
            f"(supported: {', '.join(LAYOUTS)})"
        )
    return layout


def describe(config: "PretrainedConfig") -> Architecture:
    """Read a model's architecture from its configuration.

    Parameters are counted on a model without storage (torch's meta device), so even a large one costs no memory.

    Raises:
        UsageError: the model type is unknown.
    """
    layout = layout_of(config)
    width, heads = int(getattr(config, layout.width)), int(getattr(config, layout.heads))
    stack = Stack(
        name=layout.stack,
        layers=int(getattr(config, layout.layers)),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        feed_forward=int(getattr(config, layout.feed_forward)),
    )
    return Architecture(
        model_type=config.model_type,
        family=layout.family,
        stacks=(stack,),
        vocabulary=int(config.vocab_size),
        parameters=count_parameters(skeleton(config)),
        tied=bool(config.tie_word_embeddings),
    )


def skeleton(config: "PretrainedConfig", attention: str = "sdpa") -> "PreTrainedModel":
    """The model of a configuration on the meta device: shapes without storage.

    The class is the one that ``config.architectures`` names; the bare encoder where it names none.
    """
    import torch
    import transformers

    auto = transformers.AutoModelForSequenceClassification if has_classifier(config) else transformers.AutoModel
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), attn_implementation=attention)
    model.tie_weights()
    return model.eval()


def has_classifier(config: "PretrainedConfig") -> bool:
    """Whether the checkpoint says that it carries a sequence-classification head."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def count_parameters(model: "nn.Module") -> int:
    """The number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(model: "PreTrainedModel") -> "nn.ModuleList":
    """The model's layers, in order."""
    found: nn.ModuleList = model.base_model.get_submodule(layout_of(model.config).blocks)
    return found


def attention_modules(model: "PreTrainedModel") -> list["nn.Module"]:
    """For each layer, the module that computes its attention."""
    return [block.get_submodule(layout_of(model.config).attention) for block in blocks(model)]


def with_layers(config: "PretrainedConfig", layers: int) -> "PretrainedConfig":
    """A copy of a configuration with another number of layers."""
    changed = copy.deepcopy(config)
    setattr(changed, layout_of(config).layers, layers)
    return changed


def accepted_inputs(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of the encoder's inputs, those that this model's forward knows (DistilBERT has no ``token_type_ids``)."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}
