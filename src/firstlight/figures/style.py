"""The house style of all figures: colours, sizes of type, and a sheet on which all is placed in inches."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

DPI = 150
INK, MUTED, FAINT, GRID, WASH, PAPER = "#1c2330", "#647082", "#cfd5de", "#e8ebf0", "#f3f5f8", "#ffffff"
BLUE, VERMILLION = "#0072b2", "#d55e00"
"""Two of the colours that Okabe and Ito chose to be told apart by everyone."""

TITLE, BODY, SMALL = 12.0, 9.5, 8.5
LINE, ASCENT = 1.45, 0.76
"""Height of a line of text, and of its letters above the baseline, in units of its size."""
NOTE: dict[str, Any] = {"size": SMALL, "color": MUTED}
MARGIN = 0.3
"""Inches between the left edge and the title."""

# A folder name with two dollar signs is no formula.
_STYLE: dict[str, Any] = {
    "font.size": BODY,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
}


class Sheet(Figure):
    """A figure measured in inches from its upper left corner; a notebook shows it sharply by itself."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, facecolor=PAPER)

    def area(self, x: float, y: float, width: float, height: float) -> Axes:
        """Return axes whose upper left corner is (x, y)."""
        across, down = self.get_size_inches()
        return self.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))

    def write(self, x: float, y: float, text: str, *, size: float = BODY, **font: Any) -> None:
        """Write lines of text from y downward, which begin, or by `ha` end or are centred, at x."""
        across, down = self.get_size_inches()
        for number, line in enumerate(text.split("\n")):
            # By their baselines: tops differ with the letters, and neighbours would dance.
            baseline = y + (ASCENT + number * LINE) * size / 72
            self.text(x / across, 1 - baseline / down, line, size=size, **font)

    def title(self, title: str, note: str = "", x: float = MARGIN) -> None:
        """Write the title of the sheet, and under it in one line what is shown."""
        self.write(x, 0.2, title, size=TITLE, weight="bold")
        self.write(x, 0.46, note, **NOTE)

    def tile(self, x: float, y: float, width: float, height: float, picture: np.ndarray | None) -> Axes:
        """Place a picture, H×W×3; its pixels stay squares with sharp edges. None leaves an empty box."""
        axes = self.area(x, y, width, height)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=picture is None, color=FAINT, linestyle=(0, (3, 3)))
        if picture is None:
            axes.set_facecolor(WASH)
            return axes
        smaller = max(picture.shape[:2]) > DPI * max(width, height)
        axes.imshow(picture, interpolation="antialiased" if smaller else "nearest", aspect="auto")
        return axes

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # A notebook that never imported pyplot would show only the object's name.
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        size = {"image/png": {"width": width, "height": height}}
        return {"image/png": to_png(self), "text/plain": repr(self)}, size


_P = ParamSpec("_P")


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    """Draw in the house style; a letter that matplotlib's font lacks is drawn as a box, without a warning."""
    with warnings.catch_warnings(), matplotlib.style.context(["default", _STYLE]):
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from font", UserWarning)
        yield


def in_one_look(draw: Callable[_P, Sheet]) -> Callable[_P, Sheet]:
    """Make a function draw in the house style, whatever settings of matplotlib the user has changed."""

    @functools.wraps(draw)
    def draw_styled(*args: _P.args, **options: _P.kwargs) -> Sheet:
        with _styled():
            sheet = draw(*args, **options)
            sheet.draw_without_rendering()  # ticks are made when first drawn, in the style of that moment
        return sheet

    return draw_styled


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    file = io.BytesIO()
    with _styled():
        # Without matplotlib's version in it, the same picture is the same file.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def as_picture(image: Tensor) -> np.ndarray:
    """Return a uint8 C×H×W image as H×W×3; one channel becomes grey."""
    colours = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return colours.permute(1, 2, 0).contiguous().numpy()


def dots_a_pixel(side: int, inches: float) -> float:
    """Return how many dots of a figure one pixel of an image takes; whole, so that all are equally wide."""
    exact = inches * DPI / side
    return float(round(exact)) if exact >= 1 else exact


def width_of(text: str, size: float = BODY, weight: str = "normal") -> float:
    """Return the width of one line of text, in inches."""
    font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def fitted(text: str, width: float, size: float = BODY, weight: str = "normal") -> str:
    """Return text on one line, shortened with … where it is wider than `width` inches."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    if width_of(line, size, weight) <= width:
        return line
    while line and width_of(line + "…", size, weight) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def keep_apart(positions: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Move positions until neighbours are `gap` apart, in the same order, within low…high if they fit."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    up, down, last = list(positions), list(positions), len(positions) - 1
    for before, after in itertools.pairwise(order):
        up[after] = max(up[after], up[before] + gap)
    for after, before in itertools.pairwise(reversed(order)):
        down[before] = min(down[before], down[after] - gap)
    for rank, index in enumerate(order):
        middle = (up[index] + down[index]) / 2
        up[index] = max(low + rank * gap, min(middle, high - (last - rank) * gap))
    return up
