"""RMSNorm and SwiGLU of Llama-like layers as one operation each, which keep less for the backward pass.

Autograd keeps what each small operation read: of a norm its input in float32, the normalised input, and a copy in
bfloat16 for each map that follows; of a feed-forward network two products that two others give again. Without these a
layer keeps two fifths less, and its values stay the same to the last bit. After Liger Kernel (Hsu et al. 2024,
arXiv:2410.10989, section 3.2), whose kernels are for GPUs; here in PyTorch's own operations, for any device.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from kdalign.models.architecture import blocks

TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose norms are ``w * x / rms(x)``, read by linear maps alone, and whose networks are SwiGLU."""


@contextmanager
def fused_layers(model: PreTrainedModel, layers: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Let a model's layers compute norms and feed-forward networks fused in the forwards inside; others do as before.

    Under autocast a norm's result has autocast's precision, as the maps that read it would convert it anyway.

    Args:
        model: of any type.
        layers: those of its layers that shall; all if None.
    """
    fused: list[nn.Module] = []
    if model.config.model_type in TYPES and model.config.hidden_act == "silu":
        for block in blocks(model).values() if layers is None else layers:
            norms = [block.get_submodule(name) for name in ("input_layernorm", "post_attention_layernorm")]
            fused += [_fuse(norm, _norm) for norm in norms]
            network = block.get_submodule("mlp")
            down = network.get_submodule("down_proj")
            if type(down) is nn.Linear and getattr(down, "bias", None) is None:  # an adapter has a forward of its own
                fused.append(_fuse(network, _feed_forward))
    try:
        yield
    finally:
        for module in fused:
            del vars(module)["forward"]


def _fuse(module: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    vars(module)["forward"] = partial(forward, module)
    return module


def _norm(module: nn.Module, hidden_states: Tensor) -> Tensor:
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
    normed: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, module.get_parameter("weight"), vars(module)["variance_epsilon"], dtype
    )
    return normed


class _RMSNorm(torch.autograd.Function):
    """Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467, equation 4), which keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        """Normalise in float32, and give the result in a precision."""
        wide = states.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(states, weight, scale)
        return (weight * (wide * scale).to(states.dtype)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of input and weight."""
        [given], [states, weight, scale] = gradients, ctx.saved_tensors
        normed, slope = states.float() * scale, given.float()
        of_weight = (slope * normed).flatten(0, -2).sum(dim=0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        slope = slope * weight
        inner = (slope * normed).mean(-1, keepdim=True)
        return slope.addcmul_(normed, inner, value=-1).mul_(scale).to(states.dtype), of_weight, None, None


def _feed_forward(module: nn.Module, x: Tensor) -> Tensor:
    gate, up = module.get_submodule("gate_proj")(x), module.get_submodule("up_proj")(x)
    weight = module.get_submodule("down_proj").get_parameter("weight").to(gate.dtype)
    result: Tensor = _GatedProduct.apply(gate, up, weight)  # type: ignore[no-untyped-call]
    return result


class _GatedProduct(torch.autograd.Function):
    """The second half of SwiGLU (Shazeer 2020, arXiv:2002.05202, equation 6), which keeps gate and value alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        """Map the gated values."""
        ctx.save_for_backward(gate, up, weight)
        return _linear(F.silu(gate) * up, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gated values again, and the gradients."""
        [given], [gate, up, weight] = gradients, ctx.saved_tensors
        active = F.silu(gate)
        of_weight = given.flatten(0, -2).T @ (active * up).flatten(0, -2) if ctx.needs_input_grad[2] else None
        slope = given @ weight
        return torch.ops.aten.silu_backward(slope * up, gate), slope.mul_(active), of_weight


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight)
