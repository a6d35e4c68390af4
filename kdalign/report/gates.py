"""Results of gates, added to a rendered table."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import RenderableType

from kdalign.comparison.gates import GateResult
from kdalign.runs.markdown import escape


def append_gates(table: RenderableType, form: str, results: Sequence[GateResult]) -> RenderableType:
    """Add the gates to a rendered table: below it in Markdown, under a key in JSON; other formats stay as they are."""
    if form == "json" and results:
        return json.dumps(json.loads(str(table)) | {"gates": [asdict(result) for result in results]}, indent=2)
    if form == "markdown" and results:
        lines = [f"- {_bold_outcome(escape(result.line))}" for result in results]
        return "\n".join([str(table).rstrip("\n"), "", "Gates:", "", *lines])
    return table


def _bold_outcome(line: str) -> str:
    outcome, _, rest = line.partition(":")
    return f"**{outcome}**:{rest}"
