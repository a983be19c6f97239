"""The one look of all pictures: colours, sizes of type, and a sheet on which things are placed in inches."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

DPI = 150
INK, MUTED, FAINT, GRID, WASH, PAPER = "#1c2330", "#647082", "#cfd5de", "#e8ebf0", "#f3f5f8", "#ffffff"
BLUE, VERMILLION = "#0072b2", "#d55e00"
"""Two of the colours that Okabe and Ito chose to be told apart by everyone."""

TITLE, BODY, SMALL = 12.0, 9.5, 8.5
LINE, ASCENT = 1.45, 0.76
"""Height of a line of text, and of its letters above the baseline, in units of its size."""

# A folder name with two dollar signs is no formula.
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": BODY,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": BODY,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": BODY,
    "ytick.labelsize": BODY,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


class Sheet(Figure):
    """A figure measured in inches from its upper left corner, which a notebook shows sharply by itself."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, facecolor=PAPER)

    def area(self, x: float, y: float, width: float, height: float) -> Axes:
        """Return axes whose upper left corner is (x, y)."""
        across, down = self.get_size_inches()
        return self.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))

    def write(self, x: float, y: float, text: str, *, size: float = BODY, **how: Any) -> None:
        """Write lines of text from y downward, which begin, or by `ha` end or are centred, at x."""
        across, down = self.get_size_inches()
        for number, line in enumerate(text.split("\n")):
            # By their baselines: tops differ with the letters, and neighbours would dance.
            baseline = y + (ASCENT + number * LINE) * size / 72
            self.text(x / across, 1 - baseline / down, line, size=size, **how)

    def tile(self, x: float, y: float, width: float, height: float, picture: np.ndarray | None) -> Axes:
        """Place a picture, H×W×3; its pixels stay squares with sharp edges. None leaves a quiet empty box."""
        axes = self.area(x, y, width, height)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set(visible=picture is None, color=FAINT, linestyle=(0, (3, 3)))
        if picture is None:
            axes.set_facecolor(WASH)
            return axes
        shrunk = max(picture.shape[:2]) > DPI * max(width, height)
        axes.imshow(picture, interpolation="antialiased" if shrunk else "nearest", aspect="auto")
        return axes

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        # A notebook that never imported pyplot would show only the object's name.
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        shown = {"image/png": {"width": width, "height": height}}
        return {"image/png": to_png(self), "text/plain": repr(self)}, shown


_P = ParamSpec("_P")


def in_one_look(draw: Callable[_P, Sheet]) -> Callable[_P, Sheet]:
    """Make a function draw in the look of this module, whatever the user has set."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **options: _P.kwargs) -> Sheet:
        with matplotlib.style.context(["default", _STYLE]):
            sheet = draw(*args, **options)
            sheet.draw_without_rendering()  # ticks are made when first drawn, in the look of that moment
        return sheet

    return drawn


def to_png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    file = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]):
        # Without matplotlib's version in it, the same picture is the same file.
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


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


def spread(places: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Move places apart until neighbours are `gap` away, in the same order, within low…high if they fit."""
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[list[float]] = []  # each: sum of wished-for starts, number of members
    for rank, index in enumerate(order):
        groups.append([places[index] - rank * gap, 1.0])
        # Two neighbours that are too close share their displacement evenly.
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    starts = [total / members for total, members in groups for _ in range(round(members))]
    last = (len(places) - 1) * gap
    clamped = [max(low, min(start, high - last)) for start in starts]
    moved = [0.0] * len(places)
    for rank, index in enumerate(order):
        moved[index] = clamped[rank] + rank * gap
    return moved


def shades(first: str, last: str, name: str) -> ListedColormap:
    """Return 256 colours between two, evenly spaced in perceived lightness and hue (OKLab, Ottosson 2020)."""
    steps = np.linspace(0, 1, 256)[:, None]
    between = _oklab(np.array(to_rgb(first))) * (1 - steps) + _oklab(np.array(to_rgb(last))) * steps
    return ListedColormap([to_hex(colour) for colour in _from_oklab(between)], name=name)


_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _oklab(colour: np.ndarray) -> np.ndarray:
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return np.asarray(_TO_LAB @ np.cbrt(_TO_CONES @ linear))


def _from_oklab(colours: np.ndarray) -> np.ndarray:
    linear = (colours @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(encoded.clip(0, 1))
