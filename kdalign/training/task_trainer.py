"""Training setup of one task, and its state during training: the current stage and position in the examples."""

import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch
from kdalign.data.epochs import micro_batches, steps_per_epoch
from kdalign.data.tokenized_split import TokenizedSplit
from kdalign.errors import NotFinite, RunError
from kdalign.models.modes import share_statistics
from kdalign.models.sharding import gathered, is_sharded
from kdalign.objective.objective import Objective
from kdalign.observer import Observer
from kdalign.recipe import TrainSettings
from kdalign.recipe.schedules import Place
from kdalign.runs.folder import RunFolder
from kdalign.teachers.base import Teacher
from kdalign.training.ahead import Ahead
from kdalign.training.diagnostics import StepViewer, Teach, find_small_shares, freeze_unreached
from kdalign.training.learner import Learner
from kdalign.training.on_policy import OnPolicy, OnPolicyStep
from kdalign.training.row_order import EpochOrder, RowOrder, SegmentOrder, SegmentSource

SHARE_STEPS = 200
"""Number of a task's last steps over which the shares of its terms are averaged."""


@dataclass(frozen=True)
class Remapping:
    """Layer maps that are measured again during training (adaptive alignment).

    Attributes:
        every: steps between measurements.
        measure: makes the plan for a student as it is now.
        objective: makes what is minimised under a plan.
    """

    every: int
    measure: Callable[[PreTrainedModel], Plan]
    objective: Callable[[Plan], Objective]


@dataclass(frozen=True)
class Stage:
    """An objective, and when it starts to be minimised.

    Attributes:
        after: share of the run after which the stage begins.
    """

    after: float
    objective: Objective


@dataclass(frozen=True)
class WatchedScores:
    """A student's scores on the monitored texts at one step.

    Attributes:
        deciding: the number by which steps are compared, higher is better; None if it is undefined.
        kept: scores by metric for the history, None if undefined, and sample texts.
        undefined: reason of each metric without a value.
        predictions: the student's, as the task's adapter makes them.
    """

    deciding: float | None
    kept: Mapping[str, Any]
    undefined: Mapping[str, str]
    predictions: Any = None


class Evaluate(Protocol):
    """Scores a student on the monitored texts."""

    def __call__(self, model: PreTrainedModel, *, exact: bool) -> WatchedScores:
        """Score in float32 if ``exact``, else in training's precision."""


@dataclass(frozen=True)
class TrainTask:
    """Training setup of one task.

    Attributes:
        name: the task's name.
        learner: learner in float32; it may share parameters with those of other tasks.
        teacher: None if no stage needs one.
        stages: objectives, one after the other; the learner starts with the first one's activations.
        encoded: the training examples.
        folder: folder of its history.
        evaluate: scores the student on the monitored texts; None if there are none.
        remapping: how layer maps are measured again; None if they stay, as with several tasks.
        on_policy: steps on the student's own texts; None if there are none.
        check_start: looks at the student's scores before the first step, and may refuse the run; None if nothing does.
        stream: reads the segments of a stream, of which ``encoded`` is the first; None for epochs over ``encoded``.
    """

    name: str
    learner: Learner
    teacher: Teacher | None
    stages: Sequence[Stage]
    encoded: TokenizedSplit
    folder: RunFolder
    evaluate: Evaluate | None = None
    remapping: Remapping | None = None
    on_policy: OnPolicy | None = None
    check_start: Callable[[WatchedScores], None] | None = None
    stream: SegmentSource | None = None


@dataclass(frozen=True)
class StepData:
    """Rows and micro-batches of one step.

    Attributes:
        encoded: the rows that its own are of.
        rows: numbers of its rows, over all ranks.
        batches: this rank's micro-batches of them.
        state: what a checkpoint keeps of the place in the data, beside the number of the step.
    """

    encoded: TokenizedSplit
    rows: list[int]
    batches: list[Batch]
    state: dict[str, Any]


def prepares_ahead(device: torch.device) -> bool:
    """Return whether the next step's batches are prepared while one runs: not on a CPU, which has enough to do."""
    return device.type == "cuda"


class TaskTrainer:
    """State of one task during training: what it minimises now, and its position in the examples.

    Attributes:
        task: its training setup.
        begins: objectives by the place at which their stage begins, in steps or in tokens.
        objective: objective of the current stage.
        teach: the teacher's forward for it; None if it needs none.
        trained: the task's trainable parameters.
        reached: those that a term of the current stage reaches.
        wrapped: the learner wrapped for several ranks, which waits only for what is reached.
        shares: each term's weighted mean in the last steps.
    """

    def __init__(self, task: TrainTask, total: int, settings: TrainSettings, accelerator: Accelerator) -> None:
        assert total >= len(task.stages), "checked: every stage has at least one step"
        last = total - len(task.stages)
        firsts = [min(max(round(stage.after * total), n), last + n) for n, stage in enumerate(task.stages)]
        self.begins = {first: stage.objective for first, stage in zip(firsts, task.stages, strict=True)}
        self.task, self.settings, self.accelerator = task, settings, accelerator
        self.trained = [parameter for parameter in task.learner.parameters() if parameter.requires_grad]
        self.reached = self.trained
        self.wrapped: nn.Module = task.learner
        self.teach: Teach | None = None
        self.objective = task.stages[0].objective
        self.epoch_size = steps_per_epoch(
            task.encoded.lengths, settings.batch_size, settings.batch_tokens, task.encoded.mixture
        )
        self.shares: deque[dict[str, float]] = deque(maxlen=SHARE_STEPS)
        self._begun = -1
        self._order: RowOrder = EpochOrder(task.encoded, settings)
        self._ahead = Ahead(self._collate) if prepares_ahead(accelerator.device) else None

    @property
    def in_last_stage(self) -> bool:
        """True in the last stage."""
        return self._begun == max(self.begins)

    @property
    def sharded(self) -> bool:
        """True if the student is sharded over ranks."""
        return is_sharded(self.task.learner.student)

    @property
    def viewer(self) -> StepViewer:
        """Runs the wrapped learner and its teacher on micro-batches."""
        return StepViewer(self.wrapped, self.teach, self.accelerator, self.settings.seed)

    def minimise(self, objective: Objective, plan: Plan | None) -> None:
        """Minimise this objective from now on, with layers mapped by this plan."""
        self.objective = objective
        self.task.learner.follow(plan, objective)
        teacher, wanted = self.task.teacher if objective.needs_teacher else None, self.task.learner.wanted_of_teacher
        if self.task.on_policy is not None:  # the teacher's likelihood of samples is watched
            wanted = replace(wanted, answers=True)
        self.teach = None if teacher is None else partial(teacher, wanted=wanted)

    def follow(self, plan: Plan) -> None:
        """Map layers by this plan from now on."""
        assert self.task.remapping is not None, "a plan changes only where layers are mapped again"
        self.minimise(self.task.remapping.objective(plan), plan)

    def begin(self, done: int) -> bool:
        """Enter the stage of a place: other parameters may be reached, and DDP waits for none that is not.

        A process alone waits for none, nor do ranks with a sharded student: what is not reached has no gradient, and
        the optimizer leaves it as it is.

        Args:
            done: steps taken, or tokens trained.

        Returns:
            True if the stage has changed.
        """
        begun = max(first for first in self.begins if first <= done)
        if begun == self._begun:
            return False
        self._begun = begun
        self.minimise(self.begins[begun], self.task.learner.plan)
        for parameter in self.trained:
            parameter.grad = None  # of the step before: a parameter with a gradient counts as reached
            parameter.requires_grad_(True)
        learner, accelerator = self.task.learner, self.accelerator
        if accelerator.distributed_type is not DistributedType.NO and not self.sharded:
            freeze_unreached(learner, self.teach, self.objective, self.task.encoded, accelerator.device)
        self.reached = [parameter for parameter in self.trained if parameter.requires_grad]
        if self.sharded:
            return True
        self.wrapped = learner
        accelerator.free_memory()  # the earlier wrapping, which would wait for the earlier parameters
        self.wrapped = accelerator.prepare_model(learner)
        return True

    def score(self, step: int) -> WatchedScores | None:
        """Score the student on the monitored texts after a step; None if there are none.

        Raises:
            RunError: it gives numbers that are not finite.
        """
        student, evaluate = self.task.learner.student, self.task.evaluate
        if evaluate is None:
            return None
        share_statistics(student)
        try:
            with gathered(student):
                return evaluate(student, exact=step == 0)  # where it is compared with the teacher
        except NotFinite as error:
            if step == 0:
                raise RunError(f"the student gives NaN before it is trained: {error}") from None
            raise RunError(f"the student has diverged at step {step}: {error}; lower --lr") from None

    def go_to(self, state: dict[str, Any] | None) -> None:
        """Go to the place in the data at which a run stopped, or to the beginning by an empty state; None for no place.

        Raises:
            UsageError: the data is another one now.
        """
        if self.task.stream is not None and state is not None:
            self._order = SegmentOrder(self.task.stream, self.settings, state)

    def data_of(self, number: int) -> StepData:
        """The data of the task's step of this number.

        Raises:
            UsageError: a row of a stream that cannot be used.
            RunError: ranks read other rows of a stream.
        """
        data = self._collate(number) if self._ahead is None else self._ahead.take(number)
        if data.state and self.accelerator.num_processes > 1:
            self._check_ranks(data)
        return data

    def _check_ranks(self, data: StepData) -> None:
        """Compare the rows of all ranks, each of which reads the stream by itself."""
        seen = zlib.crc32(repr((data.state, data.rows)).encode())
        everywhere = self.accelerator.gather(torch.tensor([seen], device=self.accelerator.device))
        if len(everywhere.unique()) > 1:
            raise RunError(
                f"the ranks read other rows of {self.task.name}: a split that changes while it is read can only be "
                f"trained on by one process"
            )

    def close(self) -> None:
        """End the threads that prepare the next step and the next segment."""
        if self._ahead is not None:
            self._ahead.close()
        self._order.close()

    def _collate(self, number: int) -> StepData:
        settings, found = self.settings, self._order.at(number)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        draw = (settings.seed, found.epoch)
        batches = micro_batches(found.encoded, found.rows, rank, ranks, settings.micro_batch, draw)
        device = self.accelerator.device
        if device.type == "cuda":
            batches = [batch.pinned(device) for batch in batches]
        return StepData(found.encoded, found.rows, batches, self._order.state_at(number))

    def on_policy_step(self, data: StepData, step: int, place: Place) -> OnPolicyStep | None:
        """The on-policy step on these rows; None for a step on data."""
        on_policy = self.task.on_policy
        if on_policy is None or not on_policy.is_due(step, place):
            return None
        return OnPolicyStep(on_policy, self.viewer, data.encoded, data.rows, data.batches)


def announce_small_terms(trainers: Sequence[TaskTrainer], observer: Observer) -> None:
    """Announce terms that were a tiny share of the loss in the last steps, unless a schedule made them so."""
    for trainer in trainers:
        suffix = f" of {trainer.task.name}" if len(trainers) > 1 else ""
        for name, share in find_small_shares(list(trainer.shares)).items():
            if trainer.objective.scheduled_by(name) is None:
                observer.announce(
                    f"{name} is only {share:.2%} of the loss{suffix} at the end: give it a larger weight, or "
                    f"objective.balance=size"
                )
