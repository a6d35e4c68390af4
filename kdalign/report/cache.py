"""Caches of teacher outputs as Rich tables: what one keeps, what building it would take, and how it was verified."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from kdalign.report.screen import plain_text
from kdalign.report.style import new_table, note_line

if TYPE_CHECKING:
    from kdalign.distillation.cache_commands import CachePreview, Verification
    from kdalign.teachers.cache_files import ShardFacts


def cache_facts(folder: Path, meta: Mapping[str, Any], counts: "ShardFacts", shards: int) -> dict[str, Any]:
    """Collect the facts of a cache by name."""
    sizes = {name: getattr(counts, name) for name in ("rows", "tokens", "predictions", "bytes", "bytes_a_token")}
    return {"folder": str(folder), **meta, "shards": shards, **sizes, "mean_tails": counts.mean_tails}


def cache_table(facts: Mapping[str, Any]) -> RenderableType:
    """Render the facts of a cache."""
    lines = {
        "teacher": f"{facts['teacher']} [{facts['weights']}], {facts['precision']}",
        "kept": ", ".join(facts["keep"]),
        "labels": ", ".join(facts["labels"]),
        "features": facts["states"]
        if any(":" in word and not word.startswith("tokens") for word in facts["keep"])
        else "",
        "tokens": _tokens_text(facts),
        "rows": f"{facts['rows']:,} in {facts['shards']:,} shard{'s' * (facts['shards'] != 1)}",
        "read by the teacher": f"{facts['tokens']:,} tokens",
        "predictions": f"{facts['predictions']:,}" if facts["predictions"] else "",
        "size": f"{facts['bytes'] / 1e6:,.1f} MB, {facts['bytes_a_token']:.1f} bytes a token that the teacher read",
        "checksums": f"not checked: `kdalign cache verify {facts['folder']}` does",
    }
    return _two_columns(facts["folder"], lines)


def _tokens_text(facts: Mapping[str, Any]) -> str:
    """The number of likeliest tokens, and the probability left to the rest."""
    if facts["top_k"] is None:
        return ""
    tails = ", ".join(f"{mass:.2%} at temperature {temperature}" for temperature, mass in facts["mean_tails"].items())
    rest = f"; all others as one: {tails}" if tails else ""
    return f"the {facts['top_k']} likeliest of {facts['vocabulary']:,} in {facts['logs']}{rest}"


def preview_table(preview: "CachePreview") -> RenderableType:
    """Render what building a cache would do."""
    chosen = f"{preview.top_k}" if preview.top_k is not None else "chosen by --tail once the teacher is loaded"
    lines = {
        "kept": ", ".join(preview.kept),
        "likeliest tokens": chosen if any(word.startswith("tokens") for word in preview.kept) else "",
        "rows": f"{preview.rows:,}",
        "read by the teacher": f"{preview.tokens:,} tokens",
        "size": f"about {preview.bytes / 1e6:,.1f} MB, {preview.bytes / max(preview.tokens, 1):.0f} bytes a token",
        "there already": "a part: missing rows are added" if preview.resumes else "",
    }
    return _two_columns(f"{preview.folder}: what would be kept", lines)


def verification_table(found: "Verification", shards: int) -> RenderableType:
    """Render the comparison of kept rows with those computed again."""
    table = new_table(f"{found.rows:,} rows computed again")
    table.add_column("output")
    table.add_column("largest difference, of the largest value", justify="right")
    for name, apart in sorted(found.differences.items()):
        table.add_row(plain_text(name), f"{apart:.2%}")
    if found.tokens is not None:
        table.add_row("likeliest tokens that are the same", f"{found.tokens:.2%}")
    return Group(table, note_line(checksums_line(shards)))


def checksums_line(shards: int) -> str:
    """Say that every shard is as it was written."""
    return f"{shards:,} shard{'s' * (shards != 1)}: all checksums are right"


def _two_columns(title: str, lines: Mapping[str, str]) -> RenderableType:
    table = new_table(title)
    table.add_column("")
    table.add_column("", overflow="fold")
    for name, value in lines.items():
        if value:
            table.add_row(plain_text(name), plain_text(value))
    return table
