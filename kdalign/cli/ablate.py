"""The command that compares arms over tasks and seeds: ablate."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.options import (
    AllowCode,
    Config,
    DataFolder,
    Dataset,
    Device,
    Json,
    Limit,
    MaxLength,
    Preset,
    TaskName,
    Terms,
    Unlabelled,
    app,
    examples,
    trust_code,
)
from kdalign.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdalign.distillation.ablation_runner import AblationProgress
    from kdalign.observer import Observer
    from kdalign.report.progress import ConsoleObserver
    from kdalign.runs.ablation_spec import AblationSpec, Trial

_WHAT, _BUDGET = "What is compared", "The budget, the same for all"


@app.command(
    epilog=examples(
        "kdalign ablate --teacher ./teacher --student layers=half --task sst2 --data ./sst2 --seeds 5",
        "kdalign ablate --teacher ./bert --student layers=2 --task cola,mrpc,rte --data ./glue --arms labels,joint",
        "kdalign ablate --teacher ./bert --task rte --data ./glue --arms joint --sweep align.map=uniform,cka,last",
        "kdalign ablate --recipe ablation.yaml --jobs 2 --out ablations/map",
    )
)
def ablate(
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the large model.")] = None,
    student: Annotated[str | None, typer.Option(help="As in distill. Default layers=half.")] = None,
    task: TaskName = None,
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A recipe in YAML, with arms, seeds and sweep if it has them; flags win."),
    ] = None,
    preset: Preset = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, for all arms.")
    ] = None,
    term: Terms = None,
    arms: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas: labels (hard labels only), soft (and the teacher's), align (layers first, "
            "then hard labels), joint (all at once), or arms of the recipe file. Default all four.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many, counted from 0, or which: 0,1,7. Default 3.", rich_help_panel=_WHAT)
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V", help="Every arm with each value of a recipe key; repeatable.", rich_help_panel=_WHAT
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V",
            help="First choose a key's value for each arm on a slice of train; repeatable, one after the other.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    search_only: Annotated[
        bool,
        typer.Option(
            "--search-only", help="Stop after the search: OUT/ablation.yaml holds the choice.", rich_help_panel=_WHAT
        ),
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ARM", help="The arm that others are tested against. Default the first.", rich_help_panel=_WHAT
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over train. Default 3.", rich_help_panel=_BUDGET)] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps instead.", rich_help_panel=_BUDGET)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per optimizer step. Default 64.", rich_help_panel=_BUDGET)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate. Default 0.0002.", rich_help_panel=_BUDGET)
    ] = None,
    max_length: MaxLength = None,
    limit: Limit = None,
    unlabelled: Unlabelled = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16. Default auto.")] = None,
    device: Device = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they divide the cores.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The ablation's folder.")] = Path("runs/ablation"),
    drop_runs: Annotated[
        bool, typer.Option("--drop-runs", help="Remove a run's folder, student too, once its result is kept.")
    ] = False,
    allow: AllowCode = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the ablation in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the runs, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Train every arm on every task with every seed on one budget, and say which is better and whether that is noise.

    The same command goes on after a stop. More arms or seeds can be added to an ablation that is there.
    """
    from kdalign.recipe import code_in_assignments, term_weights
    from kdalign.runs.ablation_spec import build_ablation

    terms = term_weights(term) if term else None
    varied = [one.partition("=")[2] for one in (*(sweep or ()), *(search or ()))]
    trust_code(allow, (terms, varied, code_in_assignments(sets or ())))
    flags: dict[str, Any] = {
        "preset": preset,
        "teacher": teacher,
        "student": student,
        "data.task": task,
        "data.folder": data,
        "data.dataset": dataset,
        "data.config": config,
        "data.max_length": max_length,
        "data.limit": limit,
        "objective.terms": terms,
        "data.unlabelled": unlabelled,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.batch_size": batch_size,
        "train.lr": lr,
        "train.precision": precision,
        "train.device": device,
    }
    if recipe is None and teacher is None and task is None and (out / "ablation.yaml").is_file():
        recipe = out / "ablation.yaml"
    ablation = build_ablation(recipe, flags, sets or (), arms, seeds, sweep or ())
    if against is not None and against not in ablation.arms:
        from kdalign.errors import unknown

        raise unknown("arm", against, ablation.arms)
    from kdalign.data.tasks import check_named

    for name in ablation.tasks:  # what is misspelt is said before torch is loaded
        check_named(name, data, dataset, config)
    from kdalign.runs.ablation_spec import parse_sweep

    space: dict[str, list[Any]] = {}
    for key, values in (parse_sweep(one, "--search") for one in search or ()):
        if key in space:
            raise UsageError(f"--search {key} is given twice: put its values together, {key}=V,V")
        space[key] = values
    if search_only and not space:
        raise UsageError("--search-only needs --search KEY=VALUE,VALUE, such as train.lr=1e-4,2e-4")
    if dry_run:
        with error_console().status("checking"):
            from kdalign.distillation.ablation_runner import check_ablation

            trials = check_ablation(ablation, out, overwrite)
        from kdalign.report.dry_run import trials_table

        show(json.dumps([_plain(trial) for trial in trials], indent=2) if as_json else trials_table(ablation, trials))
        return
    from kdalign.devices import world_size

    if world_size() > 1:
        raise UsageError("ablate makes its own processes (--jobs); torchrun is for distill")
    watcher = new_watcher()
    with watcher.filling() as tell:
        if space:
            ablation, tried = _searched(ablation, space, out, watcher, jobs, overwrite, tell)
            overwrite = False  # already done
            if search_only:
                if as_json:
                    show(json.dumps(tried, indent=2))
                return
        from kdalign.distillation.ablation_runner import ablate as run

        kept = run(ablation, out, watcher, jobs=jobs, overwrite=overwrite, drop=drop_runs, watch=_quiet, tell=tell)
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.report.formats import comparison_as
    from kdalign.runs.discovery import Discovery, archived_groups

    baseline = (against or next(iter(ablation.arms))) if len(ablation.arms) > 1 else None
    table = build_table(Discovery(tuple(archived_groups(kept, out)[0])), CompareOptions(against=baseline))
    show(comparison_as(table, "json" if as_json else "rich"))
    held = f" --against {shlex.quote(baseline)}" if baseline is not None else ""
    watcher.announce(f"this table again, in other forms: kdalign compare {shlex.quote(str(out))}{held}")


def _searched(
    ablation: "AblationSpec",
    space: dict[str, list[Any]],
    out: Path,
    watcher: "ConsoleObserver",
    jobs: int,
    overwrite: bool,
    tell: "Callable[[AblationProgress], None]",
) -> "tuple[AblationSpec, list[dict[str, Any]]]":
    """The ablation with the settings that a search has chosen, written into its folder; and all that was tried."""
    from kdalign.distillation.ablation_runner import check_ablation
    from kdalign.distillation.search import search as choose
    from kdalign.files import read_json, write_json
    from kdalign.runs.ablation_spec import SEARCH, TRIED, check_ours, check_same, remove_ablation, write_ablation

    check_ours(out)
    if overwrite:
        check_ablation(ablation, out, overwrite)
        remove_ablation(out)
    check_same(ablation, out, arms=False)
    chosen, candidates = choose(ablation, space, out / SEARCH, watcher, jobs=jobs, watch=_quiet, tell=tell)
    tried, file = [asdict(one) for one in candidates], out / SEARCH / TRIED
    before = read_json(file) if file.is_file() else []
    if not isinstance(before, list) or not all(isinstance(one, dict) and "arm" in one for one in before):
        raise UsageError(f"{str(file)!r} is not what a search has tried; remove it")
    write_json(file, [one for one in before if one["arm"] not in ablation.arms] + tried)
    write_ablation(chosen, out)
    return chosen, tried


def _plain(trial: "Trial") -> dict[str, Any]:
    return {"arm": trial.arm, "task": trial.task, "seed": trial.seed, "recipe": trial.recipe.model_dump(mode="json")}


def _quiet() -> "Observer":
    """Whoever watches one of many runs: only its log hears of it."""
    from rich.console import Console

    from kdalign.cli.console import quiet_libraries
    from kdalign.report.progress import ConsoleObserver

    quiet_libraries()
    return ConsoleObserver(Console(stderr=True), silent=True)
