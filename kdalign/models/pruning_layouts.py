"""Dimensions of each family's modules, by which it can be pruned in width."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple


class Axis(StrEnum):
    """Unit that a dimension of a weight counts."""

    SAME = "same"  # words, positions, classes: not narrowed
    WIDTH = "width"
    EMBEDDING = "embedding"  # ELECTRA's, which is the width or has a map to it
    HEADS = "heads"
    KV_HEADS = "kv_heads"
    INNER = "inner"
    POOLED = "pooled"  # a classification head's hidden units, as many as the width


class Linear(NamedTuple):
    """Units of a weight's dimensions, and the norm next to it whose gain is folded into it.

    RMSNorm without its gain commutes with a rotation. So a gain before a linear map goes into what reads the norm, and
    one after it (Gemma) into what the norm reads; where neither can be (BERT's norms are the stream itself, a tied
    vocabulary is also the embeddings), the gain is fitted to texts, channel by channel.
    """

    out: Axis
    into: Axis
    norm: str = ""


@dataclass(frozen=True)
class Family:
    """Modules of a model type that are narrowed, by the endings of their names; the first that matches counts.

    Attributes:
        linears: linear maps and embeddings.
        norms: those as wide as the residual stream.
        free: heads times their width need not be the model's width, and there may be fewer heads of keys and values.
        after: its norms give the residual stream, rather than read it, and have biases.
        scaled: words are multiplied by the square root of the width, norms by 1 + their weight.
    """

    linears: Mapping[str, Linear]
    norms: tuple[str, ...]
    free: bool = False
    after: bool = True
    scaled: bool = False

    def linear(self, name: str) -> tuple[str, Linear] | None:
        """Match a module's name: the prefix of its layer and its kind; None for others."""
        for ending, linear in self.linears.items():
            if f".{name}".endswith(f".{ending}"):
                return name.removesuffix(ending), linear
        return None

    def is_norm(self, name: str) -> bool:
        """Return whether a module is a norm of the residual stream."""
        return any(f".{name}".endswith(f".{ending}") for ending in self.norms)


_EMBEDDINGS = {
    name: Linear(Axis.SAME, Axis.EMBEDDING)
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")
}


_BERT = Family(
    {
        **_EMBEDDINGS,
        "embeddings_project": Linear(Axis.WIDTH, Axis.EMBEDDING),
        "attention.self.query": Linear(Axis.HEADS, Axis.WIDTH),
        "attention.self.key": Linear(Axis.KV_HEADS, Axis.WIDTH),
        "attention.self.value": Linear(Axis.KV_HEADS, Axis.WIDTH),
        "attention.output.dense": Linear(Axis.WIDTH, Axis.HEADS),
        "intermediate.dense": Linear(Axis.INNER, Axis.WIDTH),
        "output.dense": Linear(Axis.WIDTH, Axis.INNER),
        "pooler.dense": Linear(Axis.POOLED, Axis.WIDTH),
        "classifier.dense": Linear(Axis.POOLED, Axis.WIDTH),
        "classifier": Linear(Axis.SAME, Axis.POOLED),
        "classifier.out_proj": Linear(Axis.SAME, Axis.POOLED),
        "transform.dense": Linear(Axis.WIDTH, Axis.WIDTH),
        "lm_head.dense": Linear(Axis.WIDTH, Axis.WIDTH),
        "generator_predictions.dense": Linear(Axis.EMBEDDING, Axis.WIDTH),
        "decoder": Linear(Axis.SAME, Axis.WIDTH),
        "generator_lm_head": Linear(Axis.SAME, Axis.EMBEDDING),
    },
    ("LayerNorm", "layer_norm"),
)


_DISTILBERT = Family(
    {
        **_EMBEDDINGS,
        "attention.q_lin": Linear(Axis.HEADS, Axis.WIDTH),
        "attention.k_lin": Linear(Axis.KV_HEADS, Axis.WIDTH),
        "attention.v_lin": Linear(Axis.KV_HEADS, Axis.WIDTH),
        "attention.out_lin": Linear(Axis.WIDTH, Axis.HEADS),
        "ffn.lin1": Linear(Axis.INNER, Axis.WIDTH),
        "ffn.lin2": Linear(Axis.WIDTH, Axis.INNER),
        "pre_classifier": Linear(Axis.POOLED, Axis.WIDTH),
        "classifier": Linear(Axis.SAME, Axis.POOLED),
        "vocab_transform": Linear(Axis.WIDTH, Axis.WIDTH),
        "vocab_projector": Linear(Axis.SAME, Axis.WIDTH),
    },
    ("LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm"),
)


_LLAMA = Family(
    {
        "embed_tokens": Linear(Axis.SAME, Axis.WIDTH),
        "self_attn.q_proj": Linear(Axis.HEADS, Axis.WIDTH, "input_layernorm"),
        "self_attn.k_proj": Linear(Axis.KV_HEADS, Axis.WIDTH, "input_layernorm"),
        "self_attn.v_proj": Linear(Axis.KV_HEADS, Axis.WIDTH, "input_layernorm"),
        "self_attn.o_proj": Linear(Axis.WIDTH, Axis.HEADS),
        "mlp.gate_proj": Linear(Axis.INNER, Axis.WIDTH, "post_attention_layernorm"),
        "mlp.up_proj": Linear(Axis.INNER, Axis.WIDTH, "post_attention_layernorm"),
        "mlp.down_proj": Linear(Axis.WIDTH, Axis.INNER),
        "lm_head": Linear(Axis.SAME, Axis.WIDTH, "model.norm"),
        "score": Linear(Axis.SAME, Axis.WIDTH, "model.norm"),
    },
    ("input_layernorm", "post_attention_layernorm", "norm"),
    free=True,
    after=False,
)


_GEMMA = replace(
    _LLAMA,
    linears={
        **_LLAMA.linears,
        "self_attn.o_proj": Linear(Axis.WIDTH, Axis.HEADS, "post_attention_layernorm"),
        "mlp.gate_proj": Linear(Axis.INNER, Axis.WIDTH, "pre_feedforward_layernorm"),
        "mlp.up_proj": Linear(Axis.INNER, Axis.WIDTH, "pre_feedforward_layernorm"),
        "mlp.down_proj": Linear(Axis.WIDTH, Axis.INNER, "post_feedforward_layernorm"),
    },
    norms=(*_LLAMA.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    scaled=True,
)


FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": _DISTILBERT,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
}
"""Model types that can be narrowed."""
