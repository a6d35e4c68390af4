"""`kdalign generate`."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdalign.cli.application import app, examples
from kdalign.cli.console import error_console, new_watcher, show
from kdalign.cli.evaluate import ServerOptions
from kdalign.cli.options import Device, Json, TaskOptions, with_options
from kdalign.environment import rank

if TYPE_CHECKING:
    from kdalign.distillation.sequence_level.settings import GenerateSettings

_HOW, _KEPT = "How the teacher answers", "Which answers are kept"


@dataclass(frozen=True)
class PromptOptions(TaskOptions):
    """Options that name the prompts that are answered."""

    task: Annotated[
        str | None,
        typer.Option(
            help="Task with texts as answers: translation:A-B, summarization:A-B, dialogue:A-B, transcription:A-B or "
            "speech-recognition:A-B (names of columns), multi30k, wmt14, wmt16, xsum, cnn_dailymail, samsum, "
            "dialogsum, aeslc, a task file .yaml, chat, lm:COLUMN or language-modeling."
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Answer only this many rows, the first of train; all when left out.")
    ] = None


@dataclass(frozen=True)
class DecodingOptions:
    """Options that say how the teacher answers; names and defaults are those of ``GenerateSettings``."""

    beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.", rich_help_panel=_HOW)] = 1
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each prompt, sampled if several.", rich_help_panel=_HOW)
    ] = 1
    temperature: Annotated[
        float | None,
        typer.Option(help="Temperature of samples. Default 0 (greedy); 1 with --samples.", rich_help_panel=_HOW),
    ] = None
    top_p: Annotated[
        float,
        typer.Option(help="Share of the probability to sample from, its likeliest tokens.", rich_help_panel=_HOW),
    ] = 1.0
    seed: Annotated[
        int,
        typer.Option(
            min=0, help="Seed of samples: an answer depends on it and on its prompt alone.", rich_help_panel=_HOW
        ),
    ] = 0
    new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=_HOW)] = 256
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Longest prompt in tokens; longer ones are cut and counted. Default 256 for encoder-decoders; else, "
            "and at most, the model's positions.",
            rich_help_panel=_HOW,
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated at once.", rich_help_panel=_HOW)] = 32
    precision: Annotated[
        str, typer.Option(help="Precision of a local teacher: fp32 or bf16.", rich_help_panel=_HOW)
    ] = "fp32"
    device: Device = "auto"
    revision: Annotated[str | None, typer.Option(help="The teacher's revision on the hub.")] = None


@dataclass(frozen=True)
class SelectionOptions:
    """Options that say which answers are kept."""

    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPRESSION",
            help="Keep answers within a bound: rougeL>=30, chrf>=20, bleu>=10 (and other metrics of texts, against the "
            "row's reference), words<=60, characters<=500, ratio<=2 (words over the reference's), source_ratio<=2, "
            "language=de. Answers cut off by the token limit are dropped unless any-end is given. Repeatable.",
            rich_help_panel=_KEPT,
        ),
    ] = None
    max_wer: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="Keep transcripts of sounds with at most this word error rate against the data's own, both by "
            "Whisper's normaliser: 20 is wer_normalized<=20.",
            rich_help_panel=_KEPT,
        ),
    ] = None
    best_of: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Keep only each row's best answer, by a metric such as rougeL.",
            rich_help_panel=_KEPT,
        ),
    ] = None
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Language of the answers, for metrics; the task's when left out.",
            rich_help_panel=_KEPT,
        ),
    ] = None


@dataclass(frozen=True)
class FolderOptions:
    """Options that say what to do with the folder."""

    out: Annotated[str, typer.Option(metavar="DIR", help="Folder of the new data; the same command resumes.")]
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace data of another command in --out; reuse answers that fit.")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan and three prompts, write nothing.")
    ] = False
    as_json: Json = False


@app.command(
    epilog=examples(
        "kdalign generate --teacher ./marian --task multi30k --data ./multi30k --out ./multi30k-marian",
        "kdalign generate --teacher ./marian --task translation:en-de --data ./pairs --out ./best --samples 8 "
        "--top-p 0.9 --best-of chrf",
        "kdalign generate --teacher ./llama --task aeslc --data ./aeslc --out ./subjects --keep 'rougeL>=30' "
        "--keep 'words<=12' --new-tokens 32",
        "kdalign generate --teacher openai:gpt-4o --task chat --data ./chats --out ./answers --max-requests 500",
        "kdalign generate --teacher ./llama --task lm:text --data ./texts --out ./stories --dry-run",
        "kdalign generate --teacher ./whisper --task speech-recognition --data ./speech --out ./transcribed "
        "--max-wer 20 --language en",
        "torchrun --nproc_per_node 2 -m kdalign generate --teacher ./llama --task aeslc --data ./aeslc --out ./kept",
        "kdalign distill --teacher ./marian --student layers=2 --task multi30k --data ./multi30k-marian",
    )
)
@with_options
def generate(
    teacher: Annotated[str, typer.Option(help="Hub id, folder or run of the model that answers, or openai:NAME.")],
    data: PromptOptions,
    folder: FolderOptions,
    decoding: DecodingOptions,
    selection: SelectionOptions,
    server: ServerOptions,
) -> None:
    """Let a teacher answer a task's training prompts, and write its answers as data to distill from.

    Sequence-level distillation (Kim and Rush 2016): the new folder has the splits of --data, with the teacher's answers
    in place of train's. Sources are answered (translation, summarization, dialogue, transcription), as are
    conversations (chat, their last answer), and beginnings of documents are continued (lm). Rows that also occur in a
    reported split are left out. The record, generation.json, says what was kept, what it cost and how it was made.
    """
    data.check([data.task] if data.task is not None else [])
    settings = _settings(teacher, data, folder, decoding, selection, server)
    if folder.dry_run:
        _show_plan(settings, folder)
        return
    watcher = new_watcher()
    from kdalign.distillation.sequence_level.generate import generate as run

    try:
        record = run(settings, watcher, overwrite=folder.overwrite)
    finally:
        watcher.ended()
    if rank():
        return
    if folder.as_json:
        print(json.dumps(record, indent=2))
        return
    from kdalign.report.generation import generation_table

    show(generation_table(record))
    watcher.announce(f"data: {folder.out}  (record: {folder.out}/generation.json)")


def _settings(
    teacher: str,
    data: PromptOptions,
    folder: FolderOptions,
    decoding: DecodingOptions,
    selection: SelectionOptions,
    server: ServerOptions,
) -> "GenerateSettings":
    """The options as one validated object.

    Raises:
        UsageError: the first that is not accepted.
    """
    from kdalign.distillation.sequence_level.settings import build_settings
    from kdalign.errors import UsageError

    if data.task is None:
        raise UsageError("missing --task: the task whose prompts are answered")
    values: dict[str, Any] = {
        "teacher": teacher,
        "task": data.task,
        "folder": data.data,
        "dataset": data.dataset,
        "config": data.config,
        "out": folder.out,
        "limit": data.limit,
        **vars(decoding),
        "keep": tuple(selection.keep or ()),
        "max_wer": selection.max_wer,
        "best_of": selection.best_of,
        "language": selection.language,
        **vars(server),
    }
    return build_settings({name: value for name, value in values.items() if value is not None})


def _show_plan(settings: "GenerateSettings", folder: FolderOptions) -> None:
    with error_console().status("checking"):
        from kdalign.distillation.sequence_level.generate import SHOWN_PROMPTS, prepare_generation
        from kdalign.report.generation import generation_plan, plan_table

        plan = generation_plan(prepare_generation(settings, overwrite=folder.overwrite), SHOWN_PROMPTS)
    show(json.dumps(plan, indent=2) if folder.as_json else plan_table(plan))
