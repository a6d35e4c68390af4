"""Build a model from scratch, by a description such as ``new:bert,layers=4``."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdalign.errors import UsageError, unknown
from kdalign.models.architecture import language_model_class, new_model
from kdalign.models.heads import OWN_HEADS, auto_class
from kdalign.models.layouts import LAYOUTS
from kdalign.models.new_image_models import ImageSpec, is_image_type, parse_image_spec
from kdalign.models.new_model_settings import read_dropout, read_settings, read_size
from kdalign.models.new_speech_models import SpeechSpec, is_speech_type, parse_speech_spec

_LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
_ROBERTAS = ("roberta", "xlm-roberta", "camembert")

_DROPOUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(LAYOUTS, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    **dict.fromkeys(_LLAMAS, ()),
    "distilbert": ("dropout", "attention_dropout"),
    "modernbert": ("embedding_dropout", "attention_dropout", "mlp_dropout"),
    "gpt_neox": ("hidden_dropout", "attention_dropout"),
    "opt": ("dropout", "attention_dropout"),
    "xlnet": ("dropout",),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "t5": ("dropout_rate",),
    "bart": ("dropout", "attention_dropout"),
    "marian": ("dropout",),  # not in the attention, as in the published translation models
}
"""Configuration fields that ``dropout`` sets; a type without any has no such setting."""


@dataclass(frozen=True)
class ScratchSpec:
    """Type and sizes of a model to build.

    Attributes:
        layers: layers of each stack, in the order of the type's layout.
        heads: attention heads of a layer; they divide the width.
        kv_heads: heads of keys and values; they divide the heads.
        feed_forward: inner width of the feed-forward network.
        positions: the longest input, in tokens.
        dropout: a probability; 0 for a type without dropout.
    """

    model_type: str
    layers: tuple[int, ...]
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    positions: int
    dropout: float


NEW_TYPES = tuple(kind for kind, layout in LAYOUTS.items() if layout.modality != "audio" or is_speech_type(kind))
"""Types of models that can be built from scratch."""


def parse_scratch_spec(text: str) -> ScratchSpec | ImageSpec | SpeechSpec:
    """Read ``new:TYPE,key=value,...``, such as ``new:deberta-v2,layers=4,width=256``.

    Raises:
        UsageError: an unknown type or key, or a value that no model can have.
    """
    if not text.startswith("new:"):
        raise UsageError(f"new model {text!r}: accepted is new:TYPE,key=value,... (types: {', '.join(NEW_TYPES)})")
    model_type = text.removeprefix("new:").partition(",")[0]
    if model_type not in NEW_TYPES:
        raise unknown("type of a new model", model_type, NEW_TYPES)
    if is_image_type(model_type):
        return parse_image_spec(text)
    if is_speech_type(model_type):
        return parse_speech_spec(text)
    stacks = [stack.name for stack in LAYOUTS[model_type].stacks]
    accepted = ["layers", "width", "heads", "feed_forward", "positions"]
    accepted += [f"{stack}_layers" for stack in stacks] if len(stacks) > 1 else []
    accepted += ["kv_heads"] if model_type in _LLAMAS else []
    accepted += ["dropout"] if _DROPOUTS[model_type] else []
    given = read_settings(text, accepted)
    dropout = read_dropout(given.pop("dropout", "0.1")) if _DROPOUTS[model_type] else 0.0
    numbers = {key: read_size(key, value) for key, value in given.items()}
    width = numbers.get("width", 256)
    heads = numbers.get("heads", max(1, width // 64))
    new = ScratchSpec(
        model_type=model_type,
        layers=tuple(numbers.get(f"{stack}_layers", numbers.get("layers", 4)) for stack in stacks),
        width=width,
        heads=heads,
        kv_heads=numbers.get("kv_heads", heads),
        feed_forward=numbers.get("feed_forward", 4 * width),
        positions=numbers.get("positions", 512),
        dropout=dropout,
    )
    _check(new)
    return new


def _check(new: ScratchSpec) -> None:
    """Refuse sizes on which Transformers would fail later, some of them only in the first forward pass."""
    shape = f"width={new.width} and heads={new.heads}"
    rules = [
        (new.width % new.heads == 0, shape, "heads that divide the width"),
        (new.heads % new.kv_heads == 0, f"heads={new.heads} and kv_heads={new.kv_heads}", "kv_heads that divide heads"),
        # Rotary positions rotate pairs of features; sines and cosines are pairs, too.
        (new.model_type not in _LLAMAS or new.width // new.heads % 2 == 0, shape, "width / heads even"),
        (
            new.model_type != "gpt_neox" or new.width // new.heads % 8 == 0,  # it rotates a quarter of them
            shape,
            "width / heads a multiple of 8",
        ),
        (new.model_type != "xlnet" or new.width % 2 == 0, f"width={new.width}", "an even width"),
        # With fewer, DeBERTa divides by the logarithm of the distance from which it groups positions, which is 0.
        (new.model_type != "deberta-v2" or new.positions >= 4, f"positions={new.positions}", "positions=4 or more"),
    ]
    for holds, given, accepted in rules:
        if not holds:
            raise UsageError(f"new:{new.model_type} with {given} (accepted: {accepted})")


def scratch_config(new: ScratchSpec, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Make the configuration of a language model for a tokenizer's vocabulary and special tokens.

    Embeddings are tied. Weights start with a spread of sqrt(2 / (5 width)), the small initialisation of Nguyen &
    Salazar 2019 (arXiv:1910.05895, section 2.2), near the usual 0.02 at a width of 1,000: at small widths 0.02 would
    leave attention idle for long. All other fields have the defaults of the type's configuration class.

    Raises:
        UsageError: the tokenizer has no padding token, or no end token for a model that writes.
    """
    layout = LAYOUTS[new.model_type]
    for role in ("pad_token_id", *(["eos_token_id"] if layout.family in ("seq2seq", "causal") else [])):
        if getattr(tokenizer, role) is None:
            raise UsageError(f"new:{new.model_type} needs a tokenizer with {role}; this one has none")
    return _config(new, len(tokenizer), {role: getattr(tokenizer, role) for role in _ROLES})


_ROLES = tuple(f"{role}_token_id" for role in ("pad", "bos", "eos", "mask", "cls", "sep"))


def shape_config(new: ScratchSpec, entries: int) -> PretrainedConfig:
    """Make the configuration of a model whose tokenizer is not there yet, for this many entries."""
    return _config(new, entries, dict.fromkeys(_ROLES, 0))


def _config(new: ScratchSpec, entries: int, ids: Mapping[str, Any]) -> PretrainedConfig:
    """Make the configuration for a vocabulary of ``entries`` with these special tokens."""
    layout = LAYOUTS[new.model_type]
    fields: dict[str, Any] = dict.fromkeys(_DROPOUTS[new.model_type], new.dropout)
    for stack, layers in zip(layout.stacks, new.layers, strict=True):
        fields |= {stack.layers: layers, stack.width: new.width, stack.heads: new.heads}
        fields[stack.feed_forward] = new.feed_forward
    fields |= {role: ids[role] for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if ids["mask_token_id"] is not None:
        fields["mask_token_id"] = ids["mask_token_id"]
    if new.model_type == "modernbert":
        fields |= {role: ids[role] for role in ("cls_token_id", "sep_token_id")}
    fields |= _own_fields(new, ids["pad_token_id"], ids["eos_token_id"])
    config: PretrainedConfig = AutoConfig.for_model(
        new.model_type, vocab_size=entries, tie_word_embeddings=True, **fields
    )
    if new.model_type != "t5":  # T5 has a rule of its own
        spread = "init_std" if new.model_type in ("bart", "marian", "opt") else "initializer_range"
        setattr(config, spread, math.sqrt(2 / (5 * new.width)))
    config.architectures = [language_model_class(config)]
    return config


def _own_fields(new: ScratchSpec, pad: int, end: int) -> dict[str, Any]:
    """Return the fields that types name or need in their own way."""
    head_width = new.width // new.heads
    positions = {"max_position_embeddings": new.positions}
    after_padding = {"max_position_embeddings": new.positions + pad + 1}  # RoBERTa counts from after the padding id
    llama = {**positions, "num_key_value_heads": new.kv_heads, "head_dim": head_width}
    own: dict[str, dict[str, Any]] = {
        **dict.fromkeys(_ROBERTAS, after_padding),
        **dict.fromkeys(_LLAMAS, llama),
        "albert": {**positions, "embedding_size": new.width},
        "electra": {**positions, "embedding_size": new.width},
        "opt": {**positions, "word_embed_proj_dim": new.width},
        "deberta-v2": {  # version 3, as published
            **positions,
            "relative_attention": True,
            "pos_att_type": "c2p|p2c",
            "position_buckets": new.positions // 2,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "legacy": True,
        },
        "xlnet": {"bi_data": False, "mem_len": None},  # relative positions, without a limit
        "gpt2": {"n_positions": new.positions},
        "gemma2": {**llama, "query_pre_attn_scalar": head_width},  # scores are scaled by it; the default is 256
        "gemma3_text": {**llama, "query_pre_attn_scalar": head_width},
        "t5": {"n_positions": new.positions, "d_kv": head_width, "decoder_start_token_id": pad},
        "bart": {**positions, "decoder_start_token_id": end, "forced_eos_token_id": end},
        # Unscaled, a new embedding's words would vanish beside its sinusoidal positions.
        "marian": {**positions, "decoder_start_token_id": pad, "forced_eos_token_id": end, "scale_embedding": True},
    }
    return own.get(new.model_type, positions)


def build_from_scratch(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Build a float32 language model or image classifier, every weight drawn by the seed, not by the global generator.

    Learned positions start as sines and cosines, so that attention can tell neighbouring positions from the first step.
    """
    head = OWN_HEADS[LAYOUTS[config.model_type].family]
    auto = auto_class(head, config.model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(auto, copy.deepcopy(config))
    if model.device.type == "meta":
        return model
    if config.model_type == "siglip":  # nearly all pairs are wrong ones, as it first answers (arXiv:2303.15343)
        torch.nn.init.constant_(model.logit_scale, math.log(10))
        torch.nn.init.constant_(model.logit_bias, -10)
    for name, module in model.base_model.named_modules():
        if name.rpartition(".")[2] in _POSITIONS and isinstance(module, nn.Embedding) and module.weight.requires_grad:
            spread = float(module.weight.detach().std())
            with torch.no_grad():
                module.weight.copy_(spread * math.sqrt(2) * _waves(*module.weight.shape))
    return model


_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
_SLOWEST = 100.0


def _waves(positions: int, width: int) -> torch.Tensor:
    r"""Compute :math:`\sin(i \omega_k), \cos(i \omega_k)`, (positions, width), from a radian a position to a hundredth.

    As in Vaswani et al. 2017, arXiv:1706.03762, section 3.5, whose slowest wave (a ten-thousandth) is as good as
    constant over a short text.
    """
    frequencies = _SLOWEST ** -(torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
