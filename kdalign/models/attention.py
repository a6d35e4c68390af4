"""Compute attention as Transformers' SDPA does, and keep its map, queries, keys and values on request."""

from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


@runtime_checkable
class AttentionKeeper(Protocol):
    """Keeper of the attention map, queries, keys and values of one module."""

    def begin(self) -> None:
        """Begin a call of the module."""

    def again(self) -> "AttentionKeeper":
        """Return a keeper for a second computation of the calls from here on, whose activations nobody reads."""

    @property
    def wants_map(self) -> bool:
        """Return whether to keep this call's map."""

    @property
    def wants_parts(self) -> bool:
        """Return whether to keep this call's queries, keys and values."""

    def keep_map(self, probabilities: Tensor) -> None:
        """Keep the attention map, (batch, heads, time, keys)."""

    def keep_parts(self, **parts: Tensor) -> None:
        """Keep ``queries``, ``keys`` or ``values``, (batch, heads, time, head width)."""


keepers: WeakKeyDictionary[nn.Module, AttentionKeeper] = WeakKeyDictionary()
"""The keeper of each attention module while a forward is recorded."""


def attention_map(
    query: Float[Tensor, "batch heads time head_width"],
    key: Float[Tensor, "batch kv_heads keys head_width"],
    mask: Bool[Tensor, "batch #heads #time keys"] | None,
    scaling: float,
    bias: Float[Tensor, "#batch heads time keys"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads time keys"]:
    r"""Compute attention probabilities before dropout: :math:`\mathrm{softmax}(Q K^\top s + b)` over unmasked keys.

    With a ``softcap`` c (Gemma 2), scores x are :math:`c \tanh(x / c)`.
    """
    key = repeat_kv(key, query.size(1) // key.size(1))
    with torch.autocast(query.device.type, enabled=False):  # rounded scores would move a map by hundredths
        # Heads are slices of a wider tensor: made contiguous as they are widened, they multiply twice as fast on CPU.
        ours, theirs = (each.to(torch.float32, memory_format=torch.contiguous_format) for each in (query, key))
        scores = ours @ theirs.transpose(-1, -2)
    if softcap is not None:
        scores, scaling = softcap * torch.tanh(scores * scaling / softcap), 1.0  # as Gemma 2's own, bit for bit
    added = scores.new_zeros(()) if bias is None else bias.to(scores.dtype)
    if mask is not None:  # masked keys go into the bias, which saves a pass over the scores, forward and backward
        added = added.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.add(added, scores, alpha=scaling).softmax(dim=-1)


def sdpa_with_maps(  # ten parameters: Transformers calls attention functions so
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute Transformers' SDPA attention, and hand the map and its inputs to a keeper if one is set."""
    assert kwargs.get("s_aux") is None, "attention sinks are not known here"
    keeper = keepers.get(module)
    scale = scaling if scaling is not None else query.size(-1) ** -0.5
    if keeper is not None:
        keeper.begin()
        if keeper.wants_parts:
            usual = scale * query.size(-1) ** 0.5  # OPT's queries come scaled, T5's are meant to stay unscaled
            keeper.keep_parts(queries=query if usual == 1 else query * usual, keys=key, values=value)
    of_map = keeper if keeper is not None and keeper.wants_map else None
    if softcap is not None or of_map is not None:
        mask = attention_mask
        if mask is None and (vars(module).get("is_causal", True) if is_causal is None else is_causal):
            # SDPA then masks the future itself: the map must, too.
            mask = torch.ones(query.size(2), key.size(2), dtype=torch.bool, device=query.device)
            mask = mask.tril(key.size(2) - query.size(2)).expand(query.size(0), 1, -1, -1)  # the last query is now
        probabilities = attention_map(query, key, mask, scale, position_bias, softcap)
        if of_map is not None:
            of_map.keep_map(probabilities)
        # SDPA knows no softcap; and with dropout, on CPU, it would make the map itself.
        if softcap is not None or (dropout > 0 and query.device.type == "cpu"):
            spread = repeat_kv(value, query.size(1) // value.size(1))
            with torch.autocast(query.device.type, enabled=False):  # as SDPA does it
                mixed = torch.nn.functional.dropout(probabilities, dropout) @ spread.to(probabilities.dtype)
            return mixed.to(value.dtype).transpose(1, 2).contiguous(), None
    # On CPU, SDPA's backward takes up to five times as long in bfloat16 as in float32 on short rows; with dropout it
    # goes another way, which is not slower.
    dtype, trained_on_cpu = query.dtype, query.device.type == "cpu" and torch.is_grad_enabled()
    exact = trained_on_cpu and dropout == 0 and key.size(2) < LONG
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


LONG = 256
"""Keys from which on attention in bfloat16 takes no longer on a CPU than in float32, and half the memory."""
ATTENTION = "kdalign"
"""The name under which models use SDPA with maps on request."""
# Both are needed: an attention function without its mask function gets no padding mask, silently.
AttentionInterface.register(ATTENTION, sdpa_with_maps)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
