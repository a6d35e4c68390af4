"""Configuration fields and module paths of each model type: layers, attention, embeddings, and what it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from kdalign.data.media.rows import Modality


class AttentionLayout(StrEnum):
    """Ways in which a family's attention can be captured."""

    INTERFACE = "interface"
    """Transformers' attention interface: SDPA everywhere, maps and Q, K, V on request."""
    OWN = "own"
    """The family's own code, always eager, known to kdalign: maps and Q, K, V can be captured."""
    CLOSED = "closed"
    """The family's own code, unknown to kdalign: nothing can be captured."""


@dataclass(frozen=True)
class StackLayout:
    """Configuration fields and module paths of one stack of a model type.

    Attributes:
        blocks: path of the list of layers, below the base model.
        attention: path of the self-attention, below a layer.
        cross: path of the attention from an encoder-decoder's decoder to its encoder; else empty.
        widths: field with the width of each layer, where a layer is a stage of a pyramid; else empty.
        config: field of the configuration that holds the stack's own, where a model has several; else empty.
    """

    name: str
    blocks: str
    attention: str
    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    feed_forward: str = "intermediate_size"
    cross: str = ""
    widths: str = ""
    config: str = ""


@dataclass(frozen=True)
class Layout:
    """Configuration fields and module paths of a model type.

    Attributes:
        embeddings: module paths below the base model.
        attention: how its attention can be captured.
        time_first: True if its layers work on (time, batch, width).
        shared: True if all layers are one module that runs repeatedly.
        modality: what it reads.
        class_tokens: number of positions before the patches of an image.
        fixed: module paths below the base model whose weights are computed, not learned: sinusoidal positions.
        reads_padding: True for a dual encoder whose texts are padded to all positions and read as a whole, in both
            directions.
    """

    family: str
    stacks: tuple[StackLayout, ...]
    embeddings: tuple[str, ...] = ("embeddings",)
    attention: AttentionLayout = AttentionLayout.INTERFACE
    time_first: bool = False
    shared: bool = False
    modality: Modality = "text"
    class_tokens: int = 0
    fixed: tuple[str, ...] = ()
    reads_padding: bool = False

    @property
    def staged(self) -> bool:
        """True if its layers are stages of a pyramid, each of a width and a grid of its own."""
        return any(stack.widths for stack in self.stacks)


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

_VIT = Layout("vision", (StackLayout("vision", "layers", "attention"),), modality="image", class_tokens=1)


def _pyramid(blocks: str, widths: str, embeddings: str = "embeddings") -> Layout:
    """Layout of an image model whose layers are stages, with nothing to capture of their attention."""
    stages = StackLayout("vision", blocks, "", widths=widths)
    return Layout("vision", (stages,), (embeddings,), AttentionLayout.CLOSED, modality="image")


_CLIP = Layout(
    "dual",
    (
        StackLayout("vision", "vision_model.encoder.layers", "self_attn", config="vision_config"),
        StackLayout("text", "text_model.encoder.layers", "self_attn", config="text_config"),
    ),
    ("vision_model.embeddings", "text_model.embeddings"),
    modality="image",
    class_tokens=1,
)


_WAV2VEC2 = Layout(
    "ctc",
    (StackLayout("encoder", "encoder.layers", "attention"),),
    ("feature_extractor", "feature_projection", "encoder.pos_conv_embed"),
    modality="audio",
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
    "marian": replace(_BART, fixed=("encoder.embed_positions", "decoder.embed_positions")),
    "whisper": replace(
        _BART,
        embeddings=(
            "encoder.conv1",
            "encoder.conv2",
            "encoder.embed_positions",
            "decoder.embed_tokens",
            "decoder.embed_positions",
        ),
        modality="audio",
        fixed=("encoder.embed_positions",),
    ),
    "wav2vec2": _WAV2VEC2,
    "hubert": _WAV2VEC2,
    "wavlm": replace(_WAV2VEC2, attention=AttentionLayout.CLOSED),
    "vit": _VIT,
    "deit": replace(_VIT, class_tokens=2),
    "clip": _CLIP,
    "siglip": replace(_CLIP, class_tokens=0, reads_padding=True),
    "swin": _pyramid("encoder.layers", "embed_dim"),
    "convnext": _pyramid("encoder.stages", "hidden_sizes"),
    "resnet": _pyramid("encoder.stages", "hidden_sizes", "embedder"),
}


def modality_of(model_type: str) -> Modality:
    """Return what models of a type read; text if the type is unknown."""
    return LAYOUTS[model_type].modality if model_type in LAYOUTS else "text"


def reads_samples(model_type: str) -> bool:
    """Return whether models of a type read the samples of sounds, and no spectrogram."""
    return model_type in LAYOUTS and LAYOUTS[model_type].family == "ctc"
