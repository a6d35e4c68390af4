"""`kdalign distill`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdalign import IMPORTED
from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.options import Json, RecipeSource, TaskOptions, trust_code, with_options
from kdalign.environment import rank
from kdalign.errors import UsageError
from kdalign.recipe.flags import FLAGS, OPTION_OF, pick_flags

if TYPE_CHECKING:
    from kdalign.recipe import Recipe

_CHECKS = pick_flags("allow no_finetune_teacher no_profile")
_MAIN = tuple(flag for flag in FLAGS if flag not in _CHECKS)


@dataclass(frozen=True)
class RunOptions:
    """Options that say what to do with the run folder."""

    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, write nothing.")] = False


@app.command(
    epilog=examples(
        "kdalign distill --teacher google-bert/bert-base-uncased --student layers=half --task sst2",
        "kdalign distill --teacher ./bert --student layers=3 --task cola,mrpc --data ./glue --epochs 3",
        "kdalign distill --teacher ./bert --student layers=3 --task sst2 --data ./glue --preset tinybert",
        "kdalign distill --teacher ./bert --student layers=3 --task cola,mrpc,rte --multi-task",
        "kdalign distill --teacher ./llama --student layers=half --task lm --data ./texts --max-tokens 1000000",
        "kdalign distill --teacher none --student new:marian,layers=4,width=256 --tokenizer train:8000 "
        "--task translation:en-de --data ./pairs",
        "kdalign distill --teacher ./bert --student layers=3,width=192 --tokenizer train:8000 --task sst2",
        "kdalign distill --teacher ./bert-sst2 --student layers=3 --task sst2 --limit 2000 --unlabelled rest",
        "kdalign distill --recipe recipe.yaml --set train.lr=1e-4 --out runs/second",
        "kdalign distill --out runs/second --resume",
        "torchrun --nproc_per_node 2 -m kdalign distill --recipe recipe.yaml",
    )
)
@with_options
def distill(
    source: Annotated[RecipeSource, _MAIN],
    run: RunOptions,
    checks: Annotated[RecipeSource, _CHECKS],
    as_json: Json = False,
) -> None:
    """Train a small student from a large teacher, and score both.

    L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn. The run folder holds the student as a stock
    Transformers checkpoint, the recipe, the plan, the history, the predictions and the record that tables are made of.
    """
    from kdalign.recipe import CHECKS, build_recipe

    allowed = trust_code(checks.flags.get("allow"), source.code, CHECKS)
    flags = {**source.flags, **checks.flags, "allow": allowed or None}
    _check_flags(flags, run)
    recipe = build_recipe(_recipe_file(source, run), flags, source.sets)
    _check_served_flags(flags, recipe)
    TaskOptions(None, recipe.data.folder, recipe.data.dataset, recipe.data.config).check(recipe.data.task)
    if run.dry_run:
        _show_plan(recipe, run, as_json)
    else:
        _distill(recipe, run.resume, run.overwrite, as_json)


def _check_flags(flags: Mapping[str, object], run: RunOptions) -> None:
    if run.resume and run.overwrite:
        raise UsageError("give --resume or --overwrite, not both")
    if "train.batch_size" in flags and "train.batch_tokens" in flags:
        raise UsageError("give --batch-size or --batch-tokens, not both")


def _check_served_flags(flags: Mapping[str, object], recipe: "Recipe") -> None:
    """Refuse flags of a teacher behind an API for another one, which would not read them."""
    if recipe.has_served_teacher:
        return
    for key in flags:
        if key.startswith("served."):
            raise UsageError(f"{OPTION_OF[key]} is for a teacher behind an API (openai:NAME), and none is named")


def _recipe_file(source: RecipeSource, run: RunOptions) -> Path | None:
    """The recipe file of the command, or of the run that is resumed.

    Raises:
        UsageError: there is no run to resume.
    """
    out = source.flags.get("out")
    if not run.resume or source.file is not None:
        return source.file
    if out and (Path(out) / "recipe.yaml").is_file():
        from kdalign.runs.folder import RunFolder

        folder = RunFolder(Path(out))
        if not folder.complete:
            folder.check_recipe()  # a file that was written in part would be taken for a recipe with fewer keys
        return Path(out) / "recipe.yaml"
    if "teacher" not in source.flags:
        raise UsageError(f"--resume: no run in {out!r} to resume" if out else "--resume needs --out, the run folder")
    return None


def _show_plan(recipe: "Recipe", run: RunOptions, as_json: bool) -> None:
    from kdalign.distillation.pipeline import prepare_all

    with error_console().status("checking"):
        prepared = prepare_all(recipe, resume=run.resume, overwrite=run.overwrite)
    from kdalign.report.dry_run import preparation_json, preparation_table

    show(preparation_json(prepared) if as_json else preparation_table(prepared))


def _distill(recipe: "Recipe", resume: bool, overwrite: bool, as_json: bool) -> None:
    watcher = new_watcher()
    from kdalign.distillation.pipeline import distill as run

    try:
        records = run(recipe, watcher, resume=resume, overwrite=overwrite, since=IMPORTED)
    finally:
        watcher.ended()
    if rank():
        return
    from kdalign.comparison.compare import compare
    from kdalign.report.formats import comparison_as

    folders = [record.recipe["out"] for record in records]
    if as_json:
        print(json.dumps([record.to_json() for record in records], indent=2))
        return
    show(comparison_as(compare([folders[0] if len(folders) == 1 else Path(folders[0]).parent]), "rich"))
    for folder in folders:
        watcher.announce(f"student: {folder}/student  (record: {folder}/record.json)")
