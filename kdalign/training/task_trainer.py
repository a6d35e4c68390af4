"""A course is what is trained on one task; its lessons are where it is: in which stage, at which examples."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch, TokenizedSplit, epoch_batches, micro_batches, steps_per_epoch
from kdalign.models.teacher import Teacher
from kdalign.objective.objective import Objective
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.training.diagnostics import Teach, freeze_unreached
from kdalign.training.learner import Learner

SHARE_STEPS = 200
"""The last steps of a course, over which shares are means."""


@dataclass(frozen=True)
class Remapping:
    """How layers are mapped again on the way (adaptive alignment).

    Attributes:
        every: steps between.
        measure: the plan for a student as it is.
        objective: what is minimised by a plan.
    """

    every: int
    measure: Callable[[PreTrainedModel], Plan]
    objective: Callable[[Plan], Objective]


@dataclass(frozen=True)
class Stage:
    """What is minimised from a part of the steps on.

    Attributes:
        after: share of the steps after which it begins.
    """

    after: float
    objective: Objective


@dataclass(frozen=True)
class WatchedScores:
    """What a student is worth on the watched texts at one step.

    Attributes:
        deciding: the number by which steps are compared, higher is better; None where it is undefined.
        kept: what the history keeps: scores by metric, None where undefined, and samples.
        undefined: why a metric has no value, by its name.
    """

    deciding: float | None
    kept: Mapping[str, Any]
    undefined: Mapping[str, str]


Evaluate = Callable[[PreTrainedModel], WatchedScores]
"""Looks at a student."""


@dataclass(frozen=True)
class TrainTask:
    """What is trained on one task.

    Attributes:
        name: of the task.
        learner: in float32; with other courses it may share parameters.
        teacher: None where no stage needs one.
        stages: what to minimise, one after the other; the learner gives the first one's signals.
        encoded: the training examples.
        folder: where its history is written.
        evaluate: looks at the slice of train that is watched; None where none is.
        remapping: how layers are mapped again on the way; None where they are not, as with other courses.
    """

    name: str
    learner: Learner
    teacher: Teacher | None
    stages: Sequence[Stage]
    encoded: TokenizedSplit
    folder: RunFolder
    evaluate: Evaluate | None = None
    remapping: Remapping | None = None


class TaskTrainer:
    """A course under way: what it minimises now, and where it is in its examples.

    Attributes:
        trained: its parameters.
        reached: those that a term reaches in its stage.
        wrapped: its learner for its ranks, which waits for what is reached.
        shares: each term's weighted mean in its last steps.
    """

    def __init__(self, course: TrainTask, steps: int, settings: TrainSettings, accelerator: Accelerator) -> None:
        assert steps >= len(course.stages), "checked: every stage has a step at least"
        last = steps - len(course.stages)
        places = [min(max(round(stage.after * steps), n), last + n) for n, stage in enumerate(course.stages)]
        self.begins = {place: stage.objective for place, stage in zip(places, course.stages, strict=True)}
        self.course, self.settings, self.accelerator = course, settings, accelerator
        self.trained = [parameter for parameter in course.learner.parameters() if parameter.requires_grad]
        self.reached = self.trained
        self.wrapped: nn.Module = course.learner
        self.teach: Teach | None = None
        self.objective = course.stages[0].objective
        self.epoch_size = steps_per_epoch(
            course.encoded.lengths, settings.batch_size, settings.batch_tokens, course.encoded.mixture
        )
        self.shares: deque[dict[str, float]] = deque(maxlen=SHARE_STEPS)
        self._place, self._epoch, self._batches = -1, -1, list[list[int]]()

    def minimise(self, chosen: Objective, plan: Plan | None) -> None:
        """Minimise this from now on, with layers mapped by this plan."""
        self.objective = chosen
        self.course.learner.follow(plan, chosen)
        taught = self.course.teacher if chosen.needs_teacher else None
        self.teach = None if taught is None else partial(taught, wanted=self.course.learner.wanted_of_teacher)

    def follow(self, plan: Plan) -> None:
        """Map layers by this plan from now on."""
        assert self.course.remapping is not None, "a plan changes where layers are mapped again"
        self.minimise(self.course.remapping.objective(plan), plan)

    def begin(self, step: int) -> bool:
        """Be in the stage of this step: other parameters may be reached, and DDP waits for none that is not.

        Returns:
            Whether the stage is another than before.
        """
        place = max(first for first in self.begins if first <= step)
        if place == self._place:
            return False
        self._place = place
        self.minimise(self.begins[place], self.course.learner.plan)
        for parameter in self.trained:
            parameter.grad = None  # of the step before: what has one is taken for reached
            parameter.requires_grad_(True)
        learner, accelerator = self.course.learner, self.accelerator
        freeze_unreached(learner, self.teach, self.objective, self.course.encoded, accelerator.device)
        self.reached = [parameter for parameter in self.trained if parameter.requires_grad]
        self.wrapped = learner
        accelerator.free_memory()  # the earlier wrapping, which would wait for the earlier parameters
        self.wrapped = accelerator.prepare_model(learner)
        return True

    def share(self, number: int) -> tuple[int, list[Batch]]:
        """Of the course's step of this number, how many examples it takes, and this rank's micro-batches of them."""
        settings, encoded = self.settings, self.course.encoded
        if number // self.epoch_size != self._epoch:
            self._epoch = number // self.epoch_size
            self._batches = epoch_batches(
                encoded.lengths,
                settings.batch_size,
                settings.seed,
                self._epoch,
                settings.batch_tokens,
                encoded.mixture,
            )
        rows = self._batches[number % self.epoch_size]
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        draw = (settings.seed, self._epoch)
        return len(rows), micro_batches(encoded, rows, rank, ranks, settings.micro_batch, draw)
