"""Costs by hand, and against torch's counter on real models of every family."""

import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from kdalign.models.architecture import Layer, meta_model
from kdalign.models.checkpoint_files import Checkpoint
from kdalign.models.flop_count import count_flops
from kdalign.models.inputs import accepted_inputs
from kdalign.models.profiling import activation_bytes, profile, profile_models
from support.covering import first_only
from support.family_setting import ONE_OF_EACH, model
from support.tiny import one_line, tiny_config

WIDTH, INNER, LAYERS = 32, 64, 3


def checkpoint(config):
    return Checkpoint("tiny", "no-folder", config, "0" * 40, "0" * 40)


def bert():
    return tiny_config("bert", LAYERS, WIDTH, max_position_embeddings=64)


def by_hand(length):
    """One layer's FLOPs: four projections and two feed-forward maps; scores and their use, length x length x width."""
    linear = 2 * length * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    square = 2 * 2 * length * length * WIDTH
    return linear, square


def test_flops_of_a_bert_layer_and_what_grows_with_the_square_are_those_by_hand():
    for length in (16, 48):
        found = count_flops(meta_model(bert(), attention="eager"), length)
        linear, square = by_hand(length)
        assert found.layers == dict.fromkeys([Layer("encoder", number) for number in range(LAYERS)], linear + square)
        pooler = 2 * WIDTH * WIDTH  # of the first token
        assert found.total == LAYERS * (linear + square) + pooler
        share = profile(checkpoint(bert()), (length,)).quadratic_share[length]
        assert share == pytest.approx(LAYERS * square / found.total, rel=1e-6)


def test_a_backward_costs_twice_its_forward_but_for_the_gradient_of_the_input():
    found = profile(checkpoint(bert()), (16,))
    assert found.training_flops_per_token[16] == pytest.approx(3 * found.flops_per_token[16], rel=0.01)


@pytest.mark.parametrize("length", first_only([32, 8]))
@ONE_OF_EACH
def test_flops_are_those_that_torch_counts_on_a_real_model_with_eager_attention(kind, length):
    net = model(kind)
    net.set_attn_implementation("eager")
    ids = torch.randint(5, 50, (1, length))
    inputs = accepted_inputs(net, {"input_ids": ids, "decoder_input_ids": ids})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(**inputs)
    found = profile(checkpoint(net.config), (length,))
    assert found.flops_per_token[length] * length == pytest.approx(counter.get_total_flops(), rel=0.01)
    of_layers = [part.flops_per_token[length] for part in found.parts[1:-1]]
    assert 0 < sum(of_layers) < found.flops_per_token[length]
    assert len(set(of_layers[:4])) == 1  # the encoder's, or the decoder's: each the same


@ONE_OF_EACH
def test_the_parts_make_up_the_whole(kind):
    found = profile(checkpoint(model(kind).config), (16,))
    assert sum(part.parameters for part in found.parts) == found.parameters
    assert sum(part.flops_per_token[16] for part in found.parts) == pytest.approx(found.flops_per_token[16])
    assert [part.name for part in found.parts][0 :: len(found.parts) - 1] == ["embeddings", "rest"]


def test_generation_keeps_keys_and_values_of_every_decoder_layer():
    cache = profile(checkpoint(model("llama").config), (8,)).cache_kb_per_token  # 4 layers, 2 heads of 8
    assert cache == {"fp32": 2 * 4 * 2 * 8 * 4 / 1e3, "bf16": 2 * 4 * 2 * 8 * 2 / 1e3}
    assert profile(checkpoint(bert()), (8,)).cache_kb_per_token == {}


def test_what_is_kept_for_the_backward_grows_with_the_batch_and_is_counted_once():
    linear = torch.nn.Linear(8, 8)

    class Net(torch.nn.Module):
        config = type("Config", (), {"model_type": "net", "vocab_size": 100, "is_encoder_decoder": False})()
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.words, self.linear = torch.nn.Embedding(100, 8), linear

        def forward(self, input_ids):
            hidden = self.words(input_ids)
            return (self.linear(hidden) * self.linear(hidden),)

    # Kept: the ids (int64), the hidden states (shared by both products), and both factors (float32).
    assert activation_bytes(Net(), 2, 5) == 2 * 5 * 8 + 3 * 2 * 5 * 8 * 4
    assert activation_bytes(Net(), 4, 5) == 2 * activation_bytes(Net(), 2, 5)


def test_profile_shows_layers_draws_and_refuses(kdalign, teacher, tmp_path):
    status, out, err = kdalign(
        "profile", teacher, "--seq-len", "16,32", "--layers", "--plot", "costs.png", "--dtype", "bf16"
    )
    assert status == 0, err
    assert "encoder.0 to 3, each" in out
    assert "in bf16 after warm-up" in " ".join(out.split())
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(kdalign("profile", teacher, "--seq-len", "16", "--json")[1])[0]
    assert found["timings"][0]["activations_mb"] > 0
    assert len(found["parts"]) == 6
    assert "did you mean 'bf16'" in one_line(kdalign("profile", teacher, "--dtype", "bf15")[2])
    assert "end in .png" in one_line(kdalign("profile", teacher, "--plot", "costs.gif")[2])


def test_a_parameter_that_is_handed_to_a_module_is_no_trouble_to_the_counter():
    config = AutoConfig.for_model("deberta-v2", vocab_size=50, hidden_size=32, num_hidden_layers=2)
    config.update({"num_attention_heads": 4, "intermediate_size": 64, "relative_attention": True})
    config.update({"pos_att_type": ["p2c", "c2p"], "position_buckets": 8})  # no norm over relative positions
    net = AutoModel.from_config(config)
    assert count_flops(net, 8).total > 0
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_classifiers_that_read_the_end_token_are_profiled_and_located(kind, tmp_path):
    sizes = {
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    }[kind]
    config = AutoConfig.for_model(kind, vocab_size=50, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    [found] = profile_models([str(tmp_path)], (8,), batch_size=2)
    assert found.flops_per_token[8] > 0


def test_no_number_of_a_profile_is_broken_over_two_lines_in_a_narrow_terminal(kdalign, teacher, monkeypatch):
    wide = kdalign("profile", teacher, teacher, "--no-weights", "--seq-len", "16")[1]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = kdalign("profile", teacher, teacher, "--no-weights", "--seq-len", "16")[1]
    numbers = [set(re.findall(r"\d[\d,.]*\d|\d", text)) for text in (wide, narrow)]
    assert max(map(len, narrow.splitlines())) <= 40
    assert {number for number in numbers[0] if "." in number} <= numbers[1]
