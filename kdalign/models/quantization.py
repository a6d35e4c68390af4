"""Quantise linear layers to 8-bit integers: torch's dynamic quantisation, which needs no training.

Weights are rounded once, by tensor and symmetrically; activations as they are computed, by batch and in 8 bits. The
products are integers; all else stays in float32. Runs on the CPU.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdalign.errors import UsageError
from kdalign.models.architecture import count_parameters


def quantize_dynamic(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model, its linear layers in int8; a language model's output layer, often tied, stays as it is.

    Raises:
        UsageError: torch has no engine for it on this machine, or the model has no linear layer.
    """
    if torch.backends.quantized.engine == "none":
        raise UsageError("this torch has no engine for int8 on this machine")
    plain = _with_linear(model)
    head = plain.get_output_embeddings()
    names = {name for name, module in plain.named_modules() if type(module) is nn.Linear and module is not head}
    if not names:
        raise UsageError(f"{model.config.model_type} has no linear layers that torch could hold in int8")
    quantize: Callable[..., PreTrainedModel] = torch.ao.quantization.quantize_dynamic
    with _without_warnings():
        return quantize(plain, names, torch.qint8, inplace=True).eval()


def describe_quantization() -> str:
    """Describe the engine in a few words."""
    return f"torch {torch.__version__}, quantize_dynamic of linear layers, engine {torch.backends.quantized.engine}"


def count_quantized_parameters(model: PreTrainedModel) -> int:
    """Count parameters, those in int8 too, tied ones once."""
    return count_parameters(model) + sum(tensor.numel() for tensor in _packed(model))


def quantized_megabytes(model: PreTrainedModel) -> float:
    """Return the size of weights and buffers, tied ones once, in 10^6 bytes; the few scales are left out."""
    plain = {tensor.untyped_storage().data_ptr(): tensor for tensor in [*model.parameters(), *_saved_buffers(model)]}
    return sum(int(tensor.nbytes) for tensor in [*plain.values(), *_packed(model)]) / 1e6


def _saved_buffers(model: PreTrainedModel) -> list[Tensor]:
    saved = model.state_dict()
    return [buffer for name, buffer in model.named_buffers() if name in saved]


def _packed(model: PreTrainedModel) -> list[Tensor]:
    """Return weights in int8 and their biases, which torch packs out of sight."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    return [tensor for layer in layers for tensor in (layer.weight(), layer.bias()) if tensor is not None]


def _with_linear(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model in float32 to the CPU; GPT-2's linear layers, whose weights are transposed, become usual ones."""
    found = copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    for parent in list(found.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape)
                linear.weight = nn.Parameter(child.weight.detach().t().contiguous())
                linear.bias = child.bias
                setattr(parent, name, linear)
    return found


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence torch's warnings that this part will move to another package, which changes nothing here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        yield
