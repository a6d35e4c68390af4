"""A picture with its words, how all of them look, and how they become files."""

import functools
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from kdalign.errors import UsageError, printable
from kdalign.files import atomic_file, check_writable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
WIDTH = 4.2
"""Inches: letters of 8 points then stay readable where a telephone shows the picture 370 pixels wide."""
INK = "#1a2027"
"""Of words, axes and teachers; a page puts its own in its place where it is dark."""
QUIET = "#8a9199"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe & Ito's palette without black and yellow: told apart by colour-blind eyes, on white and on black."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 200
_CAPTION = 74
"""Letters of a caption's line below a picture of that width."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NamedFigure:
    """A figure and its words.

    Attributes:
        name: of its file, without an ending.
        figure: without title and caption, which a page sets in its own letters.
        caption: what is drawn, of how many examples and seeds.
        alternative: what those read who do not see it.
    """

    name: str
    figure: "Figure"
    title: str
    caption: str
    alternative: str


def plot_style(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let what a function draws look like everything else."""

    @functools.wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(_LOOK):
            return draw(*args, **kwargs)

    return drawn


_LOOK = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a run may be called $x$
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "figure.facecolor": "white",
}


def line_style(number: int) -> tuple[str, str, str]:
    """The colour, dash and marker of the n-th thing: together they differ for the first 24."""
    return (
        COLOURS[number % len(COLOURS)],
        DASHES[number // len(COLOURS) % len(DASHES)],
        MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
    )


def panels(count: int, height: float, columns: int = 1, share_x: bool = False) -> tuple["Figure", list["Axes"]]:
    """A figure of so many panels, row by row, each so many inches high; what is over in the last row stays empty."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    found = figure.subplots(rows, columns, squeeze=False, sharex=share_x).ravel().tolist()
    for axes in found[count:]:
        axes.set_axis_off()
    return figure, found[:count]


def legend(figure: "Figure", handles: list["Artist"], names: list[str]) -> None:
    """Names below the panels, in as many columns as their length allows."""
    names = [shortened(name, 34) for name in names]
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), int(_CAPTION // (longest + 6))))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, handlelength=1.8, columnspacing=1.2)


def without_markup(figure: "Figure") -> None:
    """Let no name in a figure be a formula or steer what is written: ``$x`` would else raise while it is saved."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text), "asked for"
        text.set_parse_math(False)
        text.set_text(wrap_words(text.get_text()))


def wrap_words(text: str) -> str:
    """Lines of words as they can be drawn."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters; where it is cut, its middle is left out."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def check_figure(file: Path) -> None:
    """Refuse a file of another kind, or one that cannot be written, before anything is computed.

    Raises:
        UsageError: what is accepted.
    """
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot {str(file)!r}: accepted are files that end in {', '.join(ENDINGS)}")
    if file.is_dir():
        raise UsageError(f"--plot {str(file)!r} is a folder; name a file")
    check_writable(file.parent)


def check_folder(folder: Path) -> None:
    """Refuse a place for pictures that is a file or cannot be written, before anything is computed.

    Raises:
        UsageError: what is in the way.
    """
    if folder.is_file():
        raise UsageError(f"--plots {str(folder)!r} is a file; name a folder")
    check_writable(folder)


@plot_style
def save(figure: "Figure", file: Path, whole: bool = False) -> None:
    """Write a figure in the format that its file's ending says; ``whole``, with words that stand beside its frame."""
    form = file.suffix[1:].lower()
    without_markup(figure)
    with atomic_file(file) as temporary:
        figure.savefig(
            temporary,
            format=form,
            dpi=DPI,
            bbox_inches="tight" if whole else None,
            metadata={"Date": None} if form == "svg" else None,
        )


@plot_style
def save_all(pictures: Iterable[NamedFigure], folder: Path, endings: tuple[str, ...] = (".png", ".svg")) -> list[Path]:
    """Write pictures into a folder, each with its title above and its caption below, in each of these formats."""
    files: list[Path] = []
    for picture in pictures:
        figure = picture.figure
        without_markup(figure)
        _settle(figure)
        width, height = figure.get_size_inches()
        words = "\n".join(textwrap.wrap(printable(picture.caption), int(_CAPTION * width / WIDTH)))
        title = figure.text(
            0.01, 1 + 0.08 / height, printable(picture.title), va="bottom", fontsize=10, fontweight="bold"
        )
        caption = figure.text(0.01, -0.1 / height, words, va="top", fontsize=7, color=QUIET, linespacing=1.3)
        again = sum(file.stem == picture.name for file in files) // len(endings)
        name = f"{picture.name}-{again + 1}" if again else picture.name  # two tasks may differ by signs no file has
        for ending in endings:
            file = folder / f"{name}{ending}"
            save(figure, file, whole=True)
            files.append(file)
        title.remove()
        caption.remove()
    return files


def _settle(figure: "Figure") -> None:
    """Lay a figure out for good, and tie its legend to a panel: words beside the frame would else lie upon it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    panel = figure.axes[0].transAxes
    for names in figure.legends:
        corner = panel.inverted().transform(names.get_window_extent().min)
        names.borderaxespad = 0
        names.set_loc("lower left")
        names.set_bbox_to_anchor((float(corner[0]), float(corner[1])), transform=panel)
