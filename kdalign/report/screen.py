"""What stands between a name and a terminal: no markup, no control characters, and only signs that its encoding has."""

import codecs
import io
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from kdalign.errors import printable

STAND_INS = {
    **dict.fromkeys(map(chr, range(0x2500, 0x2580)), "+"),  # the corners and crossings of tables
    **dict.fromkeys("–—−‐‑─━═╌╍┄┅┈┉╴╶╸╺╼╾", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys(map(chr, range(0x2800, 0x2900)), "."),  # what turns while something loads
    **dict.fromkeys("·•†", "*"),
    **dict.fromkeys("“”„«»", '"'),
    **dict.fromkeys("‘’‚", "'"),
    **dict(zip("░▒▓█", ".:+#", strict=True)),
    "↑": "^",
    "↓": "v",
    "→": "->",
    "≈": "~",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "²": "2",
    "‡": "#",
    "§": "S",
    "¶": "P",
    "…": "...",
    "\N{NO-BREAK SPACE}": " ",
}
"""What is shown for kdalign's own signs where a stream's encoding (ASCII, Latin-1) does not have them."""
HANDLER = "kdalign.stand_ins"
"""The name by which ``codecs`` knows the error handler of streams."""


class _Encodings:
    """Where signs were lost, so that it can be said once.

    Attributes:
        lacking: encodings that had no sign for something, and there was no stand-in either.
    """

    def __init__(self) -> None:
        self.lacking: set[str] = set()

    def replaced(self, error: UnicodeError) -> tuple[str, int]:
        """Stand-ins for what cannot be encoded; ``?`` where there is none."""
        if not isinstance(error, UnicodeEncodeError):
            raise error
        shown = []
        for sign in error.object[error.start : error.end]:
            found = STAND_INS.get(sign)
            if found is None:
                self.lacking.add(error.encoding)
            shown.append("?" if found is None else found)
        return "".join(shown), error.end


_encodings = _Encodings()
codecs.register_error(HANDLER, _encodings.replaced)


def replace_unencodable(stream: object) -> None:
    """Let a stream show stand-ins for what its encoding does not have; it would raise else, perhaps after hours."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=HANDLER)


def encoding_note() -> str | None:
    """A note where something was shown as ``?`` since this was last asked; else None."""
    lacking, _encodings.lacking = _encodings.lacking, set()
    if not lacking:
        return None
    return (
        f"characters that {' and '.join(sorted(lacking))} does not have are shown as ?; "
        "PYTHONIOENCODING=utf-8 or a file (--out) keeps them"
    )


def plain_text(text: str, style: str = "") -> Text:
    """A name or a sentence as it stands, on one line: no part of it is markup."""
    return Text(printable(text), style=style)


class Screen(Console):
    """A console that shows control characters of no name, and draws alike whatever its encoding is.

    Rich writes its own colours and movements as segments of control or style, never as text: what is left in a text
    comes from a name.
    """

    @property
    def encoding(self) -> str:
        """UTF-8: stand-ins are put in by the stream, and take the same place."""
        return "utf-8"

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render without control characters in texts."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n":
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)

    def on_broken_pipe(self) -> None:
        """Leave it to the caller, who ends quietly."""
        raise BrokenPipeError
