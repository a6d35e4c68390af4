"""Reports of training steps, for observers and the history."""

from dataclasses import asdict, dataclass
from typing import Any

from kdalign.objective.objective import Objective
from kdalign.observer import StepReport
from kdalign.training.checkpoint import TrainState
from kdalign.training.run_length import RunLength
from kdalign.training.step import StepResult
from kdalign.training.task_trainer import TaskTrainer


@dataclass(frozen=True)
class StepReporter:
    """Reports of steps, with the speed since training started or was resumed.

    Attributes:
        length: length of the run.
        epoch_size: steps of an epoch.
        several: true if several tasks share the student.
        started: progress at which training started or was resumed.
    """

    length: RunLength
    epoch_size: int
    several: bool
    started: TrainState

    def report(
        self, progress: TrainState, trainer: TaskTrainer, objective: Objective, result: StepResult, lr: float
    ) -> StepReport:
        """Report the step just taken.

        Args:
            progress: progress after it.
            trainer: state of its task.
            objective: what was minimised in it.
            result: its outcome.
            lr: its learning rate.
        """
        started = self.started
        seconds = max(progress.seconds - started.seconds, 1e-9)
        sampled, trained = progress.sampling_speed(started) if progress.sampled > started.sampled else (0.0, 0.0)
        weights_change = trainer.task.learner.balance is not None or trainer.objective.moving
        here = self.length.place(progress)
        speed = (here.done - self.length.place(started).done) / seconds
        return StepReport(
            step=progress.step,
            steps=self.length.expected_steps(progress),
            epoch=progress.stream["passes"] if progress.stream else progress.step / self.epoch_size,
            loss=result.loss,
            parts=result.parts,
            weights=objective.weights if weights_change else {},
            lr=lr,
            gradient_norm=result.gradient_norm,
            samples_per_second=(progress.examples - started.examples) / seconds,
            tokens_per_second=(progress.tokens - started.tokens) / seconds,
            seconds_left=max(0, here.total - here.done) / speed,
            tokens_left=self.length.tokens_left(progress),
            passes=progress.stream["passes"] + 1 if progress.stream else 0,
            temperature=objective.temperature,
            task=trainer.task.name if self.several else "",
            sampled_per_second=sampled,
            trained_per_second=trained,
        )


def history_event(report: StepReport) -> dict[str, Any]:
    """A step's values that are the same in every repetition of the run: no clock; optional ones only if set."""
    event = asdict(report)
    speeds = [key for key in event if key.endswith("_per_second")]
    for key in ("steps", "seconds_left", "tokens_left", "passes", *speeds):
        del event[key]
    optional = ("weights", "layers", "temperature", "task", "on_policy", "alarms")
    return {key: value for key, value in event.items() if value or key not in optional}
