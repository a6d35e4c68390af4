"""`kdalign cache build`, `kdalign cache info` and `kdalign cache verify`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.application import cache_app, examples
from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.options import AllowCode, Json, RecipeSource, TaskOptions, trust_code, with_options
from kdalign.environment import rank
from kdalign.errors import RunError, UsageError
from kdalign.recipe.flags import pick_flags

if TYPE_CHECKING:
    from kdalign.recipe import Recipe

_RECIPE = pick_flags("teacher student task data dataset config recipe preset set term")
_REST = pick_flags("max_length limit unlabelled precision device revision")
_ROWS = pick_flags("teacher student task data dataset config recipe set max_length limit unlabelled precision device")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with kept outputs.")]


@dataclass(frozen=True)
class KeepOptions:
    """Options that say what is kept, and where."""

    out: Annotated[
        str, typer.Option(metavar="DIR", help="The cache's folder, or auto for one in kdalign's cache. Default auto.")
    ] = "auto"
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="classes, tokens (tokens:2 at temperature 2), features, embeddings:encoder, hidden:encoder.3, and "
            "likewise attention, relations or values; repeatable. Default: all that the recipe's terms compare.",
        ),
    ] = None
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Number of likeliest tokens to keep; all others are kept as one.")
    ] = None
    tail: Annotated[
        float | None,
        typer.Option(help="Choose --top-k so that the rest has at most this mean probability. Default 0.1."),
    ] = None
    logs: Annotated[str | None, typer.Option(help="Format of log-probabilities: fp16 (default), bf16, fp32.")] = None
    states: Annotated[str | None, typer.Option(help="Format of features: bf16 (default), int8, fp32.")] = None

    @property
    def settings(self) -> dict[str, Any]:
        """Recipe keys that were given.

        Raises:
            UsageError: --top-k and --tail together.
        """
        if self.top_k is not None and self.tail is not None:
            raise UsageError("--tail chooses the number of tokens that --top-k gives: give one of them")
        given = {"top_k": self.top_k, "tail": self.tail, "logs": self.logs, "states": self.states}
        named = {f"cache.{name}": value for name, value in given.items() if value is not None}
        return named | {"cache.folder": self.out}


@dataclass(frozen=True)
class BuildOptions:
    """Options that say how a cache is built."""

    allow: AllowCode = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Build the cache in --out again.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, estimate the size, write nothing.")] = (
        False
    )


@cache_app.command(
    "build",
    epilog=examples(
        "kdalign cache build --teacher ./bert --student layers=3 --task sst2 --data ./sst2 --out kept/sst2",
        "kdalign cache build --teacher ./llama --task lm --data ./texts --keep tokens --top-k 32 --out kept/texts",
        "kdalign cache build --recipe recipe.yaml --states int8 --dry-run",
        "torchrun --nproc_per_node 2 -m kdalign cache build --recipe recipe.yaml --out kept/mine",
    ),
)
@with_options
def cache_build(
    source: Annotated[RecipeSource, _RECIPE],
    kept: KeepOptions,
    training: Annotated[RecipeSource, _REST],
    options: BuildOptions,
    as_json: Json = False,
) -> None:
    """Let the teacher read all training rows once, and keep its outputs for distill and ablate.

    The same command resumes a cache that was stopped, and adds rows that are new. Without --keep it keeps all
    that the recipe's terms compare.
    """
    trust_code(options.allow, source.code)
    recipe = _recipe(source, {**source.flags, **training.flags, **kept.settings})
    keep, overwrite = kept.keep or (), options.overwrite
    if options.dry_run:
        with error_console().status("checking"):
            from kdalign.distillation.cache_commands import preview_cache

            preview = preview_cache(recipe, keep, overwrite=overwrite)
        from kdalign.report.cache import preview_table

        facts = asdict(preview) | {"folder": str(preview.folder)}
        show(json.dumps(facts, indent=2) if as_json else preview_table(preview))
        return
    watcher = new_watcher()
    from kdalign.distillation.cache_commands import build_cache

    try:
        folder = build_cache(recipe, keep, watcher, overwrite=overwrite)
    finally:
        watcher.ended()
    if not rank():
        _show_info(folder.path, as_json)


@cache_app.command("info", epilog=examples("kdalign cache info kept/sst2", "kdalign cache info kept/sst2 --json"))
def cache_info(folder: Folder, as_json: Json = False) -> None:
    """Show what a cache keeps: teacher, outputs, formats, rows, bytes a token, and the probability left to the rest."""
    _show_info(folder, as_json)


@cache_app.command(
    "verify",
    epilog=examples(
        "kdalign cache verify kept/sst2",
        "kdalign cache verify kept/sst2 --remove",
        "kdalign cache verify kept/sst2 --teacher ./bert --student layers=3 --task sst2 --data ./sst2",
    ),
)
@with_options
def cache_verify(
    folder: Folder,
    source: Annotated[RecipeSource, _ROWS],
    allow: AllowCode = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove damaged shards; the next build computes their rows again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the checksum of every shard, and, with a teacher and its data, compute a few rows again."""
    trust_code(allow, source.code)
    from kdalign.teachers.cache_files import CacheFolder

    cache = CacheFolder(folder)
    _ = cache.meta
    shards = len(cache.files)
    found = cache.remove_damaged() if remove else [file.name for file in cache.damaged()]
    if found and not remove:
        raise RunError(
            f"{_damaged(found, shards)}; --remove removes them, and the next build computes their rows again"
        )
    if found:
        error_console().print(f"{_damaged(found, shards)}: removed", markup=False, highlight=False)
    from kdalign.report.cache import checksums_line, verification_table

    result: dict[str, Any] = {"shards": len(cache.files), "damaged": 0, "removed": len(found)}
    if not source.flags and source.file is None:
        show(json.dumps(result, indent=2) if as_json else checksums_line(len(cache.files)))
        return
    recipe = _recipe(source, {**source.flags, "cache.folder": str(folder)})
    watcher = new_watcher()
    from kdalign.distillation.cache_commands import verify_rows

    again = verify_rows(recipe, watcher)
    show(json.dumps(result | asdict(again), indent=2) if as_json else verification_table(again, len(cache.files)))
    if again.differs:
        raise RunError(f"{str(folder)!r} holds other numbers than the teacher computes: build it again (--overwrite)")


def _damaged(names: list[str], shards: int) -> str:
    return f"{len(names)} of {shards} shards {'is' if len(names) == 1 else 'are'} damaged: {', '.join(names)}"


def _recipe(source: RecipeSource, flags: dict[str, Any]) -> "Recipe":
    from kdalign.recipe import build_recipe

    recipe = build_recipe(source.file, flags, source.sets)
    TaskOptions(None, recipe.data.folder, recipe.data.dataset, recipe.data.config).check(recipe.data.task)
    return recipe


def _show_info(folder: Path, as_json: bool) -> None:
    from kdalign.report.cache import cache_facts, cache_table
    from kdalign.teachers.cache_files import CacheFolder, CacheIndex

    cache = CacheFolder(folder)
    facts = cache_facts(folder, cache.meta, CacheIndex(cache).facts, len(cache.files))
    show(json.dumps(facts, indent=2) if as_json else cache_table(facts))
