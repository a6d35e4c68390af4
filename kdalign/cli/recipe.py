"""`kdalign recipe dump` and `kdalign recipe show`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kdalign.cli.console import show
from kdalign.cli.options import Json, Preset, TaskName, examples, recipe_app


@recipe_app.command("dump", epilog=examples("kdalign recipe dump --teacher ./bert --task sst2 > recipe.yaml"))
def recipe_dump(
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder.")] = None,
    student: Annotated[str | None, typer.Option(help="layers=N, layers=half, hub id, or folder.")] = None,
    task: TaskName = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe in YAML.")] = None,
    preset: Preset = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key.")] = None,
) -> None:
    """Print a recipe with every default, ready to edit."""
    from kdalign.recipe import build_recipe

    flags = {"preset": preset, "teacher": teacher, "student": student, "data.task": task}
    print(build_recipe(recipe, flags, sets or ()).dump(), end="")


@recipe_app.command("show", epilog=examples("kdalign recipe show", "kdalign recipe show tinybert > tinybert.yaml"))
def recipe_show(
    preset: Annotated[str | None, typer.Argument(help="A preset's name; all of them when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a preset minimises, what it needs, and which keys of the recipe it sets: a recipe to go on with."""
    from kdalign.recipe.presets import preset_named, preset_names

    found = [preset_named(name) for name in ([preset] if preset is not None else preset_names())]
    if as_json:
        print(json.dumps([asdict(one) for one in found] if preset is None else asdict(found[0]), indent=2))
    elif preset is not None:
        print(found[0].text(), end="")
    else:
        from kdalign.report.dry_run import presets_table

        show(presets_table(found))
