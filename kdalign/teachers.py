"""The teacher: in eval mode, without gradients, outside the student's parameters; and what is measured on it once."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.alignment import Plan
from kdalign.architecture import Attention, Layer, accepted_inputs, layout_of
from kdalign.batches import Batch
from kdalign.capture import Signals, Wanted, run, watch


class Teacher:
    """A frozen model that answers with the signals asked for.

    Attributes:
        model: its weights may be bfloat16: it is only read.
    """

    def __init__(self, model: PreTrainedModel, order: tuple[int, ...] | None, dtype: torch.dtype, device: torch.device):
        # Attention of a family's own may mix weights with positions in float32: its products are rounded instead.
        self._rounds = dtype == torch.bfloat16 and layout_of(model.config).attention is not Attention.INTERFACE
        weights = torch.float32 if self._rounds else dtype
        self.model = watch(model).to(device=device, dtype=weights).eval().requires_grad_(False)
        self._order = None if order is None else torch.tensor(order, device=device)

    def __call__(self, inputs: dict[str, Tensor], wanted: Wanted) -> Signals:
        """One forward without gradients; logits in the task's label order."""
        device = self.model.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._rounds):
            return run(self.model, accepted_inputs(self.model, inputs), wanted, self._order)


def calibrate(plan: Plan, teacher: Teacher, batches: Iterable[Batch], device: torch.device) -> Plan:
    r"""Measure each mapped teacher layer's feature variance over real tokens, and keep it in the plan.

    .. math:: \sigma_l^2 = \frac{1}{d} \sum_j \mathrm{Var}_{b,i}\, h^t_{l,b,i,j}

    The scale of the Euclidean term; constant features (outlier dimensions with a large mean) do not enter it.
    """
    layers = frozenset(layer for _, layer, _ in plan.pairs)
    sums: dict[Layer, list[Tensor]] = {}
    counts: dict[Layer, int] = {}
    for batch in batches:
        batch = batch.to(device)
        signals = teacher(batch.inputs, Wanted(hidden=layers))
        for layer, hidden in signals.hidden.items():
            real = hidden[batch.predicted if plan.teacher.reads_target(layer.stack) else batch.tokens].double()
            counts[layer] = counts.get(layer, 0) + len(real)
            found = sums.setdefault(layer, [torch.zeros(()), torch.zeros(())])
            found[0] = found[0] + real.sum(0).cpu()
            found[1] = found[1] + real.square().sum(0).cpu()
    statistics = {}
    for layer, (first, second) in sums.items():
        count = counts[layer]
        variance = float((second / count - (first / count).square()).mean())
        # A layer that gives every token the same features has no scale of its own.
        statistics[f"variance/{layer}"] = max(variance, 1e-6)
    return plan.with_statistics(statistics)
