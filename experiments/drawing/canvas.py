"""How every figure looks: matplotlib's Agg canvas, one style, and figures as PNG bytes.

Figures are drawn on white, small enough that a phone's width shows them at a readable size.
"""

import io
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESOLUTION = 144
INK = "#333333"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "figure.dpi": RESOLUTION,
}


@dataclass(frozen=True)
class Picture:
    """A finished figure. `name` is its file's stem, `wide` means that it needs the whole width of the page.

    png: None where there is nothing to draw and the caption says all.
    """

    name: str
    title: str
    caption: str
    png: bytes | None
    wide: bool = False
    minor: bool = False


def canvas(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        # A fixed metadata block: the same runs give the same bytes.
        figure.savefig(buffer, format="png", dpi=RESOLUTION, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def save(folder: Path, pictures: Iterable[Picture], prefix: str = "") -> None:
    """Write what was drawn to folder/<prefix><name>.png; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        if picture.png:
            (folder / f"{file_name(prefix + picture.name)}.png").write_bytes(picture.png)


def file_name(text: str) -> str:
    """A name without what file systems and shells mind."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "_", text)


def wrapped(label: str, width: int = 26) -> str:
    """A variant's name broken into lines: after a comma, a dot or an underscore where it is too long."""
    spaced = label.replace(",", ", ")
    lines = textwrap.wrap(spaced, width, break_long_words=False) or [label]
    return "\n".join(part for line in lines for part in _broken(line, width))


def _broken(line: str, width: int) -> list[str]:
    parts = []
    while len(line.rstrip(",")) > width:  # a comma may hang over the edge
        cut = max(line.rfind(mark, 0, width) for mark in "._=")
        cut = cut + 1 if cut > 0 else width
        parts.append(line[:cut])
        line = line[cut:]
    return [*parts, line]
