"""Keep a model's inner signals during one forward: hidden states and attention maps of named layers, nothing else.

Hidden states are taken by hooks on the layers themselves, never from ``output_hidden_states`` (whose last entry
carries the final norm in many families). Attention stays on SDPA everywhere; for the named layers the map is
computed again from queries and keys, before dropout.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kdalign.architecture import attention_modules, blocks

ATTENTION = "kdalign_sdpa"
"""The name under which models use SDPA with maps on request."""


@dataclass
class Signals:
    """What one forward left behind, by layer.

    Attributes:
        logits: (batch, classes).
        hidden: (batch, time, width), a layer's output.
        attention: (batch, heads, time, time), probabilities over keys before dropout.
        projected: (batch, time, teacher width), the student's features brought to the teacher's width, by pair.
    """

    logits: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """The layers whose signals are kept."""

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()


_keepers: WeakKeyDictionary[nn.Module, Callable[[Tensor], None]] = WeakKeyDictionary()


def attention_map(
    query: Float[Tensor, "batch heads time head_width"],
    key: Float[Tensor, "batch heads time head_width"],
    mask: Bool[Tensor, "batch #heads #time time"] | None,
    scaling: float,
) -> Float[Tensor, "batch heads time time"]:
    r"""Attention probabilities before dropout, in float32: :math:`\mathrm{softmax}(Q K^\top s)` over unmasked keys."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' SDPA attention, unchanged; a module whose map is wanted gets it beside."""
    keep = _keepers.get(module)
    if keep is not None:
        keep(attention_map(query, key, attention_mask, scaling if scaling is not None else query.size(-1) ** -0.5))
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )


# Both are needed: an attention function without its mask function gets no padding mask, silently.
AttentionInterface.register(ATTENTION, sdpa_with_maps)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def recording(model: PreTrainedModel, wanted: Wanted) -> Iterator[Signals]:
    """Keep the wanted signals of the forwards inside; the caller sets ``logits``."""
    signals = Signals(logits=torch.empty(0))
    handles = [_hook(block, layer, signals) for layer, block in _named(blocks(model), wanted.hidden)]
    watched = list(_named(attention_modules(model), wanted.attention))
    for layer, module in watched:
        _keepers[module] = _keep_map(layer, signals)
    try:
        yield signals
    finally:
        for handle in handles:
            handle.remove()
        for _, module in watched:
            del _keepers[module]


def run(model: PreTrainedModel, inputs: dict[str, Tensor], wanted: Wanted, order: Tensor) -> Signals:
    """One forward: logits in the task's label order, and the wanted signals.

    Args:
        model: a classifier that uses the attention named ``ATTENTION``.
        inputs: what its forward accepts.
        wanted: the layers to keep.
        order: for each of the task's labels, the number of the model's output that stands for it.
    """
    with recording(model, wanted) as signals:
        signals.logits = model(**inputs).logits.index_select(-1, order)
    return signals


def _named(modules: Iterable[nn.Module], layers: frozenset[int]) -> Iterator[tuple[int, nn.Module]]:
    return ((layer, module) for layer, module in enumerate(modules) if layer in layers)


def _hook(block: nn.Module, layer: int, signals: Signals) -> torch.utils.hooks.RemovableHandle:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        signals.hidden[layer] = output[0] if isinstance(output, tuple) else output

    return block.register_forward_hook(keep)


def _keep_map(layer: int, signals: Signals) -> Callable[[Tensor], None]:
    def keep(probabilities: Tensor) -> None:
        signals.attention[layer] = probabilities

    return keep
