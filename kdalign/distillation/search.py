"""Choose arms' settings on a slice of train: one key after the other, each arm for itself, the reported split unread.

The slice is held out by whole texts (``tasks.holdout``) and written as data of its own, so that a search is an
ablation like any other, on other data.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tasks import ClassificationTask, find_task, hold_out
from kdalign.data.tasks.unlabelled import REST
from kdalign.distillation.ablation_runner import AblationProgress, ablate
from kdalign.distillation.splits import training_examples
from kdalign.errors import RunError, UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.files import atomic_file, write_text
from kdalign.observer import NullObserver, Observer
from kdalign.recipe import TERM_KEYS, set_key
from kdalign.runs.ablation_spec import TRIALS, AblationSpec
from kdalign.runs.archive import ArchivedRun, read_all_archived

SHARE = 0.1
"""Of train, held out to choose by; at most 1,000 rows."""
_DEFINING = (*TERM_KEYS, "align_first")
"""Keys of the objective by whose absence an arm is what it is."""
SEED = 0
"""Of the slice, and of the runs that are compared on it."""


@dataclass(frozen=True)
class Candidate:
    """One setting of an arm, and what it reached on the slice of train.

    Attributes:
        settings: the keys searched so far, with their values.
        score: mean over tasks of the primary metric, in its unit; None where it is undefined.
        chosen: whether the search went on with it.
    """

    arm: str
    settings: Mapping[str, Any]
    score: float | None
    chosen: bool = False


def search(
    ablation: AblationSpec,
    space: Mapping[str, Sequence[Any]],
    out: Path,
    observer: Observer | None = None,
    *,
    jobs: int = 1,
    watch: Callable[[], Observer] = NullObserver,
    tell: Callable[[AblationProgress], None] = lambda state: None,
) -> tuple[AblationSpec, list[Candidate]]:
    """The ablation with each arm's best settings, and all that was tried.

    Args:
        ablation: its arms, tasks and budget.
        space: recipe keys with the values to try, in the order in which they are searched.
        out: a folder for slices and runs; the same call goes on after a stop.
        observer: told what is chosen.
        jobs: runs at a time.
        watch: as in ``ablate``.
        tell: as in ``ablate``.

    Raises:
        UsageError: tasks without classes or scores, or an arm that cannot be carried out.
        RunError: none of a key's values could be scored.
    """
    observer = observer or NullObserver()
    for key in space:
        if key in TRIALS:
            raise UsageError(f"--search {key}: every run of an ablation has its own")
    base = deepcopy(dict(ablation.base))
    if base.get("data", {}).get("unlabelled") == REST:
        raise UsageError(
            "--search trains on slices of train, which leave no rest: give --unlabelled a folder or a file"
        )
    _write_slices(ablation, out / "data")
    for key in ("dataset", "config", "limit"):
        base.get("data", {}).pop(key, None)
    set_key(base, "data.folder", str(out / "data"))
    arms = {name: dict(changes) for name, changes in ablation.arms.items()}
    found: dict[str, dict[str, Any]] = {name: {} for name in arms}
    tried: list[Candidate] = []
    for key, values in space.items():
        observer.announce(f"searching {key} on {SHARE:.0%} of train, held out by whole texts")
        asked = {
            _named(arm, settings): (arm, settings)
            for arm in arms
            for settings in _settings(ablation, arm, found[arm], key, values)
        }
        runs = replace(
            ablation,
            base=base,
            arms={name: {**arms[arm], **settings} for name, (arm, settings) in asked.items()},
            seeds=(SEED,),
        )
        try:
            ablate(runs, out / "runs", observer, jobs=jobs, drop=True, watch=watch, tell=tell)
        except RunError as error:  # a rate at which training diverges is no choice, and says so
            observer.announce(f"{key}: {error}")
        kept = read_all_archived(out / "runs")
        scores = {name: _mean([one for one in kept if one.trial.arm == name], len(ablation.tasks)) for name in asked}
        for arm in arms:
            own = [name for name in asked if asked[name][0] == arm]
            best = max(own, key=lambda name: _rank(scores[name]))
            if scores[best] is None:
                raise RunError(f"no value of {key} could be scored for arm {arm!r}; the same command tries them again")
            found[arm] = dict(asked[best][1])
            tried += [Candidate(arm, asked[name][1], scores[name], name == best) for name in own]
            value, score = found[arm].get(key, "as it is"), _shown(scores[best])
            observer.announce(f"{arm}: {key} {value}, {score} on the slice of train, the best of {len(own)} values")
    chosen = {arm: {**changes, **found[arm]} for arm, changes in ablation.arms.items()}
    return replace(ablation, arms=chosen), tried


def _settings(
    ablation: AblationSpec, arm: str, settings: Mapping[str, Any], key: str, values: Sequence[Any]
) -> list[dict[str, Any]]:
    """What is tried of an arm: each value, but one where the key says nothing to it."""
    recipes = [one.recipe for one in ablation.trials(Path("runs")) if one.arm == arm]  # tasks may differ
    here = [recipe.flat().get(key) for recipe in recipes]
    section, _, name = key.rpartition(".")
    taught = any(recipe.objective.needs_teacher for recipe in recipes)
    if section == "objective" and (not taught or (name in _DEFINING and not any(here))):
        return [dict(settings)]  # an arm without a teacher, or without this term, stays without
    # The value that the arm has anyway is not named, so that it is not run again.
    return [dict(settings) if all(had == value for had in here) else {**settings, key: value} for value in values]


def _named(arm: str, settings: Mapping[str, Any]) -> str:
    return " ".join([arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())])


def _mean(kept: Sequence[ArchivedRun], tasks: int) -> float | None:
    """The mean over tasks of the means of their metrics, all of which are better when higher; None where one failed."""
    if len(kept) < tasks:
        return None
    values = []
    for one in kept:
        scores = next(iter(one.record.scores.values()))["student"]
        if any(score["value"] is None for score in scores):
            return None
        values.append(float(np.mean([score["value"] for score in scores])))
    return float(np.mean(values))


def _rank(score: float | None) -> float:
    return -np.inf if score is None else score


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _write_slices(ablation: AblationSpec, folder: Path) -> None:
    """Train of every task, cut into a part to train on and a slice to choose by, under their own names.

    Raises:
        UsageError: a task without classes or scores, or slices of other data lie there.
    """
    import pandas as pd

    for trial in {one.task: one for one in ablation.trials(Path("runs"))}.values():
        data = trial.recipe.data
        task = find_task(trial.task, data.folder, data.dataset, data.config)
        if not isinstance(task, ClassificationTask) or trial.task.endswith((".yaml", ".yml")):
            raise UsageError(f"--search is for GLUE's tasks and classification, not for task {trial.task!r}")
        whole, _ = training_examples(adapter_for(task, "masked", data.max_length, "none"), trial.recipe)
        own, print_ = folder / trial.task, whole.fingerprint()
        mark = own / "train-of.txt"
        if mark.is_file():
            if mark.read_text(encoding="utf-8") != print_:
                raise UsageError(f"{str(own)!r} holds a slice of other data: give another --out, or --overwrite")
            continue
        assert whole.labels is not None, "training examples were checked"
        labels = whole.labels.tolist()
        table = pd.DataFrame(dict(zip(task.columns, whole.texts, strict=True)))
        table[task.label] = labels if task.regression else [task.labels[number] for number in labels]
        rows, held = hold_out(whole, SHARE, SEED)
        for split, part in ((task.train, rows), *((name, held) for name in task.evaluation)):
            with atomic_file(own / f"{split}.parquet") as temporary:
                table.iloc[part].to_parquet(temporary, index=False)
        write_text(mark, print_)
