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
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from kdalign.alignment.plan import Plan
from kdalign.data.batches import Batch
from kdalign.data.epochs import total_steps
from kdalign.environment import trim_heap
from kdalign.errors import Interrupted, RunError, UsageError
from kdalign.objective.objective import Objective
from kdalign.objective.terms import Unit
from kdalign.observer import Observer, StepReport
from kdalign.ranks import on_first_rank
from kdalign.recipe import TrainSettings
from kdalign.runs.folder import RunFolder
from kdalign.runs.history_rows import steps_a_row
from kdalign.signals import first_signal
from kdalign.training.best_weights import load_best, save_best
from kdalign.training.checkpoint import (
    TrainState,
    checkpoint_name,
    forget_after,
    load_checkpoint,
    newest_sound,
    save_checkpoint,
)
from kdalign.training.diagnostics import count_step_units, gradient_norms, measure_terms
from kdalign.training.diverged import or_fp32
from kdalign.training.optimizer import make_optimizer, set_learning_rate
from kdalign.training.row_order import begins_again
from kdalign.training.run_length import length_of
from kdalign.training.sharded_step import agree_on_best, first_non_finite
from kdalign.training.step import Stepper, settings_of_steps
from kdalign.training.step_reports import StepReporter, history_event
from kdalign.training.task_trainer import StepData, TaskTrainer, TrainTask, WatchedScores, announce_small_terms
from kdalign.training.tensor_files import gather_weights

MEMORY_STEPS = 50
"""Steps after which freed memory goes back to the system; its pieces of every size would grow to many gigabytes."""
GRADIENT_STEPS = 200
"""Steps between measurements of each term's own gradient."""
CHECKPOINT_SECONDS = 60.0
"""Seconds of training between checkpoints, if no number of steps is set."""


def train(
    task: TrainTask,
    settings: TrainSettings,
    accelerator: Accelerator,
    observer: Observer,
    what: str = "training",
    resume: bool = False,
    begin: Callable[[], object] = lambda: None,
) -> TrainState:
    """Train one task's learner in place, writing history and checkpoints into the task's folder.

    Args:
        task: what to train.
        settings: optimizer, length and checkpoints.
        accelerator: device and ranks.
        observer: receives progress.
        what: label of progress bars.
        resume: continue from the newest checkpoint, if there is one.
        begin: called once the evaluation before the first step, which may refuse the run, is over.

    Raises:
        Interrupted: a signal arrived; the state is saved.
        RunError: the student has diverged.
    """
    turns = [0] * total_steps(settings, task.encoded)
    return Trainer([task], turns, settings, accelerator, task.folder, observer).train(what, resume, begin)


class Trainer:
    """State of a training run.

    Attributes:
        module: all that is trained.
        trainers: the state of each task.
        progress: steps taken, and what a checkpoint keeps of them.
        taken: steps taken of each task.
        length: length of the run.
        sharded: true if the student is sharded over ranks.
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
            turns: number of the task that takes each step; of one task, as many as its rows' tokens would take.
            settings: optimizer, length and checkpoints.
            accelerator: device and ranks.
            folder: folder of checkpoints; histories go into the tasks' folders.
            observer: receives progress.
        """
        self.turns, self.several = turns, len(tasks) > 1
        self.length = length_of(settings, len(turns), tasks[0].encoded, tasks[0].on_policy, tasks[0].stream is not None)
        self.settings, self.accelerator, self.folder, self.observer = settings, accelerator, folder, observer
        assert not (self.several and settings.holds_out), "checked: several tasks have no best step"
        # A single learner is not put into a list, so that names in checkpoints have no prefix.
        self.module = nn.ModuleList([task.learner for task in tasks]) if self.several else tasks[0].learner
        self.module.to(accelerator.device).train()
        self.trainers = [TaskTrainer(task, self.length.total, settings, accelerator) for task in tasks]
        self.sharded = self.trainers[0].sharded
        self.optimizer = make_optimizer(self.module, settings)
        self.progress, self.taken = TrainState(), [0] * len(tasks)
        self._saved_at = 0.0
        self._reporter = self._make_reporter()

    def train(
        self, what: str = "training", resume: bool = False, begin: Callable[[], object] = lambda: None
    ) -> TrainState:
        """Train to the end, or until the score stops improving; then load the weights to export.

        Args:
            what: label of progress bars.
            resume: continue from the newest checkpoint, if there is one.
            begin: called once the evaluation before the first step, which may refuse the run, is over.

        Raises:
            Interrupted: a signal arrived; the state is saved.
            RunError: the student has diverged.
        """
        if resume:
            self._resume()
        if not self.length.is_reached(self.progress):
            self.progress.continue_on(self.accelerator.num_processes, "fsdp2" if self.sharded else "none")
        try:
            self._run(what, begin)
        finally:
            for trainer in self.trainers:
                trainer.close()
        announce_small_terms(self.trainers, self.observer)
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
        turns = self.turns[:step]
        self.taken = [turns.count(number) for number in range(len(self.trainers))] if self.several else [step]
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
            if saved.path is not None and not saved.checked:
                history.cut_history(step)
            else:
                history.cut_history_to(saved.histories.get(checkpoint_name(history, self.folder), 0))

    def _run(self, what: str, begin: Callable[[], object]) -> None:
        """Take all remaining steps, monitoring and saving between them."""
        progress, length, device = self.progress, self.length, self.accelerator.device
        for trainer in self.trainers:
            trainer.go_to(None if length.is_reached(progress) else progress.stream)
            self._enter_stage(trainer)
        if progress.plan:
            self.trainers[0].follow(Plan.from_json(progress.plan))
        self._reporter, self._saved_at = self._make_reporter(), progress.seconds
        self.observer.started(what, progress.step, length.expected_steps(progress), length.tokens)
        enough = self._is_patience_exhausted(progress.evaluations_without_gain)
        with first_signal(signal.SIGINT, signal.SIGTERM) as received, settings_of_steps(device, progress.quick_dropout):
            if progress.step == 0:
                self._monitor()
            begin()
            while not length.is_reached(progress) and not enough:
                self._refuse_short_samples()
                before = length.place(progress).done
                stop = self._take_step(bool(received))
                if self._is_evaluation_due(before):
                    enough = self._monitor()
                if stop:
                    self._save()
                    self.observer.ended()
                    number = received[0] if received else int(signal.SIGTERM)
                    raise Interrupted(f"stopped; {length.describe(progress)} is saved", number)
                if not length.is_reached(progress) and self._is_checkpoint_due():
                    self._save()
            self._save()  # what follows may be interrupted, too
            if not length.is_reached(progress):
                self.observer.announce(
                    f"stopped early, at {length.describe(progress)}: {progress.evaluations_without_gain} evaluations "
                    f"in a row without gain (--patience)"
                )
            if received and self.accelerator.num_processes == 1:
                raise Interrupted(f"stopped; all {progress.step} steps are saved", received[0])
        self.observer.ended()

    def _make_reporter(self) -> StepReporter:
        """Reports of steps from here on."""
        epoch_size = sum(trainer.epoch_size for trainer in self.trainers)
        return StepReporter(self.length, epoch_size, self.several, TrainState(**asdict(self.progress)))

    def _is_evaluation_due(self, before: int) -> bool:
        """Return whether the step from this place on is followed by an evaluation; the last one always is."""
        if self.length.is_reached(self.progress):
            return True
        if self.settings.eval_every is not None:
            return self.progress.step % self.settings.eval_every == 0
        tenth = max(1, self.length.total // 10)
        return before // tenth < self.length.place(self.progress).done // tenth

    def _refuse_short_samples(self) -> None:
        """Refuse to go on if samples are so short that the budget of tokens is out of reach.

        Raises:
            RunError: the steps and tokens so far; they are saved.
        """
        if self.length.is_given_up(self.progress):
            self._save()
            raise RunError(self.length.explain_giving_up(self.progress))

    def _enter_stage(self, trainer: TaskTrainer) -> None:
        """Minimise the objective of the next step's stage; parameters that no task reaches need no gradient."""
        if trainer.begin(self.length.place(self.progress).done):
            reached = {parameter for other in self.trainers for parameter in other.reached}
            for parameter in {parameter for other in self.trainers for parameter in other.trained}:
                parameter.requires_grad_(parameter in reached)

    def _take_step(self, stop: bool) -> bool:
        """Take the next step; return true if any rank was told to stop.

        Raises:
            RunError: the loss or its gradient is not finite; the weights stay as they are.
        """
        begun, step, place = time.perf_counter(), self.progress.step, self.length.place(self.progress)
        turn = self.turns[step] if self.several else 0
        trainer = self.trainers[turn]
        self._enter_stage(trainer)
        balance = trainer.task.learner.balance
        data, lr = self._read_data(trainer, self.taken[turn]), set_learning_rate(self.optimizer, self.settings, place)
        batches = data.batches
        planned, viewer = trainer.objective.at(place.progress), trainer.viewer
        own = trainer.on_policy_step(data, step, place)
        if own is not None:
            own.sample(trainer.task.learner, self.progress)
            batches, viewer = own.batches, own.viewer
            planned = planned.on_samples(own.divergence)
        layers = {name: weights.values.tolist() for name, weights in trainer.objective.layer_weights.items()}
        objective = self._balance(trainer, planned, batches)
        if self.taken[turn] % GRADIENT_STEPS == 0 and not self.sharded:  # whose layers hold no gradient in between
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
        spent = len(data.rows), int(result.units[Unit.TOKEN]), time.perf_counter() - begun, result.parts
        self.progress.add(*spent)
        if self.several:
            self.progress.of(trainer.task.name).add(*spent)
        trainer.shares.append({name: weight * result.parts[name] for name, weight in objective.weights.items()})
        report = self._reporter.report(self.progress, trainer, objective, result, lr)
        report = replace(report, layers=layers)
        if samples is not None:
            report = replace(report, on_policy=samples.measures, alarms=[alarm.name for alarm in samples.alarms])
        self._log(trainer, report)
        if samples is not None:
            samples.announce(self.observer, self.progress.step)
        self._remap(trainer)
        return result.stop

    def _read_data(self, trainer: TaskTrainer, number: int) -> StepData:
        """Read what the next step trains on.

        Raises:
            RunError: a row of a stream cannot be used; the steps before it are saved.
        """
        try:
            data = trainer.data_of(number)
        except UsageError as error:
            self._save()
            raise RunError(f"{error}; {self.length.describe(self.progress)} is saved (--resume goes on)") from None
        if begins_again(self.progress.stream, data.state):
            self.observer.announce(f"the stream ended after {self.progress.stream['read']:,} rows, and begins again")
        self.progress.stream = data.state
        return data

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

    def _log(self, trainer: TaskTrainer, report: StepReport) -> None:
        """Tell the observer, the history and the trackers of a step."""
        self.observer.stepped(report)
        if report.step % steps_a_row(report.step) == 0 or report.alarms or self.length.is_reached(self.progress):
            self._write(trainer, {"kind": "step", **history_event(report)})
        if self.accelerator.is_main_process:
            self.accelerator.log({"loss": report.loss, "lr": report.lr, **report.parts}, step=report.step)

    def _remap(self, trainer: TaskTrainer) -> None:
        """Measure the layer map again, if that is due."""
        remapping, step = trainer.task.remapping, self.progress.step
        if remapping is None or step % remapping.every or self.length.is_reached(self.progress):
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
        scores = [trainer.score(self.progress.step) for trainer in self.trainers]  # ranks share what is read
        unsaved = on_first_rank(partial(self._record_all, scores))
        if unsaved:
            weights = gather_weights(self.module, keep=self.accelerator.is_main_process)
            on_first_rank(partial(save_best, self.folder, self.module, self.progress, weights))
        agree_on_best(self.progress)
        return self._is_patience_exhausted(self.progress.evaluations_without_gain)

    def _record_all(self, scores: Sequence[WatchedScores | None]) -> bool:
        both = zip(self.trainers, scores, strict=True)
        return any([self._record(trainer, found) for trainer, found in both if found is not None])

    def _is_patience_exhausted(self, evaluations_without_gain: int) -> bool:
        return self.settings.patience is not None and evaluations_without_gain >= self.settings.patience

    def _record(self, trainer: TaskTrainer, scores: WatchedScores) -> bool:
        """Write the scores into the history, and rank the step; return true if it is the best and not saved yet."""
        step = self.progress.step
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
        ranked = not self.several and trainer.in_last_stage  # what counts is learnt there
        return ranked and self._rank(scores.deciding)

    def _rank(self, value: float | None) -> bool:
        """Keep the step if it is the best so far; return true if all ranks must first gather its weights.

        A score of None is not a gain: a student whose score stays undefined is stopped like one that does not improve.
        The last of such steps is kept until a score has a value.
        """
        progress = self.progress
        gained = value is not None and (progress.best_score is None or value > progress.best_score)
        progress.evaluations_without_gain = 0 if gained else progress.evaluations_without_gain + 1
        if gained or progress.best_score is None:
            progress.best_score, progress.best_step = value, progress.step
            if self.settings.select == "best" and self.sharded:
                return True
            if self.settings.select == "best":
                save_best(self.folder, self.module, progress)
        return False

    def _write(self, trainer: TaskTrainer, event: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            trainer.task.folder.append_history(event)

    def _is_checkpoint_due(self) -> bool:
        if self.settings.checkpoint_every is None:
            due = self.progress.seconds - self._saved_at >= CHECKPOINT_SECONDS
            return on_first_rank(lambda: due) if self.sharded else due
        return self.progress.step % self.settings.checkpoint_every == 0

    def _save(self) -> None:
        """Save a checkpoint: on the first rank, or each rank its part of a sharded student.

        Raises:
            RunError: the last step made weights that are not finite, from which nothing can be resumed.
        """
        if not (self.accelerator.is_main_process or self.sharded):
            return
        bad = first_non_finite(self.module)
        if bad:
            raise RunError(
                f"the student has diverged: after step {self.progress.step} its weight {bad!r} is NaN or infinite; "
                f"lower --lr{or_fp32(self.trainers[0].task.learner.bf16)}"
            )
        keep, parts = self.settings.keep, self._histories
        save_checkpoint(self.folder, self.module, self.optimizer, self.progress, keep, parts, self.sharded)
        self._saved_at = self.progress.seconds

    @property
    def _histories(self) -> list[RunFolder]:
        """The folders with the run's histories."""
        return [trainer.task.folder for trainer in self.trainers]
