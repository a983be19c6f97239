"""How every figure of the house looks, and how it is shown and saved."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.figure import Figure as MatplotlibFigure

INK, QUIET, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe & Ito: told apart by every eye
_STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
}


class Figure(MatplotlibFigure):
    """A matplotlib figure that a notebook shows as it is, whatever backend is set."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def to_png(figure: MatplotlibFigure, dpi: int = 130) -> bytes:
    """Return the figure as a PNG file."""
    target = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(target, format="png", dpi=dpi, facecolor="white")
    return target.getvalue()


@contextlib.contextmanager
def figure_of(width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure of width×height inches to draw on, in the house's style."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")
