"""`kdalign recipe dump` and `kdalign recipe show`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from kdalign.cli.application import examples, recipe_app
from kdalign.cli.console import show
from kdalign.cli.options import Json, RecipeSource, with_options
from kdalign.recipe.flags import pick_flags


@recipe_app.command("dump", epilog=examples("kdalign recipe dump --teacher ./bert --task sst2 > recipe.yaml"))
@with_options
def recipe_dump(
    source: Annotated[RecipeSource, pick_flags("teacher student task recipe preset set")],
) -> None:
    """Print a recipe with every default, ready to edit."""
    from kdalign.recipe import build_recipe

    print(build_recipe(source.file, source.flags, source.sets).dump(), end="")


@recipe_app.command("show", epilog=examples("kdalign recipe show", "kdalign recipe show tinybert > tinybert.yaml"))
def recipe_show(
    preset: Annotated[str | None, typer.Argument(help="A preset's name; all of them when left out.")] = None,
    as_json: Json = False,
) -> None:
    """Show presets: what each minimises, what it needs, and the recipe keys that it sets."""
    from kdalign.recipe.presets import preset_named, preset_names

    presets = [preset_named(name) for name in ([preset] if preset is not None else preset_names())]
    if as_json:
        print(json.dumps([asdict(each) for each in presets] if preset is None else asdict(presets[0]), indent=2))
    elif preset is not None:
        print(presets[0].text(), end="")
    else:
        from kdalign.report.dry_run import presets_table

        show(presets_table(presets))
