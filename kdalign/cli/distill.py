"""Commands that train: distill, demo, and what a recipe holds."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.options import (
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
    from kdalign.recipe import Recipe


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
def distill(
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder of the large model, or none.")] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="layers=N or layers=half (cut out of the teacher; layers=N,width=N narrower, too, and heads, "
            "kv_heads, feed_forward), hub id, folder, or new:TYPE,layers=N,width=N. Default layers=half."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Of a student that is cut or new: hub id, folder, or train:SIZE on the training text."),
    ] = None,
    task: TaskName = None,
    multi_task: Annotated[
        bool, typer.Option("--multi-task", help="One student for all tasks, with a head each, instead of one for each.")
    ] = False,
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe in YAML; flags win over it.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key; wins over flags.")
    ] = None,
    preset: Preset = None,
    plan: Annotated[str | None, typer.Option(metavar="FILE", help="A plan saved by map-layers.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Where a cut student starts: uniform, first, last, skip, spread, '1 3 5', random. Default uniform."
        ),
    ] = None,
    map_: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="Which teacher layer teaches which: auto, uniform, first, last, skip, spread, top (last pair alone), "
            "'0:1 1:3 2:5', or by likeness: cka, emd, or your module:function; learned: a mean of all. Default auto.",
        ),
    ] = None,
    hard: Annotated[float | None, typer.Option(help="Weight of the labels' cross-entropy. Default 0.3.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the teacher's soft targets. Default 0.7.")] = None,
    beta: Annotated[float | None, typer.Option(help="Weight of the features' cosine. Default 1.0.")] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Weight of the features' Euclidean distance; 0 for tokens. Default 1.0.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Weight of the attention maps; 0 for tokens. Default 1.0.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Softens both distributions; 1 for tokens. Default 2.0.")
    ] = None,
    term: Terms = None,
    divergence: Annotated[
        str | None,
        typer.Option(
            help="Between distributions over classes or tokens: forward, reverse, js, skew, adaptive. Default forward."
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over train; 1 for tokens and embeddings. Default 3.0.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps; wins over --epochs.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Stop after so many real tokens; wins over --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples per optimizer step, over all ranks; 16 for tokens. Default 64.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(help="About so many real tokens of input per optimizer step instead of --batch-size.")
    ] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Examples per forward and rank.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default 0.0002.")] = None,
    lora: Annotated[
        int | None, typer.Option(metavar="RANK", help="Train low-rank adapters, merged at the end (needs peft).")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's weight decay. Default 0.01.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="linear, cosine or constant. Default linear.")] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Share of steps over which the learning rate rises. Default 0.06.")
    ] = None,
    max_length: MaxLength = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16. Default auto.")] = None,
    device: Device = None,
    seed: Annotated[int | None, typer.Option(help="Covers initialisation, data order and dropout. Default 0.")] = None,
    limit: Limit = None,
    unlabelled: Unlabelled = None,
    revision: Annotated[str | None, typer.Option(help="The teacher's revision on the hub.")] = None,
    select: Annotated[
        str | None,
        typer.Option(help="Export the last step, or the best on a slice held out of train: last, best. Default last."),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations on a slice of train.")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many evaluations without gain.")] = None,
    tracker: Annotated[list[str] | None, typer.Option(help="Experiment tracker by name, such as tensorboard.")] = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, write nothing.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Let an error of the checks through: memory, disk, file-size, special-tokens; or code: run what files "
            "name (own terms, maps, metrics in recipes, task files, plans). May be repeated.",
        ),
    ] = None,
    no_finetune_teacher: Annotated[
        bool, typer.Option("--no-finetune-teacher", help="Refuse a teacher without a head for the task.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a small student from a large teacher, and score both.

    L = hard CE + alpha L_soft + beta L_feat + gamma L_dist + delta L_attn. The run folder holds the student as a stock
    Transformers checkpoint, the recipe, the plan, the history, the predictions and the record that tables are made of.
    """
    from kdalign.recipe import CHECKS, build_recipe, code_in_assignments, term_weights

    terms = term_weights(term) if term else None
    allowed = trust_code(allow, (map_, terms, code_in_assignments(sets or ())), CHECKS)
    flags: dict[str, Any] = {
        "preset": preset,
        "teacher": teacher,
        "student": student,
        "tokenizer": tokenizer,
        "revision": revision,
        "init": init,
        "allow": allowed or None,
        "finetune_teacher": False if no_finetune_teacher else None,
        "out": out,
        "multi_task.together": True if multi_task else None,
        "data.task": task,
        "data.folder": data,
        "data.dataset": dataset,
        "data.config": config,
        "data.max_length": max_length,
        "data.limit": limit,
        "data.unlabelled": unlabelled,
        "align.map": map_,
        "align.plan": plan,
        "objective.hard": hard,
        "objective.alpha": alpha,
        "objective.beta": beta,
        "objective.gamma": gamma,
        "objective.delta": delta,
        "objective.temperature": temperature,
        "objective.divergence": divergence,
        "objective.terms": terms,
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.max_tokens": max_tokens,
        "train.batch_size": batch_size,
        "train.batch_tokens": batch_tokens,
        "train.micro_batch": micro_batch,
        "train.lr": lr,
        "train.lora": lora,
        "train.weight_decay": weight_decay,
        "train.scheduler": scheduler,
        "train.warmup": warmup,
        "train.precision": precision,
        "train.device": device,
        "train.seed": seed,
        "train.select": select,
        "train.eval_every": eval_every,
        "train.patience": patience,
        "train.trackers": tuple(tracker) if tracker else None,
    }
    if resume and overwrite:
        raise UsageError("give --resume or --overwrite, not both")
    if batch_size is not None and batch_tokens is not None:
        raise UsageError("give --batch-size or --batch-tokens, not both")
    if resume and teacher is None and recipe is None and not (out and (Path(out) / "recipe.yaml").is_file()):
        raise UsageError(
            f"--resume: no run in {out!r} to go on with" if out else "--resume needs --out, the run folder"
        )
    if resume and out and recipe is None and (Path(out) / "recipe.yaml").is_file():
        from kdalign.runs.folder import RunFolder

        recipe = Path(out) / "recipe.yaml"
        if not RunFolder(Path(out)).complete:
            RunFolder(Path(out)).check_recipe()  # before a half one is taken for a whole
    wanted = build_recipe(recipe, flags, sets or ())
    from kdalign.data.tasks import check_named

    for name in wanted.data.task:  # what is misspelt is said before torch is loaded
        check_named(name, wanted.data.folder, wanted.data.dataset, wanted.data.config)
    if dry_run:
        from kdalign.distillation.pipeline import prepare_all

        with error_console().status("checking"):
            prepared = prepare_all(wanted, resume=resume, overwrite=overwrite)
        from kdalign.report.dry_run import preparation_json, preparation_table

        show(preparation_json(prepared) if as_json else preparation_table(prepared))
        return
    _distill(wanted, resume, overwrite, as_json)


def _distill(recipe: "Recipe", resume: bool, overwrite: bool, as_json: bool) -> None:
    watcher = new_watcher()
    from kdalign.distillation.pipeline import distill as run

    try:
        records = run(recipe, watcher, resume=resume, overwrite=overwrite)
    finally:
        watcher.ended()
    if int(os.environ.get("RANK", "0")):
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
