"""One arm's search as an Optuna study: which settings come next, which are pruned, and all of it kept.

Settings are drawn by a tree-structured Parzen estimator (TPE, Bergstra et al. 2011, "Algorithms for Hyper-Parameter
Optimization", section 4), from a generator that is seeded anew by the number of the trial: so a search that was stopped
goes on with the same draws. Trials are pruned by asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): of
those that have reached a rung, the better half goes on.
"""

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdalign.errors import UsageError, library_errors
from kdalign.runs.search_space import Range, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

RUNGS = (1, 2)
"""Quarters of a trial's training after which it may be pruned."""
QUARTERS = 4
STARTUP_TRIALS = 5
"""Trials before the estimator's first: the arm's own settings, then random ones."""
REPEATS = 20
"""Draws of settings that were tried already, before another way to find new ones is taken."""
_PRUNED = "pruned"


@dataclass(frozen=True)
class Candidate:
    """Settings of an arm that a search has tried.

    Attributes:
        settings: values of the searched keys.
        score: mean over tasks of the primary metrics on the slice of train, in their units; None if it has none.
        chosen: true if the arm continues with these settings.
        pruned: true if it was stopped at a rung.
        rungs: mean of what was monitored, by quarters of the training.
        failed: reason why it failed; empty if it did not.
    """

    arm: str
    settings: Mapping[str, Any]
    score: float | None
    chosen: bool = False
    pruned: bool = False
    rungs: Mapping[str, float] = field(default_factory=dict)
    failed: str = ""


@dataclass
class Attempt:
    """Settings that are being tried, task by task.

    Attributes:
        number: how many settings of the arm came before.
        settings: values of the searched keys.
        scores: the student's scores on the tasks that are done; None is an undefined one.
    """

    arm: str
    number: int
    settings: Mapping[str, Any]
    scores: dict[str, float | None]
    _study: "ArmStudy"
    _trial: "Trial"

    @property
    def name(self) -> str:
        """Name of the settings as an arm."""
        return f"{self.arm} trial {self.number}"

    def is_pruned(self, quarter: int, value: float) -> bool:
        """Keep the mean of what was monitored at a rung, once; return whether the trial stops there."""
        reached = self._study.frozen(self._trial).intermediate_values
        if quarter in reached:
            return False  # before the search was stopped and resumed
        self._trial.report(value, quarter)
        return bool(self._trial.should_prune())

    def add_score(self, task: str, score: float | None) -> None:
        """Keep the score of a task that is done."""
        self.scores[task] = score
        self._trial.set_user_attr("scores", self.scores)

    def finish(self) -> float | None:
        """End the trial with the mean over its tasks, which is returned; None if one is undefined."""
        values = [score for score in self.scores.values() if score is not None]
        if len(values) < len(self.scores):
            self.fail("its score is undefined")
            return None
        mean = math.fsum(values) / len(values)
        self._study.tell(self._trial, mean)
        return mean

    def prune(self) -> None:
        """End the trial at a rung."""
        self._study.tell(self._trial, _PRUNED)

    def fail(self, reason: str) -> None:
        """End the trial without a score."""
        self._trial.set_user_attr("failed", reason)
        self._study.tell(self._trial, None)


@dataclass(frozen=True)
class ArmStudy:
    """The search of one arm's settings.

    Attributes:
        space: what is chosen from, the keys that make a difference to the arm.
        trials: number of different settings to try.
        seed: seed of the draws.
    """

    arm: str
    space: Space
    trials: int
    seed: int
    study: "Study"

    @property
    def size(self) -> float:
        """Number of different settings in the space."""
        sizes = (
            (values.high - values.low + 1 if values.whole else math.inf) if isinstance(values, Range) else len(values)
            for values in self.space.values()
        )
        return math.prod(sizes)

    def resume(self) -> list[Attempt]:
        """Return the attempts that were under way when the search was stopped."""
        import optuna

        return [
            self._attempt(optuna.Trial(self.study, frozen._trial_id), frozen, number)
            for number, frozen in enumerate(self._tried())
            if not frozen.state.is_finished()
        ]

    def ask(self) -> Attempt | None:
        """Return new settings to try; None if enough were, or all that there are."""
        tried = self._tried()
        if len(tried) >= min(self.trials, self.size):
            return None
        known = [self._settings(frozen) for frozen in tried]
        for _ in range(REPEATS):
            attempt = self._draw(len(tried))
            if attempt.settings not in known:
                return attempt
            attempt._trial.set_user_attr("repeats", True)
            self.tell(attempt._trial, None)
        untried = next((settings for settings in self._all() if settings not in known), None)
        if untried is None:
            return None
        self.study.enqueue_trial({key: _label(value) for key, value in untried.items()})
        return self._draw(len(tried))

    def tell(self, trial: "Trial", outcome: float | str | None) -> None:
        """End a trial with its score, as pruned, or without one."""
        from optuna.trial import TrialState

        if isinstance(outcome, float):
            self.study.tell(trial, outcome)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if outcome == _PRUNED else TrialState.FAIL)

    def frozen(self, trial: "Trial") -> "FrozenTrial":
        """Return what is kept of a trial now."""
        return self.study.get_trials(deepcopy=False)[trial.number]

    def candidates(self) -> list[Candidate]:
        """List all settings that were tried, in their order; the best score is chosen, and of equal ones the first."""
        from optuna.trial import TrialState

        tried = self._tried()
        scores = [frozen.value if frozen.state == TrialState.COMPLETE else None for frozen in tried]
        known = [score for score in scores if score is not None]
        best = scores.index(max(known)) if known else None
        return [
            Candidate(
                self.arm,
                self._settings(frozen),
                score,
                number == best,
                frozen.state == TrialState.PRUNED,
                {f"{quarter}/{QUARTERS}": value for quarter, value in sorted(frozen.intermediate_values.items())},
                str(frozen.user_attrs.get("failed", "")),
            )
            for number, (frozen, score) in enumerate(zip(tried, scores, strict=True))
        ]

    def _tried(self) -> list["FrozenTrial"]:
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        return [one for one in trials if "repeats" not in one.user_attrs and one.state != TrialState.WAITING]

    def _draw(self, number: int) -> Attempt:
        import optuna

        with _quiet():
            self.study.sampler = optuna.samplers.TPESampler(
                seed=1000 * self.seed + len(self.study.get_trials(deepcopy=False)),
                n_startup_trials=STARTUP_TRIALS,
                multivariate=True,
                constant_liar=True,
            )
            trial = self.study.ask({key: _distribution(values) for key, values in self.space.items()})
        return self._attempt(trial, self.frozen(trial), number)

    def _attempt(self, trial: "Trial", frozen: "FrozenTrial", number: int) -> Attempt:
        scores = dict(frozen.user_attrs.get("scores", {}))
        return Attempt(self.arm, number, self._settings(frozen), scores, self, trial)

    def _settings(self, frozen: "FrozenTrial") -> dict[str, Any]:
        """The settings that a trial's parameters stand for."""
        return {
            key: values.rounded(frozen.params[key])
            if isinstance(values, Range)
            else next(value for value in values if _label(value) == frozen.params[key])
            for key, values in self.space.items()
            if key in frozen.params
        }

    def _all(self) -> Iterator[dict[str, Any]]:
        """Yield all settings of a finite space."""
        if math.isfinite(self.size):
            each: list[Sequence[Any]] = [
                range(int(values.low), int(values.high) + 1) if isinstance(values, Range) else values
                for values in self.space.values()
            ]
            for chosen in itertools.product(*each):
                yield dict(zip(self.space, chosen, strict=True))


def open_study(
    storage: "BaseStorage", name: str, space: Space, own: Mapping[str, Any], of: Mapping[str, Any]
) -> "Study":
    """Open a study, or make it; what it searches for must be the same.

    Args:
        storage: where it is kept.
        name: its name there.
        space: what is chosen from.
        own: settings that the arm has anyway, as far as they are in the space; they are tried first.
        of: what decides a trial's score beside its settings, by name.

    Raises:
        UsageError: the study there is of something else.
    """
    import optuna

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=2)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    searched = {f"search of {key}": str(values) for key, values in space.items()}
    made = json.loads(json.dumps({**of, **searched}))
    there = study.user_attrs.get("of")
    if there is None:
        study.set_user_attr("of", made)
        if own:
            study.enqueue_trial({key: _label(value) for key, value in own.items()})
    elif there != made:
        changed = sorted(key for key in {*there, *made} if there.get(key) != made.get(key))
        raise UsageError(
            f"the search {name!r} was begun as another one, {', '.join(changed)} differ: give another --out, or "
            f"--overwrite"
        )
    return study


def open_storage(given: str | None, default: Path) -> "BaseStorage":
    """Open the storage of studies: a journal file, or a database by its URL.

    Args:
        given: the user's own.
        default: a journal otherwise, in a folder that this process has locked.

    Raises:
        UsageError: Optuna is not installed, or the storage cannot be opened.
    """
    check_installed()
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with _quiet(), library_errors(f"cannot open the search's storage {given or str(default)!r}"):
        if given is not None and "://" in given:
            return optuna.storages.get_storage(given)
        file = Path(given) if given is not None else default
        file.parent.mkdir(parents=True, exist_ok=True)
        if given is None:  # a killed process may have left its lock
            Path(f"{file}.lock").unlink(missing_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


def check_installed() -> None:
    """Check that Optuna is there.

    Raises:
        UsageError: it is not; the line says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UsageError("--search needs a package: pip install 'kdalign[search]'") from None


def _distribution(values: Range | tuple[Any, ...]) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution([_label(value) for value in values])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _label(value: Any) -> Any:
    """A value as Optuna keeps it: plain ones as they are, lists and mappings as JSON."""
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that an option of its sampler may change in a later version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
