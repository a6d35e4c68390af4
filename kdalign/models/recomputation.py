"""Activation checkpointing: compute what a layer's backward needs again, in place of keeping it.

Chen et al. 2016, arXiv:1604.06174, section 4.1, with a segment for each layer, by ``torch.utils.checkpoint``. All
families are wrapped alike, from outside: Transformers' own switch leaves out some (ALBERT, XLNet), and works in
training mode alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel

from kdalign.errors import UsageError
from kdalign.models.architecture import blocks
from kdalign.models.attention import keepers
from kdalign.models.capture import keep_attention
from kdalign.models.fused_layers import fused_layers
from kdalign.models.heads import HeadKind, auto_class
from kdalign.models.layouts import LAYOUTS
from kdalign.models.modes import unmoved_statistics


@contextmanager
def recompute_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let layers keep only their inputs in the forwards inside, and compute the rest again in each backward.

    What a ``capture`` around or inside keeps stays as it is, and has the same gradient.
    """
    layers = dict.fromkeys(blocks(model).values())
    for layer in layers:
        vars(layer)["forward"] = partial(_run, model, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _run(model: PreTrainedModel, layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a layer's forward, whose backward runs it once more: with the same dropout, and with maps where it had maps.

    Running statistics move by the first run alone.

    Captured attention takes another way through the layer, which the second run must take, too, although nothing is
    captured any more by then.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    watched = {module: keepers[module].again() for module in layer.modules() if module in keepers}
    begun = False

    def compute(*inputs: Any) -> Any:
        nonlocal begun
        given = [_without_texts(each) for each in inputs]
        named = {name: _without_texts(each) for name, each in kwargs.items()}
        with fused_layers(model, [layer]):
            if not begun:
                begun = True
                return forward(*given, **named)
            again = {module: keeper.again() for module, keeper in watched.items()}
            with keep_attention(model, again), unmoved_statistics(layer):
                return forward(*given, **named)

    return checkpoint(compute, *args, use_reentrant=False)


def _without_texts(given: object) -> object:
    """Exchange a cache, which would grow with the second run, for an empty one, as a layer's first run finds it."""
    if isinstance(given, EncoderDecoderCache):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache() if isinstance(given, Cache) else given


def check_recomputation(config: PretrainedConfig) -> None:
    """Refuse activation checkpointing for a model type for which neither Transformers nor kdalign is known to do it.

    Raises:
        UsageError: the type, and what saves memory in its place.
    """
    if config.model_type in LAYOUTS:
        return
    if not auto_class(HeadKind.NONE, config.model_type)._model_mapping[type(config)].supports_gradient_checkpointing:
        raise UsageError(
            f"train.gradient_checkpointing: Transformers does not do it for {config.model_type} models, and kdalign is "
            f"not tested with them (accepted: {', '.join(LAYOUTS)}, and types that Transformers does it for); a "
            f"smaller train.micro_batch takes less memory, too"
        )
