"""Maps: outlier metrics by layer and step, and attention to the first key by layer and head."""

import textwrap
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from experiments.drawing.canvas import Picture, canvas, render, wrapped
from experiments.drawing.words import number
from experiments.report.comparison import Comparison, Variant
from experiments.report.sentence import sentence
from experiments.runs import Run
from outliers.definitions import DEFINITIONS, Definition

COLOUR_MAP = "viridis"
# The rows of the picture of attention by layer and head: metric and what it is called there.
HEAD_ROWS = (
    ("first_key_mass_gated", "first key,\ngate-weighted"),
    ("first_key_mass", "first key,\nraw"),
    ("explicit_sink_mass", "explicit sink\n(moved to a slot)"),
)
Grid = tuple[np.ndarray, np.ndarray]


def maps(comparison: Comparison) -> list[Picture]:
    """Attention by head, the sentence, then by layer and step: all attention metrics, and each of the others."""
    layered = [layer_maps(comparison, d) for d in DEFINITIONS.values() if d.scope not in ("head", "model")]
    pictures = (head_maps(comparison), sentence(comparison), attention_maps(comparison), *layered)
    return [picture for picture in pictures if picture is not None]


@lru_cache(maxsize=512)
def _rows(run: Run) -> dict[tuple[str, str], np.ndarray]:
    """(metric, site) -> (n, 4) float64: step, layer, head and value of every row on the probe's text, without medians.

    Read once a run: a filter of the whole table for each of a hundred pictures would take longer than drawing them.
    """
    found: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    columns = ("inputs", "statistic", "metric", "site", "step", "layer", "head", "value")
    table = run.probes
    for inputs, statistic, metric, site, *numbers in (
        zip(*(table[name].to_pylist() for name in columns), strict=True) if table is not None else ()
    ):
        if inputs == "probe" and statistic in ("value", "max"):
            found[metric, site].append(tuple(numbers))
    return {key: np.array(rows, dtype=np.float64) for key, rows in found.items()}


def layer_grid(run: Run, metric: str, site: str) -> Grid | None:
    """(steps, values (layer, step)) of one metric at one site on the probe's text; None where it was not measured.

    Over a layer's heads: the mean, or the maximum where the metric's headline is one.
    """
    rows = _rows(run).get((metric, site), np.empty((0, 4)))
    rows = rows[rows[:, 1] >= 0]
    if not len(rows):
        return None
    steps, columns = np.unique(rows[:, 0].astype(int), return_inverse=True)
    layers, values = rows[:, 1].astype(int), rows[:, 3]
    headlines = DEFINITIONS[metric].headlines
    if headlines and headlines[0].reduction == "max":
        grid = np.full((layers.max() + 1, len(steps)), -np.inf)
        np.maximum.at(grid, (layers, columns), values)
        return steps, np.where(np.isneginf(grid), np.nan, grid)
    sums, counts = np.zeros((2, layers.max() + 1, len(steps)))
    np.add.at(sums, (layers, columns), values)
    np.add.at(counts, (layers, columns), 1)
    return steps, np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def head_grid(run: Run, metric: str) -> np.ndarray | None:
    """(layer, head) of a metric at the run's last probe on the probe's text; None where it was not measured."""
    rows = _rows(run).get((metric, ""), np.empty((0, 4)))
    rows = rows[rows[:, 2] >= 0]
    if not len(rows):
        return None
    rows = rows[rows[:, 0] == rows[:, 0].max()]
    layers, heads = rows[:, 1].astype(int), rows[:, 2].astype(int)
    grid = np.full((layers.max() + 1, heads.max() + 1), np.nan)
    grid[layers, heads] = rows[:, 3]
    return grid


def layer_maps(comparison: Comparison, definition: Definition) -> Picture | None:
    """Rows: sites; columns: variants; each row shares one colour scale. Mean over seeds."""
    found = [_row(comparison, definition, site, site.replace("_", " ")) for site in definition.sites or ("",)]
    rows = [row for row in found if row is not None]
    if not rows:
        return None
    settings = [run.setting for run in comparison.baseline.runs.values() if run.setting is not None]
    closed = definition.null.closed_form(settings[0]) if definition.null.closed_form and settings else None
    told = [] if definition.unit == "1" else [f"Unit: {definition.unit}."]
    told += [] if closed is None else [f"Closed-form null: {number(closed)}."]
    same = [_same(row) for row in rows]
    drawn = None in same or len(set(same)) > 1
    if not drawn:
        told.append(f"It is {number(same[0])} everywhere: at every site, layer and step, in every variant.")
    return Picture(
        f"layers-{definition.id}",
        f"{definition.title}, by layer and step",
        " ".join(told),
        render(_draw(comparison, rows, "step")) if drawn else None,
        wide=True,
        minor=not definition.headline,
    )


def attention_maps(comparison: Comparison) -> Picture | None:
    """Rows: the attention metrics, over a layer's heads; columns: variants. What is one number throughout is told."""
    rows, told = [], []
    for definition in (definition for definition in DEFINITIONS.values() if definition.scope == "head"):
        row = _row(comparison, definition, "", textwrap.fill(definition.title, 19))
        if row is not None and (same := _same(row)) is not None:
            told.append(f"{definition.title}: {number(same)} everywhere.")
        elif row is not None:
            rows.append(row)
    if not rows:
        return None
    return Picture(
        "layers-attention",
        "Attention, by layer and step",
        " ".join(["Mean over a layer’s heads, of the logit the maximum.", *told]),
        render(_draw(comparison, rows, "step")),
        wide=True,
    )


def _row(comparison: Comparison, definition: Definition, site: str, name: str) -> "Row | None":
    grids = {v.label: grid for v in comparison.variants if (grid := _mean_grid(v, definition.id, site)) is not None}
    if not grids:
        return None
    blocks = {label: Block(grid, [str(step) for step in steps]) for label, (steps, grid) in grids.items()}
    return Row(name, blocks, _norm([grid for _, grid in grids.values()], share=definition.unit.startswith("share")))


def _same(row: "Row") -> float | None:
    """The one value of all a row's panels, or None where there are several."""
    values = np.unique(np.concatenate([block.grid.ravel() for block in row.blocks.values()]))
    return float(values[0]) if len(values) == 1 else None


def head_maps(comparison: Comparison) -> Picture | None:
    """Attention to the first key by layer and head at the last probe, the explicit mass beside it; mean over seeds."""
    rows = []
    for metric, name in HEAD_ROWS:
        blocks = {}
        for variant in comparison.variants:
            found = [grid for run in variant.runs.values() if (grid := head_grid(run, metric)) is not None]
            if found and len({grid.shape for grid in found}) == 1:
                heads = [str(head) for head in range(found[0].shape[1])]
                blocks[variant.label] = Block(np.mean(found, axis=0), heads)
        if blocks:
            rows.append(Row(name, blocks, Normalize(0, 1)))
    if not rows:
        return None
    return Picture(
        "first-key",
        "Attention to the first key, by layer and head",
        "Share of attention at the last probe. Mass in an explicit sink has been moved to a slot, not removed.",
        render(_draw(comparison, rows, "head", values=True)),
        wide=True,
    )


def _mean_grid(variant: Variant, metric: str, site: str) -> Grid | None:
    """Mean over the variant's seeds, at the steps that all of its probed runs have."""
    found = [grid for run in variant.runs.values() if (grid := layer_grid(run, metric, site)) is not None]
    if not found or len({len(grid) for _, grid in found}) > 1:
        return None
    steps = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in found)))
    if not steps:
        return None
    return np.array(steps), np.mean([grid[:, np.isin(where, steps)] for where, grid in found], axis=0)


@dataclass(frozen=True)
class Block:
    """One panel: a grid (layer, column) and its columns' names."""

    grid: np.ndarray
    columns: list[str]


@dataclass(frozen=True)
class Row:
    """A row of panels by variant, under one colour scale."""

    name: str
    blocks: dict[str, Block]
    norm: Normalize


def _draw(comparison: Comparison, rows: list[Row], across: str, *, values: bool = False) -> Figure:
    """All panels in one pair of axes whose unit is the inch: dozens of axes would take matplotlib half a minute."""
    widest = max(len(block.columns) for row in rows for block in row.blocks.values())
    panel = max(1.7, min(3.2, (0.32 if values else 0.12) * widest))
    left, gap, right, bottom = 1.45, 0.16, 0.85, 0.5
    titles = [wrapped(variant.label, int(panel * 11)) for variant in comparison.variants]
    top = 0.12 + 0.17 * max(title.count("\n") + 1 for title in titles)
    heights = [max(0.46, min(2.4, 0.2 * max(len(b.grid) for b in row.blocks.values()))) for row in rows]
    width = left + len(titles) * (panel + gap) + right
    height = top + sum(heights) + 0.2 * (len(rows) - 1) + bottom
    figure = canvas(width, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    y = height - top
    for variant, title, x in zip(comparison.variants, titles, _columns(left, panel + gap, len(titles)), strict=True):
        axes.text(x, y + 0.07, title, color=variant.colour, fontsize=9.5, va="bottom", linespacing=1.1)
    for row, tall in zip(rows, heights, strict=True):
        y -= tall
        axes.text(0.06, y + tall / 2, row.name, fontsize=8.5, va="center")
        layers = max(len(block.grid) for block in row.blocks.values())
        for layer in range(0, layers, max(1, -(-layers // max(1, int(tall / 0.17))))):
            axes.text(left - 0.06, y + (layer + 0.5) * tall / layers, str(layer), fontsize=7.5, ha="right", va="center")
        for variant, x in zip(comparison.variants, _columns(left, panel + gap, len(titles)), strict=True):
            if variant.label in row.blocks:
                _panel(axes, row.blocks[variant.label], row.norm, (x, y, panel, tall), values)
            else:
                axes.text(
                    x + panel / 2, y + tall / 2, "not measured", fontsize=8, color="#777777", ha="center", va="center"
                )
        _scale(axes, row.norm, width - right + 0.02, y, tall)
        y -= 0.2
    for x in _columns(left, panel + gap, len(titles)):
        _ticks(axes, next(iter(rows[-1].blocks.values())).columns, x, y + 0.2, panel)
        axes.text(x + panel / 2, y - 0.09, across, fontsize=8.5, ha="center", va="center")
    axes.text(left - 0.06, y + 0.08, "layer", fontsize=7.5, ha="right", va="center")
    axes.set(xlim=(0, width), ylim=(0, height))
    return figure


def _columns(left: float, step: float, count: int) -> list[float]:
    return [left + i * step for i in range(count)]


def _panel(axes: Axes, block: Block, norm: Normalize, box: tuple[float, float, float, float], values: bool) -> None:
    x, y, wide, tall = box
    layers, columns = block.grid.shape
    extent = (x, x + wide, y, y + tall)
    axes.imshow(
        block.grid, extent=extent, norm=norm, cmap=COLOUR_MAP, aspect="auto", origin="lower", interpolation="nearest"
    )
    if values and columns <= 8 and layers <= 12:
        for (layer, column), value in np.ndenumerate(block.grid):
            where = x + (column + 0.5) * wide / columns, y + (layer + 0.5) * tall / layers
            ink = "white" if norm(value) < 0.6 else "black"
            axes.text(*where, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)


def _ticks(axes: Axes, names: list[str], x: float, y: float, wide: float) -> None:
    shown = range(len(names)) if len(names) <= 8 and max(map(len, names)) < 3 else {0, len(names) // 2, len(names) - 1}
    for i in shown:
        axes.text(x + (i + 0.5) * wide / len(names), y - 0.09, names[i], fontsize=7.5, ha="center", va="center")


def _scale(axes: Axes, norm: Normalize, x: float, y: float, tall: float) -> None:
    """A colour bar with the numbers of its ends."""
    gradient = np.linspace(0, 1, 64)[:, None]
    axes.imshow(gradient, extent=(x, x + 0.11, y, y + tall), cmap=COLOUR_MAP, aspect="auto", origin="lower")
    for value, where, side in ((norm.vmin, y, "bottom"), (norm.vmax, y + tall, "top")):
        axes.text(x + 0.16, where, f"{value:.3g}", fontsize=7.5, va=side)
    if isinstance(norm, LogNorm):
        axes.text(x + 0.16, y + tall / 2, "log", fontsize=7, va="center", color="#777777")


def _norm(grids: list[np.ndarray], share: bool) -> Normalize:
    """One scale for all; logarithmic where the values span more than a factor of 30, but for shares, which are read
    against 1."""
    every = np.concatenate([grid.ravel() for grid in grids])
    every = every[np.isfinite(every)]
    if not len(every):
        return Normalize(0, 1)
    low, high = float(every.min()), float(every.max())
    if not share and low > 0 and high / low > 30:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)
