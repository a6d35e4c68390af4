"""The Typer application: its commands, how their words are checked, and their help."""

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from kdalign.errors import Interrupted, RunError, UsageError
from kdalign.files import check_name
from kdalign.registry import Trust, trusting

ORDER = (
    "demo",
    "profile",
    "map-layers",
    "generate",
    "distill",
    "eval",
    "compare",
    "ablate",
    "cache",
    "inspect",
    "card",
    "recipe",
)
"""Commands in the order of use."""


class PipeClosed(Exception):
    """The reader of the output has closed it (``| head``)."""


class _Commands(TyperGroup):
    """The commands, in the order of use; exceptions that Typer would turn into a bare status reach ``main``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of use."""
        return sorted(self.commands, key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named.

        Raises:
            PipeClosed: the reader of the output has closed it.
            RunError: a process or an input ended too early.
            Interrupted: Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error
        except EOFError as error:
            raise RunError("an input or a process of kdalign's own ended before it had answered") from error
        except KeyboardInterrupt:
            raise Interrupted("stopped", 2) from None


_Function = TypeVar("_Function", bound=Callable[..., Any])
_PLACES = ("teacher", "student", "tokenizer", "models", "runs", "run", "task")
"""Parameters that name files, folders or models; so do those with the metavar FILE or DIR."""


class _Command(TyperCommand):
    """A command that refuses empty values, which are not the same as options left out, and names no file can have."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the words of the command line before Typer converts them.

        Raises:
            UsageError: an empty value, or a name that no file can have.
        """
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.get_params(ctx):
            name = parameter.name or ""
            shown = max(parameter.opts, key=len) if parameter.param_type_name == "option" else name.upper()
            words = given.get(name)
            for word in words if isinstance(words, list | tuple) else [words]:
                if isinstance(word, str):
                    self._check(word, shown, name in _PLACES or parameter.metavar in ("FILE", "DIR"), name == "task")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with defaults and choices of the recipe."""
        complete_help(self)
        super().format_help(ctx, formatter)

    @staticmethod
    def _check(word: str, shown: str, is_place: bool, several: bool) -> None:
        if not word.strip():
            raise UsageError(f"{shown} is empty: leave it out, or give it a value")
        if not is_place:
            return
        for part in word.split(",") if several else [word]:
            check_name(part or word, shown)
        if word == "~" or word.startswith("~/"):
            raise UsageError(
                f"{shown} {word!r}: ~ is expanded by the shell only: write it without quotes and after a space"
            )


def complete_help(command: TyperCommand) -> None:
    """Add choices and defaults of the recipe's fields to the help of a command's flags, and join its lines."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    flags = getattr(command.callback, "flags", {})
    for parameter in command.params:
        if parameter.name in flags:
            parameter.help = flags[parameter.name].full_help  # type: ignore[attr-defined]


class _Application(typer.Typer):
    """Typer with commands of ``_Command``."""

    def command(self, name: str | None = None, **options: Any) -> "Callable[[_Function], _Function]":
        """Register a command, as in Typer."""
        return super().command(name, **{"cls": _Command, **options})

    @cached_property
    def _tree(self) -> Any:
        return typer.main.get_command(self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run a command line, as in Typer; the commands are built once, which takes longer than many of them."""
        return self._tree(*args, **options)


app = _Application(
    cls=_Commands,
    name="kdalign",
    help="Distill a large Transformers model into a small one by feature alignment, and prove how well it did.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    epilog="Start here: [bold]kdalign demo --quick[/bold]",
)
recipe_app = _Application(
    help="Print a recipe with its defaults, and show presets.", no_args_is_help=True, rich_markup_mode="rich"
)
app.add_typer(recipe_app, name="recipe")
cache_app = _Application(
    help="Keep a teacher's outputs on the training rows, show what is kept, and verify it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.add_typer(cache_app, name="cache")


def examples(*lines: str) -> str:
    """Format examples for the end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def _show_version(wanted: bool) -> None:
    if wanted:
        from kdalign.version import __version__

        print(f"kdalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    context.with_resource(trusting(Trust()))  # commands that run code of others extend it
