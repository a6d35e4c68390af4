"""Tables of generated data: what would be generated, and what was kept and why."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.distillation.sequence_level.generate import PreparedGeneration

LONGEST_PROMPT = 1000
"""Characters of a prompt that are shown: its beginning and its end."""


def generation_plan(prepared: "PreparedGeneration", prompts: int) -> dict[str, Any]:
    """Describe what would be generated.

    Args:
        prepared: checked settings, teacher and data.
        prompts: number of prompts to show as the model sees them.
    """
    from kdalign.distillation.sequence_level.teachers import describe_decoding

    train, teacher = prepared.train, prepared.teacher
    return {
        "teacher": teacher.identity,
        "task": prepared.settings.task,
        "data": str(train.task.source),
        "found": train.task.found or None,
        "rows": {
            "train": len(train.rows) + sum(count for _, count in train.left_out),
            "left_out": dict(train.left_out),
            "answered": len(train.rows),
        },
        "prompts": len(prepared.prompts),
        "answers": len(prepared.wanted),
        "known": len(prepared.folder.read_answers()),
        "decoding": describe_decoding(prepared.settings),
        "keep": list(prepared.settings.filters),
        "best_of": prepared.settings.best_of,
        "files": prepared.files,
        "out": prepared.settings.out,
        "notes": prepared.notes,
        "first_prompts": teacher.show_prompts(prepared.prompts[:prompts]),
    }


def plan_table(plan: Mapping[str, Any]) -> RenderableType:
    """Render what would be generated, and the first prompts."""
    table = new_table(f"{plan['task']}: what would be generated")
    table.add_column("")
    table.add_column("", overflow="fold")
    facts = {
        "teacher": _teacher(plan["teacher"]),
        "data": plan["data"],
        "found": plan["found"] or "",
        "rows of train": f"{plan['rows']['train']:,}",
        **{f"left out, {reason}": f"{count:,}" for reason, count in plan["rows"]["left_out"].items()},
        "prompts": f"{plan['prompts']:,}",
        "answers": f"{plan['answers']:,}" + (f", {plan['known']:,} of them known" if plan["known"] else ""),
        "decoding": plan["decoding"],
        "kept if": ", ".join(plan["keep"]),
        "best of": plan["best_of"] or "",
        "files": f"{', '.join(plan['files'])} in {plan['out']}",
    }
    for name, value in facts.items():
        if value:
            table.add_row(plain_text(name), plain_text(value))
    shown: list[RenderableType] = []
    for number, prompt in enumerate(plan["first_prompts"], 1):
        half = LONGEST_PROMPT // 2
        text = prompt if len(prompt) <= LONGEST_PROMPT else f"{prompt[:half]} … {prompt[-half:]}"
        lines = "\n".join(str(plain_text(line)) for line in text.split("\n"))
        shown += [Text(f"prompt {number}, as the model sees it", style="bold"), Text(lines), Text("")]
    return Group(table, *shown, *map(note_line, plan["notes"]))


def generation_table(record: Mapping[str, Any]) -> RenderableType:
    """Render how many answers were kept, what dropped the others, and what they cost."""
    teacher, rows, answers = record["teacher"], record["rows"], record["answers"]
    table = new_table(f"{record['task']}: answers of {teacher['teacher']}")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("answers", justify="right")
    table.add_row("in train", f"{rows['train']:,}", "")
    for reason, count in rows["left_out"].items():
        table.add_row(plain_text(reason), _less(count), "")
    table.add_row("answered", f"{rows['answered']:,}", f"{answers['all']:,}")
    for reason, count in answers["dropped"].items():
        table.add_row(plain_text(reason), "", _less(count))
    table.add_row("kept", f"{rows['kept']:,}", f"{answers['kept']:,}", style="bold")
    tokens, known = record["tokens"], record["known_before"]
    notes = [
        f"{_teacher(teacher)}; {record['decoding']['described']}",
        f"{record['prompts']['different']:,} different prompts; {tokens['prompts']:,} tokens read, "
        f"{tokens['answers']:,} generated; {record['seconds']:,.1f} s"
        + (f", with {known:,} answers known before" if known else ""),
    ]
    notes += [_distribution(name, found) for name, found in record["selection"].get("measures", {}).items()]
    if teacher.get("dropped"):
        notes.append(f"the server refuses {', '.join(teacher['dropped'])}, so it chooses tokens in its own way")
    return Group(table, *map(note_line, notes))


def _distribution(name: str, found: Mapping[str, Any]) -> str:
    """Say how a measure is distributed over all answers."""

    def number(key: str) -> str:
        return "–" if found[key] is None else f"{found[key]:,.2f}"

    said = f"{name} of all answers: mean {number('mean')}, median {number('median')}, 90th percentile "
    said += number("ninetieth")
    if found["by"] is not None:
        said += f"; as one corpus {number('corpus')}, those kept {number('corpus_kept')} ({found['by']})"
    return said + (f"; undefined for {found['undefined']:,}, within no bound" if found["undefined"] else "")


def _less(count: int) -> str:
    """Write a number that is taken away."""
    return f"−{count:,}" if count else "0"


def _teacher(teacher: Mapping[str, Any]) -> str:
    """Name a teacher with the hash of its weights, or with its URL and what was paid for."""
    if "url" not in teacher:
        return f"{teacher['teacher']} [{teacher['teacher_hash']}]"
    by = f", answered by {', '.join(teacher['answered_by'])}" if teacher.get("answered_by") else ""
    paid = f"; {teacher['requests']:,} requests paid for in this run" if "requests" in teacher else ""
    return f"{teacher['teacher']} at {teacher['url']}{by}{paid}"
