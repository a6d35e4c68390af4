"""Options of commands: those of recipe flags, those that several commands share, and groups of them."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kdalign.cli.console import tell
from kdalign.environment import rank
from kdalign.errors import UsageError, printable, unknown
from kdalign.recipe.flags import Flag, pick_flags
from kdalign.registry import Trust, code_named, trust_now


def _typer_option(flag: Flag) -> Any:
    return typer.Option(flag.option, help=flag.help, metavar=flag.metavar, min=flag.least, rich_help_panel=flag.panel)


def _shared(name: str) -> Any:
    """The option of a recipe flag, for commands in which it sets no recipe key."""
    return _typer_option(*pick_flags(name))


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str, _shared("device")]
Limit = Annotated[int | None, _shared("limit")]
MaxLength = Annotated[int | None, _shared("max_length")]
CODE = "code"
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar=CODE,
        help="code: run code that runs, recipes, task files and plans name; only if you trust them.",
    ),
]


@dataclass(frozen=True)
class TaskOptions:
    """Options that name a task and its data."""

    task: Annotated[str | None, _shared("task")] = None
    data: Annotated[str | None, _shared("data")] = None
    dataset: Annotated[str | None, _shared("dataset")] = None
    config: Annotated[str | None, _shared("config")] = None

    def check(self, names: Iterable[str]) -> None:
        """Check names of tasks with this data, before torch is loaded.

        Raises:
            UsageError: an unknown task.
        """
        from kdalign.data.tasks import check_named

        for name in names:
            check_named(name, self.data, self.dataset, self.config)


def split_names(text: str, empty: str) -> tuple[str, ...]:
    """Split names separated by commas.

    Raises:
        UsageError: no names; ``empty`` is its message.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(empty)
    return names


@dataclass(frozen=True)
class RecipeSource:
    """The three sources of a recipe, from a command's options.

    Attributes:
        file: recipe file.
        flags: values by dotted recipe key, of the flags that were given.
        sets: assignments, ``section.key=value``.
    """

    file: Path | None
    flags: Mapping[str, Any]
    sets: tuple[str, ...]

    @property
    def code(self) -> tuple[object, ...]:
        """Values on the command line that can name code to run."""
        from kdalign.recipe import code_in_assignments

        return self.flags.get("align.map"), self.flags.get("objective.terms"), code_in_assignments(self.sets)


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that its parameters stand for.

    A parameter ``Annotated[RecipeSource, flags]`` stands for the options of these flags, and one of another dataclass
    for an option per field; other parameters are options or arguments of Typer.
    """
    signature = inspect.signature(function)
    groups = {name: _Group.of(parameter) for name, parameter in signature.parameters.items()}
    options = [option for group in groups.values() for option in group.options]

    @wraps(function)
    def command(**given: Any) -> None:
        function(**{name: group.build(given) for name, group in groups.items()})

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    command.flags = {flag.name: flag for group in groups.values() for flag in group.flags}  # type: ignore[attr-defined]
    return command


@dataclass(frozen=True)
class _Group:
    """Options that one parameter of a command stands for, and how its value is built of theirs."""

    options: Sequence[inspect.Parameter]
    build: Callable[[Mapping[str, Any]], Any]
    flags: Sequence[Flag] = ()

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> "_Group":
        kind, *rest = get_args(parameter.annotation) or (parameter.annotation,)
        if kind is RecipeSource:
            (flags,) = rest
            return cls([_flag_parameter(flag) for flag in flags], partial(_recipe_source, flags), flags)
        if is_dataclass(kind):
            options = [_parameter(field.name, field.type, field.default) for field in fields(kind)]
            return cls(options, partial(_dataclass_of, kind))
        return cls([parameter.replace(kind=parameter.KEYWORD_ONLY)], lambda given: given[parameter.name])


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=inspect.Parameter.empty if default is MISSING else default,
    )


def _flag_parameter(flag: Flag) -> inspect.Parameter:
    kind = bool if flag.kind is bool else (list[str] if flag.kind is list else flag.kind) | None
    return _parameter(flag.name, Annotated[kind, _typer_option(flag)], False if kind is bool else None)


def _dataclass_of(kind: Any, given: Mapping[str, Any]) -> Any:
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def _recipe_source(flags: Sequence[Flag], given: Mapping[str, Any]) -> RecipeSource:
    values: dict[str, Any] = {flag.key or flag.name: flag.value(given[flag.name]) for flag in flags}
    file, sets = values.pop("recipe", None), values.pop("set", None)
    return RecipeSource(file, {key: value for key, value in values.items() if value is not None}, sets or ())


def trust_code(allow: Sequence[str] | None, written: object = (), others: Sequence[str] = ()) -> tuple[str, ...]:
    """Trust code that the command line names, and, with ``--allow code``, code that files name.

    Each file or module is named on stderr before it is loaded.

    Args:
        allow: values of ``--allow``.
        written: values on the command line that can name code.
        others: further words that the command's ``--allow`` accepts.

    Returns:
        The further words that were given.

    Raises:
        UsageError: an unknown word.
    """
    given = tuple(allow or ())
    for word in given:
        if word not in (CODE, *others):
            raise unknown("--allow", word, (CODE, *others))
    trust_now(Trust(code_named(written), CODE in given, _announce_code))
    return tuple(word for word in given if word != CODE)


def _announce_code(line: str) -> None:
    if not rank():
        tell(printable(line))
