"""`kdalign ablate`."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, new_watcher, quiet_libraries, show, tell
from kdalign.cli.options import Json, RecipeSource, TaskOptions, trust_code, with_options
from kdalign.errors import UsageError, unknown
from kdalign.recipe.flags import pick_flags

if TYPE_CHECKING:
    from kdalign.distillation.ablation_runner import AblationObserver
    from kdalign.distillation.engines import Engine
    from kdalign.observer import Observer
    from kdalign.runs.ablation_spec import AblationSpec, Trial
    from kdalign.runs.archive import ArchivedRun
    from kdalign.runs.search_space import Space

_WHAT = "What is compared"
_CLUSTER = "On which machines"
_ENGINES = ("local", "ray")
_RECIPE = pick_flags(
    "teacher base_url top_logprobs max_requests check_teacher student task data dataset config recipe preset set term"
)
_BUDGET = pick_flags("epochs max_steps max_tokens batch_size lr", "The budget, the same for all")
_REST = pick_flags("max_length limit unlabelled cache precision device allow no_profile")


@dataclass(frozen=True)
class ComparedOptions:
    """Options that say what an ablation compares."""

    arms: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas: labels (hard labels only), soft (and soft targets), align (layers first, "
            "then hard labels), joint (all at once), or arms of the recipe file. Default all four; with a served "
            "teacher the first two.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    seeds: Annotated[
        str | None,
        typer.Option(help="Number of seeds, counted from 0, or the seeds: 0,1,7. Default 3.", rich_help_panel=_WHAT),
    ] = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V", help="Every arm with each value of a recipe key; repeatable.", rich_help_panel=_WHAT
        ),
    ] = None
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V or KEY=LOW..HIGH",
            help="First choose a key's value for each arm on a slice of train, by Optuna (extra search), from values "
            "or a range, LOW..HIGH or LOW..HIGH,log; repeatable.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Settings that --search tries for each arm. Default 20.", rich_help_panel=_WHAT),
    ] = None
    search_storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where --search keeps its trials: a journal, or a database such as sqlite:///search.db. Default a "
            "journal in --out.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    search_only: Annotated[
        bool,
        typer.Option(
            "--search-only", help="Stop after the search: OUT/ablation.yaml holds the choice.", rich_help_panel=_WHAT
        ),
    ] = False
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ARM", help="Baseline arm of the significance tests. Default the first.", rich_help_panel=_WHAT
        ),
    ] = None

    def space(self, file: Path | None) -> "Space":
        """Read the search space, by recipe key, of a recipe file and the options.

        Raises:
            UsageError: a key is given twice, or options of a search without a key.
        """
        from kdalign.runs.search_space import FORMS, read_space

        space = read_space(file, self.search or ())
        given = {"--search-only": self.search_only, "--trials": self.trials, "--search-storage": self.search_storage}
        needs = next((option for option, value in given.items() if value), None)
        if needs is not None and not space:
            raise UsageError(f"{needs} needs --search {FORMS}")
        return space

    @property
    def code(self) -> list[str]:
        """Values of sweeps and searches, which can name code to run."""
        return [text.partition("=")[2] for text in (*(self.sweep or ()), *(self.search or ()))]


@dataclass(frozen=True)
class AblationOptions:
    """Options that say where and how an ablation's runs are made."""

    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time. Default 1, and with --engine ray as many as the nodes have room for. On one machine "
            "they divide the cores.",
        ),
    ] = None
    out: Annotated[Path, typer.Option(metavar="DIR", help="The ablation's folder.")] = Path("runs/ablation")
    drop_runs: Annotated[
        bool, typer.Option("--drop-runs", help="Remove each run's folder with its student once its result is archived.")
    ] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the ablation in --out.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the runs, write nothing.")] = False


@dataclass(frozen=True)
class EngineOptions:
    """Options that say on which machines an ablation's runs are made."""

    engine: Annotated[
        str,
        typer.Option(
            help="local: runs in processes on this machine; ray: on the nodes of a Ray cluster (extra ray).",
            rich_help_panel=_CLUSTER,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A cluster that this machine belongs to, or auto for the one that runs here. Default $RAY_ADDRESS, or "
            "else one of this machine alone.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None
    gpus_per_run: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of a run, such as 0.5. Default 1 if a node has any.", rich_help_panel=_CLUSTER),
    ] = None
    cpus_per_run: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cores of a run. Default those of the smallest node, and 1 with GPUs.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None

    @contextmanager
    def open(self, jobs: int | None) -> "Iterator[Engine]":
        """Yield the engine, connected to its cluster.

        Raises:
            UsageError: an unknown engine, options of another one, or no cluster.
        """
        own = {name: value for name, value in asdict(self).items() if name != "engine" and value is not None}
        if self.engine not in _ENGINES:
            raise unknown("engine", self.engine, _ENGINES)
        if self.engine == "local":
            if own:
                raise UsageError(f"--{next(iter(own)).replace('_', '-')} is for --engine ray")
            from kdalign.distillation.engines import LocalEngine

            yield LocalEngine(jobs or 1)
            return
        from kdalign.distillation.ray_engine import RayEngine

        with RayEngine(self.ray_address, jobs, self.cpus_per_run, self.gpus_per_run) as engine:
            yield engine


@app.command(
    epilog=examples(
        "kdalign ablate --teacher ./teacher --student layers=half --task sst2 --data ./sst2 --seeds 5",
        "kdalign ablate --teacher ./bert --student layers=2 --task cola,mrpc,rte --data ./glue --arms labels,joint",
        "kdalign ablate --teacher ./bert --task rte --data ./glue --arms joint --sweep align.map=uniform,cka,last",
        "kdalign ablate --recipe ablation.yaml --jobs 2 --out ablations/map",
        "kdalign ablate --recipe ablation.yaml --engine ray --ray-address auto --drop-runs",
    )
)
@with_options
def ablate(
    source: Annotated[RecipeSource, _RECIPE],
    compared: ComparedOptions,
    training: Annotated[RecipeSource, _BUDGET + _REST],
    options: AblationOptions,
    machines: EngineOptions,
    as_json: Json = False,
) -> None:
    """Train every arm on every task with every seed on one budget, and test which differences are significant.

    The recipe file may hold arms, seeds and sweep, too. The same command resumes an ablation that was stopped, and
    adds arms or seeds to one that is there.
    """
    from kdalign.recipe import CHECKS

    flags = {**source.flags, **training.flags}
    allowed = trust_code(flags.pop("allow", None), (source.code, compared.code), CHECKS)
    ablation = _specify(source, flags | ({"allow": allowed} if allowed else {}), compared, options.out)
    space = compared.space(source.file)
    if space:
        from kdalign.distillation.search import check_search

        check_search(ablation, space)
    if options.dry_run:
        with machines.open(options.jobs) as engine:
            _show_trials(ablation, options, engine, as_json)
        return
    from kdalign.environment import world_size

    if world_size() > 1:
        raise UsageError("ablate makes its own processes (--jobs); start it without torchrun")
    watcher = new_watcher()
    with machines.open(options.jobs) as engine, watcher.filling() as report:
        from kdalign.distillation.ablation_runner import AblationObserver
        from kdalign.distillation.ablation_runner import ablate as run

        observer = AblationObserver(watcher, _quiet, report)
        if space:
            ablation, tried = _search(ablation, compared, space, options, engine, observer)
            if compared.search_only:
                if as_json:
                    show(json.dumps(tried, indent=2))
                return
        overwrite = options.overwrite and not space  # a search has replaced what was there
        kept = run(ablation, options.out, observer, engine=engine, overwrite=overwrite, drop=options.drop_runs)
    _show_table(ablation, kept, compared.against, options.out, as_json)


def _specify(source: RecipeSource, flags: Mapping[str, Any], compared: ComparedOptions, out: Path) -> "AblationSpec":
    """The ablation of the command line, of its recipe file, or of the folder to resume.

    Raises:
        UsageError: an unknown arm or task, or a value that is not accepted.
    """
    from kdalign.runs.ablation_spec import build_ablation, check_unchanged

    file = source.file
    if file is None and "teacher" not in flags and "data.task" not in flags and (out / "ablation.yaml").is_file():
        file = check_unchanged(out / "ablation.yaml")
    ablation = build_ablation(file, flags, source.sets, compared.arms, compared.seeds, compared.sweep or ())
    if compared.against is not None and compared.against not in ablation.arms:
        raise unknown("arm", compared.against, ablation.arms)
    data = (flags.get(f"data.{key}") for key in ("folder", "dataset", "config"))
    TaskOptions(None, *data).check(ablation.tasks)
    return ablation


def _show_trials(ablation: "AblationSpec", options: AblationOptions, engine: "Engine", as_json: bool) -> None:
    with error_console().status("checking"):
        from kdalign.distillation.ablation_runner import check_ablation

        trials = check_ablation(ablation, options.out, options.overwrite)
        engine.check(trials)
    from kdalign.report.dry_run import trials_table

    show(json.dumps([_plain(trial) for trial in trials], indent=2) if as_json else trials_table(ablation, trials))


def _search(
    ablation: "AblationSpec",
    compared: ComparedOptions,
    space: "Space",
    options: AblationOptions,
    engine: "Engine",
    observer: "AblationObserver",
) -> "tuple[AblationSpec, list[dict[str, Any]]]":
    """Search each arm's settings and write them into the ablation's folder.

    Returns:
        The ablation with the chosen settings, and all candidates with their scores.
    """
    from kdalign.distillation.ablation_runner import check_ablation
    from kdalign.distillation.search import TRIALS, SearchSettings, search
    from kdalign.files import read_json, write_json
    from kdalign.runs.ablation_spec import SEARCH, TRIED, check_ours, check_same, remove_ablation, write_ablation

    out = options.out
    check_ours(out)
    if options.overwrite:
        check_ablation(ablation, out, overwrite=True)
        remove_ablation(out)
    check_same(ablation, out, arms=False)
    settings = SearchSettings(space, compared.trials or TRIALS, compared.search_storage, options.overwrite)
    chosen, candidates = search(ablation, settings, out / SEARCH, observer, engine=engine)
    tried, file = [asdict(candidate) for candidate in candidates], out / SEARCH / TRIED
    before = read_json(file) if file.is_file() else []
    if not isinstance(before, list) or not all(isinstance(row, dict) and "arm" in row for row in before):
        raise UsageError(f"{str(file)!r} is not what a search has tried; remove it")
    write_json(file, [row for row in before if row["arm"] not in ablation.arms] + tried)
    write_ablation(chosen, out)
    return chosen, tried


def _show_table(
    ablation: "AblationSpec", kept: "Sequence[ArchivedRun]", against: str | None, out: Path, as_json: bool
) -> None:
    """Show the ablation's comparison table, with tests against its baseline arm."""
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.report.formats import comparison_as
    from kdalign.runs.discovery import Discovery, archived_groups

    baseline = (against or next(iter(ablation.arms))) if len(ablation.arms) > 1 else None
    table = build_table(Discovery(tuple(archived_groups(kept, out)[0])), CompareOptions(against=baseline))
    show(comparison_as(table, "json" if as_json else "rich"))
    words = ["kdalign", "compare", str(out), *(["--against", baseline] if baseline is not None else [])]
    tell(f"this table again, in other forms: {shlex.join(words)}")


def _plain(trial: "Trial") -> dict[str, Any]:
    return {
        "arm": trial.arm,
        "task": trial.task,
        "seed": trial.seed,
        "recipe": trial.recipe.model_dump(mode="json"),
        "uncached": trial.uncached,
    }


def _quiet() -> "Observer":
    """An observer of one of many runs, which writes to the run's log only."""
    from rich.console import Console

    from kdalign.report.progress import ConsoleObserver

    quiet_libraries()
    return ConsoleObserver(Console(stderr=True), silent=True)
