"""`kdalign eval`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.options import (
    AllowCode,
    Device,
    Json,
    Limit,
    MaxLength,
    TaskOptions,
    split_names,
    trust_code,
    with_options,
)
from kdalign.environment import rank
from kdalign.errors import UsageError

if TYPE_CHECKING:
    from kdalign.evaluation.request import EvalRequest
    from kdalign.evaluation.result import EvaluationResult


_HOW, _SERVED, _TABLE = "How models answer", "Served models (openai:NAME)", "Files and tables"


@dataclass(frozen=True)
class DataOptions(TaskOptions):
    """Options that say what models are scored on, and by which metrics."""

    split: Annotated[str | None, typer.Option(help="Split to score; test writes the leaderboard's file.")] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; the task's when left out. Of classes: accuracy, f1, ...; of likelihood: "
            "ppl, word_ppl, byte_ppl, bits_per_byte, masked_ppl; of texts: bleu, chrf, ter, rouge, rouge1, rouge2, "
            "rougeL, rougeLsum, cer, wer, cer_normalized, wer_normalized, exact_match, distinct1, distinct2; "
            "or your own."
        ),
    ] = None
    max_length: MaxLength = None

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks by name; none if the option is left out.

        Raises:
            UsageError: the option holds no name.
        """
        if self.task is None:
            return ()
        return split_names(self.task, f"--task {self.task!r} names no task")

    @property
    def metric_names(self) -> tuple[str, ...] | None:
        """The metrics by name; None for the task's own.

        Raises:
            UsageError: the option holds no name.
        """
        if self.metrics is None:
            return None
        return split_names(self.metrics, f"--metrics {self.metrics!r} names no metric")


@dataclass(frozen=True)
class AnswerOptions:
    """Options that say how models answer; names and defaults are those of ``EvalRequest``."""

    stride: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens between windows of a long text; none overlap when left out.", rich_help_panel=_HOW
        ),
    ] = None
    pseudo: Annotated[
        str, typer.Option(help="Masking for a masked model's likelihood: word-l2r or token.", rich_help_panel=_HOW)
    ] = "word-l2r"
    beams: Annotated[int, typer.Option(min=1, help="Beams of text generation; 1 is greedy.", rich_help_panel=_HOW)] = 1
    new_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Most tokens to generate, for models that end their text themselves.", rich_help_panel=_HOW
        ),
    ] = 256
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Language of the texts, such as en or zh; the task's when left out.",
            rich_help_panel=_HOW,
        ),
    ] = None
    precision: Annotated[str, typer.Option(help="Precision of local models: fp32 or bf16.", rich_help_panel=_HOW)] = (
        "fp32"
    )
    shots: Annotated[
        int,
        typer.Option(
            min=0, help="Solved examples before each question to a model that answers in words.", rich_help_panel=_HOW
        ),
    ] = 0
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of random draws, such as those examples.", rich_help_panel=_HOW)
    ] = 0
    noise: Annotated[
        str | None,
        typer.Option(help="Also score on input with errors: typos=0.1 for a tenth of the words.", rich_help_panel=_HOW),
    ] = None


@dataclass(frozen=True)
class ServerOptions:
    """Options of served models; names and defaults are those of ``EvalRequest``."""

    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="API of models named openai:NAME. Default OpenAI's.", rich_help_panel=_SERVED),
    ] = None
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Use the chat endpoint even if the model completes text.", rich_help_panel=_SERVED),
    ] = False
    concurrency: Annotated[
        int, typer.Option(min=1, help="Concurrent requests to a server.", rich_help_panel=_SERVED)
    ] = 4
    max_requests: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Budget of requests to a server; the same command with a larger one resumes.",
            rich_help_panel=_SERVED,
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Budget of tokens of prompts and answers; the same command with a larger one resumes.",
            rich_help_panel=_SERVED,
        ),
    ] = None


@dataclass(frozen=True)
class TableOptions:
    """Options for files and tables."""

    suite: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score the rows and tasks of a suite (.yaml) into one table; it goes on after a stop.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Score a file instead (parquet, csv, tsv, jsonl): prediction, and reference(s).",
            rich_help_panel=_TABLE,
        ),
    ] = None
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Published rows, as in compare; repeatable.", rich_help_panel=_TABLE),
    ] = None
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Form of the table, as in compare: rich, markdown, latex, csv or json.",
            rich_help_panel=_TABLE,
        ),
    ] = None
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines", help="Also score the copy and unigram baselines.", rich_help_panel=_TABLE
        ),
    ] = True


@dataclass(frozen=True)
class OutputOptions:
    """Options that say where models run and where scores go."""

    limit: Limit = None
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None
    device: Device = "auto"
    allow: AllowCode = None
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File of the scores (.json); predictions go next to it.", rich_help_panel=_TABLE
        ),
    ] = None
    as_json: Json = False


@app.command(
    name="eval",
    epilog=examples(
        "kdalign eval runs/mine",
        "kdalign eval ./model --task sst2 --data ./glue/sst2 --metrics accuracy,f1",
        "kdalign eval runs/mine --split test --out runs/eval/mine-test.json",
        "kdalign eval ./bert ./gpt ./xlnet --task lm:sst2 --data ./glue --metrics ppl,bits_per_byte,bleu,rouge,cer",
        "kdalign eval openai:gpt-4o --task sst2 --data ./sst2 --limit 200 --max-requests 500",
        "kdalign eval openai:mine --base-url http://127.0.0.1:8000/v1 --task lm:sst2 --data ./sst2 --metrics bleu,cer",
        "kdalign eval --suite table1.yaml --reference paper-table-1.yaml",
        "kdalign eval --predictions answers.jsonl --metrics bleu,chrf,cer",
        "kdalign eval runs/translator --task multi30k --data ./multi30k --metrics bleu,chrf,ter,cer --beams 4",
        "torchrun --nproc_per_node 2 -m kdalign eval runs/mine",
    ),
)
@with_options
def eval_(
    context: typer.Context,
    data: DataOptions,
    answers: AnswerOptions,
    server: ServerOptions,
    table: TableOptions,
    output: OutputOptions,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL|RUN]...", help="Checkpoints or runs; the newest run by default."),
    ] = None,
) -> None:
    """Score checkpoints and runs on splits, and save their predictions.

    Texts are continued (lm, language-modeling, masked-lm) or answered (translation, summarization, dialogue,
    transcription) by models of every family, local or served (openai:NAME, key in OPENAI_API_KEY), and shown with
    baselines that need no model. Sounds (speech-recognition) are transcribed, and their table has the real-time factor;
    images (image-classification) are classified. A metric that a model cannot be scored by is a dash with the reason.
    Splits without labels are never scored.
    """
    form = _check_form(table, output.as_json)
    if table.suite is not None:
        _check_unread(context, _OF_SUITES, "a suite, whose file says what is scored and how")
        results = _score_suite(table.suite, _request(data, answers, server, table, output), output.allow)
        form = form or "rich"
    elif table.predictions is not None:
        if models or data.task or data.data or data.dataset or output.limit or answers.noise:
            raise UsageError("--predictions scores a file alone: leave models, --task, data, --limit and --noise out")
        _check_unread(context, _OF_FILES, "a file of predictions")
        trust_code(output.allow, data.metric_names or ())
        # A file takes one process.
        results = [] if rank() else [_score_file(table.predictions, data.metric_names, answers.language, output.out)]
    else:
        trust_code(output.allow, data.metric_names or ())
        data.check(data.names)  # before torch is loaded
        results = _score_models(models or [], _request(data, answers, server, table, output))
    if not rank():
        _show_evaluations(results, output.as_json, form, table.reference)
        if not any(result.scores or result.submission for result in results):
            raise UsageError("nothing was scored: the reasons are above")


def _score_models(models: list[str], request: "EvalRequest") -> "list[EvaluationResult]":
    watcher = new_watcher()
    from kdalign.evaluation.evaluate import evaluate

    try:
        return evaluate(models, request, watcher)
    finally:
        watcher.ended()


def _score_suite(file: Path, request: "EvalRequest", allow: list[str] | None) -> "list[EvaluationResult]":
    trust_code(allow)
    from kdalign.evaluation.suite import evaluate_suite

    watcher = new_watcher()
    try:
        return evaluate_suite(file, request, watcher)
    finally:
        watcher.ended()


def _request(
    data: DataOptions, answers: AnswerOptions, server: ServerOptions, table: TableOptions, output: OutputOptions
) -> "EvalRequest":
    """The options as the evaluation takes them."""
    from kdalign.data.noise import TextNoise
    from kdalign.evaluation.request import EvalRequest

    return EvalRequest(
        task=data.names or None,
        folder=data.data,
        dataset=data.dataset,
        config=data.config,
        split=data.split,
        metrics=data.metric_names,
        max_length=data.max_length,
        limit=output.limit,
        revision=output.revision,
        device=output.device,
        out=output.out,
        baselines=table.baselines,
        **vars(server),
        **{**vars(answers), "noise": TextNoise.parse(answers.noise, answers.seed) if answers.noise else None},
    )


def _check_form(table: TableOptions, as_json: bool) -> str | None:
    """Check the form and the published rows before anything is scored.

    Returns:
        The form of a comparison table; None for the table of an evaluation.

    Raises:
        UsageError: two forms, an unknown one, or published rows that cannot be read.
    """
    if table.form is not None and as_json:
        raise UsageError("give --json or --format, not both")
    if table.form is None and not table.reference:
        return None
    from kdalign.comparison.published import read_published
    from kdalign.report.formats import form_for

    form = form_for(table.form)
    for file in table.reference or ():
        read_published(Path(file))
    return form


_OF_FILES = ("predictions", "metrics", "language", "out", "as_json", "form", "reference", "allow")
"""Parameters that apply to a file of predictions."""
_OF_SUITES = (
    *("suite", "device", "out", "as_json", "form", "reference", "allow"),
    *("base_url", "chat", "concurrency", "max_requests", "max_tokens"),
)
"""Parameters that apply to a suite."""


def _check_unread(context: typer.Context, read: Sequence[str], by: str) -> None:
    """Refuse options that do not apply.

    Args:
        context: the command's.
        read: parameters that apply.
        by: what is scored.

    Raises:
        UsageError: the first that was given and does not apply.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name not in read and source is not None and source.name == "COMMANDLINE":
            option = max((*parameter.opts, *parameter.secondary_opts), key=len)
            raise UsageError(f"{option} does not apply to {by}: leave it out")


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
        from kdalign.runs.seal import sealed

        write_json(Path(out), sealed({"kind": "evaluation", "results": [result.to_json()]}))
    return result


def _show_evaluations(
    results: "Sequence[EvaluationResult]",
    as_json: bool,
    form: str | None = None,
    references: Sequence[str] | None = None,
) -> None:
    """Show the evaluation's own table, with intervals and reasons, or a comparison table with published rows."""
    if as_json:
        print(json.dumps([result.to_json() for result in results], indent=2))
        return
    if form is None:
        from kdalign.report.evaluation import evaluation_table

        show(evaluation_table(results))
        return
    from kdalign.comparison.compare import CompareOptions, build_table
    from kdalign.report.formats import comparison_as
    from kdalign.runs.discovery import Discovery

    trees = tuple(result.to_json() for result in results)
    table = build_table(Discovery(evaluations=trees), CompareOptions(references=references or ()))
    show(comparison_as(table, form))
