"""Every option of every command, with what its type cannot be, and with nasty words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from hypothesis import strategies as st

from kdalign.cli import app
from tests.bad_input.case import ANY, REFUSED, Case
from tests.bad_input.draw import NASTY, WORDS
from tests.bad_input.place import BERT, SHORT

START = {
    "profile": ("profile", "@bert", "--no-weights", "--device", "cpu"),
    "map-layers": ("map-layers", "--teacher", "@bert", "--student", "layers=2"),
    "generate": (
        *("generate", "--teacher", "@causal/teacher", "--task", "lm:text", "--data", "@causal/texts", "--limit", "4"),
        *("--out", "out", "--dry-run"),
    ),
    "distill": ("distill", *BERT, *SHORT, "--out", "out", "--dry-run"),
    "eval": ("eval", "@bert", "--task", "sst2", "--data", "@sst2", "--limit", "4", "--device", "cpu"),
    "compare": ("compare", "@run"),
    "ablate": ("ablate", *BERT, *SHORT, "--arms", "labels", "--seeds", "1", "--out", "out", "--dry-run"),
    "cache build": ("cache", "build", *BERT, "--limit", "8", "--device", "cpu", "--out", "out", "--dry-run"),
    "cache info": ("cache", "info", "@cache"),
    "cache verify": ("cache", "verify", "@cache"),
    "inspect": ("inspect", "@run", "--device", "cpu", "--examples", "1"),
    "card": ("card", "@run"),
    "recipe dump": ("recipe", "dump", "--teacher", "@bert", "--task", "sst2"),
    "recipe show": ("recipe", "show"),
}
"""A command of each kind that works, or would."""
NO_NUMBER = ("word", "1.5x", "", "0x", "१x", "--", "1,5", "1e", "None", "5%", "[1]")


def options() -> Iterator[tuple[str, str, Any]]:
    """(command, option, type) of all options that take a value."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))
        for parameter in command.params:
            option = parameter.opts[0]
            if " ".join(words) in START and option.startswith("--") and not parameter.is_flag:
                yield " ".join(words), option, parameter.type_descriptor.annotation

    yield from walk(typer.main.get_command(app), ())


def flags(_place: Path) -> st.SearchStrategy[Case]:
    """Every option with a bad value, every command with a bad argument or an option that it has not."""
    known = list(options())
    kind = "flags of every command"

    def numbers(option: tuple[str, str, Any], value: str) -> Case:
        command, name, _ = option
        return Case(kind, f"{command} {name}", (*START[command], name, value), expect=REFUSED)

    def words(option: tuple[str, str, Any], value: str) -> Case:
        command, name, _ = option
        expect = REFUSED if not value.strip() else ANY
        return Case(kind, f"{command} {name}", (*START[command], name, value), expect=expect)

    def arguments(command: str, value: str) -> Case:
        return Case(kind, f"{command} argument", (*START[command], value), expect=ANY)

    def unknown(command: str, value: str) -> Case:
        return Case(kind, f"{command} unknown option", (*START[command], f"--no-such-{value}"), expect=REFUSED)

    numeric = [option for option in known if option[2] in (int, float)]
    textual = [option for option in known if option not in numeric]
    return st.one_of(
        st.builds(numbers, st.sampled_from(numeric), st.sampled_from(NO_NUMBER)),
        st.builds(
            words, st.sampled_from(numeric), st.sampled_from(["-1", "0", "9" * 25, "nan", "inf", "1e400", "-0.0"])
        ),
        st.builds(words, st.sampled_from(textual), st.sampled_from(NASTY)),
        st.builds(words, st.sampled_from(textual), st.sampled_from(NASTY)),
        st.builds(words, st.sampled_from(textual), WORDS),
        st.builds(arguments, st.sampled_from(sorted(START)), WORDS),
        st.builds(unknown, st.sampled_from(sorted(START)), st.sampled_from(["thing", "\x1b[31m", "a" * 2000, "é"])),
    )
