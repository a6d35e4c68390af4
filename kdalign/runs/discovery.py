"""Find runs, ablations and evaluations at some paths, and group runs by recipe and seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdalign.errors import TamperedRun, UsageError
from kdalign.files import is_file, read_json
from kdalign.runs.ablation_spec import FILE as ABLATION
from kdalign.runs.ablation_spec import Trial, read_ablation
from kdalign.runs.archive import ArchivedRun, read_all_archived
from kdalign.runs.folder import Walk
from kdalign.runs.integrity import read_checked
from kdalign.runs.record import RECORD, RunRecord, read_record
from kdalign.runs.record_schema import check_results
from kdalign.runs.seal import is_changed


@dataclass(frozen=True)
class RunGroup:
    """Runs of one recipe and seed, by task.

    Attributes:
        key: key of the recipe, equal for runs that differ by seed alone.
        folders: run folders by task.
        answers: predictions by task, split and column, if an ablation's archive has them.
        watched: evaluations during training, by task, if an ablation's archive has them.
        ablation: folder of the ablation that it is an arm of.
        evaluated: evaluations of texts that the student wrote for the run's own examples, by task.
    """

    name: str
    key: str
    records: dict[str, RunRecord]
    folders: dict[str, Path] = field(default_factory=dict, compare=False)
    answers: dict[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict, compare=False)
    watched: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict, compare=False)
    ablation: Path | None = None
    evaluated: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict, compare=False)

    @property
    def seed(self) -> int:
        """The runs' seed."""
        return int(next(iter(self.records.values())).recipe["train"]["seed"])


@dataclass(frozen=True)
class BaselineRow:
    """A training-free baseline row of a table.

    Attributes:
        kind: ``int8`` or ``majority``.
        entry: runs with the baseline as their student; their training facts are not the baseline's.
        reasons: reason for a score without a value, by task.
        notes: footnotes on how it was made.
    """

    kind: str
    entry: RunGroup
    reasons: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Discovery:
    """Runs and evaluations found at the paths of a table.

    Attributes:
        evaluations: results as plain dictionaries.
        passed_over: reasons for folders without a finished run, by path.
    """

    entries: tuple[RunGroup, ...] = ()
    evaluations: tuple[dict[str, Any], ...] = ()
    passed_over: Mapping[Path, str] = field(default_factory=dict)


FOREIGN, UNFINISHED = "no run", "unfinished"


def discover(paths: Iterable[str | Path]) -> Discovery:
    """Find runs and evaluations at run folders, folders of runs, and evaluation files, each once.

    A run that is named itself must be finished; in a folder of runs, unfinished ones are skipped. Evaluations are read
    if their file is named, or the folder that directly contains it.

    Raises:
        UsageError: nothing there, an unfinished run, or one that was changed after it ended.
    """
    entries: list[RunGroup] = []
    evaluations: dict[Path, list[dict[str, Any]]] = {}
    passed_over: dict[Path, str] = {}
    for path in dict.fromkeys(Path(path).resolve() for path in paths):
        if path.is_file() and path.name != RECORD:
            evaluations[path] = read_evaluation(path)
        elif (path / ABLATION).is_file():
            found, passed = _read_ablation(path)
            entries, passed_over = entries + found, passed_over | passed
        elif _is_run(path) or not path.is_dir():
            entries.append(_read_run(path))
        else:
            walk = Walk(path)
            found, passed = _walk(path, walk)
            passed |= dict.fromkeys(walk.unreadable, "not to be read by this user")
            files, foreign = evaluations_in(path)
            if not found and not files:
                unfinished = [folder.name for folder, why in passed.items() if why == UNFINISHED]
                if unfinished:
                    raise UsageError(f"no finished run at {str(path)!r}; not finished: {', '.join(unfinished)}")
                reasons = [f"{folder.name}: {why}" for folder, why in passed.items() if why != FOREIGN]
                if reasons:
                    raise UsageError(f"no run at {str(path)!r} can be read; {'; '.join(reasons)}")
                read_record(path)  # raises, saying what a run is
            entries += found
            evaluations |= files
            passed_over |= passed | foreign
    entries = [entry for number, entry in enumerate(entries) if entry not in entries[:number]]
    results = tuple(result for file in evaluations.values() for result in file)
    return Discovery(tuple(entries), results, passed_over)


def disambiguate(groups: Sequence[Sequence[RunGroup]], names: Sequence[str]) -> list[list[RunGroup]]:
    """Prefix duplicate row names with just enough parent folders to make them unique.

    Args:
        groups: the runs of each row.
        names: the rows' names.
    """
    made = [list(group) for group in groups]
    twice = {name for name in names if names.count(name) > 1}
    # If one arm of an ablation is renamed, all are.
    ablations = {group[0].ablation for group, name in zip(groups, names, strict=True) if name in twice}
    chosen = [
        number
        for number, (group, name) in enumerate(zip(groups, names, strict=True))
        if name in twice or (group[0].ablation is not None and group[0].ablation in ablations)
    ]
    above = {number: _above(groups[number][0]) for number in chosen}
    for depth in range(1, max((len(parts) for parts in above.values()), default=0) + 1):
        titles = {number: f"{'/'.join(parts[-depth:])} {names[number]}" for number, parts in above.items()}
        if len(set(titles.values())) == len(titles):
            break
    else:  # in one folder: no folder above tells them apart
        depth = 1
    for number in chosen:
        before = "/".join(above[number][-depth:])
        made[number] = [replace(entry, name=f"{before} {entry.name}") for entry in groups[number]]
    return made


def _above(entry: RunGroup) -> tuple[str, ...]:
    """Parts of the path above a run's folder, or of its ablation's folder."""
    if entry.ablation is not None:
        return entry.ablation.resolve().parts
    folder = next(iter(entry.folders.values())).resolve()
    return folder.parts[: -2 if len(entry.folders) > 1 else -1]


def _is_run(path: Path) -> bool:
    """Return whether a path is a run, finished or not, or the folder of one recipe over several tasks."""
    return path.name == RECORD or is_file(path / RECORD) or is_file(path / "recipe.yaml")


def _read_run(path: Path) -> RunGroup:
    """Read a run, or those of one recipe over several tasks, which make one row.

    Raises:
        UsageError: nothing there, an unfinished run, or a record of another version.
    """
    folder = path.parent if path.name == RECORD else path
    read = [(read_checked(place), place) for place in _places(folder)]
    records = {record.task: record for record, _ in read}
    return RunGroup(folder.name, recipe_key(records), records, {record.task: place for record, place in read})


def _read_ablation(path: Path) -> tuple[list[RunGroup], dict[Path, str]]:
    """Read an ablation's finished runs, and the reasons for those left out.

    Raises:
        UsageError: there are none.
    """
    kept = read_all_archived(path)
    if not kept:
        raise UsageError(f"the ablation {str(path)!r} has no finished run; `kdalign ablate --out {path}` resumes it")
    return archived_groups(kept, path, read_ablation(path).trials(path))


def archived_groups(
    kept: Sequence[ArchivedRun], ablation: Path | None = None, planned: Sequence[Trial] = ()
) -> tuple[list[RunGroup], dict[Path, str]]:
    """Group an ablation's runs by arm and seed; a seed that lacks a task of the others is left out.

    Args:
        kept: archived runs.
        ablation: the ablation's folder.
        planned: all trials; those not archived yet are reported as unfinished.
    """
    found: dict[tuple[str, int], list[ArchivedRun]] = {}
    for one in kept:
        found.setdefault((one.trial.arm, one.trial.seed), []).append(one)
    most = max(len(several) for several in found.values())
    entries: list[RunGroup] = []
    tasks = {one.trial.task for one in kept}
    left = {Path(one.task): UNFINISHED for one in planned if one.task not in tasks}
    left |= {_seed_of(one): UNFINISHED for one in planned if (one.arm, one.seed) not in found}
    for (arm, _), several in found.items():
        if len(several) < most:
            left[_seed_of(several[0].trial)] = UNFINISHED
            continue
        records = {one.record.task: one.record for one in several}
        folders = {one.record.task: Path(str(one.trial.recipe.out)) for one in several}
        answers = {one.record.task: one.answers for one in several}
        watched = {one.record.task: one.watched for one in several}
        key = json.dumps(["arm", str(ablation), arm, sorted(records)])
        entries.append(RunGroup(arm, key, records, folders, answers, watched, ablation))
    return entries, left


def _seed_of(trial: Trial) -> Path:
    return Path(f"{trial.arm} seed {trial.seed}")


def _places(folder: Path) -> list[Path]:
    """Folders of a run: its own, or those inside the folder of one recipe over several tasks."""
    if (folder / RECORD).is_file() or not folder.is_dir():
        return [folder]
    return [inner for inner in sorted(folder.iterdir()) if (inner / "recipe.yaml").is_file()] or [folder]


def recipe_key(records: Mapping[str, RunRecord]) -> str:
    """Return a key of recipe, teachers and scored texts, equal for runs that differ by seed and folder alone."""
    flat = next(iter(records.values())).parsed_recipe().flat()
    for name in ("train.seed", "train.keep", "train.sharding", "out", "data.task"):
        flat.pop(name)
    read = {
        task: [
            "" if record.teacher is None else record.teacher.revision,
            {split: facts.fingerprint for split, facts in record.reported.items()},
        ]
        for task, record in records.items()
    }
    return json.dumps([read, flat], sort_keys=True)


_DEEPEST = 100
"""Limit of nested folders."""


def _walk(folder: Path, walk: Walk, depth: int = 0) -> tuple[list[RunGroup], dict[Path, str]]:
    """Finished runs below a folder, and the reason for each folder that holds none."""
    if depth > _DEEPEST:
        raise UsageError(f"folders below {str(walk.start)!r} are nested more than {_DEEPEST} deep")
    entries: list[RunGroup] = []
    passed: dict[Path, str] = {}
    for inner in walk.inside(folder):
        if inner.name.startswith("."):
            continue
        if is_file(inner / ABLATION):
            found, reasons = _ablation_below(inner)
        elif _is_run(inner):
            found, reasons = _run_below(inner)
        else:
            found, reasons = _walk(inner, walk, depth + 1)
            reasons = _reasons_above(inner, found, reasons)
        entries += found
        passed |= reasons
    return entries, passed


def _ablation_below(folder: Path) -> tuple[list[RunGroup], dict[Path, str]]:
    archived = read_all_archived(folder)
    if not archived:
        return [], {folder: UNFINISHED}
    return archived_groups(archived, folder, read_ablation(folder).trials(folder))


def _run_below(folder: Path) -> tuple[list[RunGroup], dict[Path, str]]:
    try:
        finished = all((place / RECORD).is_file() for place in _places(folder))
        return ([_read_run(folder)], {}) if finished else ([], {folder: UNFINISHED})
    except TamperedRun:  # hiding it would show the other runs as if it had never been
        raise
    except UsageError as error:
        return [], {folder: str(error)}


def _reasons_above(folder: Path, found: Sequence[RunGroup], below: dict[Path, str]) -> dict[Path, str]:
    """Reasons for a plain folder: one of its own if nothing in it is a run, else those of the folders below."""
    if evaluations_in(folder)[0]:
        inner = {place: why for place, why in below.items() if why != FOREIGN}  # where evaluations keep predictions
        return {folder: "evaluations, which are read if the folder itself is named", **inner}
    return {folder: FOREIGN} if not found and set(below.values()) <= {FOREIGN} else below


def evaluations_in(folder: Path) -> tuple[dict[Path, list[dict[str, Any]]], dict[Path, str]]:
    """Read the evaluations directly in a folder, and list other JSON files."""
    found: dict[Path, list[dict[str, Any]]] = {}
    foreign: dict[Path, str] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            found[file] = read_evaluation(file)
        except UsageError:
            foreign[file] = "no evaluation"
    return found, foreign


def check_replaced(out: Path) -> None:
    """Refuse to overwrite a file that holds no scores, such as a model's configuration.

    Raises:
        UsageError: the file is not an evaluation.
    """
    if not out.exists():
        return
    try:
        read_evaluation(out)
    except UsageError as error:
        raise UsageError(
            f"--out {str(out)!r} would replace what is not an evaluation ({error}); give another name"
        ) from None


def read_evaluation(path: Path) -> list[dict[str, Any]]:
    """Read the results in a file that ``kdalign eval`` wrote; their texts are in a folder beside it.

    Raises:
        UsageError: the file is something else.
        TamperedRun: it was changed.
    """
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"{str(path)!r} is neither a run nor an evaluation (published rows: --reference {path.name})")
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("kind") != "evaluation" or not isinstance(tree.get("results"), list):
        raise UsageError(f"{str(path)!r} is neither a run nor an evaluation that `kdalign eval` wrote")
    if is_changed(tree):
        raise TamperedRun(f"{str(path)!r} was changed after it was written: its seal does not fit it; score it again")
    check_results(tree["results"], repr(str(path)))
    results: list[dict[str, Any]] = tree["results"]
    for result in results:
        if result.get("texts"):
            result["texts"] = _beside(path, Path(result["texts"]))
    return results


def _beside(evaluation: Path, written: Path) -> str | None:
    """Path of an evaluation's file of texts, wherever the evaluation was moved with its folder; None if it is gone."""
    folders = dict.fromkeys((evaluation.with_suffix("").name, written.parent.name))
    places = (evaluation.parent / folder / written.name for folder in folders if folder not in ("", ".."))
    return next((str(place) for place in places if is_file(place)), None)


def records_of(entries: Sequence[RunGroup]) -> list[RunRecord]:
    """List all records, row by row."""
    return [record for entry in entries for record in entry.records.values()]
