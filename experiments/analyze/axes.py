"""Axes that figures of one model share."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis

TICKS = 7


def indices(axis: Axis, count: int) -> None:
    """Whole numbers from 0: layers, heads."""
    axis.set_ticks(np.arange(0, count, -(-count // TICKS)))


def over_layers(axes: Axes, count: int) -> None:
    """Layers to the right; one alone stands in the middle."""
    axes.set_xlim(-0.3, count - 0.7)
    axes.set_xlabel("layer")
    indices(axes.xaxis, count)


def logarithmic(axes: Axes) -> None:
    """A logarithmic height with plain numbers; between powers of ten only where there is no room for two of them."""
    axes.set_yscale("log")
    plain = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if high < 10 * low else mpl.ticker.NullFormatter())
