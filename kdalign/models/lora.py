"""Add LoRA adapters to a model, and merge them into it."""

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdalign.models.architecture import blocks, embedding_weights


def add_adapters(model: PreTrainedModel, rank: int, seed: int) -> PreTrainedModel:
    """Add low-rank adapters to every linear map of a model's layers; nothing else in them is trained.

    LoRA, Hu et al. 2021, arXiv:2106.09685, section 4.1, by peft, scaled by 2. Embeddings are frozen, too; all
    other weights (a classification head, a final norm) are trained in full.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for block in blocks(model).values() for module in block.modules()}
    linear = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and isinstance(module, torch.nn.Linear | Conv1D)
    ]
    of_layers = {id(parameter) for block in blocks(model).values() for parameter in block.parameters()}
    frozen = of_layers | {id(parameter) for parameter in embedding_weights(model)}
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear, fan_in_fan_out=turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or id(parameter) not in frozen)
    return model


def merge_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Merge adapters into the weights, which leaves a stock model."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    return model
