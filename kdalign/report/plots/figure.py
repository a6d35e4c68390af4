"""Figures with title and caption, their common style, and how they are saved."""

import functools
import re
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
"""Width in inches; 8-point letters stay readable when a phone shows the plot 370 pixels wide."""
INK = "#1a2027"
"""Colour of text, axes and teachers; a dark page replaces it with its own."""
QUIET = "#8a9199"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe & Ito's colour-blind safe palette without black and yellow, for white and black backgrounds."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_PANELS = 12
"""Maximum runs with a panel of their own in one plot; a page with hundreds of panels took minutes."""
DPI = 200
_CAPTION = 74
"""Letters of a caption's line below a figure of that width."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NamedFigure:
    """A figure with its texts.

    Attributes:
        name: name of its file, without an ending.
        figure: the figure, without title and caption, which a page sets in its own font.
        caption: what is drawn, with numbers of examples and seeds.
        alternative: alternative text for screen readers.
    """

    name: str
    figure: "Figure"
    title: str
    caption: str
    alternative: str


def plot_style(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Draw in the common style."""

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
    """Colour, dash and marker of the n-th line; the first 24 combinations differ."""
    return (
        COLOURS[number % len(COLOURS)],
        DASHES[number // len(COLOURS) % len(DASHES)],
        MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
    )


def panels(count: int, height: float, columns: int = 1, share_x: bool = False) -> tuple["Figure", list["Axes"]]:
    """Make a figure of ``count`` panels, row by row, each ``height`` inches high."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share_x).ravel().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid[:count]


def legend(figure: "Figure", handles: list["Artist"], names: list[str]) -> None:
    """Put a legend below the panels, in as many columns as the names' length allows."""
    names = [shortened(name, 34) for name in names]
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), int(_CAPTION // (longest + 6))))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, handlelength=1.8, columnspacing=1.2)


def without_markup(figure: "Figure") -> None:
    """Turn off formulas and control characters in a figure's texts: a name such as ``$x`` would raise when saved."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text), "findobj returns objects of this class"
        text.set_parse_math(False)
        text.set_text(wrap_words(text.get_text()))


def wrap_words(text: str) -> str:
    """Make each line of a text printable."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(name: str, most: int) -> str:
    """Shorten a name to ``most`` letters by leaving out its middle."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def check_figure(file: Path) -> None:
    """Refuse a plot file of another format, or one that cannot be written, before anything is computed.

    Raises:
        UsageError: another ending, a folder, or a folder that cannot be written.
    """
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"--plot {str(file)!r}: accepted are files that end in {', '.join(ENDINGS)}")
    if file.is_dir():
        raise UsageError(f"--plot {str(file)!r} is a folder; name a file")
    check_writable(file.parent)


def check_folder(folder: Path) -> None:
    """Refuse a folder for plots that is a file or cannot be written, before anything is computed.

    Raises:
        UsageError: a file, or a folder that cannot be written.
    """
    if folder.is_file():
        raise UsageError(f"--plots {str(folder)!r} is a file; name a folder")
    check_writable(folder)


@plot_style
def save(figure: "Figure", file: Path, whole: bool = False) -> None:
    """Write a figure in the format of the file's ending; ``whole`` includes texts outside its frame."""
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
    """Write figures into a folder with title and caption, in each format."""
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
        name = f"{picture.name}-{again + 1}" if again else picture.name  # names of tasks may differ by signs alone
        for ending in endings:
            file = folder / f"{name}{ending}"
            save(figure, file, whole=True)
            files.append(file)
        title.remove()
        caption.remove()
    return files


def _settle(figure: "Figure") -> None:
    """Fix a figure's layout and tie its legend to a panel, so that texts outside the frame do not overlap it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    panel = figure.axes[0].transAxes
    for names in figure.legends:
        corner = panel.inverted().transform(names.get_window_extent().min)
        names.borderaxespad = 0
        names.set_loc("lower left")
        names.set_bbox_to_anchor((float(corner[0]), float(corner[1])), transform=panel)


def name_shown(drawn: int, of: int, what: str = "runs") -> str:
    """Write a sentence on the runs (or recipes) that are drawn, if not all are."""
    return "" if drawn == of else f" Drawn are the first {drawn} of {of:,} {what}."


def file_part(text: str) -> str:
    """Make a short part of a file name."""
    return re.sub(r"[^\w.]+", "-", text)[:60]
