"""Position and sinks: magnitudes by layer and token class, attention by key, layer and head."""

import textwrap

import matplotlib as mpl
import numpy as np
import pyarrow as pa

from experiments.analyze.axes import colours, indices, logarithmic, over_layers
from experiments.analyze.selection import by_layer, grid, select
from experiments.drawing.canvas import STYLE, Picture, canvas, render
from experiments.drawing.spikes import share
from experiments.drawing.words import number
from outliers.access.decoder import MATRICES
from outliers.analysis.token_kinds import KINDS
from outliers.attention import OUTLIER_SHARE

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555")
HEAD_METRICS = {
    "first_key_mass": "first key, raw",
    "first_key_mass_normalised": "first key, share of real keys",
    "first_key_mass_gated": "first key, gate-weighted",
    "explicit_sink_mass": "explicit sink",
    "sink_rate@0.3": "sink rate",
    "value_drain": "value norm, first / others",
    "gate_mean": "mean gate",
    "dormant_inputs": "share of inputs dormant",
}
KEYS = 48


def layer_figures(table: pa.Table) -> list[Picture]:
    """All pictures of where outliers and sinks are."""
    pictures = []
    for site, title in (("block_output", "block output"), ("down_input", "down projection's input")):
        lines = {s: by_layer(table, "magnitude", site=site, statistic=s) for s in ("top1", "top2", "top3", "median")}
        nulls = {
            "top1, random tokens": by_layer(table, "magnitude", "null_random", site=site, statistic="top1"),
            "top1, initial weights": by_layer(table, "magnitude", "null_initial", site=site, statistic="top1"),
        }
        pictures.append(lines_picture(f"by-layer-{site}", f"Largest magnitudes, {title}", lines, nulls))
        kinds = {k: by_layer(table, "magnitude", site=site, kind=k, statistic="top1") for k in KINDS}
        kinds = {kind: values for kind, values in kinds.items() if len(values)}
        pictures.append(lines_picture(f"by-class-{site}", f"Largest magnitude by token class, {title}", kinds, {}))
    metric = "weight_column_max_to_mean"
    ratios = {
        "maximum": by_layer(table, metric, site="down", statistic="max"),
        "median": by_layer(table, metric, site="down", statistic="median"),
    }
    null = {"maximum, initial weights": by_layer(table, metric, "null_initial", site="down", statistic="max")}
    pictures.append(lines_picture("down-columns", "Down projection: max / mean of a column", ratios, null, "ratio"))
    pictures.append(modules_picture(table))
    received = grid(select(table, "received", layer=None, position=None), "layer", "position")
    if received.size:
        caption = "Σ over queries of the head-averaged weight, over T; 2502.06415 calls a key an outlier from 0.1"
        pictures.append(keys_picture("received", "Attention received by each key", caption, received, OUTLIER_SHARE))
        pictures.append(heads_picture(table))
    rates = grid(select(table, "sink_rate@0.3_key", layer=None, position=None), "layer", "position")
    if rates.size:
        caption = "Share of heads and sequences in which the queries that see the key give it more than 0.3 in the mean"
        pictures.append(keys_picture("sink-keys", "Sink rate of each key", caption, rates, 1.0))
    return pictures


def lines_picture(
    name: str,
    title: str,
    lines: dict[str, np.ndarray],
    nulls: dict[str, np.ndarray],
    unit: str = "|x|, mean over sequences",
) -> Picture:
    """One logarithmic line a statistic against the layer; nulls dashed."""
    figure = canvas(5.0, 3.7)
    with mpl.rc_context(STYLE):
        axes = figure.add_axes((0.15, 0.14, 0.81, 0.62))
        for (label, values), colour in zip(lines.items(), COLOURS, strict=False):
            axes.plot(np.arange(len(values)), values, color=colour, marker="o", markersize=3, label=label)
        marks = "x+" if len(next(iter(lines.values()))) == 1 else ("", "")  # one point draws no line
        for (label, values), dash, mark in zip(nulls.items(), ((0, (5, 2)), (0, (1, 1.5))), marks, strict=False):
            axes.plot(np.arange(len(values)), values, color="#777777", linestyle=dash, marker=mark, label=label)
        logarithmic(axes)
        over_layers(axes, max(map(len, lines.values())))
        axes.set_ylabel(unit)
        figure.suptitle(title, x=0.02, ha="left", y=0.985, fontsize=10)
        columns = 4 if len(lines) + len(nulls) == 4 else 3
        figure.legend(loc="upper left", bbox_to_anchor=(0.01, 0.93), ncols=columns, fontsize=7.5, columnspacing=1.0)
    return Picture(name, title, "", render(figure))


def modules_picture(table: pa.Table) -> Picture:
    """Weight outliers of every matrix, layers by modules, as 2502.06415 compares modules."""
    both = [f"weight_{way}_max_to_mean" for way in ("column", "row")]
    names = [name for name in MATRICES if len(by_layer(table, both[0], site=name, statistic="max"))]
    values, initial = (
        np.array([np.max([by_layer(table, m, kind, site=n, statistic="max") for m in both], 0) for n in names])
        for kind in ("value", "null_initial")
    )
    wide, tall = 2.2 + min(6.5, 0.45 * values.shape[1]), 1.0 + 0.26 * len(names)
    figure = canvas(wide, tall)
    with mpl.rc_context(STYLE):
        axes = figure.add_axes(share(figure, (0.6, 0.55, wide - 1.6, tall - 0.75)))
        image = axes.imshow(values, vmin=0, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("layer")
        indices(axes.xaxis, values.shape[1])
        axes.grid(False)
        colours(figure, image, (wide - 0.85, 0.55, 0.12, tall - 0.75))
    caption = (
        "Largest |w| over the mean of its column or row, whichever ratio is larger. With initial weights "
        f"{number(float(initial.min()))} to {number(float(initial.max()))}."
    )
    return Picture("modules", "Weight outliers by module", caption, render(figure), wide=True)


def keys_picture(name: str, title: str, caption: str, values: np.ndarray, least: float) -> Picture:
    """A number of each of the first keys, by layer. least: how far the colours reach at least."""
    shown = values[:, :KEYS]
    wide, tall = min(10.5, 2 + 0.18 * shown.shape[1]), 1.3 + 0.2 * len(shown)
    figure = canvas(wide, tall)
    top = max(least, float(np.nanmax(shown)))
    with mpl.rc_context(STYLE):
        axes = figure.add_axes(share(figure, (0.7, 0.5, wide - 1.7, tall - 0.8)))
        image = axes.imshow(shown, vmin=0, vmax=top, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set(xlabel="key", ylabel="layer")
        indices(axes.yaxis, len(shown))
        axes.grid(False)
        colours(figure, image, (wide - 0.85, 0.5, 0.12, tall - 0.8))
    return Picture(name, title, f"{caption}. The first {shown.shape[1]} keys.", render(figure), wide=True)


def heads_picture(table: pa.Table) -> Picture:
    """Panels of layers by heads, one a metric."""
    grids = {m: grid(select(table, m, layer=None, head=None), "layer", "head") for m in HEAD_METRICS}
    grids = {metric: values for metric, values in grids.items() if values.size}
    columns = min(4, len(grids))
    lines = -(-len(grids) // columns)
    L, H = next(iter(grids.values())).shape
    wide, tall = 2.7, 0.95 + min(2.6, max(0.5, 0.2 * L))
    figure = canvas(wide * columns, tall * lines)
    with mpl.rc_context(STYLE):
        for i, (metric, values) in enumerate(grids.items()):
            row, column = divmod(i, columns)
            box = (column * wide + 0.45, (lines - 1 - row) * tall + 0.45, wide - 1.15, tall - 0.95)
            axes = figure.add_axes(share(figure, box))
            top = 1.0 if metric != "value_drain" and np.nanmax(values) <= 1 else max(1.0, float(np.nanmax(values)))
            image = axes.imshow(values, vmin=0, vmax=top, cmap="viridis", aspect="auto", interpolation="nearest")
            axes.set_title("\n".join(textwrap.wrap(HEAD_METRICS[metric], 24)), fontsize=8.5)
            axes.set(xlabel="head", ylabel="layer")
            axes.grid(False)
            indices(axes.xaxis, H)
            indices(axes.yaxis, L)
            colours(figure, image, (column * wide + wide - 0.62, box[1], 0.1, box[3]))
    return Picture("heads", "Sinks by layer and head", "Means over sequences.", render(figure), wide=True)
