"""What the commands share: the application, options that several have, and printing."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from kdalign.cli.console import tell
from kdalign.errors import Interrupted, RunError, UsageError, printable, unknown
from kdalign.files import check_name
from kdalign.registry import Trust, code_named, trust_now, trusting

if TYPE_CHECKING:
    from collections.abc import Callable


class PipeClosed(Exception):
    """Whoever read the output has left (``| head``)."""


class _Commands(TyperGroup):
    """The commands; what Typer would turn into a status of its own, without a word, goes on to ``main``."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named.

        Raises:
            PipeClosed: nobody reads the output any more.
            RunError: a process or an input that was waited for ended.
            Interrupted: by Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error
        except EOFError as error:
            raise RunError("an input or a process of kdalign's own ended before it had answered") from error
        except KeyboardInterrupt:
            raise Interrupted("stopped", 2) from None


_Function = TypeVar("_Function", bound="Callable[..., Any]")
_PLACES = ("teacher", "student", "tokenizer", "models", "runs", "run", "task")
"""Parameters that name files, folders or models, beside those whose values are shown as FILE or DIR."""


class _Command(TyperCommand):
    """A command that takes nothing for something else: what is empty is not what was left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the words as they were given, before their kinds are.

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

    @staticmethod
    def _check(word: str, shown: str, is_place: bool, several: bool) -> None:
        if not word.strip():
            raise UsageError(f"{shown} is empty: leave it out, or give it a value")
        if not is_place:
            return
        for part in word.split(",") if several else [word]:
            check_name(part or word, shown)
        if word == "~" or word.startswith("~/"):
            raise UsageError(f"{shown} {word!r}: ~ is the shell's to replace; write it without quotes after a blank")


class _Application(typer.Typer):
    """Typer whose commands are all of one class."""

    def command(self, name: str | None = None, **options: Any) -> "Callable[[_Function], _Function]":
        """As Typer's."""
        return super().command(name, **{"cls": _Command, **options})


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
recipe_app = _Application(help="Show what a recipe holds.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(recipe_app, name="recipe")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, a task file .yaml, classification; for tokens lm, "
        "lm:sst2 (a task's sentences), lm:COLUMN, masked-lm, language-modeling, chat, translation:A-B, "
        "summarization:A-B, dialogue:A-B or transcription:A-B (names of columns), multi30k, wmt14, wmt16, xsum, "
        "cnn_dailymail, samsum, dialogsum, aeslc, wikitext2; or embedding. Several with commas.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="A method of the field to begin with: feature-alignment (the default), codir, distilbert, glue, kd, "
        "minilm, minilmv2, pkd, tinybert; see kdalign recipe show."
    ),
]
DataFolder = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Folder with <split>.parquet|csv|tsv|jsonl.")
]
Dataset = Annotated[str | None, typer.Option("--dataset", metavar="HUB", help="A data set on the hub instead.")]
Config = Annotated[str | None, typer.Option("--config", help="The hub data set's configuration.")]
Terms = Annotated[
    list[str] | None,
    typer.Option(
        "--term",
        metavar="NAME=WEIGHT",
        help="A further term, shipped (pkd, info-nce, ...; a wrong name lists all) or your own (own.py:Loss); may be "
        "repeated.",
    ),
]
CODE = "code"
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar=CODE,
        help="code: run the code that runs, recipes, task files and plans name; only if you trust them.",
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps. Default auto.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many examples of each split.")]
Unlabelled = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Text without labels to learn from, too, by the teacher's answers: a folder (its train), a file (.txt one "
        "text a line), or rest: the training rows that --limit leaves out.",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=8, help="Longest input in tokens; longer ones are cut and counted; 256 for tokens. Default 128."),
]


def examples(*lines: str) -> str:
    """Examples as the end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def _show_version(asked: bool) -> None:
    if asked:
        from kdalign.version import __version__

        print(f"kdalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    context.with_resource(trusting(Trust()))  # a command that can need more says so


def trust_code(allow: Sequence[str] | None, written: object = (), others: Sequence[str] = ()) -> tuple[str, ...]:
    """Let the rest of a command run the code that its own words name, and what files name by ``--allow code``.

    Each file or module is named on stderr before it is loaded.

    Args:
        allow: what the user gave for ``--allow``.
        written: what is written on the command line and can name code.
        others: further words that the command's ``--allow`` takes.

    Returns:
        The further words that were given.

    Raises:
        UsageError: another word.
    """
    given = tuple(allow or ())
    for word in given:
        if word not in (CODE, *others):
            raise unknown("--allow", word, (CODE, *others))
    trust_now(Trust(code_named(written), CODE in given, _announce_code))
    return tuple(word for word in given if word != CODE)


def _announce_code(line: str) -> None:
    if not int(os.environ.get("RANK", "0")):
        tell(printable(line))
