"""Norms and feed-forward networks as one operation each."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from kdalign.data.batches import collate
from kdalign.models.fused_layers import TYPES, fused_layers
from support.family_setting import Setting

IDS = torch.arange(3 * 11).view(3, 11) * 7 % 50


def model_of(kind, **other):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, **other,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # norms start as ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def trained(model, fused, bf16=False):
    """Logits, gradient, and bytes kept for the backward pass beside the weights."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with fused_layers(model) if fused else nullcontext(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found = model(input_ids=IDS, labels=IDS)
    found.loss.backward()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    size = sum(size for key, size in kept.items() if key not in weights)
    return found.logits.detach(), torch.cat([each.grad.flatten() for each in model.parameters()]), size


@pytest.mark.parametrize("kind", TYPES)
def test_no_bit_of_the_forward_changes_and_the_gradient_is_the_same(kind):
    model = model_of(kind)
    (plain, gradient, kept), (fused, gradient_fused, kept_fused) = (trained(model, way) for way in (False, True))
    assert torch.equal(plain, fused)
    torch.testing.assert_close(gradient_fused, gradient, rtol=1e-4, atol=1e-6)
    assert kept_fused < 0.85 * kept


@pytest.mark.parametrize("kind", TYPES)
def test_in_bfloat16_the_forward_stays_and_the_gradient_is_as_near_to_the_exact_one(kind):
    model = model_of(kind)
    exact = trained(model, fused=False)[1]
    (plain, gradient, kept), (fused, gradient_fused, kept_fused) = (
        trained(model, way, bf16=True) for way in (False, True)
    )
    assert torch.equal(plain, fused)
    assert float((gradient_fused - exact).norm()) < 1.1 * float((gradient - exact).norm())
    assert kept_fused < 0.8 * kept


def test_layers_are_as_before_afterwards_and_other_types_are_left_alone():
    model = model_of("llama")
    with fused_layers(model):
        assert "forward" in vars(model.model.layers[0].mlp)
    assert not any("forward" in vars(module) for module in model.modules())
    gemma = model_of("gemma2")  # its norms are x (1 + w) / rms(x)
    with fused_layers(gemma):
        assert not any("forward" in vars(module) for module in gemma.modules())


@pytest.mark.parametrize("other", [{"mlp_bias": True}, {"hidden_act": "gelu"}])
def test_networks_of_another_form_are_computed_as_before(other):
    model = model_of("llama", **other)
    (plain, *_), (fused, *_) = (trained(model, way) for way in (False, True))
    assert torch.equal(plain, fused)


def test_frozen_norms_and_maps_get_no_gradient():
    model = model_of("qwen2")
    layer = model.model.layers[1]
    layer.mlp.down_proj.requires_grad_(False)
    layer.input_layernorm.requires_grad_(False)
    with fused_layers(model):
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert layer.mlp.down_proj.weight.grad is None
    assert layer.input_layernorm.weight.grad is None
    assert layer.mlp.up_proj.weight.grad.any()


def test_a_map_with_a_forward_of_its_own_is_called():
    """As an adapter's, which a product with its weight alone would leave out."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = model_of("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.__class__ = Doubled
    (plain, *_), (fused, *_) = (trained(model, way) for way in (False, True))
    assert torch.equal(plain, fused)


def test_a_learner_fuses_its_student():
    setting, seen = Setting("llama"), []
    network = setting.learner.student.model.layers[0].mlp
    network.register_forward_hook(lambda module, *_: seen.append("forward" in vars(module)))
    batch = collate(setting.data, range(2))
    setting.learner(batch.inputs, setting.teacher(batch, setting.learner.wanted_of_teacher))
    assert seen == [True]
