"""The loop: accumulate, step, log, evaluate, checkpoint, resume.

accelerate brings devices, ranks and trackers. What decides a step is a pure function of (seed, step): which task and
rows, in which micro-batches, with which dropout, at which learning rate. So a checkpoint is weights, optimizer state
and a step number, and going on from it equals never having stopped.

A run has a course for each of its tasks. Courses share parameters, each of which is optimised once. A step is of one
course alone, and what it does not reach (the other courses' heads) has no gradient: AdamW passes over it, so that its
weights do not decay and its moments stay.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch, total_steps
from kdalign.environment import trim_heap
from kdalign.errors import Interrupted, NotFinite, RunError
from kdalign.models.architecture import first_non_finite
from kdalign.objective.balancing import LossBalancer
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Unit
from kdalign.observer import Observer, StepReport
from kdalign.recipe import Recipe, TrainSettings
from kdalign.recipe.schedules import progress_at
from kdalign.runs.folder import RunFolder
from kdalign.signals import first_signal
from kdalign.training.checkpoint import (
    TrainState,
    checkpoint_name,
    forget_after,
    load_best,
    load_checkpoint,
    newest_sound,
    save_best,
    save_checkpoint,
)
from kdalign.training.diagnostics import (
    StepViewer,
    Teach,
    count_step_units,
    find_small_shares,
    gradient_norms,
    measure_terms,
)
from kdalign.training.learner import Learner
from kdalign.training.optimizer import learning_rate, make_optimizer
from kdalign.training.task_trainer import Evaluate, TaskTrainer, TrainTask

MEMORY_STEPS = 50
"""Steps after which freed memory goes back to the system: in pieces of every size it else grows to many gigabytes."""
GRADIENT_STEPS = 200
"""Steps between looks at each term's own gradient."""
CHECKPOINT_SECONDS = 60.0
"""Training between checkpoints, where no number of steps is given."""

_deterministic_options: Any = torch.utils.deterministic


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's trackers with its values as their configuration."""
    if recipe.train.trackers:
        config = {key: value for key, value in recipe.flat().items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("kdalign", config=config)


def train(
    courses: Sequence[TrainTask],
    settings: TrainSettings,
    accelerator: Accelerator,
    folder: RunFolder,
    observer: Observer,
    what: str = "training",
    go_on: bool = False,
    turns: Sequence[int] | None = None,
) -> TrainState:
    """Train the learners in place, writing histories into the courses' folders and checkpoints into the run's.

    Args:
        courses: one; or several, whose learners share parameters.
        settings: how.
        accelerator: device and ranks.
        folder: of the run.
        observer: who watches.
        what: the word for it in progress bars.
        go_on: go on from the newest checkpoint, if there is one.
        turns: for each step the number of the course that takes it; left out where there is one.

    Raises:
        Interrupted: a signal arrived; the state is saved.
        RunError: the student has diverged.
    """
    if turns is None:
        [only] = courses
        turns = [0] * total_steps(settings, only.encoded)
    loop = Trainer(courses, turns, settings, accelerator, folder, observer)
    if go_on:
        loop.go_on()
    loop.run(what)
    loop.say_what_hardly_counts()
    if settings.select == "best":
        accelerator.wait_for_everyone()
        load_best(folder, loop.whole, loop.progress)
        if loop.progress.best_score is None:
            observer.announce(
                f"no step is the best, the score that decides was undefined at each: step {loop.progress.best_step}, "
                f"the last one, is taken"
            )
    return loop.progress


class Trainer:
    """A run under way.

    Attributes:
        whole: all that is trained.
        progress: how far it is.
        taken: steps of each course.
    """

    def __init__(
        self,
        courses: Sequence[TrainTask],
        turns: Sequence[int],
        settings: TrainSettings,
        accelerator: Accelerator,
        folder: RunFolder,
        observer: Observer,
    ) -> None:
        self.turns, self.steps, self.several = turns, len(turns), len(courses) > 1
        self.settings, self.accelerator, self.folder, self.observer = settings, accelerator, folder, observer
        assert not (self.several and settings.holds_out), "checked: several courses have no best step"
        # One learner stands by itself, so that names in checkpoints have nothing before them.
        self.whole = nn.ModuleList([each.learner for each in courses]) if self.several else courses[0].learner
        self.whole.to(accelerator.device).train()
        self.lessons = [TaskTrainer(course, self.steps, settings, accelerator) for course in courses]
        self.optimizer = make_optimizer(self.whole, settings)
        self.progress, self.taken = TrainState(), [0] * len(courses)
        self.epoch_size = sum(one.epoch_size for one in self.lessons)

    def go_on(self) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            UsageError: there are checkpoints, and none is whole.
        """
        found = newest_sound(self.folder, self._parts)
        self.progress = load_checkpoint(self.folder, self.whole, self.optimizer, self.accelerator, found)
        step = self.progress.step
        self.taken = [self.turns[:step].count(number) for number in range(len(self.lessons))]
        if not self.accelerator.is_main_process:
            return
        for line in found.passed_over:
            self.observer.announce(f"passed over, for it is damaged: {self.folder.checkpoints}/{line}")
        if not found.checked:
            self.observer.announce("the checkpoint is of an older kdalign, without checksums: damage would not be seen")
        forget_after(self.folder, step)
        for one in self.lessons:
            part = one.course.folder
            if found.path is not None and found.checked:
                part.cut_history_to(found.histories[checkpoint_name(part, self.folder)])
            else:
                part.cut_history(step if step else -1)

    def run(self, what: str) -> None:
        """Take all steps that are left."""
        progress, settings, observer, steps = self.progress, self.settings, self.observer, self.steps
        main = self.accelerator.is_main_process
        for one in self.lessons:
            self._begin(one)
        if progress.plan:
            self.lessons[0].follow(Plan.from_json(progress.plan))
        speed_from, saved_at = TrainState(**asdict(progress)), progress.seconds
        observer.started(what, progress.step, steps)
        stopped = settings.patience is not None and progress.evaluations_without_gain >= settings.patience
        with first_signal(signal.SIGINT, signal.SIGTERM) as received, _deterministic(self.accelerator.device):
            if progress.step == 0:
                self._look()
            while progress.step < steps and not stopped:
                told = self._take_step(bool(received), speed_from)
                if progress.step % (settings.eval_every or max(1, steps // 10)) == 0 or progress.step == steps:
                    stopped = self._look()
                if told:
                    if main:
                        self._save()
                    observer.ended()
                    number = received[0] if received else int(signal.SIGTERM)
                    raise Interrupted(f"stopped; step {progress.step} of {steps} is saved", number)
                if settings.checkpoint_every is None:
                    due = progress.seconds - saved_at >= CHECKPOINT_SECONDS
                else:
                    due = progress.step % settings.checkpoint_every == 0
                if main and due and progress.step < steps:
                    self._save()
                    saved_at = progress.seconds
            if main:  # what follows may be interrupted, too
                self._save()
            if stopped and progress.step < steps:
                looks = progress.evaluations_without_gain
                observer.announce(
                    f"stopped early, at step {progress.step} of {steps}: {looks} evaluations one after another without "
                    "gain (--patience)"
                )
            if received and self.accelerator.num_processes == 1:
                raise Interrupted(f"stopped; all {steps} steps are saved", received[0])
        observer.ended()

    def say_what_hardly_counts(self) -> None:
        """Announce terms that were next to nothing of the loss in the last steps, but by schedule."""
        for one in self.lessons:
            of = f" of {one.course.name}" if self.several else ""
            for name, share in find_small_shares(list(one.shares)).items():
                if one.objective.scheduled_by(name) is None:
                    self.observer.announce(
                        f"{name} is {share:.2%} of the loss{of} at the end: it hardly counts (a larger weight, or "
                        f"objective.balance=size)"
                    )

    def _begin(self, one: TaskTrainer) -> None:
        """Be in the stage of the step that comes; what no course reaches needs no gradient."""
        if one.begin(self.progress.step):
            reached = {parameter for each in self.lessons for parameter in each.reached}
            for parameter in {parameter for each in self.lessons for parameter in each.trained}:
                parameter.requires_grad_(parameter in reached)

    def _take_step(self, told: bool, speed_from: TrainState) -> bool:
        """Take the step that comes; whether any rank was told to stop.

        Raises:
            RunError: the loss or its gradient is not a number, for which no step is taken.
        """
        begun, progress, settings = time.perf_counter(), self.progress, self.settings
        step, turn = progress.step, self.turns[progress.step]
        one = self.lessons[turn]
        self._begin(one)
        learner, objective, balance = one.course.learner, one.objective, one.course.learner.balance
        examples, share = one.share(self.taken[turn])
        lr = learning_rate(settings, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        planned = objective.at(progress_at(step, self.steps))
        layers = {name: each.values.tolist() for name, each in objective.layer_weights.items()}
        now = planned if balance is None else self._balanced(one, planned, balance, share)
        if self.taken[turn] % GRADIENT_STEPS == 0:
            see = StepViewer(learner, one.teach, self.accelerator, settings.seed)
            norms = gradient_norms(see, learner.student, now, share[0], step)
            finite = {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}
            self._write(one, {"kind": "gradients", "step": step, "norms": finite})
        loss, parts, norm, units, told = _step(
            one.wrapped,
            one.teach,
            now,
            self.optimizer,
            share,
            settings,
            self.accelerator,
            step,
            told,
            None if balance is None else partial(balance.penalty, weights=planned.weights),
        )
        if balance is not None:
            balance.update(objective.present_terms(parts, units))
        self.taken[turn] += 1
        if (step + 1) % MEMORY_STEPS == 0:
            trim_heap()
        spent = examples, int(units[Unit.TOKEN]), time.perf_counter() - begun, parts
        progress.add(*spent)
        if self.several:
            progress.of(one.course.name).add(*spent)
        weights = now.weights
        one.shares.append({name: weight * parts[name] for name, weight in weights.items()})
        report = replace(
            _report(progress, speed_from, self.steps, self.epoch_size, loss, lr, norm),
            weights=weights if balance is not None or objective.moving else {},
            layers=layers,
            temperature=now.temperature,
            task=one.course.name if self.several else "",
        )
        self.observer.stepped(report)
        self._write(one, {"kind": "step", **_history(report)})
        if self.accelerator.is_main_process:
            self.accelerator.log({"loss": loss, "lr": lr, **parts}, step=progress.step)
        self._map_again(one)
        return told

    def _balanced(self, one: TaskTrainer, planned: Objective, balance: LossBalancer, share: list[Batch]) -> Objective:
        """The objective by its balance, which looks first at terms that it has not seen."""
        lacking = [name for name in planned.names if balance.needs_warmup([name])]
        # Of terms that have something to look at in this step, such as a row with a label.
        if lacking and planned.present_terms(dict.fromkeys(lacking, 0.0), count_step_units(share, self.accelerator)[0]):
            see = StepViewer(one.wrapped, one.teach, self.accelerator, self.settings.seed)
            found = measure_terms(see, planned, share, self.progress.step)
            balance.update({name: found[name] for name in lacking if name in found})
        return planned.scaled(balance.factors(planned.names))

    def _map_again(self, one: TaskTrainer) -> None:
        """Map layers again, where and when that is due."""
        remapping, step = one.course.remapping, self.progress.step
        if remapping is None or step % remapping.every or step == self.steps:
            return
        plan = remapping.measure(one.course.learner.student)
        one.follow(plan)
        self.progress.plan = plan.to_json()
        pairs = [list(pair) for mapped in plan.maps for pair in mapped.pairs]
        self._write(one, {"kind": "map", "step": step, "pairs": pairs})

    def _look(self) -> bool:
        """Evaluate; true when training should stop early."""
        if not any(one.course.evaluate for one in self.lessons):
            return False
        for one in self.lessons:
            if one.course.evaluate is not None and self.accelerator.is_main_process:
                self._look_at(one, one.course.evaluate)
        shared = broadcast_object_list([self.progress.evaluations_without_gain])
        return self.settings.patience is not None and shared[0] >= self.settings.patience

    def _look_at(self, one: TaskTrainer, evaluate: Evaluate) -> None:
        progress = self.progress
        try:
            seen = evaluate(one.course.learner.student)
        except NotFinite as error:
            if progress.step == 0:
                raise RunError(f"the student gives NaN before it is trained: {error}") from None
            raise RunError(f"the student has diverged at step {progress.step}: {error}; lower --lr") from None
        of = f" of {one.course.name}" if self.several else ""
        if progress.step == 0:
            numbers = {name: found for name, found in seen.kept.items() if isinstance(found, float)}
            shown = ", ".join(f"{name} {found:.4g}" for name, found in numbers.items()) or "no score has a value"
            self.observer.announce(f"before training, on the watched texts{of}: {shown}")
        for metric, reason in seen.undefined.items():
            self.observer.announce(f"step {progress.step}, on the watched texts{of}: {metric} is undefined, {reason}")
        self._write(one, {"kind": "evaluation", "step": progress.step, **seen.kept})
        if self.several or 0 < max(one.begins) >= progress.step:
            return  # what counts is learnt in the last stage
        self._rank(seen.deciding)

    def _rank(self, value: float | None) -> None:
        """Whether the step is the best so far; without a value it is not, but the last of such until one has a value.

        A value of None is no gain, either: a student whose score stays undefined is stopped like one that stands still.
        """
        progress = self.progress
        gained = value is not None and (progress.best_score is None or value > progress.best_score)
        progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
        if gained or progress.best_score is None:
            progress.best_score, progress.best_step = value, progress.step
            if self.settings.select == "best":
                save_best(self.folder, self.whole, progress)

    def _write(self, one: TaskTrainer, event: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            one.course.folder.append_history(event)

    def _save(self) -> None:
        """Save a checkpoint.

        Raises:
            RunError: the last step has made weights that are no numbers, which nothing can go on from.
        """
        bad = first_non_finite(self.whole)
        if bad:
            raise RunError(
                f"the student has diverged: after step {self.progress.step} its weight {bad!r} is NaN or infinite; "
                f"lower --lr{_or_fp32(self.lessons[0].course.learner.bf16)}"
            )
        save_checkpoint(self.folder, self.whole, self.optimizer, self.progress, self._parts)

    @property
    def _parts(self) -> list[RunFolder]:
        """The folders with the run's histories."""
        return [one.course.folder for one in self.lessons]


def _step(
    wrapped: nn.Module,
    teach: Teach | None,
    objective: Objective,
    optimizer: torch.optim.AdamW,
    share: list[Batch],
    settings: TrainSettings,
    accelerator: Accelerator,
    step: int,
    stop: bool,
    penalty: Callable[..., Tensor | None] | None = None,
) -> tuple[float, dict[str, float], float, dict[Unit, float], bool]:
    """One optimizer step over this rank's micro-batches; a balance is learnt by its ``penalty``.

    Returns:
        Loss, terms, gradient norm and units, of the whole step; and whether any rank was told to stop.

    Raises:
        RunError: the loss or its gradient is not a number; the weights stay as they are.
    """
    see = StepViewer(wrapped, teach, accelerator, settings.seed)
    units, stopped = count_step_units(share, accelerator, stop)
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(1 + len(objective.names), device=accelerator.device)
    for number, batch in enumerate(share):
        last = number == len(share) - 1
        with nullcontext() if last else accelerator.no_sync(wrapped):
            breakdown = objective(see(batch, step, number), units)
            total = breakdown.total
            part = 1 / (len(share) * accelerator.num_processes)
            more = penalty(objective.present_terms(breakdown.parts, units), share=part) if penalty is not None else None
            total = total if more is None else total + more
            # DDP averages gradients over ranks; the objective already divides by all ranks' units.
            accelerator.backward(total * accelerator.num_processes)
        sums += torch.stack([breakdown.total.detach(), *breakdown.parts.values()])
    objective.remember(units)
    clipped = [p for group in optimizer.param_groups if group.get("rate", 1) == 1 for p in group["params"]]
    norm = float(accelerator.clip_grad_norm_(clipped, settings.clip))
    loss, *values = accelerator.reduce(sums, reduction="sum").tolist()
    parts = dict(zip(objective.names, values, strict=True))
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise RunError(_why_diverged(wrapped, objective, parts, (loss, norm), step))
    optimizer.step()
    return loss, parts, norm, units, stopped


def _why_diverged(
    wrapped: nn.Module, objective: Objective, parts: Mapping[str, float], found: tuple[float, float], step: int
) -> str:
    """Which part of a loss, or of its gradient, is no number, and what can be done about that."""
    loss, norm = found
    bf16 = any(isinstance(module, Learner) and module.bf16 for module in wrapped.modules())
    said = f"the student has diverged: at step {step + 1} the loss is {loss:.4g} and its gradient {norm:.4g}"
    bad = first_non_finite(wrapped)
    if bad:
        return f"{said}, since the step before has made the weight {bad!r} NaN or infinite; lower --lr{_or_fp32(bf16)}"
    weights = objective.weights
    terms = [name for name, value in parts.items() if not math.isfinite(value)]
    if terms:
        told = ", ".join(f"{name} is {parts[name]:.4g}" for name in terms)
        cold = objective.softened_at
        mend = f"its temperature is {cold:g}; " if cold is not None and cold < _SMALL else ""
        rate = _other_rate(step, bf16)
        return f"{said}: of its terms {told} (before its weight); {mend}{rate}"
    largest = max(weights, key=lambda name: abs(weights[name] * parts[name]), default="")
    if largest and abs(weights[largest]) > _LARGE:
        return (
            f"{said}: the weight of {largest}, {weights[largest]:.4g}, is too large for a value of {parts[largest]:.4g}"
        )
    rate = _other_rate(step, bf16)
    return f"{said}: its terms are finite ({_listed(parts)}), the gradient is not; {rate}"


_SMALL, _LARGE = 1e-3, 1e6
"""A temperature below the one, and a weight above the other, are said where a loss is no number."""


def _listed(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in parts.items())


def _other_rate(step: int, bf16: bool) -> str:
    """What can be done about a loss that is no number at a step, counted from 0."""
    if step:
        return f"lower --lr{_or_fp32(bf16)}"
    return f"before any step, so --lr is not the reason{'; use --precision fp32' if bf16 else ''}"


def _or_fp32(bf16: bool) -> str:
    """The other way on, where it is one."""
    return ", or use --precision fp32" if bf16 else ""


def _report(
    progress: TrainState,
    start: TrainState,
    steps: int,
    epoch_size: int,
    loss: float,
    lr: float,
    norm: float,
) -> StepReport:
    seconds = max(progress.seconds - start.seconds, 1e-9)
    return StepReport(
        step=progress.step,
        steps=steps,
        epoch=progress.step / epoch_size,
        loss=loss,
        parts=progress.parts,
        weights={},
        lr=lr,
        gradient_norm=norm,
        samples_per_second=(progress.examples - start.examples) / seconds,
        tokens_per_second=(progress.tokens - start.tokens) / seconds,
        seconds_left=seconds / (progress.step - start.step) * (steps - progress.step),
    )


def _history(report: StepReport) -> dict[str, Any]:
    """What of a step is the same in every repetition of the run: no clock."""
    event = asdict(report)
    for key in ("steps", "samples_per_second", "tokens_per_second", "seconds_left"):
        del event[key]
    left_out = ("weights", "layers", "temperature", "task")
    return {key: value for key, value in event.items() if value or key not in left_out}


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms on CPU, where they cost nothing; elsewhere as the user set them."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = _deterministic_options.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        _deterministic_options.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        _deterministic_options.fill_uninitialized_memory = fill
