"""Build a recipe from a file, flags and assignments."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from kdalign.errors import UsageError, did_you_mean, shorten
from kdalign.files import check_name
from kdalign.recipe.flags import OPTION_OF
from kdalign.recipe.recipe import Recipe
from kdalign.recipe.strict_yaml import parse_yaml, read_yaml
from kdalign.recipe.task_defaults import MultiTask

ABLATION_KEYS = ("arms", "seeds", "sweep", "search")
"""Keys that the recipe file of an ablation may hold beside those of a recipe."""


def build_recipe(
    file: Path | None = None, flags: Mapping[str, object] | None = None, sets: Iterable[str] = ()
) -> Recipe:
    """Build a recipe from a file, flags that win over it, and assignments that win over both.

    Args:
        file: recipe file in YAML.
        flags: values by dotted key, such as ``{"train.lr": 1e-4}``; None counts as not given.
        sets: assignments such as ``train.lr=1e-4``, with values in YAML.

    Raises:
        UsageError: unreadable file, the file of an ablation, unknown key (with the nearest known one), or a value that
            is not accepted.
    """
    tree = read_tree(file) if file else {}
    of_ablation = [key for key in ABLATION_KEYS if key in tree]
    if of_ablation:
        raise UsageError(
            f"{str(file)!r} is an ablation's file (it holds {', '.join(of_ablation)}), which kdalign ablate reads, "
            f"and here one recipe is needed: a copy without {', '.join(of_ablation)} and with the keys of one arm"
        )
    return validate_recipe(merge(tree, flags or {}, sets))


def merge(tree: Mapping[str, Any], flags: Mapping[str, object], sets: Iterable[str]) -> dict[str, Any]:
    """Merge flags and assignments into a tree of keys and values; assignments win over flags, and flags over the tree.

    They also win over the tree's values for single tasks (``multi_task.tasks``).

    Raises:
        UsageError: an assignment of another form, or to a key below a value.
    """
    merged = deepcopy(dict(tree))
    assignments = [_split_assignment(text) for text in sets]
    flags = {key: value for key, value in flags.items() if value is not None}
    _forget(merged, {*flags, *(key for key, _ in assignments)})
    for key, value in flags.items():
        if key == "objective.terms" and isinstance(value, Mapping):
            _add_terms(merged, value)
        else:
            set_key(merged, key, value)
    for key, text in assignments:
        set_key(merged, key, parse_value(key, text))
    _check_texts(merged)
    return merged


def _split_assignment(assignment: str) -> tuple[str, str]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set takes section.key=value, such as train.lr=1e-4; given {assignment!r}")
    if not text.strip():
        raise UsageError(f"--set {key.strip()}= has no value (null removes one)")
    return key.strip(), text


def code_in_assignments(sets: Iterable[str]) -> list[object]:
    """Values of assignments in the sections of a recipe that can name code.

    Raises:
        UsageError: as in ``merge``.
    """
    tree = merge({}, {}, sets)
    return [tree.get(section) for section in ("objective", "align", "multi_task")]


_NO_NAME = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")
"""Characters that no file name can have; U+DC80 to U+DCFF stand for bytes of a name that is not UTF-8."""
_NO_PATHS = ("align.map", "init")
"""Keys whose text does not name a file or model."""


def _check_texts(tree: Mapping[str, Any]) -> None:
    """Refuse texts that no file can contain or be named by, before files are looked up.

    Raises:
        UsageError: a null character, half a surrogate pair, or a name that is too long.
    """
    sections = [name for name, field in Recipe.model_fields.items() if _section(field)]
    for key, value in tree.items():
        if key in sections and isinstance(value, Mapping):
            values = {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            values = {str(key): value}
        for dotted, inner in values.items():
            for text in _texts(inner):
                if _NO_NAME.search(text):
                    raise UsageError(f"{dotted}={text!r}: holds a character that no file name can have")
            if dotted.partition(".")[0] not in ("objective", "multi_task") and dotted not in _NO_PATHS:
                _check_names(dotted, inner)


def _check_names(key: str, value: object) -> None:
    """Refuse names that are too long for a file.

    Raises:
        UsageError: the name.
    """
    for name in value if isinstance(value, list | tuple) else [value]:
        if isinstance(name, str) and name.strip():
            for part in name.split(",") if key == "data.task" else [name]:
                check_name(part or name, key)


def _texts(value: object) -> Iterator[str]:
    """All texts in a value of YAML, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def validate_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Validate a tree of keys and values as a recipe.

    Raises:
        UsageError: unknown key (with the nearest known one), or a value that is not accepted.
    """
    if not isinstance(tree, Mapping):
        raise UsageError("a recipe is a mapping of keys to values")
    _check_keys(Recipe, tree, "")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_first_line(error)) from None


def _forget(tree: dict[str, Any], keys: Collection[str]) -> None:
    """Remove keys from the settings of single tasks, in place."""
    section = tree.get("multi_task")
    tasks = section.get("tasks") if isinstance(section, dict) else None
    for own in tasks.values() if isinstance(tasks, dict) else ():
        for key in keys if isinstance(own, dict) else ():
            own.pop(key, None)
            section_name, _, name = key.partition(".")
            inner = own.get(section_name)
            if isinstance(inner, dict):
                inner.pop(name, None)


def for_task(tree: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Apply the settings of one task (``multi_task.tasks``) to the tree of a recipe of several tasks."""
    changed = deepcopy(dict(tree))
    section = changed.get("multi_task") or {}
    for key, value in MultiTask(tasks=section.pop("tasks", {})).tasks.get(task, {}).items():
        set_key(changed, key, value)
    return changed


def recipe_of_task(recipe: Recipe, task: str, **changes: object) -> Recipe:
    """Build the recipe of one task of several, with its own settings and with changes of top-level keys.

    Raises:
        UsageError: a value that is not accepted.
    """
    together = recipe.multi_task
    tree = for_task(recipe.model_dump() | changes, task)
    set_key(tree, "data.task", (task,))
    # A student of several tasks keeps the others' names and settings.
    others = {name: together.tasks.get(name, {}) for name in recipe.data.task} if together.together else {}
    set_key(tree, "multi_task.tasks", others)
    try:
        return validate_recipe(tree)
    except UsageError as error:
        raise UsageError(f"multi_task.tasks, {task}: {error}" if task in together.tasks else str(error)) from None


def load_recipe(file: Path) -> Recipe:
    """Read a recipe file."""
    return build_recipe(file)


def read_tree(file: Path) -> dict[str, Any]:
    """Read the keys and values of a recipe file.

    Raises:
        UsageError: it cannot be read, or holds no keys.
    """
    check_name(str(file), "the recipe's name")
    try:
        tree = read_yaml(file)
    except UsageError as error:
        raise UsageError(
            f"cannot read recipe {str(file)!r}: {str(error).removeprefix(repr(str(file))).lstrip()}"
        ) from None
    if not isinstance(tree, dict):
        raise UsageError(f"recipe {str(file)!r} holds no keys")
    return tree


def missing_keys(file: Path) -> list[str]:
    """Keys of a recipe that a file leaves out; a run's own recipe has all of them.

    Raises:
        UsageError: it cannot be read.
    """
    here = set(_dotted(read_tree(file)))
    return [key for key in _all_keys(Recipe) if key not in here]


def _dotted(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield f"{path}{name}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{path}{name}.")


def parse_value(key: str, text: str) -> Any:
    """Parse a value as YAML, but 1e-4 as a number (YAML 1.1 reads a string).

    For keys of type text the text is kept: YAML 1.1 reads the pair of layers ``1:3`` as the number 63. So is text that
    is not YAML, such as a date that does not exist, unless it begins as a list or a mapping.

    Raises:
        UsageError: a list or a mapping that cannot be read.
    """
    try:
        value = parse_yaml(text, key)
    except UsageError:
        if text.lstrip()[:1] in ("[", "{") and not _is_text_key(key):
            raise
        return text
    if value is not None and (_is_text_key(key) or (key == "teacher" and not isinstance(value, list))):
        return value if isinstance(value, str) else text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _add_terms(tree: dict[str, Any], weights: Mapping[str, float]) -> None:
    """Set weights of further terms in a tree, in place; options of terms that it has stay."""
    section = tree.setdefault("objective", {})
    terms = section.setdefault("terms", {}) if isinstance(section, dict) else None
    if not isinstance(terms, dict):
        raise UsageError("recipe key 'objective.terms' takes names, each with its weight, such as {pkd: 10}")
    for name, weight in weights.items():
        options = terms.get(name)
        terms[name] = {**options, "weight": weight} if isinstance(options, Mapping) else weight


def _is_text_key(key: str) -> bool:
    *sections, name = key.split(".")
    known = Recipe.model_fields
    for section in sections:
        inner = known[section].annotation if section in known else None
        known = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}
    return name in known and known[name].annotation in (str, str | None)


def set_key(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in a tree, in place.

    Raises:
        UsageError: a part of the key holds a value.
    """
    *sections, last = key.split(".")
    for number, section in enumerate(sections):
        inner = tree.setdefault(section, {})
        if sections[:number] == ["objective", "terms"] and isinstance(inner, int | float):
            inner = tree[section] = {"weight": inner}  # a term that was given by its weight gets an option
        if not isinstance(inner, dict):
            raise UsageError(f"recipe key {section!r} is not a section")
        tree = inner
    tree[last] = value


def _check_keys(section: type[BaseModel], tree: Mapping[str, Any], path: str) -> None:
    """Refuse the first unknown key, with the nearest known one, before pydantic's longer report.

    Raises:
        UsageError: an unknown key, or a value in place of a section.
    """
    for key, value in tree.items():
        field = section.model_fields.get(str(key))
        if field is None:
            known = [path + name for name in section.model_fields]
            elsewhere = [name for name in _all_keys(Recipe) if name.rpartition(".")[2] == str(key)]
            near = did_you_mean(path + str(key), known) or did_you_mean(str(key), _all_keys(Recipe))
            near = f"; did you mean {elsewhere[0]!r}?" if elsewhere else near
            raise UsageError(f"unknown recipe key {path + str(key)!r}{near} (accepted: {', '.join(known)})")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if not isinstance(value, Mapping):
                raise UsageError(f"recipe key {path + str(key)!r} is a section with keys of its own")
            _check_keys(inner, value, f"{path}{key}.")


def _section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _all_keys(section: type[BaseModel], path: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += _all_keys(inner, f"{path}{name}.")
        else:
            keys.append(path + name)
    return keys


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(
        str(part) for part in first["loc"] if part != "str" and "[" not in str(part)
    )  # drop the names of union members
    if first["type"] == "missing":
        option = OPTION_OF.get("data.task" if key == "data" else key, key)
        return f"missing {option}: give it as a flag or as {key!r} in the recipe"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("a valid tuple", "a list, such as [a, b]").replace(
        "a valid dictionary", "names with values"
    )
    if first["type"] == "value_error" and isinstance(first["input"], Mapping) and "." not in key:
        return message  # it names several keys of a section
    return f"{key}={shorten(repr(first['input']), 120)}: {message}" if key else message
