"""Choose hyper-parameters on a slice of train: one key after the other, each arm by itself, the reported split unread.

The slice is held out by whole texts (``data.tasks.holdout``) and written as a data set, so that a search is an
ablation like any other, on other data.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdalign.data.tasks import ClassificationTask, find_task, hold_out
from kdalign.data.tasks.unlabelled import REST
from kdalign.distillation.ablation_runner import AblationObserver, ablate
from kdalign.distillation.engines import Engine, LocalEngine
from kdalign.distillation.splits import training_examples
from kdalign.errors import RunError, UsageError
from kdalign.evaluation.adapters import adapter_for
from kdalign.files import atomic_file, write_text
from kdalign.recipe import TERM_KEYS, set_key
from kdalign.runs.ablation_spec import TRIALS, AblationSpec
from kdalign.runs.archive import ArchivedRun, read_all_archived

SHARE = 0.1
"""Share of train that is held out to choose by; at most 1,000 rows."""
_DEFINING = (*TERM_KEYS, "align_first")
"""Keys of the objective whose absence defines an arm."""
SEED = 0
"""Seed of the slice, and of the runs that are compared on it."""


@dataclass(frozen=True)
class Candidate:
    """Settings of an arm, and their score on the slice of train.

    Attributes:
        settings: values of the keys searched so far.
        score: mean over tasks of the primary metric, in its unit; None if it is undefined.
        chosen: true if the search continued with these settings.
    """

    arm: str
    settings: Mapping[str, Any]
    score: float | None
    chosen: bool = False


def search(
    ablation: AblationSpec,
    space: Mapping[str, Sequence[Any]],
    out: Path,
    watcher: AblationObserver | None = None,
    *,
    engine: Engine = LocalEngine(),
) -> tuple[AblationSpec, list[Candidate]]:
    """Choose each arm's best settings; return the ablation with them, and all candidates.

    Args:
        ablation: arms, tasks and budget.
        space: recipe keys with the values to try, in the order in which they are searched.
        out: folder of slices and runs; the same call resumes after a stop.
        watcher: receives progress.
        engine: where the runs are made.

    Raises:
        UsageError: tasks without classes or scores, or an arm that cannot be carried out.
        RunError: none of a key's values could be scored.
    """
    watcher = watcher or AblationObserver()
    on_slices = replace(ablation, base=_base_on_slices(ablation, space, out / "data"), seeds=(SEED,))
    chosen: dict[str, dict[str, Any]] = {arm: {} for arm in ablation.arms}
    tried: list[Candidate] = []
    for key, values in space.items():
        watcher.observer.announce(f"searching {key} on {SHARE:.0%} of train, held out by whole texts")
        candidates = {
            _name(arm, settings): (arm, settings)
            for arm in ablation.arms
            for settings in _settings(ablation, arm, chosen[arm], key, values)
        }
        arms = {name: {**ablation.arms[arm], **settings} for name, (arm, settings) in candidates.items()}
        try:
            ablate(replace(on_slices, arms=arms), out / "runs", watcher, engine=engine, drop=True)
        except RunError as error:  # a learning rate at which training diverges is not chosen; its line says why
            watcher.observer.announce(f"{key}: {error}")
        results = read_all_archived(out / "runs")
        scores = {
            name: _mean([result for result in results if result.trial.arm == name], len(ablation.tasks))
            for name in candidates
        }
        for arm in ablation.arms:
            own = [name for name in candidates if candidates[name][0] == arm]
            best = max(own, key=lambda name: _rank(scores[name]))
            if scores[best] is None:
                raise RunError(f"no value of {key} could be scored for arm {arm!r}; the same command tries them again")
            chosen[arm] = dict(candidates[best][1])
            tried += [Candidate(arm, candidates[name][1], scores[name], name == best) for name in own]
            value, score = chosen[arm].get(key, "as it is"), _format_score(scores[best])
            watcher.observer.announce(
                f"{arm}: {key} {value}, {score} on the slice of train, the best of {len(own)} values"
            )
    arms = {arm: {**changes, **chosen[arm]} for arm, changes in ablation.arms.items()}
    return replace(ablation, arms=arms), tried


def _base_on_slices(ablation: AblationSpec, space: Mapping[str, Sequence[Any]], folder: Path) -> dict[str, Any]:
    """The recipe that all arms share, on slices of train that are written into a folder.

    Raises:
        UsageError: a key or a data set that cannot be searched on.
    """
    for key in space:
        if key in TRIALS:
            raise UsageError(f"--search {key}: every run of an ablation has its own")
    base = deepcopy(dict(ablation.base))
    if base.get("data", {}).get("unlabelled") == REST:
        raise UsageError(
            "--search trains on slices of train, which leave no rest: give --unlabelled a folder or a file"
        )
    _write_slices(ablation, folder)
    for key in ("dataset", "config", "limit"):
        base.get("data", {}).pop(key, None)
    set_key(base, "data.folder", str(folder))
    return base


def _settings(
    ablation: AblationSpec, arm: str, settings: Mapping[str, Any], key: str, values: Sequence[Any]
) -> list[dict[str, Any]]:
    """The settings of an arm to try: one for each value, or a single one if the key has no effect on the arm."""
    recipes = [trial.recipe for trial in ablation.trials(Path("runs")) if trial.arm == arm]  # tasks may differ
    here = [recipe.flat().get(key) for recipe in recipes]
    section, _, name = key.rpartition(".")
    taught = any(recipe.objective.needs_teacher for recipe in recipes)
    if section == "objective" and (not taught or (name in _DEFINING and not any(here))):
        return [dict(settings)]  # an arm without a teacher, or without this term, stays without
    # The value that the arm has anyway is not named, so that it is not run again.
    return [dict(settings) if all(own == value for own in here) else {**settings, key: value} for value in values]


def _name(arm: str, settings: Mapping[str, Any]) -> str:
    return " ".join([arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())])


def _mean(results: Sequence[ArchivedRun], tasks: int) -> float | None:
    """Mean over tasks of the mean of their metrics, which are all better when higher; None if a run failed."""
    if len(results) < tasks:
        return None
    values = []
    for result in results:
        scores = next(iter(result.record.scores.values()))["student"]
        if any(score["value"] is None for score in scores):
            return None
        values.append(float(np.mean([score["value"] for score in scores])))
    return float(np.mean(values))


def _rank(score: float | None) -> float:
    return -np.inf if score is None else score


def _format_score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _write_slices(ablation: AblationSpec, folder: Path) -> None:
    """Cut every task's train into a part to train on and a slice to choose by, each task in a folder of its own.

    Raises:
        UsageError: a task without classes or scores, or the folder holds slices of other data.
    """
    import pandas as pd

    for trial in {trial.task: trial for trial in ablation.trials(Path("runs"))}.values():
        data = trial.recipe.data
        task = find_task(trial.task, data.folder, data.dataset, data.config, data.held_rows)
        if not isinstance(task, ClassificationTask) or trial.task.endswith((".yaml", ".yml")):
            raise UsageError(f"--search is for GLUE's tasks and classification, not for task {trial.task!r}")
        train, _ = training_examples(adapter_for(task, "masked", data.max_length, "none"), trial.recipe)
        own, fingerprint = folder / trial.task, train.fingerprint()
        mark = own / "train-of.txt"
        if mark.is_file():
            if mark.read_text(encoding="utf-8") != fingerprint:
                raise UsageError(f"{str(own)!r} holds a slice of other data: give another --out, or --overwrite")
            continue
        assert train.labels is not None, "training examples were checked"
        labels = train.labels.tolist()
        table = pd.DataFrame(dict(zip(task.columns, map(list, train.texts), strict=True)))
        table[task.label] = labels if task.regression else [task.labels[number] for number in labels]
        rows, held = hold_out(train, SHARE, SEED)
        for split, part in ((task.train, rows), *((name, held) for name in task.evaluation)):
            with atomic_file(own / f"{split}.parquet") as temporary:
                table.iloc[part].to_parquet(temporary, index=False)
        write_text(mark, fingerprint)
