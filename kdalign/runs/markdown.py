"""Escape names and sentences for Markdown (tables, notes, model cards), so that they are shown literally."""

import re

from kdalign.errors import printable

_SIGNS = re.compile(r"([\\`*$~|]|\[(?=\^)|\](?=[(\[:]|$))")
"""Markdown's special characters; brackets only as in links, pictures and footnotes."""


def escape(text: str) -> str:
    """Escape text on one line: no tag, picture, link, emphasis, code, formula, cell or entity remains.

    A bare address (``http://...``, ``a@b.c``) does not become a link either: it may be a stranger's.
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable(text)).replace("<", "&lt;")
    text = _SIGNS.sub(r"\\\1", text)
    text = re.sub(r"(?<=\w):(?=//)", "&#58;", text)
    text = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}&#46;", text)
    return re.sub(r"(?<=\S)@(?=\S)", "&#64;", text)


def escape_line(text: str) -> str:
    """Escape a whole line or list item: it begins no list, heading or quotation."""
    return re.sub(r"^(?=[+#>=\[-])|^(\d+)(?=[.)])", lambda found: f"{found[1] or ''}\\", escape(text).strip())


def code_span(text: str) -> str:
    """Write a code span for a sentence or cell; text that would end a cell even there is escaped instead."""
    shown = " ".join(printable(text).split())
    if not shown or "|" in shown or "\\" in shown:
        return escape(shown)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{edge}{shown}{edge}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """Write a block of printable code in a fence that none of its lines ends."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = "\n".join(map(printable, text.removesuffix("\n").split("\n")))
    return f"{ticks}{language}\n{body}\n{ticks}"
