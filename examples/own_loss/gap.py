"""A loss of your own: the difference between the student's and the teacher's confidence.

    kdalign distill --teacher ./teacher --task sst2 --data ./sst2 --recipe examples/own_loss/recipe.yaml --allow code

A recipe may be a stranger's, so code that it names runs only with ``--allow code``, and is announced before loading.

A term names the signals it needs (``needs``) and its unit (``unit``), and returns a **sum** over the units of a
micro-batch: kdalign divides once, by the units of the whole optimizer step, over micro-batches and ranks. Options in
the recipe other than ``weight`` are its keyword arguments.
"""

import torch

from kdalign.plugins import Signal, TermContext, TermInputs, Unit


class ConfidenceGap:
    """|max p^s - max p^t|, to a power, summed over examples; 0 where both are equally confident."""

    needs = frozenset({Signal.LOGITS})
    unit = Unit.EXAMPLE

    def __init__(self, context: TermContext, power: float = 2.0) -> None:
        if context.classes < 2:
            raise ValueError("a score has no confidence")
        self.power = power

    def __call__(self, view: TermInputs) -> torch.Tensor:
        """Return the sum over examples, each in 0..1."""
        student, teacher = (each.float().softmax(-1).amax(-1) for each in (view.student.logits, view.teacher.logits))
        return torch.where(view.batch.counted, (student - teacher).abs() ** self.power, 0).sum()
