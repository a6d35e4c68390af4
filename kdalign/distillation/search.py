"""Choose each arm's hyper-parameters on a slice of train by Optuna; the reported split stays unread.

Every arm has a study of its own with the same number of trials. A trial is scored by the mean over tasks, which are
trained one after another; at a quarter and at half of its training it is compared, by what is monitored, with the
trials that came as far, and stopped unless it is among their better half.
"""

import math
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdalign.distillation.ablation_runner import LOOK_SECONDS, AblationObserver, changed_inputs
from kdalign.distillation.engines import Engine, LocalEngine, Pool, PoolSettings
from kdalign.distillation.search_slices import SEED, SHARE, base_on_slices
from kdalign.distillation.search_study import (
    QUARTERS,
    RUNGS,
    ArmStudy,
    Attempt,
    Candidate,
    check_installed,
    open_storage,
    open_study,
)
from kdalign.errors import Interrupted, RunError, UsageError
from kdalign.files import check_links, check_writable
from kdalign.runs.ablation_spec import AblationSpec, Trial
from kdalign.runs.folder import RunFolder
from kdalign.runs.locks import exclusive
from kdalign.runs.record import read_record
from kdalign.runs.search_space import Space, check_space, is_searched
from kdalign.signals import first_signal

TRIALS = 20
"""Default number of trials of each arm."""
STUDY = "study.journal"
"""File of all studies, in the search's folder."""
_ELSEWHERE = ("out", "allow", "train.device", "train.profile")
"""Keys that may change before a search is resumed."""
_TENTHS = 10
"""Evaluations during a run whose number of steps is not known before."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Attributes:
        space: what is chosen from.
        trials: number of trials of each arm.
        storage: a journal file or a database's URL for the studies; a journal in the search's folder when left out.
        fresh: true to forget the studies of an earlier search.
    """

    space: Space
    trials: int = TRIALS
    storage: str | None = None
    fresh: bool = False


def check_search(ablation: AblationSpec, space: Space) -> None:
    """Check that a search can begin, before anything is written.

    Raises:
        UsageError: Optuna is not installed, or a key or value that is not accepted.
    """
    check_installed()
    check_space(ablation, space)


def search(
    ablation: AblationSpec,
    settings: SearchSettings,
    out: Path,
    watcher: AblationObserver | None = None,
    *,
    engine: Engine = LocalEngine(),
) -> tuple[AblationSpec, list[Candidate]]:
    """Choose each arm's best settings; return the ablation with them, and all candidates.

    Args:
        ablation: arms, tasks and budget.
        settings: what to try.
        out: folder of slices, runs and studies; the same call resumes after a stop.
        watcher: receives progress.
        engine: where the runs are made.

    Raises:
        UsageError: tasks without classes or scores, or an arm that cannot be carried out.
        RunError: none of an arm's settings could be scored.
        Interrupted: a signal arrived; the same call resumes the trials under way.
    """
    watcher = watcher or AblationObserver()
    tell = watcher.observer.announce
    check_search(ablation, settings.space)
    check_links(out)
    check_writable(out)
    with exclusive(out) as note:
        if note:
            tell(note)
        if settings.fresh:
            for folder in ("data", "runs"):
                shutil.rmtree(out / folder, ignore_errors=True)
        on_slices = replace(ablation, base=base_on_slices(ablation, out / "data"), seeds=(SEED,))
        engine.check(on_slices.trials(out / "runs"))
        studies = _open_studies(ablation, settings, out)
        for line in _beginning(settings, studies):
            tell(line)
        most = settings.trials * len(studies)
        pool_settings = PoolSettings(most, out, False, watcher.run_observer, tell)
        with first_signal(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as stopped, engine.open(pool_settings) as pool:
            _Search(on_slices, studies, out / "runs", pool, watcher).run(stopped)
        candidates = {study.arm: study.candidates() for study in studies}
    chosen = {arm: _best(arm, own) for arm, own in candidates.items()}
    for arm, best in chosen.items():
        tell(_choice(arm, best, candidates[arm]))
    arms = {arm: {**changes, **chosen[arm].settings} for arm, changes in ablation.arms.items()}
    return replace(ablation, arms=arms), [one for own in candidates.values() for one in own]


def _choice(arm: str, best: Candidate, candidates: Sequence[Candidate]) -> str:
    pruned, failed = sum(one.pruned for one in candidates), sum(bool(one.failed) for one in candidates)
    return (
        f"{arm}: {_words(best.settings)}, {best.score:.2f} on the slice of train, the best of {len(candidates)} trials "
        f"({pruned} pruned, {failed} failed)"
    )


def _beginning(settings: SearchSettings, studies: Sequence[ArmStudy]) -> Iterator[str]:
    yield (
        f"searching {', '.join(settings.space)} on {SHARE:.0%} of train, held out by whole texts, "
        f"{settings.trials} trials for each arm"
    )
    for study in studies:
        if study.size < settings.trials:
            yield f"{study.arm}: there are {study.size} different settings, and each is tried once"


def _best(arm: str, candidates: Sequence[Candidate]) -> Candidate:
    for one in candidates:
        if one.chosen:
            return one
    reasons = dict.fromkeys(one.failed for one in candidates if one.failed)
    raise RunError(f"no settings could be scored for arm {arm!r} ({'; '.join(reasons)}): --overwrite searches again")


def _open_studies(ablation: AblationSpec, settings: SearchSettings, out: Path) -> list[ArmStudy]:
    """The study of each arm, with the keys that make a difference to it.

    Raises:
        UsageError: a study that is there searched for something else.
    """
    import optuna

    storage = open_storage(settings.storage, out / STUDY)
    before = "" if settings.storage is None else f"{out.resolve()}: "
    studies = []
    for arm in ablation.arms:
        space = {key: values for key, values in settings.space.items() if is_searched(ablation, arm, key)}
        own = _own_settings(ablation, arm, space)
        name = before + arm
        if settings.fresh and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        recipe = next(trial.recipe for trial in ablation.trials(Path("runs")) if trial.arm == arm).flat()
        of = {key: value for key, value in recipe.items() if key not in _ELSEWHERE} | {"data.task": ablation.tasks}
        study = open_study(storage, name, space, own, of)
        studies.append(ArmStudy(arm, space, settings.trials, SEED, study))
    return studies


def _own_settings(ablation: AblationSpec, arm: str, space: Space) -> dict[str, Any]:
    """The values that an arm has anyway on all tasks, of the keys that may keep theirs."""
    recipes = [trial.recipe.flat() for trial in ablation.trials(Path("runs")) if trial.arm == arm]
    own = {key: recipes[0].get(key) for key in space if all(one.get(key) == recipes[0].get(key) for one in recipes)}
    return {key: value for key, value in own.items() if value in space[key]}


@dataclass
class _Search:
    """Trials under way.

    Attributes:
        ablation: the ablation on slices of train.
        runs: folder of runs, each removed once it is scored.
        running: attempt and trial of each run, by its name.
        pruned: names of runs that were told to stop at a rung.
    """

    ablation: AblationSpec
    studies: Sequence[ArmStudy]
    runs: Path
    pool: Pool
    watcher: AblationObserver
    running: dict[str, tuple[Attempt, Trial]] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    _prepared: dict[str, tuple[int | None, Mapping[str, str]]] = field(default_factory=dict)
    _asked: dict[str, int] = field(default_factory=dict)

    def run(self, stopped: Sequence[int]) -> None:
        """Try settings until every arm has its trials.

        Raises:
            Interrupted: a signal arrived; the same search resumes.
        """
        waiting = [attempt for study in self.studies for attempt in study.resume()]
        while True:
            if stopped:
                self.pool.stop()
            while not stopped and len(self.running) < self.pool.size:
                attempt = waiting.pop(0) if waiting else self._next()
                if attempt is None:
                    break
                self._start(attempt)
            if not self.running and (stopped or not waiting):
                break
            for trial, reason in self.pool.poll(LOOK_SECONDS):
                self._end(trial, reason, bool(stopped))
            for name in list(self.running):
                self._review(name)
        if stopped:
            raise Interrupted("stopped; the trials so far are kept; the same command resumes", stopped[0])

    def _next(self) -> Attempt | None:
        """The next settings, of the arm that was asked least often: so its study knows most of its trials' ends."""
        for study in sorted(self.studies, key=lambda study: self._asked.get(study.arm, 0)):
            attempt = study.ask()
            if attempt is not None:
                self._asked[study.arm] = attempt.number + 1
                return attempt
        return None

    def _start(self, attempt: Attempt) -> None:
        """Start the run of an attempt's next task."""
        from kdalign.distillation.pipeline import prepare_all

        arms = {attempt.name: {**self.ablation.arms[attempt.arm], **attempt.settings}}
        try:
            trials = replace(self.ablation, arms=arms).trials(self.runs)
            trial = next(trial for trial in trials if trial.task not in attempt.scores)
            resume = RunFolder(Path(str(trial.recipe.out))).started
            [prepared] = prepare_all(trial.recipe, resume=resume)
        except UsageError as error:
            self._fail(attempt, str(error))
            return
        self._prepared[trial.name] = prepared.steps, prepared.inputs
        self.running[trial.name] = attempt, trial
        self.pool.give(trial)

    def _end(self, trial: Trial, reason: str, stopped: bool) -> None:
        """Take in the end of a run: its score, or why it has none."""
        folder = RunFolder(Path(str(trial.recipe.out)))
        self._review(trial.name)
        attempt, _ = self.running.pop(trial.name)
        _, inputs = self._prepared.pop(trial.name)
        if trial.name in self.pruned:
            attempt.prune()
            self._tell(attempt, "pruned")
        elif reason and stopped:
            return  # it is resumed
        elif reason:
            self._fail(attempt, reason)
        elif changed := changed_inputs(folder.read_inputs(), inputs):
            self._fail(attempt, f"it read another {changed} than was checked before it began")
        else:
            attempt.add_score(trial.task, _score_of(folder))
            if len(attempt.scores) < len(self.ablation.tasks):
                shutil.rmtree(folder.path, ignore_errors=True)
                if not stopped:
                    self._start(attempt)
                return
            score = attempt.finish()
            self._tell(attempt, "undefined" if score is None else f"{score:.2f}")
        shutil.rmtree(folder.path, ignore_errors=True)

    def _review(self, name: str) -> None:
        """Stop a run at the first rung where its attempt is not among the better half.

        Rungs that are reached by the same evaluation, as in two steps, are one: the better half of the better half
        would be taken at once. The end of the training is none.
        """
        attempt, trial = self.running[name]
        if name in self.pruned:
            return
        done, tasks = list(attempt.scores.values()), len(self.ablation.tasks)
        behind = _rungs_until(len(done) / tasks)
        for share, value in _monitored(RunFolder(Path(str(trial.recipe.out))), self._prepared[name][0]):
            progress = (len(done) + share) / tasks
            reached = _rungs_until(progress)[len(behind) :]
            if reached and progress < 1:
                behind = _rungs_until(progress)
                mean = math.fsum([*(score or 0.0 for score in done), value]) / (len(done) + 1)
                if attempt.is_pruned(reached[0], mean):
                    self.pruned.add(name)
                    self.pool.cancel(trial)
                    return

    def _fail(self, attempt: Attempt, reason: str) -> None:
        attempt.fail(reason)
        self._tell(attempt, f"failed: {reason}")

    def _tell(self, attempt: Attempt, outcome: str) -> None:
        self.watcher.observer.announce(f"{attempt.name}, {_words(attempt.settings)}: {outcome}")


def _rungs_until(progress: float) -> list[int]:
    """The rungs that are reached at a share of an attempt's training."""
    return [quarter for quarter in RUNGS if progress >= quarter / QUARTERS - 1e-9]


def _monitored(folder: RunFolder, steps: int | None) -> Iterator[tuple[float, float]]:
    """Yield what a run monitors: the share of its training, and the mean of the metrics; undefined ones count as 0."""
    for number, event in enumerate(folder.watched):
        values = [value or 0.0 for name, value in event.items() if name not in ("step", "agreement")]
        if event["step"] and values:
            share = number / _TENTHS if steps is None else event["step"] / steps
            yield min(share, 1.0), math.fsum(values) / len(values)


def _score_of(folder: RunFolder) -> float | None:
    """The mean of a student's metrics, which are all better when higher; None if one is undefined."""
    values = [score["value"] for score in next(iter(read_record(folder.path).scores.values()))["student"]]
    return None if None in values else math.fsum(values) / len(values)


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items()) or "as it is"
