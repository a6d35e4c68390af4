"""Layer weights lambda_l that change during training, by the mismatch of each pair of layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdalign.objective.terms.distributed import all_reduce_sum

MOMENTUM = 0.98
"""Decay of a running mismatch: about the last 50 steps count."""
RATE = 0.1
"""Step size of learned weights; their gradient is between -1 and 1."""


class LayerWeights(nn.Module, ABC):
    """Layer weights of one term; they sum to 1, and are equal before the first step.

    A step's distances are summed over its micro-batches and ranks and divided by its units, so that weights depend on
    neither, and all ranks have the same ones. The state is buffers, which checkpoints store.

    Args:
        pairs: number of layer pairs.
    """

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.pairs = pairs
        self._kept: list[Tensor] = []

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """(pairs,), current lambda_l."""

    @abstractmethod
    def update(self, means: Tensor) -> None:
        """Update with a step's mean distance of each pair, (pairs,)."""

    def forward(self, distances: Tensor) -> Tensor:
        """Sum a micro-batch's distances, (pairs,), by weight; weights get no gradient."""
        self._kept.append(distances.detach().float())
        return (self.values.to(distances.dtype) * distances).sum()

    def remember(self, units: float) -> None:
        """Update with a step of this number of units; with 0, forget the forward passes since the last call."""
        kept, self._kept = self._kept, []
        if kept and units:
            self.update(all_reduce_sum(torch.stack(kept).sum(dim=0)) / units)


class Adaptive(LayerWeights):
    r"""Weights proportional to the mismatch: :math:`\lambda_l = m_l / \sum_k m_k`, m a moving mean of the distance.

    It begins with the first step's distances. Ours.
    """

    mismatch: Tensor

    def __init__(self, pairs: int) -> None:
        super().__init__(pairs)
        self.register_buffer("mismatch", torch.zeros(pairs))

    @property
    def values(self) -> Tensor:
        """Proportional to the running mismatch."""
        total = self.mismatch.sum()
        return torch.where(total > 0, self.mismatch / total.clamp_min(1e-30), 1 / self.pairs)

    def update(self, means: Tensor) -> None:
        """Update the moving mean."""
        means = means.clamp_min(0.0)
        self.mismatch.copy_(torch.where(self.mismatch.sum() > 0, self.mismatch.lerp(means, 1 - MOMENTUM), means))


class Learned(LayerWeights):
    r"""Learned uncertainties s, initially 0: :math:`\lambda = \mathrm{softmax}(-s)`.

    Kendall et al. 2018, arXiv:1705.07115, equation 10, :math:`\sum_l e^{-s_l} L_l + s_l / 2`, at the best value of the
    scale that all :math:`e^{-s_l}` share is, up to a factor and a constant,

    .. math:: \log \sum_l e^{-s_l} L_l + \frac{1}{n} \sum_l s_l, \quad
        \frac{\partial}{\partial s_l} = \frac{1}{n} - \frac{\lambda_l L_l}{\sum_k \lambda_k L_k}

    whose minimum gives every layer the same part of the sum: all weight on the easiest layer is not a solution. s takes
    one step down this gradient per training step, outside the optimizer, so that it is neither clipped nor decayed.
    """

    logs: Tensor

    def __init__(self, pairs: int) -> None:
        super().__init__(pairs)
        self.register_buffer("logs", torch.zeros(pairs))

    @property
    def values(self) -> Tensor:
        """Weights as learned so far."""
        return self.logs.neg().softmax(dim=0)

    def update(self, means: Tensor) -> None:
        """Take a step down the gradient, unless all distances are 0."""
        parts = self.values * means.clamp_min(0.0)
        total = parts.sum()
        shares = torch.where(total > 0, parts / total.clamp_min(1e-30), 1 / self.pairs)
        self.logs += RATE * (shares - 1 / self.pairs)


LAYER_WEIGHTS: Mapping[str, type[LayerWeights]] = {"learned": Learned, "adaptive": Adaptive}
"""Changing weights by the recipe's word; those of other words are constant."""
