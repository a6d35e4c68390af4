"""Inputs of a model's forward: those that it accepts, and arbitrary ones to test or to time it."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdalign.data.media.encodings import ENCODER_OUTPUTS
from kdalign.data.media.readers import INPUT_MASK
from kdalign.data.media.waves import samples_of
from kdalign.models.layouts import LAYOUTS, modality_of, reads_samples

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


def any_inputs(config: "PretrainedConfig", batch: int, length: int, device: "torch.device") -> "dict[str, Tensor]":
    """Return arbitrary inputs that a model can read, to test that it computes or to time it.

    Args:
        config: the model's configuration.
        batch: number of examples.
        length: tokens of each, or frames of a sound; images have a size of their own, and sounds of an encoder-decoder
            are as long as the model reads at most.
        device: device of the tensors.
    """
    import torch

    modality = modality_of(config.model_type)
    if modality == "image":
        shape = (batch, vision_config(config).num_channels, *image_size(config))
        images = {"pixel_values": torch.full(shape, 0.5, device=device)}
        if not has_text(config):
            return images
        length = min(length, int(config.text_config.max_position_embeddings))
        ids = _any_ids(config.text_config, batch, length, device)
        return images | {"input_ids": ids, INPUT_MASK: torch.ones_like(ids)}
    if reads_samples(config.model_type):
        samples = samples_of(length, convolutions_of(config))
        return {"input_values": torch.full((batch, samples), 0.5, device=device)}
    ids = _any_ids(config, batch, length, device)
    if modality == "audio":
        frames = 2 * int(config.max_source_positions)  # a convolution of stride 2 halves them
        features = torch.full((batch, int(config.num_mel_bins), frames), 0.5, device=device)
        return {"input_features": features, "decoder_input_ids": ids}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})


def vision_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """Return the configuration of what reads images: the model's own, or that of its part."""
    found: PretrainedConfig = getattr(config, "vision_config", config)
    return found


def has_text(config: "PretrainedConfig") -> bool:
    """Return whether a model of images reads texts beside them."""
    return getattr(config, "text_config", None) is not None


def padded_length(config: "PretrainedConfig") -> int:
    """Return the length to which texts are padded for a model that reads their padding, too; 0 if it is masked."""
    layout = LAYOUTS.get(config.model_type)
    pads = layout is not None and layout.reads_padding
    return int(config.text_config.max_position_embeddings) if pads else 0


def convolutions_of(config: "PretrainedConfig") -> tuple[tuple[int, int], ...]:
    """Return the (kernel, stride) of each convolution by which a model reads samples of a sound."""
    return tuple(zip(map(int, config.conv_kernel), map(int, config.conv_stride), strict=True))


def image_size(config: "PretrainedConfig") -> tuple[int, int]:
    """Return the height and width of the images that a model was made for; 224 if its configuration does not say."""
    size = getattr(vision_config(config), "image_size", None) or 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _any_ids(config: "PretrainedConfig", batch: int, length: int, device: "torch.device") -> "Tensor":
    """Return arbitrary token ids, (batch, length).

    They end with its end token if it has one, as models that classify by it (BART, T5) refuse texts without.
    """
    import torch

    ids = torch.full((batch, length), config.vocab_size // 2, device=device)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < config.vocab_size:
        ids[:, -1] = end
    return ids


def accepted_inputs(model: "PreTrainedModel", inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the inputs that a model's forward accepts (DistilBERT has no ``token_type_ids``).

    Of sounds and images, the mask of positions is for losses alone: ``INPUT_MASK`` is what the model attends by.
    """
    known = inspect.signature(model.forward).parameters
    if modality_of(model.config.model_type) != "text":
        inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
        if INPUT_MASK in inputs:
            inputs["attention_mask"] = inputs[INPUT_MASK]
        inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        if ENCODER_OUTPUTS in inputs:
            inputs[ENCODER_OUTPUTS] = (inputs[ENCODER_OUTPUTS],)
    return {name: value for name, value in inputs.items() if name in known}


def probe_inputs(model: "PreTrainedModel", batch: int, length: int) -> dict[str, Any]:
    """Return arbitrary inputs that a model's forward accepts, to count and to time it."""
    return accepted_inputs(model, any_inputs(model.config, batch, length, model.device))
