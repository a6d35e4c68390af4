"""Balance: what each term's weight is multiplied by from step to step, so that no term drowns another by its size.

A balance sees each term's share of the whole step's mean, over micro-batches and ranks, so that all ranks have one
balance. It is part of the learner: checkpoints keep it, and a run that goes on has what it had.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MOMENTUM = 0.98
"""Of a running size: about the last 50 steps count."""
NOISE = 1e-6
"""A mean below it is what rounding leaves of 0, such as the distance of features that were copied."""
WINDOW = 50
"""Steps over which ``Pace`` takes means."""
_TEMPERATURE = 2.0


class LossBalancer(nn.Module, ABC):
    """The factors of some terms.

    Attributes:
        names: of the terms.
    """

    seen: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("seen", torch.zeros(len(self.names), dtype=torch.int64))

    def needs_warmup(self, names: Sequence[str]) -> bool:
        """Whether one of these was never seen, so that its size must be looked at before the first step with it."""
        return any(self.seen[self.names.index(name)] == 0 for name in names)

    def update(self, parts: Mapping[str, float]) -> None:
        """Take note of a step's means."""
        for name, value in parts.items():
            number = self.names.index(name)
            self._note(number, abs(value))
            self.seen[number] += 1

    @abstractmethod
    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """By which the weights of these terms are multiplied now."""

    def penalty(self, parts: Mapping[str, Tensor], weights: Mapping[str, float], share: float) -> Tensor | None:
        """What is added to a micro-batch's loss, so that factors are learnt; None where they are not.

        Args:
            parts: of the micro-batch, detached.
            weights: of the recipe.
            share: the micro-batch's part of the step.
        """
        return None

    def _note(self, number: int, value: float) -> None:
        """Take note of one term's mean."""


class RunningSize(LossBalancer):
    r"""Each term in units of its own running size: :math:`1 / m_k`, m a moving mean of the term's values.

    A term that is scaled by a constant changes nothing. The mean is Adam's, over :math:`1 - 0.98^n` after n values, so
    that the first ones weigh alike; what rounding leaves of 0 is no size.
    """

    sizes: Tensor
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.register_buffer("sizes", torch.zeros(len(self.names), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(self.names), dtype=torch.int64))

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """One by its size; 1 for a term that was never above 0."""
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
    r"""Learnt factors: :math:`\sum_k e^{-s_k} w_k L_k + s_k / 2`, s learnt with the student, 0 at first.

    Kendall et al. 2018, arXiv:1705.07115, equation 10, with :math:`s = \log \sigma^2` and one rule for all terms.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.logs = nn.Parameter(torch.zeros(len(self.names)))

    def needs_warmup(self, names: Sequence[str]) -> bool:
        """Nothing is measured."""
        return False

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """As far as they are learnt."""
        found = self.logs.detach().neg().exp()
        return {name: float(found[self.names.index(name)]) for name in names}

    def penalty(self, parts: Mapping[str, Tensor], weights: Mapping[str, float], share: float) -> Tensor:
        """The gradient of the factors, beside the loss that holds them as numbers; and what keeps them from 0."""
        total = self.logs.new_zeros(())
        for name, part in parts.items():
            if weights[name] == 0:
                continue  # it has nothing to learn from yet
            log = self.logs[self.names.index(name)]
            weighted = weights[name] * (-log).exp() * part.detach()
            total = total + weighted - weighted.detach() + share * log / 2
        return total


class PaceBalance(LossBalancer):
    r"""More weight for terms that fall more slowly: :math:`K \, \mathrm{softmax}_k(r_k / 2) / L_k(0)`.

    r is a term's mean over the last window of steps by that over the window before, :math:`L_k(0)` that over the first,
    as far as it has come. Dynamic weight average, Liu et al. 2019, arXiv:1803.10704, equation 7, on terms in units of
    what they are at first and windows in place of epochs.
    """

    values: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        # Of each term: the mean of its first window, the running sum, the means of the last window and the one before.
        self.register_buffer("values", torch.zeros(len(self.names), 4, dtype=torch.float64))

    def factors(self, names: Sequence[str]) -> dict[str, float]:
        """In units of first windows; all equal until two windows are full."""
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
"""By the recipe's word; ``static`` is none of them."""
