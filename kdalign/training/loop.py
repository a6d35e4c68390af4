"""The training loop: accumulate, step, log, monitor, checkpoint, resume.

accelerate brings devices, ranks and trackers. What decides a step is a pure function of (seed, step): its task and
rows, micro-batches, dropout and learning rate. So a checkpoint is weights, optimizer state and a step number, and
resuming equals never having stopped.

A run trains one task, or several whose learners share parameters; each parameter is optimised once. A step is of one
task alone, and what it does not reach (the other tasks' heads) has no gradient: AdamW skips it, so that its weights do
not decay and its moments stay.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch
from kdalign.data.epochs import total_steps
from kdalign.devices import on_first_rank
from kdalign.environment import trim_heap
from kdalign.errors import Interrupted, NotFinite, RunError
from kdalign.models.architecture import first_non_finite
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
from kdalign.training.diagnostics import count_step_units, find_small_shares, gradient_norms, measure_terms
from kdalign.training.diverged import or_fp32
from kdalign.training.optimizer import learning_rate, make_optimizer
from kdalign.training.step import Stepper, StepResult
from kdalign.training.task_trainer import Evaluate, TaskTrainer, TrainTask

MEMORY_STEPS = 50
"""Steps after which freed memory goes back to the system; its pieces of every size would grow to many gigabytes."""
GRADIENT_STEPS = 200
"""Steps between measurements of each term's own gradient."""
CHECKPOINT_SECONDS = 60.0
"""Seconds of training between checkpoints, if no number of steps is set."""

_deterministic_options: Any = torch.utils.deterministic


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the recipe's trackers with its values as their configuration."""
    if recipe.train.trackers:
        config = {key: value for key, value in recipe.flat().items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("kdalign", config=config)


def train(
    task: TrainTask,
    settings: TrainSettings,
    accelerator: Accelerator,
    observer: Observer,
    what: str = "training",
    resume: bool = False,
) -> TrainState:
    """Train one task's learner in place, writing history and checkpoints into the task's folder.

    Args:
        task: what to train.
        settings: optimizer, length and checkpoints.
        accelerator: device and ranks.
        observer: receives progress.
        what: label of progress bars.
        resume: continue from the newest checkpoint, if there is one.

    Raises:
        Interrupted: a signal arrived; the state is saved.
        RunError: the student has diverged.
    """
    turns = [0] * total_steps(settings, task.encoded)
    return Trainer([task], turns, settings, accelerator, task.folder, observer).train(what, resume)


class Trainer:
    """State of a training run.

    Attributes:
        module: all that is trained.
        trainers: the state of each task.
        progress: steps taken, and what a checkpoint keeps of them.
        taken: steps taken of each task.
    """

    def __init__(
        self,
        tasks: Sequence[TrainTask],
        turns: Sequence[int],
        settings: TrainSettings,
        accelerator: Accelerator,
        folder: RunFolder,
        observer: Observer,
    ) -> None:
        """Make the optimizer and each task's state.

        Args:
            tasks: one task, or several whose learners share parameters.
            turns: number of the task that takes each step.
            settings: optimizer, length and checkpoints.
            accelerator: device and ranks.
            folder: folder of checkpoints; histories go into the tasks' folders.
            observer: receives progress.
        """
        self.turns, self.steps, self.several = turns, len(turns), len(tasks) > 1
        self.settings, self.accelerator, self.folder, self.observer = settings, accelerator, folder, observer
        assert not (self.several and settings.holds_out), "checked: several tasks have no best step"
        # A single learner is not put into a list, so that names in checkpoints have no prefix.
        self.module = nn.ModuleList([task.learner for task in tasks]) if self.several else tasks[0].learner
        self.module.to(accelerator.device).train()
        self.trainers = [TaskTrainer(task, self.steps, settings, accelerator) for task in tasks]
        self.optimizer = make_optimizer(self.module, settings)
        self.progress, self.taken = TrainState(), [0] * len(tasks)
        self.epoch_size = sum(trainer.epoch_size for trainer in self.trainers)
        self._started, self._saved_at = TrainState(), 0.0

    def train(self, what: str = "training", resume: bool = False) -> TrainState:
        """Train to the end, or until the score stops improving; then load the weights to export.

        Args:
            what: label of progress bars.
            resume: continue from the newest checkpoint, if there is one.

        Raises:
            Interrupted: a signal arrived; the state is saved.
            RunError: the student has diverged.
        """
        if resume:
            self._resume()
        self._run(what)
        self._announce_small_terms()
        if self.settings.select == "best":
            self.accelerator.wait_for_everyone()
            load_best(self.folder, self.module, self.progress)
            if self.progress.best_score is None:
                self.observer.announce(
                    f"no step is the best, since the score that decides was undefined at each: the last one, "
                    f"step {self.progress.best_step}, is exported"
                )
        return self.progress

    def _resume(self) -> None:
        """Continue from the newest sound checkpoint, if there is one.

        Raises:
            UsageError: there are checkpoints, and none is sound.
        """
        saved = newest_sound(self.folder, self._histories)
        self.progress = load_checkpoint(self.folder, self.module, self.optimizer, self.accelerator, saved)
        step = self.progress.step
        self.taken = [self.turns[:step].count(number) for number in range(len(self.trainers))]
        if not self.accelerator.is_main_process:
            return
        for line in saved.skipped:
            self.observer.announce(f"skipped a damaged checkpoint: {self.folder.checkpoints}/{line}")
        if not saved.checked:
            self.observer.announce(
                "the checkpoint was written by an older kdalign, without checksums: damage would go unnoticed"
            )
        forget_after(self.folder, step)
        for history in self._histories:
            if saved.path is not None and saved.checked:
                history.cut_history_to(saved.histories[checkpoint_name(history, self.folder)])
            else:
                history.cut_history(step if step else -1)

    def _run(self, what: str) -> None:
        """Take all remaining steps, monitoring and saving between them."""
        progress, steps = self.progress, self.steps
        for trainer in self.trainers:
            self._enter_stage(trainer)
        if progress.plan:
            self.trainers[0].follow(Plan.from_json(progress.plan))
        self._started, self._saved_at = TrainState(**asdict(progress)), progress.seconds
        self.observer.started(what, progress.step, steps)
        enough = self._is_patience_exhausted(progress.evaluations_without_gain)
        with first_signal(signal.SIGINT, signal.SIGTERM) as received, _deterministic(self.accelerator.device):
            if progress.step == 0:
                self._monitor()
            while progress.step < steps and not enough and not self._is_budget_spent():
                stop = self._take_step(bool(received))
                last = progress.step == steps or self._is_budget_spent()
                if progress.step % (self.settings.eval_every or max(1, steps // 10)) == 0 or last:
                    enough = self._monitor()
                if stop:
                    self._save()
                    self.observer.ended()
                    number = received[0] if received else int(signal.SIGTERM)
                    raise Interrupted(f"stopped; step {progress.step} of {steps} is saved", number)
                if progress.step < steps and self._is_checkpoint_due():
                    self._save()
            self._save()  # what follows may be interrupted, too
            self._announce_end(enough)
            if received and self.accelerator.num_processes == 1:
                raise Interrupted(f"stopped; all {steps} steps are saved", received[0])
        self.observer.ended()

    def _is_budget_spent(self) -> bool:
        """Return true if samples were longer than the rows by which the number of steps was planned."""
        most = self.settings.max_tokens
        return most is not None and self.progress.tokens >= most

    def _announce_end(self, without_gain: bool) -> None:
        """Announce an early end, and a budget of tokens that is left over."""
        progress, most = self.progress, self.settings.max_tokens
        if progress.step == self.steps:
            if most is not None and progress.tokens < most and progress.sampled:
                self.observer.announce(
                    f"{progress.tokens:,} of {most:,} tokens are trained (--max-tokens), as samples were shorter than "
                    f"the rows by which {self.steps} steps were planned: give --max-steps for more of them"
                )
            return
        why = f"{progress.tokens:,} tokens are trained, those of samples included (--max-tokens)"
        if without_gain:
            why = f"{progress.evaluations_without_gain} evaluations in a row without gain (--patience)"
        self.observer.announce(f"stopped early, at step {progress.step} of {self.steps}: {why}")

    def _announce_small_terms(self) -> None:
        """Announce terms that were a tiny share of the loss in the last steps, unless a schedule made them so."""
        for trainer in self.trainers:
            suffix = f" of {trainer.task.name}" if self.several else ""
            for name, share in find_small_shares(list(trainer.shares)).items():
                if trainer.objective.scheduled_by(name) is None:
                    self.observer.announce(
                        f"{name} is only {share:.2%} of the loss{suffix} at the end: give it a larger weight, or "
                        f"objective.balance=size"
                    )

    def _enter_stage(self, trainer: TaskTrainer) -> None:
        """Minimise the objective of the next step's stage; parameters that no task reaches need no gradient."""
        if trainer.begin(self.progress.step):
            reached = {parameter for other in self.trainers for parameter in other.reached}
            for parameter in {parameter for other in self.trainers for parameter in other.trained}:
                parameter.requires_grad_(parameter in reached)

    def _take_step(self, stop: bool) -> bool:
        """Take the next step; return true if any rank was told to stop.

        Raises:
            RunError: the loss or its gradient is not finite; the weights stay as they are.
        """
        begun, step, turn = time.perf_counter(), self.progress.step, self.turns[self.progress.step]
        trainer = self.trainers[turn]
        self._enter_stage(trainer)
        balance = trainer.task.learner.balance
        rows, batches = trainer.micro_batches(self.taken[turn])
        lr = self._set_learning_rate(step)
        planned, viewer = trainer.objective.at(progress_at(step, self.steps)), trainer.viewer
        own = trainer.on_policy_step(rows, batches, step, self.steps)
        if own is not None:
            own.sample(trainer.task.learner, self.progress)
            batches, viewer = own.batches, own.viewer
            planned = planned.on_samples(own.divergence)
        layers = {name: weights.values.tolist() for name, weights in trainer.objective.layer_weights.items()}
        objective = self._balance(trainer, planned, batches)
        if self.taken[turn] % GRADIENT_STEPS == 0:
            self._measure_gradients(trainer, objective, batches[0])
        penalty = None if balance is None else partial(balance.penalty, weights=planned.weights)
        stepper = Stepper(viewer, self.optimizer, self.settings.clip)
        result = stepper.take(objective, batches, step, stop=stop, penalty=penalty)
        if balance is not None:
            balance.update(trainer.objective.present_terms(result.parts, result.units))
        self.taken[turn] += 1
        if (step + 1) % MEMORY_STEPS == 0:
            trim_heap()
        samples = None if own is None else own.watch(self.progress)
        spent = len(rows), int(result.units[Unit.TOKEN]), time.perf_counter() - begun, result.parts
        self.progress.add(*spent)
        if self.several:
            self.progress.of(trainer.task.name).add(*spent)
        trainer.shares.append({name: weight * result.parts[name] for name, weight in objective.weights.items()})
        report = self._report(trainer, objective, result, lr, layers)
        if samples is not None:
            report = replace(report, on_policy=samples.measures, alarms=[alarm.name for alarm in samples.alarms])
        self._log(trainer, report)
        if samples is not None:
            samples.announce(self.observer, self.progress.step)
        self._remap(trainer)
        return result.stop

    def _set_learning_rate(self, step: int) -> float:
        lr = learning_rate(self.settings, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        return lr

    def _balance(self, trainer: TaskTrainer, planned: Objective, batches: list[Batch]) -> Objective:
        """Scale the objective's weights by the task's balancer, which first measures terms new to it."""
        balance = trainer.task.learner.balance
        if balance is None:
            return planned
        new = [name for name in planned.names if balance.needs_warmup([name])]
        # Only terms with something to compare in this step, such as a row with a label.
        if new and planned.present_terms(dict.fromkeys(new, 0.0), count_step_units(batches, self.accelerator)[0]):
            sizes = measure_terms(trainer.viewer, planned, batches, self.progress.step)
            balance.update({name: sizes[name] for name in new if name in sizes})
        return planned.scaled(balance.factors(planned.names))

    def _measure_gradients(self, trainer: TaskTrainer, objective: Objective, batch: Batch) -> None:
        """Write the norm of each term's own gradient into the history."""
        learner, step = trainer.task.learner, self.progress.step
        norms = gradient_norms(replace(trainer.viewer, learner=learner), learner.student, objective, batch, step)
        finite = {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}
        self._write(trainer, {"kind": "gradients", "step": step, "norms": finite})

    def _report(
        self,
        trainer: TaskTrainer,
        objective: Objective,
        result: StepResult,
        lr: float,
        layers: dict[str, list[float]],
    ) -> StepReport:
        """The step just taken, with the speed since training started or was resumed."""
        progress, started = self.progress, self._started
        seconds = max(progress.seconds - started.seconds, 1e-9)
        sampled, trained = progress.sampling_speed(started) if progress.sampled > started.sampled else (0.0, 0.0)
        weights_change = trainer.task.learner.balance is not None or trainer.objective.moving
        return StepReport(
            step=progress.step,
            steps=self.steps,
            epoch=progress.step / self.epoch_size,
            loss=result.loss,
            parts=result.parts,
            weights=objective.weights if weights_change else {},
            lr=lr,
            gradient_norm=result.gradient_norm,
            samples_per_second=(progress.examples - started.examples) / seconds,
            tokens_per_second=(progress.tokens - started.tokens) / seconds,
            seconds_left=seconds / (progress.step - started.step) * (self.steps - progress.step),
            layers=layers,
            temperature=objective.temperature,
            task=trainer.task.name if self.several else "",
            sampled_per_second=sampled,
            trained_per_second=trained,
        )

    def _log(self, trainer: TaskTrainer, report: StepReport) -> None:
        """Tell the observer, the history and the trackers of a step."""
        self.observer.stepped(report)
        self._write(trainer, {"kind": "step", **_history_event(report)})
        if self.accelerator.is_main_process:
            self.accelerator.log({"loss": report.loss, "lr": report.lr, **report.parts}, step=report.step)

    def _remap(self, trainer: TaskTrainer) -> None:
        """Measure the layer map again, if that is due."""
        remapping, step = trainer.task.remapping, self.progress.step
        if remapping is None or step % remapping.every or step == self.steps:
            return
        plan = remapping.measure(trainer.task.learner.student)
        trainer.follow(plan)
        self.progress.plan = plan.to_json()
        pairs = [list(pair) for layer_map in plan.maps for pair in layer_map.pairs]
        self._write(trainer, {"kind": "map", "step": step, "pairs": pairs})

    def _monitor(self) -> bool:
        """Evaluate every task on its monitored texts; return true if training should stop early."""
        if not any(trainer.task.evaluate for trainer in self.trainers):
            return False
        on_first_rank(self.accelerator, self._evaluate_all)
        [without_gain] = broadcast_object_list([self.progress.evaluations_without_gain])
        return self._is_patience_exhausted(without_gain)

    def _evaluate_all(self) -> None:
        for trainer in self.trainers:
            if trainer.task.evaluate is not None:
                self._evaluate(trainer, trainer.task.evaluate)

    def _is_patience_exhausted(self, evaluations_without_gain: int) -> bool:
        return self.settings.patience is not None and evaluations_without_gain >= self.settings.patience

    def _evaluate(self, trainer: TaskTrainer, evaluate: Evaluate) -> None:
        """Score the student, write the scores into the history, and rank the step."""
        step = self.progress.step
        try:
            scores = evaluate(trainer.task.learner.student)
        except NotFinite as error:
            if step == 0:
                raise RunError(f"the student gives NaN before it is trained: {error}") from None
            raise RunError(f"the student has diverged at step {step}: {error}; lower --lr") from None
        suffix = f" of {trainer.task.name}" if self.several else ""
        if step == 0:
            values = {name: value for name, value in scores.kept.items() if isinstance(value, float)}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "no score has a value"
            self.observer.announce(f"before training, on the monitored texts{suffix}: {shown}")
            if trainer.task.check_start is not None:
                trainer.task.check_start(scores)
        for metric, reason in scores.undefined.items():
            self.observer.announce(f"step {step}, on the monitored texts{suffix}: {metric} is undefined, {reason}")
        self._write(trainer, {"kind": "evaluation", "step": step, **scores.kept})
        in_last_stage = max(trainer.begins) == 0 or step > max(trainer.begins)
        if not self.several and in_last_stage:  # what counts is learnt there
            self._rank(scores.deciding)

    def _rank(self, value: float | None) -> None:
        """Keep the step if it is the best so far.

        A score of None is not a gain: a student whose score stays undefined is stopped like one that does not improve.
        The last of such steps is kept until a score has a value.
        """
        progress = self.progress
        gained = value is not None and (progress.best_score is None or value > progress.best_score)
        progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
        if gained or progress.best_score is None:
            progress.best_score, progress.best_step = value, progress.step
            if self.settings.select == "best":
                save_best(self.folder, self.module, progress)

    def _write(self, trainer: TaskTrainer, event: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            trainer.task.folder.append_history(event)

    def _is_checkpoint_due(self) -> bool:
        if self.settings.checkpoint_every is None:
            return self.progress.seconds - self._saved_at >= CHECKPOINT_SECONDS
        return self.progress.step % self.settings.checkpoint_every == 0

    def _save(self) -> None:
        """Save a checkpoint, on the first rank.

        Raises:
            RunError: the last step made weights that are not finite, from which nothing can be resumed.
        """
        if not self.accelerator.is_main_process:
            return
        bad = first_non_finite(self.module)
        if bad:
            raise RunError(
                f"the student has diverged: after step {self.progress.step} its weight {bad!r} is NaN or infinite; "
                f"lower --lr{or_fp32(self.trainers[0].task.learner.bf16)}"
            )
        save_checkpoint(self.folder, self.module, self.optimizer, self.progress, self._histories)
        self._saved_at = self.progress.seconds

    @property
    def _histories(self) -> list[RunFolder]:
        """The folders with the run's histories."""
        return [trainer.task.folder for trainer in self.trainers]


def _history_event(report: StepReport) -> dict[str, Any]:
    """A step's values that are the same in every repetition of the run: no clock; optional ones only if set."""
    event = asdict(report)
    for key in ("steps", "seconds_left", *(key for key in event if key.endswith("_per_second"))):
        del event[key]
    optional = ("weights", "layers", "temperature", "task", "on_policy", "alarms")
    return {key: value for key, value in event.items() if value or key not in optional}


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms on the CPU, where they cost nothing; on other devices as the user set them."""
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
