"""Parameters of a command stand for groups of options, in their order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from kdalign.cli.options import RecipeSource, split_names, with_options
from kdalign.errors import UsageError
from kdalign.recipe.flags import pick_flags


@dataclass(frozen=True)
class Mode:
    fast: Annotated[bool, typer.Option("--fast")] = False
    times: Annotated[int, typer.Option(min=1)] = 2


@pytest.fixture
def seen():
    """Run a command with two groups: what it was called with."""
    calls = []
    app = typer.Typer()

    @app.command()
    @with_options
    def command(
        source: Annotated[RecipeSource, pick_flags("teacher recipe set lr multi_task term")],
        mode: Mode,
        rest: Annotated[RecipeSource, pick_flags("seed")],
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        calls.append((source, mode, rest, as_json))

    def run(*words):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        return calls[-1] if done.exit_code == 0 else done.output

    return run


def test_only_flags_that_were_given_are_in_the_source(seen):
    assert seen() == (RecipeSource(None, {}, ()), Mode(), RecipeSource(None, {}, ()), False)
    source, mode, rest, as_json = seen(
        *("--lr", "0.1", "--recipe", "r.yaml", "--set", "a=1", "--set", "b=2", "--multi-task", "--term", "pkd=2"),
        *("--fast", "--times", "3", "--seed", "0", "--json"),
    )
    flags = {"train.lr": 0.1, "multi_task.together": True, "objective.terms": {"pkd": 2.0}}
    assert source == RecipeSource(Path("r.yaml"), flags, ("a=1", "b=2"))
    assert (mode, rest, as_json) == (Mode(True, 3), RecipeSource(None, {"train.seed": 0}, ()), True)


def test_options_are_in_the_order_of_the_parameters_they_stand_for(seen):
    text = seen("--nothing")
    assert "No such option" in text
    text = CliRunner().invoke(_app(), ["--help"]).output
    places = [text.index(word) for word in ("--lr", "--fast", "--times", "--seed")]
    assert places == sorted(places)


def _app():
    app = typer.Typer()

    @app.command()
    @with_options
    def command(
        source: Annotated[RecipeSource, pick_flags("lr")], mode: Mode, rest: Annotated[RecipeSource, pick_flags("seed")]
    ) -> None:
        pass

    return app


def test_names_are_split_at_commas():
    assert split_names(" a, b ,", "") == ("a", "b")
    with pytest.raises(UsageError, match="no name"):
        split_names(" , ", "no name")
