"""One figure of the main settings: a panel a setting, in it each variant's gaps, seed by seed, beside their nulls."""

from statistics import fmean

import matplotlib as mpl

from experiments.compress.figures import scale_across
from experiments.compress.side_by_side import MAIN, Rows, gap_values, null_gaps
from experiments.drawing.canvas import STYLE, Picture, canvas, render, wrapped
from experiments.drawing.spikes import share
from experiments.report.comparison import Comparison
from outliers.compression.recipe import SETTINGS

COLUMNS, WIDE = 3, 2.5  # panels a row; inches of a panel
PRUNING = {setting.name for setting in SETTINGS if setting.pruning}  # a mask by chance lies far outside the panel
NULL = {"marker": "D", "s": 22, "facecolors": "none", "edgecolors": "#222222"}


def main_settings(comparison: Comparison, rows: Rows) -> Picture:
    """Dots: seeds; bars: their mean; diamonds: the variant's own null, the mean over seeds; none for pruning."""
    variants = [variant for variant in comparison.variants if rows[variant.label]]
    names = [wrapped(variant.label, 20) for variant in variants]
    lines = max(name.count("\n") + 1 for name in names)
    left = 0.35 + 0.07 * max(len(line) for name in names for line in name.split("\n"))
    tall = 0.3 + (0.14 + 0.15 * lines) * len(variants)
    high = tall + 0.75
    down = -(-len(MAIN) // COLUMNS)
    figure = canvas(left + COLUMNS * WIDE, down * high + 0.2)
    with mpl.rc_context(STYLE):
        for i, setting in enumerate(MAIN):
            row, column = divmod(i, COLUMNS)
            box = (left + column * WIDE, (down - 1 - row) * high + 0.65, WIDE - 0.25, tall - 0.1)
            axes = figure.add_axes(share(figure, box))
            drawn = []
            for place, variant in enumerate(variants):
                gaps = gap_values(rows, variant.label, setting)
                nulls = [] if setting in PRUNING else null_gaps(rows, variant.label, setting)
                axes.scatter(gaps, [place] * len(gaps), s=20, color=variant.colour, alpha=0.55, linewidths=0, zorder=3)
                if gaps:
                    axes.scatter([fmean(gaps)], [place], marker="|", s=190, color=variant.colour, zorder=4)
                if nulls:
                    axes.scatter([fmean(nulls)], [place], zorder=5, **NULL)
                drawn += [*gaps, *nulls]
            scale_across(axes, drawn, [])
            axes.set_yticks(range(len(variants)), names if column == 0 else [])
            axes.set_ylim(len(variants) - 0.5, -0.5)
            axes.margins(x=0.08)
            axes.set_title(setting, loc="left", fontsize=9.5)
        figure.text(0.5, 0.02, "gap in log perplexity (nats a token); each panel has its own scale", ha="center")
    caption = (
        "Dots: seeds; bar: their mean; diamond: the variant’s own null, the same bits with the ranges of Gaussian "
        "entries, the mean over seeds. The null of pruning, a mask by chance, is in the table. Left is better."
    )
    if any(len(gap_values(rows, v.label, setting)) < len(rows[v.label]) for v in variants for setting in MAIN):
        caption += " Seeds whose gap is not finite are left out."
    return Picture("main-settings", "Main settings by variant", caption, render(figure), wide=True)
