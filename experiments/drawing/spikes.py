"""Magnitudes over two axes in 3-D, as figure 1 of 2502.06415 shows them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Names = tuple[str, str]


def share(figure: Figure, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A box (left, bottom, width, height) in inches as shares of the figure."""
    wide, tall = figure.get_size_inches()
    return box[0] / wide, box[1] / tall, box[2] / wide, box[3] / tall


def spikes(axes: Axes, magnitudes: np.ndarray, colour: str, top: float, names: Names = ("channel", "token")) -> None:
    """Magnitudes (lines, columns) as one sheet a line, up to `top`. names: of the columns and of the lines."""
    lines, columns = magnitudes.shape
    # A sheet a line: those in front hide those behind, as lines alone would not.
    sheets = [[(0, 0), *enumerate(line), (columns - 1, 0)] for line in magnitudes]
    paint = PolyCollection(sheets, facecolors=_pale(colour), edgecolors=colour, linewidths=0.4)
    axes.add_collection3d(paint, zs=np.arange(lines), zdir="y")
    axes.set(xlim=(0, columns - 1), ylim=(0, max(1, lines - 1)))
    axes.set_zlim(0, top * 1.02)
    axes.set_xlabel(names[0], labelpad=-4)
    axes.set_ylabel(names[1], labelpad=-4)
    axes.tick_params(pad=-2, labelsize=7)
    axes.tick_params(axis="z", pad=1)
    axes.zaxis.set_major_locator(MaxNLocator(4))
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect((1, 1, 0.72), zoom=0.9)


def _pale(colour: str) -> tuple[float, float, float]:
    red, green, blue = (1 - 0.22 * (1 - part) for part in to_rgb(colour))
    return red, green, blue
