"""Axes that figures of one model share."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from experiments.drawing.spikes import share

TICKS = 7
PLAIN = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}")


def indices(axis: Axis, count: int) -> None:
    """Whole numbers from 0: layers, heads."""
    axis.set_ticks(np.arange(0, count, -(-count // TICKS)))


def over_layers(axes: Axes, count: int) -> None:
    """Layers to the right; one alone stands in the middle."""
    axes.set_xlim(-0.3, count - 0.7)
    axes.set_xlabel("layer")
    indices(axes.xaxis, count)


def logarithmic(axes: Axes) -> None:
    """A logarithmic height with plain numbers, and so many between the powers of ten that some are always there."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    named = "123456789" if high < 5 * low else "25" if high < 500 * low else ""
    between = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in named else "")
    axes.yaxis.set_major_formatter(PLAIN)
    axes.yaxis.set_minor_formatter(between)


def colours(figure: Figure, image: AxesImage, box: tuple[float, float, float, float]) -> Axes:
    """The scale of an image's colours, in a box in inches."""
    bar = figure.add_axes(share(figure, box))
    figure.colorbar(image, cax=bar)
    bar.tick_params(labelsize=7)
    bar.grid(False)
    return bar
