"""The command that scores models: eval."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    TaskName,
    app,
    examples,
    trust_code,
)
from kdalign.errors import UsageError

if TYPE_CHECKING:
    from kdalign.evaluation.result import EvaluationResult


_HOW, _SERVED, _TABLE = "How models answer", "Served models (openai:NAME)", "Files and tables"


@app.command(
    name="eval",
    epilog=examples(
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
    context: typer.Context,
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
        int | None,
        typer.Option(
            min=1, help="Tokens between windows of a long text; none overlap when left out.", rich_help_panel=_HOW
        ),
    ] = None,
    pseudo: Annotated[
        str, typer.Option(help="How a masked model's likelihood masks: word-l2r or token.", rich_help_panel=_HOW)
    ] = "word-l2r",
    beams: Annotated[
        int, typer.Option(min=1, help="Of texts that are written; 1 is greedy.", rich_help_panel=_HOW)
    ] = 1,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="At most so many where a model ends its text itself.", rich_help_panel=_HOW)
    ] = 256,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE", help="Of texts, such as en or zh; the task's when left out.", rich_help_panel=_HOW
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of local models: fp32 or bf16.", rich_help_panel=_HOW)] = "fp32",
    shots: Annotated[
        int,
        typer.Option(
            min=0, help="Solved examples before each question to a model that answers in words.", rich_help_panel=_HOW
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="Of what is drawn, such as those examples.", rich_help_panel=_HOW)
    ] = 0,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Score once more with mistakes in what is read: typos=0.1 for a tenth of the words.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Of the API of models named openai:NAME. Default OpenAI's.", rich_help_panel=_SERVED
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Ask a served model by chat even if it completes text.", rich_help_panel=_SERVED),
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests to a server under way at once.", rich_help_panel=_SERVED)
    ] = 4,
    max_requests: Annotated[
        int | None,
        typer.Option(
            min=0, help="Requests to a server to pay for; the same command with more goes on.", rich_help_panel=_SERVED
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=0, help="Tokens of prompts and answers to a server to pay for, likewise.", rich_help_panel=_SERVED
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score a file instead (parquet, csv, tsv, jsonl): prediction, and reference(s).",
            rich_help_panel=_TABLE,
        ),
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Rows that others have published, as in compare; repeatable.", rich_help_panel=_TABLE
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="As compare prints it: rich, markdown, latex, csv or json.", rich_help_panel=_TABLE
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help="Score texts beside copy and unigram.", rich_help_panel=_TABLE),
    ] = True,
    limit: Limit = None,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
    device: Device = None,
    allow: AllowCode = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where scores go (.json), predictions beside.", rich_help_panel=_TABLE),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score checkpoints and runs on splits, and keep what they answered.

    Texts are continued (lm, language-modeling, masked-lm) or answered
    (translation, summarization, dialogue, transcription) by models of every
    family, local or served (openai:NAME, key in OPENAI_API_KEY), and stand
    beside what needs no model. A metric that a model cannot be scored by is a
    dash with the reason. Splits without labels are never scored.
    """
    named = tuple(name.strip() for name in metrics.split(",") if name.strip()) if metrics is not None else None
    if named == ():
        raise UsageError(f"--metrics {metrics!r} names no metric")
    trust_code(allow, named or ())
    if form is not None and as_json:
        raise UsageError("give --json or --format, not both")
    if form is not None or reference:
        from kdalign.report.formats import form_for

        form = form_for(form)
        from kdalign.comparison.published import read_published

        for file in reference or ():
            read_published(Path(file))  # what cannot be read is said before anything is scored
    if predictions is not None:
        if models or task or data or dataset or limit or noise:
            raise UsageError("--predictions scores a file alone: leave models, --task, data, --limit and --noise out")
        _check_unread(context)
        _show_evaluations([_score_file(predictions, named, language, out)], as_json, form, reference)
        return
    tasks = [name.strip() for name in task.split(",") if name.strip()] if task is not None else []
    if task is not None and not tasks:
        raise UsageError(f"--task {task!r} names no task")
    for name in tasks:
        from kdalign.data.tasks import check_named

        check_named(name, data, dataset, config)
    watcher = new_watcher()
    from kdalign.data.noise import TextNoise
    from kdalign.evaluation.evaluate import evaluate
    from kdalign.evaluation.request import EvalRequest

    asked = EvalRequest(
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
        noise=TextNoise.parse(noise, seed) if noise else None,
    )
    try:
        results = evaluate(models or [], asked, watcher)
    finally:
        watcher.ended()
    _show_evaluations(results, as_json, form, reference)
    if not any(result.scores or result.submission for result in results):
        raise UsageError("nothing was scored: the reasons are above")


_OF_FILES = ("predictions", "metrics", "language", "out", "as_json", "form", "reference", "allow")
"""Parameters that say something of a file of predictions."""


def _check_unread(context: typer.Context) -> None:
    """Refuse options that would be passed over where a file is scored.

    Raises:
        UsageError: the first that was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in _OF_FILES and source is not None and source.name == "COMMANDLINE":
            shown = max((*parameter.opts, *parameter.secondary_opts), key=len)
            raise UsageError(f"{shown} says nothing of a file of predictions: leave it out")


def _score_file(
    file: Path, metrics: tuple[str, ...] | None, language: str | None, out: Path | str | None
) -> "EvaluationResult":
    if out is not None:
        if Path(out).suffix != ".json":
            raise UsageError(f"--out {str(out)!r}: the scores are written as JSON, give a name that ends in .json")
        from kdalign.files import check_file
        from kdalign.runs.discovery import check_replaced

        check_file(Path(out))
        check_replaced(Path(out))
    with error_console().status("scoring"):
        from kdalign.evaluation.prediction_file import score_file

        result = score_file(str(file), metrics, language)
    if out is not None:
        from kdalign.files import write_json

        write_json(Path(out), {"kind": "evaluation", "results": [result.to_json()]})
    return result


def _show_evaluations(
    results: "Sequence[EvaluationResult]",
    as_json: bool,
    form: str | None = None,
    references: Sequence[str] | None = None,
) -> None:
    """The evaluation's own table, with intervals and reasons; or the one in which it stands beside published rows."""
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
        return
    if form is None:
        from kdalign.report.tables import evaluation_table

        show(evaluation_table(results))
        return
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.report.formats import comparison_as
    from kdalign.runs.discovery import Discovery

    trees = tuple(result.to_json() for result in results)
    table = build_table(Discovery(evaluations=trees), CompareOptions(references=references or ()))
    show(comparison_as(table, form))
