"""An ablation: arms x tasks x seeds of one recipe, as runs.

::

    OUT/  ablation.yaml      the shared recipe, arms and seeds
          ARM-seedN[/TASK]/  a run folder
          kept/              the archive of each run (``runs.archive``)
          search/            trials of a search for the arms' settings
"""

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdalign.errors import TamperedRun, UsageError, shorten, unknown
from kdalign.files import check_name, write_text
from kdalign.recipe import (
    ABLATION_KEYS,
    ARMS,
    AUTO_CACHE,
    UNLABELLED_KEYS,
    Recipe,
    for_task,
    merge,
    parse_value,
    read_tree,
    set_key,
    validate_recipe,
)
from kdalign.recipe.strict_yaml import parse_yaml
from kdalign.recipe.task_defaults import SERVED_PREFIX
from kdalign.runs.locks import LOCK
from kdalign.runs.seal import digest_of

FILE = "ablation.yaml"
_CHECKSUM = "# SHA-256 of the lines below: "
KEPT = "kept"
SEARCH = "search"
TRIED = "tried.json"
"""File of all tried settings, in the search's folder."""
DEFAULT_ARMS = "labels,soft,align,joint"
SERVED_ARMS = "labels,soft"
"""Default arms with a teacher behind an API, which shows no layers."""
MOST_SEEDS = 1_000
"""Limit of the number of seeds: a larger number was meant as a seed."""
SWEEP = "--sweep takes KEY=VALUE,VALUE, such as train.lr=1e-4,2e-4"
"""What a sweep takes."""
TRIALS = ("data.task", "train.seed", "out")
"""Keys that a trial sets itself."""


@dataclass(frozen=True)
class Trial:
    """One run of an ablation, finished or planned.

    Attributes:
        arm: name of its arm.
        task: name of its task.
        seed: seed of its student.
        recipe: all its settings.
        uncached: reason for which it trains without the cache that the other arms share; None if it has it, too.
    """

    arm: str
    task: str
    seed: int
    recipe: Recipe
    uncached: str | None = None

    @property
    def name(self) -> str:
        """Arm, task and seed in words."""
        return f"{self.arm}, {self.task}, seed {self.seed}"

    @property
    def file(self) -> str:
        """Name of its file in the archive."""
        return f"{_word(self.arm)}-{_word(self.task)}-seed{self.seed}.json.z"


class _PlainDumper(yaml.SafeDumper):
    """Writes no anchors and aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class AblationSpec:
    """Specification of an ablation: arms that are compared on one budget.

    Attributes:
        base: the recipe that all arms share, as keys and values without a task's defaults.
        arms: changed keys of the recipe by arm, such as ``{"objective.beta": 0}``.
        seeds: seeds of the students; teachers are shared.
    """

    base: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of tasks."""
        return validate_recipe(self.base).data.task

    def trials(self, out: Path) -> list[Trial]:
        """List all runs below a folder, seeds outermost and tasks innermost, so that early results cover every arm.

        Raises:
            UsageError: an arm's changes contradict the recipe.
        """
        tasks = self.tasks
        return [
            self._trial(arm, task, seed, out, several=len(tasks) > 1)
            for seed in self.seeds
            for arm in self.arms
            for task in tasks
        ]

    def _trial(self, arm: str, task: str, seed: int, out: Path, several: bool) -> Trial:
        tree = for_task(self.base, task)
        for key, value in self.arms[arm].items():
            set_key(tree, key, deepcopy(value))  # later keys may go into it, which other arms share
        folder = out / f"{_word(arm)}-seed{seed}"
        set_key(tree, "data.task", [task])
        set_key(tree, "train.seed", seed)
        if any(
            tree["data"].get(key) is not None for key in ("limit", "unlabelled_limit")
        ):  # one draw, so that all seeds share their teacher
            tree["data"].setdefault("limit_seed", 0)
        set_key(tree, "out", str(folder / _word(Path(task).stem)) if several else str(folder))
        cache = tree.get("cache")
        if several and isinstance(cache, Mapping) and cache.get("folder") not in (None, AUTO_CACHE):
            set_key(tree, "cache.folder", str(Path(str(cache["folder"])) / _word(Path(task).stem)))
        data = tree["data"]
        own = any(f"data.{key}" in self.arms[arm] for key in UNLABELLED_KEYS)
        shared = {} if own else {key: data.pop(key) for key in UNLABELLED_KEYS if key in data}
        new = data.get("augment")
        if isinstance(new, Mapping) and new.get("by") == "masked-lm" and not new.get("keep_labels"):
            if not any(key.startswith("data.augment") for key in self.arms[arm]):
                shared["augment"] = data.pop("augment")
        try:
            uncached = self._uncached(arm, tree)
            if uncached is not None:
                del tree["cache"]
            recipe = validate_recipe(tree)
            if shared and recipe.objective.learns_without_labels:  # an arm of labels alone cannot use it
                data.update(shared)
                recipe = validate_recipe(tree)
            return Trial(arm, task, seed, recipe, uncached)
        except UsageError as error:
            raise UsageError(f"arm {arm!r}: {error}") from None

    def _uncached(self, arm: str, tree: Mapping[str, Any]) -> str | None:
        """Return why an arm cannot use the cache that all share; None if it can, or names one itself."""
        cache = tree.get("cache")
        shared = isinstance(cache, Mapping) and cache.get("folder") is not None
        if not shared or any(key.partition(".")[0] == "cache" for key in self.arms[arm]):
            return None
        return validate_recipe({key: value for key, value in tree.items() if key != "cache"}).uncached

    def dump(self) -> str:
        """Write it as YAML, whose parts can be copied: what arms share is written out for each."""
        arms = {name: {"from": None, **changes} for name, changes in self.arms.items()}
        return yaml.dump({**self.base, "arms": arms, "seeds": list(self.seeds)}, Dumper=_PlainDumper, sort_keys=False)


def build_ablation(
    file: Path | None,
    flags: Mapping[str, object],
    sets: Iterable[str] = (),
    arms: str | None = None,
    seeds: str | None = None,
    sweeps: Sequence[str] = (),
) -> AblationSpec:
    """Build an ablation from flags and a recipe file, which may also hold ``arms``, ``seeds`` and ``sweep``.

    Args:
        file: YAML.
        flags: as in ``build_recipe``.
        sets: as in ``build_recipe``.
        arms: names of shipped arms or the file's, separated by commas.
        seeds: a number of seeds, counted from 0, or seeds separated by commas.
        sweeps: such as ``train.lr=1e-4,2e-4``: every arm with each of the values.

    Raises:
        UsageError: unknown keys or arms, or values that are not accepted.
    """
    tree = read_tree(file) if file is not None else {}
    own = {key: tree.pop(key) for key in ABLATION_KEYS if key in tree}
    base = parse_yaml(yaml.safe_dump(merge(tree, flags, sets)), "the recipe")  # as it is read back
    own_arms = _arms_in(own.get("arms"))
    names = [name.strip() for name in arms.split(",")] if arms is not None else list(own_arms)
    served = str(base.get("teacher")).startswith(SERVED_PREFIX)
    names = names or (SERVED_ARMS if served else DEFAULT_ARMS).split(",")
    blind = next((name for name in names if name in ARMS and name not in (*SERVED_ARMS.split(","), *own_arms)), None)
    if served and blind is not None:
        raise UsageError(
            f"arm {blind!r} compares layers, and a teacher behind an API shows none (accepted: {SERVED_ARMS}, and arms "
            "of the recipe file)"
        )
    chosen = _choose_arms(names, {**ARMS_CHANGES, **own_arms})
    for key, values in {**_swept_in(own.get("sweep")), **_parse_sweeps(sweeps)}.items():
        if len({repr(value) for value in values}) < len(values):
            raise UsageError(f"sweep of {key}: a value is given twice")
        chosen = _crossed(chosen, key, values)
    _check_arms(chosen)
    spec = AblationSpec(base, chosen, _seeds(seeds if seeds is not None else own.get("seeds", 3)))
    _check_trials(spec.trials(Path("runs")))
    return spec


def arms_without_cache(trials: Iterable[Trial]) -> list[str]:
    """Return a line for each arm that trains without the cache of the others, with the reason."""
    lines = (f"arm {one.arm!r} trains without the cache: {one.uncached}" for one in trials if one.uncached is not None)
    return list(dict.fromkeys(lines))


def _choose_arms(names: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Changes of the named arms."""
    chosen: dict[str, dict[str, Any]] = {}
    for name in names:
        if name not in known:
            raise unknown("arm", name, known)
        if name in chosen:
            raise UsageError(f"arm {name!r} is named twice")
        chosen[name] = dict(known[name])
    return chosen


def _parse_sweeps(sweeps: Sequence[str]) -> dict[str, list[Any]]:
    """Values of each ``--sweep``, by key."""
    values: dict[str, list[Any]] = {}
    for key, parsed in map(parse_sweep, sweeps):
        if key in values:
            raise UsageError(f"--sweep {key} is given twice: put its values together, {key}=V,V")
        values[key] = parsed
    return values


def _check_arms(arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse arms whose files would have the same name, and arms that change what every trial sets itself."""
    words = [_word(name) for name in arms]
    for name, word in zip(arms, words, strict=True):
        if words.count(word) > 1 or not word:
            raise UsageError(f"arm {name!r}: give arms names whose letters and digits differ")
    for key in (key for changes in arms.values() for key in changes):
        if key in TRIALS:
            raise UsageError(f"arms cannot differ by {key}: every run of an ablation sets its own")


def _check_trials(trials: Sequence[Trial]) -> None:
    """Refuse trials that would share a file or a folder, and names that no file system takes."""
    for names in ([trial.file for trial in trials], [str(trial.recipe.out) for trial in trials]):
        if len(set(names)) < len(names):
            twice = [trial.name for trial, name in zip(trials, names, strict=True) if names.count(name) > 1]
            raise UsageError(
                f"{twice[0]!r} and {twice[1]!r} would be written to the same place: rename arms or task files"
            )
        for name in names:
            check_name(name, "an arm with its task as a file's name,")


def read_ablation(out: Path) -> AblationSpec:
    """Read the ablation in a folder.

    Raises:
        UsageError: it cannot be read, or was changed.
    """
    return build_ablation(check_unchanged(out / FILE), {})


def check_unchanged(file: Path) -> Path:
    """Return the file of an ablation's folder if it is as it was written; one of an older version has no checksum.

    Raises:
        TamperedRun: it was changed, or cut off.
    """
    first, _, rest = file.read_text(encoding="utf-8", errors="backslashreplace").partition("\n")
    changed = first.startswith(_CHECKSUM) and first != _CHECKSUM + digest_of(rest)
    if changed or (first.startswith("#") and not rest):
        raise TamperedRun(
            f"{str(file)!r} was changed after it was written: put it back as it was, take its first line away to go on "
            f"with it as it is, or give another --out"
        )
    return file


def check_same(ablation: AblationSpec, out: Path, arms: bool = True) -> None:
    """Refuse to resume an ablation that differs from the one in a folder; arms and seeds may be added.

    Args:
        ablation: ablation to resume.
        out: the folder.
        arms: true to compare arms of the same name, too; false before a search has chosen them.

    Raises:
        UsageError: the line says what differs.
    """
    if not (out / FILE).is_file():
        return
    there = read_ablation(out)
    before, now = _flat(there.base), _flat(ablation.base)
    changed = [key for key in {**before, **now} if key != "allow" and before.get(key) != now.get(key)]
    if arms:
        changed += [
            f"arm {name}" for name in there.arms if ablation.arms.get(name, there.arms[name]) != there.arms[name]
        ]
    if changed:
        raise UsageError(
            f"{str(out)!r} holds another ablation: {', '.join(changed)} differ; give another --out, or --overwrite"
        )


def write_ablation(ablation: AblationSpec, out: Path) -> None:
    """Write an ablation into its folder; arms that are there already stay.

    Raises:
        UsageError: the folder holds another ablation.
    """
    check_same(ablation, out)
    if (out / FILE).is_file():
        there = read_ablation(out)
        seeds = tuple(dict.fromkeys((*there.seeds, *ablation.seeds)))
        ablation = AblationSpec(ablation.base, {**there.arms, **ablation.arms}, seeds)
    text = ablation.dump()
    write_text(out / FILE, f"{_CHECKSUM}{digest_of(text)}\n{text}")


def check_ours(out: Path) -> None:
    """Refuse a folder that holds anything but an ablation or the search before it.

    Raises:
        UsageError: the folder holds something else.
    """
    if not out.is_dir() or (out / FILE).is_file():
        return
    foreign = sorted(inner.name for inner in out.iterdir() if inner.name not in (SEARCH, LOCK))
    if foreign:
        raise UsageError(f"{str(out)!r} holds no ablation but other things ({foreign[0]}); give another --out")


def remove_ablation(out: Path) -> None:
    """Remove an ablation, and nothing else in its folder."""
    if not (out / FILE).is_file():
        return
    for trial in read_ablation(out).trials(out):
        shutil.rmtree(out / Path(str(trial.recipe.out)).relative_to(out).parts[0], ignore_errors=True)
    for inner in (KEPT, SEARCH):
        shutil.rmtree(out / inner, ignore_errors=True)
    (out / FILE).unlink()


ARMS_CHANGES: Mapping[str, Mapping[str, Any]] = {
    name: {f"objective.{key}": weight for key, weight in changes.items()} for name, changes in ARMS.items()
}
"""Changed keys of the recipe by shipped arm."""


def _arms_in(tree: object) -> dict[str, dict[str, Any]]:
    """The arms of a file as changes by dotted keys, after those of the shipped arm that ``from`` or its name gives."""
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise UsageError(f"arms takes names, each with the recipe's keys that differ; given {shorten(repr(tree), 100)}")
    found = {}
    for name, changes in tree.items():
        if not isinstance(name, str):
            raise UsageError(f"an arm's name is text; given {name!r} (quote it)")
        given = dict(changes or {}) if isinstance(changes, Mapping | None) else None
        if given is None:
            raise UsageError(f"arm {name!r} takes keys such as objective.beta: 0; given {shorten(repr(changes), 100)}")
        start = given.pop("from", name if name in ARMS_CHANGES else None)
        given = _flat(given)
        if start is not None and not (isinstance(start, str) and start in ARMS_CHANGES):
            raise unknown(f"arm after which {name!r} is made", str(start), ARMS_CHANGES)
        found[name] = {**(ARMS_CHANGES[start] if start is not None else {}), **given}
    return found


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        # Nothing at all, such as no terms, is a value, too.
        inner = isinstance(value, Mapping) and value
        found |= _flat(value, f"{before}{key}.") if inner else {f"{before}{key}": value}
    return found


def _swept_in(tree: object) -> dict[str, list[Any]]:
    if tree is None:
        return {}
    if not isinstance(tree, Mapping) or not all(isinstance(values, list) and values for values in tree.values()):
        raise UsageError(f"sweep takes the recipe's keys with lists of values; given {shorten(repr(tree), 100)}")
    return {str(key): list(values) for key, values in tree.items()}


def parse_sweep(sweep: str, accepted: str = SWEEP) -> tuple[str, list[Any]]:
    """Parse KEY=VALUE,VALUE into the key and its values.

    Raises:
        UsageError: another form.
    """
    key, equals, text = sweep.partition("=")
    if not equals or not text.strip():
        raise UsageError(f"{accepted}; given {sweep!r}")
    return key.strip(), [parse_value(key.strip(), value.strip()) for value in text.split(",")]


def _crossed(arms: Mapping[str, Mapping[str, Any]], key: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Combine every arm with each value of a key."""
    short = key.rpartition(".")[2]
    return {f"{name} {short}={value}": {**changes, key: value} for name, changes in arms.items() for value in values}


def _seeds(given: object) -> tuple[int, ...]:
    """Parse seeds: 0 to N - 1 from a number N, or the listed ones."""
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    texts = [str(word).strip() for word in words]
    if not all(re.fullmatch("[0-9]{1,10}", text) for text in texts) or len(set(map(int, texts))) < len(texts):
        shown = shorten(repr(given), 100)
        raise UsageError(f"seeds {shown}: accepted are a number of them, such as 5, or different ones, such as 0,1,7")
    listed = isinstance(given, list) or len(texts) > 1
    if not listed and int(texts[0]) > MOST_SEEDS:
        raise UsageError(f"seeds {given!r}: a number of them is at most {MOST_SEEDS:,}")
    numbers = tuple(int(text) for text in texts) if listed else tuple(range(int(texts[0])))
    if not numbers:
        raise UsageError("an ablation needs at least one seed")
    return numbers


def _word(name: str) -> str:
    """Turn a name into a part of a file name."""
    return re.sub(r"[^\w.=]+", "-", name).strip("-.")
