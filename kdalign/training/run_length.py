"""Length of a training run: a number of steps, or the tokens that are trained if these are not known before."""

import math
from dataclasses import dataclass

from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place
from kdalign.training.checkpoint import TrainState
from kdalign.training.on_policy import OnPolicy

MOST_TIMES = 20
"""Times the steps of samples of full length after which a budget of tokens is given up."""


@dataclass(frozen=True)
class RunLength:
    """Length of a run.

    How many tokens a step on samples trains is known once they are written, of a stream once it is read. So a place in
    a run with a budget of tokens is a function of the tokens trained so far, which a checkpoint holds, and in any other
    run of the step.

    Attributes:
        steps: number of steps; with ``tokens`` as many as the rows' own tokens would take.
        tokens: tokens to train; None if the number of steps decides.
        most_steps: most steps that ``tokens`` may take; None for any number.
    """

    steps: int
    tokens: int | None = None
    most_steps: int | None = None

    @property
    def total(self) -> int:
        """Length in the unit of places."""
        return self.steps if self.tokens is None else self.tokens

    def place(self, state: TrainState) -> Place:
        """Place of the next step."""
        if self.tokens is None:
            return Place(state.step, self.steps)
        return Place(state.tokens, self.tokens, state.tokens / state.step if state.step else self.tokens / self.steps)

    def is_reached(self, state: TrainState) -> bool:
        """Return whether the run has its length."""
        return self.place(state).done >= self.total

    def is_given_up(self, state: TrainState) -> bool:
        """Return whether samples are so short that the tokens are out of reach."""
        return self.most_steps is not None and state.step >= self.most_steps and not self.is_reached(state)

    def explain_giving_up(self, state: TrainState) -> str:
        """Explain why a run whose samples are too short ends, and what can be done."""
        return (
            f"the student's own texts are too short for --max-tokens: at {self.describe(state)} it has taken "
            f"{MOST_TIMES} times the steps that texts of full length would take; learn from the data first "
            f"(on_policy.after), or give --max-steps"
        )

    def tokens_left(self, state: TrainState) -> int | None:
        """Tokens to train; None if the number of steps decides."""
        return None if self.tokens is None else max(0, self.tokens - state.tokens)

    def expected_steps(self, state: TrainState) -> int:
        """Number of steps of the whole run; with a budget of tokens an estimate by the steps so far."""
        place = self.place(state)
        return state.step + math.ceil(max(0, place.total - place.done) / place.step_size)

    def describe(self, state: TrainState) -> str:
        """Describe how far a run is, such as ``step 3 of 10``."""
        if self.tokens is None:
            return f"step {state.step} of {self.steps}"
        return f"step {state.step} ({state.tokens:,} of {self.tokens:,} tokens)"


def length_of(
    settings: TrainSettings, steps: int, encoded: TokenizedSplit, on_policy: OnPolicy | None, streamed: bool = False
) -> RunLength:
    """Return the length of a run.

    Args:
        settings: the run's settings, with its budget of tokens.
        steps: number of steps, by the tokens of rows.
        encoded: the training examples.
        on_policy: steps on the student's own texts; None if there are none.
        streamed: true if ``encoded`` is the first segment of a stream.
    """
    if settings.max_tokens is None or (on_policy is None and not streamed):
        return RunLength(steps)
    if on_policy is None:
        return RunLength(steps, settings.max_tokens)
    fold = max(1.0, float(encoded.lengths.mean()) / on_policy.sampling.new_tokens)
    return RunLength(steps, settings.max_tokens, math.ceil(MOST_TIMES * fold * steps))
