"""Life cycle: the outlier token through every operator, what writes its channel, and how attention sees it."""

import matplotlib as mpl
import numpy as np
import pyarrow as pa

from experiments.analyze.axes import PLAIN, colours, indices, logarithmic, over_layers
from experiments.analyze.layer_figures import COLOURS
from experiments.analyze.selection import by_layer, grid, select
from experiments.drawing.canvas import STYLE, Picture, canvas, render
from experiments.drawing.spikes import share
from outliers.analysis.life_cycle import OPERATORS, WRITERS

LINEAR = 10.0  # up to here a linear scale shows more
SPREAD = {
    "spread_q_norm_ratio": "query norm / others'",
    "spread_k_norm_ratio": "key norm / others'",
    "spread_v_norm_ratio": "value norm / others'",
    "spread_logit": "mean logit q·k / √D of its key",
    "spread_logit_others": "mean logit of other keys",
    "spread_probability": "mean weight of its key",
}


def life_figures(table: pa.Table) -> list[Picture]:
    """The three pictures of a life; attention's only where it says what it computes."""
    pictures = [operators_picture(table), channel_picture(table)]
    spread = {m: by_head(table, m) for m in SPREAD}
    spread = {metric: values for metric, values in spread.items() if values.size}
    return [*pictures, spread_picture(spread)] if spread else pictures


def by_head(table: pa.Table, metric: str) -> np.ndarray:
    """(layers,) mean over heads."""
    values = grid(select(table, metric, layer=None, head=None), "layer", "head")
    return values.mean(1) if values.size else np.empty(0)


def operators_picture(table: pa.Table) -> Picture:
    """Operators by layers: the token's largest |x| over the other tokens' median largest."""
    rows = []
    sites = []
    for site in OPERATORS:
        own, others = (by_layer(table, f"life_{name}_top1", site=site) for name in ("token", "others"))
        if len(own):
            sites.append(site)
            rows.append(own / others)
    ratio = np.array(rows)
    wide, tall = 3.2 + min(6.5, 0.45 * ratio.shape[1]), 1.3 + 0.26 * len(sites)
    figure = canvas(wide, tall)
    top = max(2.0, float(np.nanmax(ratio)))
    with mpl.rc_context(STYLE):
        axes = figure.add_axes(share(figure, (1.5, 0.55, wide - 2.6, tall - 0.75)))
        norm = mpl.colors.LogNorm(1, top)
        image = axes.imshow(ratio, norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_yticks(range(len(sites)), [site.replace("_", " ") for site in sites])
        axes.set_xlabel("layer")
        indices(axes.xaxis, ratio.shape[1])
        axes.grid(False)
        logarithmic(colours(figure, image, (wide - 0.95, 0.55, 0.13, tall - 0.75)))
    caption = (
        "Largest |x| of the followed token over the median of the other tokens' largest, both means over sequences: "
        "where it first grows the outlier emerges. Below 1 as 1."
    )
    return Picture("life-operators", "Emergence, operator by operator", caption, render(figure), wide=True)


def channel_picture(table: pa.Table) -> Picture:
    """What each branch writes into the followed channel, and what the residual stream then holds."""
    figure = canvas(5.0, 3.7)
    with mpl.rc_context(STYLE):
        axes = figure.add_axes((0.17, 0.14, 0.79, 0.62))
        for site, colour in zip(WRITERS, COLOURS, strict=False):
            values = by_layer(table, "life_channel_value", site=site)
            style = "-" if site.startswith("block") else "--"
            axes.plot(
                np.arange(len(values)),
                values,
                style,
                color=colour,
                marker="o",
                markersize=3,
                label=site.replace("_", " "),
            )
        if np.abs(axes.dataLim.intervaly).max() > LINEAR:
            axes.set_yscale("symlog", linthresh=1.0)
            axes.yaxis.set_major_formatter(PLAIN)
        axes.set_ylabel("value, mean over sequences")
        over_layers(axes, len(values))
        figure.suptitle("The followed channel at the followed token", x=0.02, ha="left", y=0.985, fontsize=10)
        figure.legend(loc="upper left", bbox_to_anchor=(0.01, 0.93), ncols=2, fontsize=7.5, columnspacing=1.0)
    caption = "A branch of the opposite sign takes the outlier away again."
    return Picture("life-channel", "Emergence and disappearance", caption, render(figure))


def spread_picture(spread: dict[str, np.ndarray]) -> Picture:
    """Small multiples against the layer, means over heads."""
    columns = min(3, len(spread))
    lines = -(-len(spread) // columns)
    wide, tall = 2.9, 2.1
    figure = canvas(wide * columns, tall * lines)
    with mpl.rc_context(STYLE):
        for i, (metric, values) in enumerate(spread.items()):
            row, column = divmod(i, columns)
            box = (column * wide + 0.6, (lines - 1 - row) * tall + 0.5, wide - 0.8, tall - 0.85)
            axes = figure.add_axes(share(figure, box))
            axes.plot(np.arange(len(values)), values, color=COLOURS[0], marker="o", markersize=3, clip_on=False)
            axes.set_title(SPREAD[metric], fontsize=8.5)
            over_layers(axes, len(values))
            if metric == "spread_probability":
                axes.set_ylim(0, 1)
            elif metric.endswith("ratio"):
                axes.axhline(1, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
    caption = (
        "The followed token beside the others of its sequence, means over heads and sequences; dashed: no difference."
    )
    return Picture("spread", "Spread through attention", caption, render(figure), wide=True)
