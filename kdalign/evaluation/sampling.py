"""Draw tokens so that a text is a function of seed and prompt, whatever else is in its batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from kdalign.metrics.arrays import Array
from kdalign.models.sampling import draw_tokens, uniform_numbers


def uniform_draws(seed: int, prompt: str, draw: int, count: int) -> Array:
    """Return numbers from 0 to 1 for a text's tokens, a function of the seed, the prompt and the sample's number.

    Args:
        seed: seed of the run.
        prompt: text before the sample.
        draw: number of the sample among those of its prompt.
        count: most tokens.
    """
    return uniform_numbers(f"{seed}\0{draw}\0{prompt}", count)


class DrawTokens(LogitsProcessor):  # type: ignore[misc]  # Transformers' are not typed
    """Leaves one token of each row, drawn by temperature from the nucleus (Holtzman et al. 2020, arXiv:1904.09751).

    A row's token is the first at which the cumulative distribution, in the vocabulary's order, exceeds the row's own
    uniform number. So draws depend on no other row, as those of a generator that a whole batch shares would; logits
    still differ in their last bits between batches, which a number near a boundary can show.
    """

    def __init__(self, draws: Sequence[Array], prompt: int, temperature: float, top_p: float = 1.0) -> None:
        """Set the numbers and the distribution.

        Args:
            draws: a number for each new token of each row.
            prompt: tokens before the first new one.
            temperature: divisor of the logits, above 0.
            top_p: share of the probability that the nucleus holds: the likeliest tokens whose sum reaches it.
        """
        self._draws, self._prompt = torch.tensor(np.array(draws)), prompt
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores that are 0 for the drawn token and -inf for all others."""
        draws = self._draws[:, input_ids.size(1) - self._prompt].to(scores.device)
        token = draw_tokens(scores, draws, self._temperature, self._top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)
