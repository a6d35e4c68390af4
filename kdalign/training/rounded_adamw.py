"""AdamW whose moments are kept in bfloat16, rounded at random so that none of them stands still.

With beta2 = 0.999 a step changes the second moment by 0.1 % of its distance from the squared gradient, which is less
than bfloat16's smallest step of 0.4 to 0.8 %: rounded to the nearest, it would never move. Rounded up with the
probability of what is cut off, it is right on average (Gupta et al. 2015, arXiv:1502.02551, section 3.1).
"""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kdalign.models.sharding import local

CHUNK = 2**20
"""Weights that are stepped at a time: their moments in float32 take 4 MiB each, however large a matrix is."""


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) with its two moments in bfloat16.

    A step is computed in float32, as by ``torch.optim.AdamW``; only what is kept for the next one is rounded. The noise
    is a function of the seed, a parameter's place and its number of steps: the same on all ranks and after a resume.
    Sharded parameters get another noise on another number of ranks.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        """Group parameters as in ``torch.optim.AdamW``.

        Args:
            groups: parameters in float32, each group with its ``weight_decay``.
            lr: learning rate of groups without their own.
            betas: decay of the first and the second moment.
            eps: added to the root of the second moment.
            seed: decides the rounding.
        """
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        place = 0
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step(parameter, group, place)
                    place += 1

    def _step(self, parameter: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
        state["step"] += 1
        count: int = state["step"]
        # A generator of the CPU reads 32 bits of its seed, so that the three numbers are mixed first.
        seed = int(np.random.SeedSequence((self._seed, place, count)).generate_state(1)[0])
        generator = torch.Generator(parameter.device).manual_seed(seed)
        own = local(parameter)  # of a sharded parameter, this rank's rows
        whole = own.contiguous()  # itself, or a copy of a transposed one
        weights, first, second = (local(each).view(-1) for each in (whole, state["exp_avg"], state["exp_avg_sq"]))
        gradient = local(cast(Tensor, parameter.grad)).reshape(-1)
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for start in range(0, len(gradient), CHUNK):
            part = slice(start, start + CHUNK)
            mean = first[part].float().lerp_(gradient[part], 1 - beta1)
            square = second[part].float().mul_(beta2).addcmul_(gradient[part], gradient[part], value=1 - beta2)
            first[part] = round_at_random(mean, generator)
            second[part] = round_at_random(square, generator)
            spread = square.sqrt_().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
            weights[part].mul_(1 - lr * group["weight_decay"]).addcdiv_(mean, spread, value=-lr / (1 - beta1**count))
        if whole is not own:
            own.copy_(whole)


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, up or down with probabilities by which the mean stays the same.

    Args:
        values: finite numbers.
        generator: generator on their device.
    """
    # bfloat16 is the upper half of float32. Noise in the lower half carries over as often as that half is large.
    noise = torch.empty_like(values, dtype=torch.int32).random_(2**16, generator=generator)
    return noise.add_(values.view(torch.int32)).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()
