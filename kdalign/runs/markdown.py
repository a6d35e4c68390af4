"""Names and sentences in Markdown (tables, notes, model cards): shown as they are, whatever stands in them."""

import re

from kdalign.errors import printable

_SIGNS = re.compile(r"([\\`*$~|]|\[(?=\^)|\](?=[(\[:]|$))")
"""Signs that mean something in Markdown; brackets where they could be a link's, a picture's or a footnote's."""


def escape(text: str) -> str:
    """Text on one line that is no tag, picture, link, emphasis, code, formula, cell or entity.

    An address (``http://...``, ``a@b.c``) is not made a link, either, though it stands alone: it may be a stranger's.
    """
    text = re.sub(r"&(?=#?\w+;)", "&amp;", printable(text)).replace("<", "&lt;")
    text = _SIGNS.sub(r"\\\1", text)
    text = re.sub(r"(?<=\w):(?=//)", "&#58;", text)
    text = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}&#46;", text)
    return re.sub(r"(?<=\S)@(?=\S)", "&#64;", text)


def escape_line(text: str) -> str:
    """The same as a line, or an item of a list, of its own: it begins no list, heading or quotation."""
    return re.sub(r"^(?=[+#>=\[-])|^(\d+)(?=[.)])", lambda found: f"{found[1] or ''}\\", escape(text).strip())


def code_span(text: str) -> str:
    """A code span in a sentence or a cell; what would end a cell even there is plain text."""
    shown = " ".join(printable(text).split())
    if not shown or "|" in shown or "\\" in shown:
        return escape(shown)
    ticks = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    edge = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{ticks}{edge}{shown}{edge}{ticks}"


def code_block(text: str, language: str = "") -> str:
    """A block of code, in a fence that no line of it ends; each line printable."""
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    body = "\n".join(map(printable, text.removesuffix("\n").split("\n")))
    return f"{ticks}{language}\n{body}\n{ticks}"
