"""A console for untrusted text: no markup, no control characters, and stand-ins for signs its encoding lacks."""

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
    **dict.fromkeys(map(chr, range(0x2800, 0x2900)), "."),  # spinners
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
"""Stand-ins for kdalign's own signs in encodings without them (ASCII, Latin-1)."""
HANDLER = "kdalign.stand_ins"
"""Name of the streams' error handler in ``codecs``."""


class _Encodings:
    """Encodings in which characters were lost, for one note about them.

    Attributes:
        lacking: encodings that lacked a character for which there is no stand-in.
    """

    def __init__(self) -> None:
        self.lacking: set[str] = set()

    def replaced(self, error: UnicodeError) -> tuple[str, int]:
        """Replace what cannot be encoded by stand-ins, or by ``?``."""
        if not isinstance(error, UnicodeEncodeError):
            raise error
        shown = []
        for sign in error.object[error.start : error.end]:
            stand_in = STAND_INS.get(sign)
            if stand_in is None:
                self.lacking.add(error.encoding)
            shown.append("?" if stand_in is None else stand_in)
        return "".join(shown), error.end


_encodings = _Encodings()
codecs.register_error(HANDLER, _encodings.replaced)


def replace_unencodable(stream: object) -> None:
    """Let a stream write stand-ins for what it cannot encode, where it would raise, perhaps after hours of training."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=HANDLER)


def encoding_note() -> str | None:
    """Note on characters shown as ``?`` since the last call; None if there were none."""
    lacking, _encodings.lacking = _encodings.lacking, set()
    if not lacking:
        return None
    return (
        f"characters that {' and '.join(sorted(lacking))} does not have are shown as ?; "
        "PYTHONIOENCODING=utf-8 or a file (--out) keeps them"
    )


def plain_text(text: str, style: str = "") -> Text:
    """Make a one-line Rich text without markup."""
    return Text(printable(text), style=style)


class Screen(Console):
    """A console that drops control characters in names, and draws the same in every encoding.

    Rich writes its own colours and cursor movements as control or style segments, never as text, so control characters
    in a text come from a name.
    """

    @property
    def encoding(self) -> str:
        """UTF-8; the stream puts in stand-ins, which have the same width."""
        return "utf-8"

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render without control characters in texts."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == "\n":
                yield segment
            else:
                yield Segment("\n".join(map(printable, segment.text.split("\n"))), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise, so that the caller can end quietly."""
        raise BrokenPipeError
