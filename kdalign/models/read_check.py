"""Check that activations of a model type without a layout of its own are captured rightly."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.errors import UsageError
from kdalign.models.architecture import Layer, blocks, layout_of
from kdalign.models.capture import CaptureSpec, enable_capture, forward, inference_mode
from kdalign.models.heads import HeadKind, head_of_class
from kdalign.models.inputs import accepted_inputs
from kdalign.models.layouts import LAYOUTS, AttentionLayout


def check_read(model: PreTrainedModel) -> PreTrainedModel:
    """Check that activations captured from a model are those that it computes; types in ``LAYOUTS`` are known to pass.

    Its logits must be its features times its vocabulary, every layer must be seen, maps must be probabilities, and
    packed documents must not see each other nor the future.

    Raises:
        UsageError: the activation that is wrong.
    """
    if model.config.model_type in LAYOUTS or model.device.type == "meta":
        return model
    try:
        wrong = _misread(model)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, StopIteration, AssertionError) as error:
        wrong = f"its forward cannot be read ({type(error).__name__}: {error})"
    if wrong:
        raise UsageError(f"model type {model.config.model_type!r} is not supported: {wrong}")
    return model


def _misread(model: PreTrainedModel) -> str:
    """Return which of a model's activations is captured wrongly; empty if all are right."""
    head, before = head_of_class(type(model).__name__), model.config._attn_implementation
    ids = torch.arange(5, 17, device=model.device)[None] % int(model.config.vocab_size)
    inputs = accepted_inputs(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    layers = frozenset(blocks(model))
    maps = layers if layout_of(model.config).attention is AttentionLayout.INTERFACE else frozenset[Layer]()
    order = torch.arange(model.config.num_labels, device=model.device) if head is HeadKind.CLASSIFIER else None

    def same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one.float(), other.float(), atol=1e-3, rtol=1e-3)

    with inference_mode(model):
        plain = model(**inputs)[0]
        signals = forward(enable_capture(model), inputs, CaptureSpec(hidden=layers, attention=maps), order)
        if signals.head is not None and not same(signals.head.logits(signals.features), plain):
            return "its logits are not its features times its vocabulary"
        if signals.hidden.keys() != layers or signals.attention.keys() != maps:
            return "not every layer can be seen"
        if not all(same(each.sum(dim=-1), torch.ones_like(each[..., 0])) for each in signals.attention.values()):
            return "its attention maps are not probabilities"
        if head is HeadKind.CAUSAL:
            half = ids.size(1) // 2
            document = torch.arange(ids.size(1), device=ids.device) // half
            mask = (document[:, None] == document).tril()[None, None]
            places = torch.arange(ids.size(1), device=ids.device)[None] % half
            packed = accepted_inputs(model, {"input_ids": ids, "attention_mask": mask, "position_ids": places})
            if not same(model(**packed)[0][:, half:], model(input_ids=ids[:, half:])[0]):
                return "documents that are packed together see each other"
    model.set_attn_implementation(before)
    return ""
