"""Count floating-point operations of a forward and its backward, as torch runs them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from kdalign.models.architecture import Layer, blocks
from kdalign.models.capture import inference_mode
from kdalign.models.inputs import probe_inputs


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one pass at batch 1, of the whole model and of each layer's forward."""

    total: int
    layers: dict[Layer, int]


def count_flops(model: PreTrainedModel, length: int, backward: bool = False) -> Flops:
    """Count floating-point operations of one forward at batch 1, by torch as it runs (2 a multiply-add).

    The model may be on the meta device. Its attention must be eager: torch counts nothing for SDPA on CPU.

    Args:
        model: the model whose layers are counted.
        length: tokens.
        backward: True to count the backward's, too.
    """
    counter = FlopCounterMode(display=False)
    layers = dict.fromkeys(blocks(model), 0)
    # torch's counter follows inputs that need a gradient, and fails on such a parameter if no gradient is taken.
    frozen = [] if backward else [parameter for parameter in model.parameters() if parameter.requires_grad]
    with counter, _watched(model, counter, layers), _without_gradients(frozen), torch.set_grad_enabled(backward):
        inputs = probe_inputs(model, 1, length)
        inputs.pop("attention_mask", None)
        output = model(**inputs)[0]
        if backward:
            output.float().sum().backward()
            model.zero_grad(set_to_none=True)
    return Flops(int(counter.get_total_flops()), layers)


@contextmanager
def _without_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _watched(model: PreTrainedModel, counter: FlopCounterMode, layers: dict[Layer, int]) -> Iterator[None]:
    """Add to each layer the operations counted while it runs; layers that share a module take turns."""
    found = blocks(model)
    handles = []
    for block in dict.fromkeys(found.values()):
        turns = iter([layer for layer in found if found[layer] is block])
        begun: list[int] = []

        def before(*_: Any, begun: list[int] = begun) -> None:
            begun.append(int(counter.get_total_flops()))

        def after(*_: Any, begun: list[int] = begun, turns: Iterator[Layer] = turns) -> None:
            layers[next(turns)] = int(counter.get_total_flops()) - begun.pop()

        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def runnable(build: Callable[[str], PreTrainedModel], length: int) -> PreTrainedModel:
    """Build a model on a device, to count FLOPs of: without storage, or with weights if its forward reads numbers."""
    shape = build("meta")
    try:
        count_flops(shape, length)
    except RuntimeError:  # GPT-2, DeBERTa and XLNet read numbers, which the meta device lacks
        return build("cpu")
    return shape


def flops_of(model: PreTrainedModel, length: int) -> int:
    """Count floating-point operations of a loaded model's forward over one text of this many tokens."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with inference_mode(model):
            return count_flops(model, length).total
    finally:
        model.set_attn_implementation(before)
