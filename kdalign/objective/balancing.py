"""Loss balancing: factors of the terms' weights that change from step to step, so that no term outweighs the others.

A balancer sees each term's mean over the whole step, all micro-batches and ranks, so that all ranks have the same
factors. It is part of the learner, and so of checkpoints.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.98
"""Decay of a running size: about the last 50 steps count."""
NOISE = 1e-6
"""Means below it are rounding errors of 0, such as the distance of copied features."""
WINDOW = 50
"""Number of steps in a mean of ``PaceBalance``."""
_TEMPERATURE = 2.0


class LossBalancer(nn.Module, ABC):
    """Factors of terms' weights.

    Attributes:
        names: names of the terms.
    """

    seen: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("seen", torch.zeros(len(self.names), dtype=torch.int64))

    def needs_warmup(self, names: Sequence[str]) -> bool:
        """Return whether a term was never seen, so that its size must be measured before the first step with it."""
        return any(self.seen[self.names.index(name)] == 0 for name in names)

    def update(self, parts: Mapping[str, float]) -> None:
        """Record the terms' means of a step."""
        for name, value in parts.items():
            number = self.names.index(name)
            self._note(number, abs(value))
            self.seen[number] += 1

    @abstractmethod
    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """Return the current factors of these terms' weights."""

    def penalty(self, parts: Mapping[str, Tensor], weights: Mapping[str, float], share: float) -> Tensor | None:
        """Return an addend of a micro-batch's loss by which factors are learned; None if they are not.

        Args:
            parts: each term's value on the micro-batch, detached.
            weights: weights in the recipe.
            share: the micro-batch's share of the step.
        """
        return None

    def _note(self, number: int, value: float) -> None:
        """Record one term's mean."""


class RunningSize(LossBalancer):
    r"""Divide each term by its running size: :math:`1 / m_k`, m a moving mean of the term's values.

    Scaling a term by a constant changes nothing. The mean is bias-corrected as in Adam, by :math:`1 - 0.98^n` after n
    values; rounding errors of 0 do not count.
    """

    sizes: Tensor
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.register_buffer("sizes", torch.zeros(len(self.names), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(self.names), dtype=torch.int64))

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """One over each size; 1 for a term that was never above 0."""
        found = {}
        for name in names:
            number = self.names.index(name)
            count = int(self.counts[number])
            found[name] = (1 - MOMENTUM**count) / float(self.sizes[number]) if count else 1.0
        return found

    def _note(self, number: int, value: float) -> None:
        if value > NOISE:
            self.counts[number] += 1
            self.sizes[number] = MOMENTUM * self.sizes[number] + (1 - MOMENTUM) * value


class UncertaintyBalance(LossBalancer):
    r"""Learned factors: :math:`\sum_k e^{-s_k} w_k L_k + s_k / 2`, s learned with the student from 0.

    Kendall et al. 2018, arXiv:1705.07115, equation 10, with :math:`s = \log \sigma^2` and one rule for all terms.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.logs = nn.Parameter(torch.zeros(len(self.names)))

    def needs_warmup(self, names: Sequence[str]) -> bool:
        """False: nothing is measured."""
        return False

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """Factors as learned so far."""
        found = self.logs.detach().neg().exp()
        return {name: float(found[self.names.index(name)]) for name in names}

    def penalty(self, parts: Mapping[str, Tensor], weights: Mapping[str, float], share: float) -> Tensor:
        """Addend with the gradient of the factors, which the loss itself treats as constants, and their regulariser."""
        total = self.logs.new_zeros(())
        for name, part in parts.items():
            if weights[name] == 0:
                continue  # no gradient yet
            log = self.logs[self.names.index(name)]
            weighted = weights[name] * (-log).exp() * part.detach()
            total = total + weighted - weighted.detach() + share * log / 2
        return total


class PaceBalance(LossBalancer):
    r"""More weight for terms that fall more slowly: :math:`K \, \mathrm{softmax}_k(r_k / 2) / L_k(0)`.

    r is a term's mean over the last window of steps divided by the one before; :math:`L_k(0)` its mean over the first
    window so far. Dynamic weight average, Liu et al. 2019, arXiv:1803.10704, equation 7, with terms in units of their
    first values and windows in place of epochs.
    """

    values: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # For each term: mean of the first window, running sum, means of the last window and the one before.
        self.register_buffer("values", torch.zeros(len(self.names), 4, dtype=torch.float64))

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """Factors in units of first windows; all equal until two windows are full."""
        numbers = [self.names.index(name) for name in names]
        first, running, last, before = self.values[numbers].unbind(dim=1)
        first = torch.where(first > 0, first, running / self.seen[numbers].clamp_min(1))
        pace = torch.where(before > 0, last / before.clamp_min(1e-30), 1.0)
        shares = len(names) * (pace / _TEMPERATURE).softmax(dim=0)
        return dict(zip(names, (shares / torch.where(first > NOISE, first, 1.0)).tolist(), strict=True))

    def _note(self, number: int, value: float) -> None:
        seen, row = int(self.seen[number]), self.values[number]
        row[1] += value
        if (seen + 1) % WINDOW == 0:
            row[3], row[2], row[1] = row[2].clone(), row[1] / WINDOW, 0.0
        if seen + 1 == WINDOW:
            row[0] = row[2]


BALANCES: Mapping[str, type[LossBalancer]] = {
    "size": RunningSize,
    "uncertainty": UncertaintyBalance,
    "pace": PaceBalance,
}
"""Balancers by the recipe's word; ``static`` has none."""
