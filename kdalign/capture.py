"""Keep a model's inner signals during one forward: hidden states and attention maps of named layers, nothing else.

Hidden states are taken by hooks on the layers themselves, never from ``output_hidden_states`` (whose last entry
carries the final norm in many families). Attention stays on SDPA everywhere; for the named layers the map is
computed again from queries and keys, before dropout. A language model stops before its vocabulary: what it would
multiply with the vocabulary's weights is kept instead, for losses that go block by block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kdalign.architecture import HeadKind, Layer, attention_modules, blocks, head_of_class, layout_of
from kdalign.vocabulary import Head

ATTENTION = "kdalign_sdpa"
"""The name under which models use SDPA with maps on request."""


@dataclass
class Signals:
    """What one forward left behind, by layer.

    Attributes:
        logits: (batch, classes); empty for a language model.
        features: (batch, time, width), a language model's input to its vocabulary, or the last ones of a model
            without a head; empty for a classifier.
        head: a language model's vocabulary.
        hidden: (batch, time, width), a layer's output.
        embeddings: (batch, time, width), what a stack's first layer reads, by stack.
        attention: (batch, heads, time, keys), probabilities over keys before dropout.
        projected: (batch, time, teacher width), the student's features brought to the teacher's width, by pair.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    features: Tensor = field(default_factory=lambda: torch.empty(0))
    head: Head | None = None
    hidden: dict[Layer, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[Layer, Tensor] = field(default_factory=dict)
    projected: dict[tuple[Layer, Layer], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """The layers whose signals are kept, and the stacks whose embeddings."""

    hidden: frozenset[Layer] = frozenset()
    attention: frozenset[Layer] = frozenset()
    embeddings: frozenset[str] = frozenset()


_keepers: WeakKeyDictionary[nn.Module, Callable[[Tensor], None]] = WeakKeyDictionary()


def attention_map(
    query: Float[Tensor, "batch heads time head_width"],
    key: Float[Tensor, "batch kv_heads keys head_width"],
    mask: Bool[Tensor, "batch #heads #time keys"] | None,
    scaling: float,
    bias: Float[Tensor, "#batch heads time keys"] | None = None,
) -> Float[Tensor, "batch heads time keys"]:
    r"""Attention probabilities before dropout: :math:`\mathrm{softmax}(Q K^\top s + b)` over unmasked keys."""
    key = repeat_kv(key, query.size(1) // key.size(1))
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


def sdpa_with_maps(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' SDPA attention; a module whose map is wanted gets it beside."""
    keep = _keepers.get(module)
    if keep is not None:
        mask = attention_mask
        if mask is None and (vars(module).get("is_causal", True) if is_causal is None else is_causal):
            # SDPA then masks the future itself: the map must, too.
            mask = torch.ones(1, 1, query.size(2), key.size(2), dtype=torch.bool, device=query.device).tril()
            mask = mask.expand(query.size(0), -1, -1, -1)
        keep(attention_map(query, key, mask, scaling if scaling is not None else query.size(-1) ** -0.5, position_bias))
    # On CPU, SDPA's backward takes up to five times as long in bfloat16 as in float32 (on short rows); with dropout it
    # goes another way, which is not slower.
    dtype, exact = query.dtype, query.device.type == "cpu" and torch.is_grad_enabled() and dropout == 0
    if exact:
        query, key, value = query.float(), key.float(), value.float()
        position_bias = None if position_bias is None else position_bias.float()
    with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
        output, _ = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **kwargs,
        )
    return output.to(dtype), None


# Both are needed: an attention function without its mask function gets no padding mask, silently.
AttentionInterface.register(ATTENTION, sdpa_with_maps)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def watch(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model's attention maps be taken, where its family allows it."""
    if layout_of(model.config).maps:
        model.set_attn_implementation(ATTENTION)
    return model


@contextmanager
def answering(model: PreTrainedModel) -> Iterator[None]:
    """A model in eval mode, without gradients; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextmanager
def recording(model: PreTrainedModel, wanted: Wanted) -> Iterator[Signals]:
    """Keep the wanted signals of the forwards inside; the caller sets ``logits``."""
    signals = Signals()
    turned = layout_of(model.config).time_first
    handles = [_hook(block, layer, signals, turned) for layer, block in blocks(model).items() if layer in wanted.hidden]
    handles += [
        _hook_input(block, layer.stack, signals, turned)
        for layer, block in blocks(model).items()
        if layer.number == 0 and layer.stack in wanted.embeddings
    ]
    watched = {layer: module for layer, module in attention_modules(model).items() if layer in wanted.attention}
    for layer, module in watched.items():
        _keepers[module] = _keep_map(layer, signals)
    try:
        yield signals
    finally:
        for handle in handles:
            handle.remove()
        for module in watched.values():
            del _keepers[module]


def run(model: PreTrainedModel, inputs: dict[str, Tensor], wanted: Wanted, order: Tensor | None) -> Signals:
    """One forward: what the answer is made of, and the wanted signals.

    Args:
        model: a model that uses the attention named ``ATTENTION``, where its family allows it.
        inputs: what its forward accepts.
        wanted: the layers to keep.
        order: for each of the task's labels, the number of the classifier's output that stands for it; None for a
            language model or a model without a head.
    """
    with recording(model, wanted) as signals:
        if order is not None:
            signals.logits = model(**inputs).logits.index_select(-1, order)
        elif head_of_class(type(model).__name__) is HeadKind.NONE:
            signals.features = model(**inputs).last_hidden_state
        else:
            signals.features, signals.head = _before_vocabulary(model, inputs)
    return signals


def pooled(
    features: Float[Tensor, "batch time width"], real: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch width"]:
    """The mean of a text's features over its real tokens (Reimers & Gurevych 2019, arXiv:1908.10084, section 3)."""
    weights = real[..., None].to(torch.float32)
    return (features.float() * weights).sum(dim=1) / weights.sum(dim=1)


def _before_vocabulary(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Head]:
    """A language model's features where they meet the vocabulary, whose map is given no row to compute."""
    kept: list[Tensor] = []

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        kept.append(args[0])
        return args[0][:, :0]

    def after(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output[:, :0]

    module, head = vocabulary_head(model)
    linear = isinstance(module, nn.Linear)
    handle = module.register_forward_pre_hook(before) if linear else module.register_forward_hook(after)
    try:
        model(**inputs)
    finally:
        handle.remove()
    (features,) = kept
    return features, head


def vocabulary_head(model: PreTrainedModel) -> tuple[nn.Module, Head]:
    """The map from features to the vocabulary: the module whose input it takes (or, no linear map, whose output)."""
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if model.config.model_type == "deberta-v2" and not model.config.legacy:
        head = model.get_submodule("lm_predictions.lm_head")  # multiplies with the embeddings, no module of its own
        return head.get_submodule("LayerNorm"), Head(model.get_input_embeddings().weight, head.get_parameter("bias"))
    linear = model.get_output_embeddings()
    assert isinstance(linear, nn.Linear), f"{model.config.model_type} maps to its vocabulary by a linear layer"
    bias = linear.bias
    extra = dict(model.named_buffers()).get("final_logits_bias")  # BART and Marian add a constant
    if extra is not None:
        bias = extra[0] if bias is None else bias + extra[0]
    return linear, Head(linear.weight, bias, softcap)


def _hook(block: nn.Module, layer: Layer, signals: Signals, turned: bool) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        signals.hidden[layer] = hidden.transpose(0, 1) if turned else hidden

    return block.register_forward_hook(keep)


def _hook_input(block: nn.Module, stack: str, signals: Signals, turned: bool) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        signals.embeddings[stack] = hidden.transpose(0, 1) if turned else hidden

    return block.register_forward_pre_hook(keep, with_kwargs=True)


def _keep_map(layer: Layer, signals: Signals) -> Callable[[Tensor], None]:
    def keep(probabilities: Tensor) -> None:
        signals.attention[layer] = probabilities

    return keep
