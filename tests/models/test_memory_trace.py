"""Memory counted on shapes alone is that of real tensors."""

import pytest
import torch
from torch import nn

from kdalign.data.batches import collate
from kdalign.models.architecture import blocks, meta_model
from kdalign.models.capture import CaptureSpec, enable_capture, forward
from kdalign.models.heads import head_of_class
from kdalign.models.inputs import accepted_inputs
from kdalign.models.memory_trace import MemoryTrace, shapes_only, without_storage
from support.family_setting import EVERY, encoded, model

CPU = torch.device("cpu")


def kept(signals):
    """All tensors of some activations."""
    layers = (signals.hidden, signals.attention)
    return [signals.features, signals.logits, *(tensor for each in layers for tensor in each.values())]


def really_kept(real, inputs, wanted):
    """Bytes that autograd saves in a real forward and those of its activations, without weights and inputs."""
    given = [*real.parameters(), *real.buffers(), *inputs.values()]
    others, storages = {tensor.untyped_storage()._cdata for tensor in given}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in others:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        signals = forward(real, inputs, wanted, None)
    for tensor in kept(signals):
        keep(tensor)
    return sum(storage.nbytes() for storage in storages.values())


def counted(shaped, inputs, wanted):
    """The same, counted on shapes alone."""
    mode = shapes_only()
    without_storage(shaped, mode, CPU)
    trace = MemoryTrace(mode)
    inputs = {name: mode.from_tensor(tensor) for name, tensor in inputs.items()}
    trace.skip(*shaped.parameters(), *shaped.buffers(), *inputs.values())
    with mode, trace:
        signals = forward(shaped, inputs, wanted, None)
    size = trace.live.total()
    del signals
    return size


def both(kind, rows, maps=True):
    real = enable_capture(model(kind)).train()
    layers = frozenset(blocks(real))
    wanted = CaptureSpec(hidden=layers, attention=layers if maps else frozenset())
    data = encoded(kind)
    inputs = accepted_inputs(real, collate(data, [index % len(data) for index in range(rows)]).inputs)
    shaped = enable_capture(meta_model(real.config, head=head_of_class(type(real).__name__))).train()
    return really_kept(real, inputs, wanted), counted(shaped, inputs, wanted)


@EVERY
def test_what_a_forward_keeps_is_counted_to_the_byte_without_weights(kind):
    real, predicted = both(kind, 4)
    assert predicted == real > 0


def test_half_the_rows_keep_half_as_much():
    whole, half = both("bert", 8)[1], both("bert", 4)[1]
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_the_peak_names_what_lived_then_and_weights_are_no_part_of_it():
    mode = shapes_only()
    layer = nn.Linear(8, 4, bias=False, device="meta")
    without_storage(layer, mode, CPU)
    trace = MemoryTrace(mode)
    trace.skip(*layer.parameters())
    with mode, trace:
        trace.part = "rows"
        rows = torch.zeros(10, 8)
        trace.part = "products"
        products = layer(rows)
        del products
        trace.part = "small"
        torch.ones(3)
    assert trace.peak == {"rows": 10 * 8 * 4, "products": 10 * 4 * 4}
    assert dict(trace.live) == {"rows": 10 * 8 * 4, "products": 0, "small": 0}


def test_a_mask_selects_everything_and_a_condition_on_values_is_true():
    mode = shapes_only()
    trace = MemoryTrace(mode)
    with mode, trace:
        values, mask = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.bool)
        assert values[mask].shape == (6, 5)
        assert values[:, mask[0]].shape == (2, 3, 5)
        assert values.transpose(0, 1)[:, mask.T[0]].shape == (3, 2, 5)
        assert mask.nonzero().shape == (6, 2)
        assert bool(mask.all())
        assert (int(values.long().sum()), float(values.sum())) == (1, 1.0)


def test_tied_weights_stay_one_and_take_no_memory():
    shaped = meta_model(model("llama").config)
    shaped.get_output_embeddings().weight = shaped.get_input_embeddings().weight
    without_storage(shaped, shapes_only(), CPU)
    assert shaped.get_output_embeddings().weight is shaped.get_input_embeddings().weight
    assert {parameter.device for parameter in shaped.parameters()} == {CPU}
