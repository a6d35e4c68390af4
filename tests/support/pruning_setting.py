"""Configurations of tiny models of every family that can be narrowed."""

from transformers import AutoConfig

WIDTH = 32
GEMMAS = ("gemma2", "gemma3_text")
LLAMAS = ("llama", "mistral", "qwen2", "qwen3", *GEMMAS)


def config_of(kind, kv_heads=2, **changes):
    """A configuration of width 32 with 2 layers of 4 heads."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    own = {"num_key_value_heads": kv_heads, "head_dim": 8, "eos_token_id": 1} if kind in LLAMAS else {}
    own |= {"query_pre_attn_scalar": 8} if kind in GEMMAS else {}
    own |= {"embedding_size": WIDTH} if kind == "electra" else {}
    given = {**sizes, **own, "vocab_size": 60, "max_position_embeddings": 48, "pad_token_id": 0, **changes}
    return AutoConfig.for_model(kind, initializer_range=0.2, **given)
