"""The teacher: in eval mode, without gradients, outside the student's parameters; and what is measured on it once."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdalign.alignment import Plan
from kdalign.architecture import accepted_inputs
from kdalign.batches import Batch
from kdalign.capture import ATTENTION, Signals, Wanted, run


class Teacher:
    """A frozen model that answers with the signals asked for.

    Attributes:
        model: its weights may be bfloat16: it is only read.
    """

    def __init__(self, model: PreTrainedModel, order: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        model.set_attn_implementation(ATTENTION)
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._order = torch.tensor(order, device=device)

    def __call__(self, inputs: dict[str, Tensor], wanted: Wanted) -> Signals:
        """One forward without gradients; logits in the task's label order."""
        with torch.no_grad():
            return run(self.model, accepted_inputs(self.model, inputs), wanted, self._order)


def calibrate(plan: Plan, teacher: Teacher, batches: Iterable[Batch], device: torch.device) -> Plan:
    r"""Measure each mapped teacher layer's feature variance over real tokens, and keep it in the plan.

    .. math:: \sigma_l^2 = \frac{1}{d} \sum_j \mathrm{Var}_{b,i}\, h^t_{l,b,i,j}

    The scale of the Euclidean term; constant features (outlier dimensions with a large mean) do not enter it.
    """
    layers = frozenset(layer for _, layer, _ in plan.pairs)
    sums: dict[int, list[Tensor]] = {}
    count = 0
    for batch in batches:
        batch = batch.to(device)
        signals = teacher(batch.inputs, Wanted(hidden=layers))
        count += int(batch.tokens.sum())
        for layer, hidden in signals.hidden.items():
            real = hidden[batch.tokens].double()
            found = sums.setdefault(layer, [torch.zeros(()), torch.zeros(())])
            found[0] = found[0] + real.sum(0).cpu()
            found[1] = found[1] + real.square().sum(0).cpu()
    statistics = {}
    for layer, (first, second) in sums.items():
        variance = float((second / count - (first / count).square()).mean())
        # A layer that gives every token the same features has no scale of its own.
        statistics[f"variance/{layer}"] = max(variance, 1e-6)
    return plan.with_statistics(statistics)
