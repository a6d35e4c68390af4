"""Where each model type keeps its layers and attention modules."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class AttentionLayout(StrEnum):
    """How a family's attention can be looked at."""

    INTERFACE = "interface"
    """It goes through Transformers' attention interface: SDPA everywhere, maps and Q, K, V on request."""
    OWN = "own"
    """Code of the family's own, always eager, that kdalign knows: maps and Q, K, V can be taken."""
    CLOSED = "closed"
    """Code of the family's own that kdalign does not know: nothing can be taken."""


@dataclass(frozen=True)
class StackLayout:
    """Where a model type keeps one stack: configuration fields, and module paths.

    Attributes:
        blocks: path of the list of layers, below the base model.
        attention: path of the self-attention, below a layer.
        cross: path of the attention from an encoder-decoder's decoder to its encoder; empty elsewhere.
    """

    name: str
    blocks: str
    attention: str
    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"
    cross: str = ""


@dataclass(frozen=True)
class Layout:
    """Where a model type keeps what kdalign reads.

    Attributes:
        embeddings: module paths below the base model.
        attention: how its attention can be looked at.
        time_first: whether its layers work on (time, batch, width).
        shared: whether all layers are one module, run again and again.
    """

    family: str
    stacks: tuple[StackLayout, ...]
    embeddings: tuple[str, ...] = ("embeddings",)
    attention: AttentionLayout = AttentionLayout.INTERFACE
    time_first: bool = False
    shared: bool = False


_BERT = Layout("masked", (StackLayout("encoder", "encoder.layer", "attention.self"),))


_LLAMA = Layout("causal", (StackLayout("decoder", "layers", "self_attn"),), ("embed_tokens",))


_BART = Layout(
    "seq2seq",
    tuple(
        StackLayout(
            name,
            f"{name}.layers",
            "self_attn",
            f"{name}_layers",
            "d_model",
            f"{name}_attention_heads",
            f"{name}_ffn_dim",
            "encoder_attn" if name == "decoder" else "",
        )
        for name in ("encoder", "decoder")
    ),
    ("shared", "encoder.embed_positions", "decoder.embed_positions"),
)


LAYOUTS: Mapping[str, Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": Layout(
        "masked",
        (StackLayout("encoder", "transformer.layer", "attention", "n_layers", "dim", "n_heads", "hidden_dim"),),
    ),
    "albert": Layout(
        "masked",
        (StackLayout("encoder", "encoder.albert_layer_groups", "albert_layers.0.attention"),),
        ("embeddings", "encoder.embedding_hidden_mapping_in"),
        shared=True,
    ),
    "modernbert": Layout("masked", (StackLayout("encoder", "layers", "attn"),)),
    "deberta-v2": replace(_BERT, attention=AttentionLayout.OWN),
    "xlnet": Layout(
        "permutation",
        (StackLayout("decoder", "layer", "rel_attn", "n_layer", "d_model", "n_head", "d_inner"),),
        ("word_embedding",),
        attention=AttentionLayout.OWN,
        time_first=True,
    ),
    "gpt2": Layout(
        "causal", (StackLayout("decoder", "h", "attn", "n_layer", "n_embd", "n_head", "n_inner"),), ("wte", "wpe")
    ),
    "gpt_neox": Layout("causal", (StackLayout("decoder", "layers", "attention"),), ("embed_in",)),
    "opt": Layout(
        "causal",
        (StackLayout("decoder", "decoder.layers", "self_attn", feed_forward="ffn_dim"),),
        ("decoder.embed_tokens", "decoder.embed_positions"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "t5": Layout(
        "seq2seq",
        (
            StackLayout(
                "encoder", "encoder.block", "layer.0.SelfAttention", "num_layers", "d_model", "num_heads", "d_ff"
            ),
            StackLayout(
                "decoder",
                "decoder.block",
                "layer.0.SelfAttention",
                "num_decoder_layers",
                "d_model",
                "num_heads",
                "d_ff",
                "layer.1.EncDecAttention",
            ),
        ),
        ("shared",),
    ),
    "bart": _BART,
    "marian": _BART,
}
