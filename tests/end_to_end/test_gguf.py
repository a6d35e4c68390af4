"""A teacher in a GGUF file: written here from a tiny Llama, read back as an ordinary model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdalign.errors import UsageError
from kdalign.models import checkpoint_files, gguf_files, loading, student
from support.family_setting import model

gguf = pytest.importorskip("gguf", reason="reading GGUF needs the extra: gguf")

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary halves as llama.cpp has them: in turns."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(net, file: Path) -> Path:
    config = net.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = interleaved(weight, heads)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def net():
    return model("llama", layers=3)


@pytest.fixture(scope="module")
def file(net, tmp_path_factory):
    return write(net, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_model_in_a_gguf_file_is_the_model_that_was_written(net, file, by):
    checkpoint = checkpoint_files.find_checkpoint(str(file if by == "file" else file.parent))
    loaded = loading.load_language_model(checkpoint).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, net(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert checkpoint_files.weights_megabytes(checkpoint) == pytest.approx(file.stat().st_size / 1e6)


def test_it_can_be_rounded_cut_and_saved_as_any_other(file, tmp_path):
    loaded = loading.load_language_model(checkpoint_files.find_checkpoint(str(file)))
    small = student.copy_layers(loaded, {"decoder": (0, 2)})
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    loaded.to(torch.bfloat16)
    small.save_pretrained(tmp_path / "small")
    again = loading.load_language_model(checkpoint_files.find_checkpoint(str(tmp_path / "small")))
    assert again.config.num_hidden_layers == 2
    assert torch.equal(again.get_input_embeddings().weight, small.get_input_embeddings().weight)


def load(file: Path):
    checkpoint = checkpoint_files.find_checkpoint(str(file))
    return checkpoint.config.to_dict(), loading.load_language_model(checkpoint)


def test_the_file_is_read_once_and_again_if_it_changes_or_what_is_kept_is_damaged(net, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("KDALIGN_CACHE", str(cache))
    file = write(net, tmp_path / "model.gguf")
    config, first = load(file)
    with monkeypatch.context() as without:
        without.setattr(gguf, "GGUFReader", None)  # Transformers and kdalign read it by this
        again_config, again = load(file)
    assert again_config == config
    assert again.config.to_dict() == first.config.to_dict()
    assert again.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        again.get_input_embeddings().weight.zero_()  # what is kept is not the model's own memory
    (kept,) = (cache / "gguf").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    gguf_files._read_kept.cache_clear()
    assert torch.equal(load(file)[1].get_input_embeddings().weight, first.get_input_embeddings().weight)
    other = model("llama", layers=2)
    write(other, file)
    assert torch.equal(load(file)[1].get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_what_is_no_gguf_file_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match=r"cannot read .* as GGUF"):
        checkpoint_files.find_checkpoint(str(tmp_path / "model.gguf"))
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint_files.find_checkpoint(str(tmp_path / "other.gguf"))
