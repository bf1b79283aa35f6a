"""Figures of a compression study: gaps as bars with their nulls, pruning as curves."""

import math
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drawing.canvas import STYLE, Picture, canvas, render
from outliers.compression.recipe import SETTINGS, SPARSITIES, Pruning

Row = dict[str, Any]
BAR, NULL = "#0072b2", "#e69f00"
KINDS = {"magnitude": "#0072b2", "wanda": "#009e73"}
WIDTH = 4.8  # inches: three of them beside each other are still legible
NOISE = "Whiskers: ± 2 standard errors over sequences, paired."


def figures(rows: list[Row]) -> list[Picture]:
    """All pictures of the rows of a study."""
    quantised = [row for row in rows if row["group"] in ("weights", "weights and activations")]
    classes = [row for row in rows if row["group"] == "one class of activations"]
    null = "Orange: the null, the same grid with the range that Gaussian entries would have."
    alone = f"Everything else in full precision. {null} {NOISE}"
    return [
        _bars("classes", "One class of activations in 8 bits", classes, alone),
        _bars("quantisation", "Weights, and weights with activations", quantised, f"{null} {NOISE}"),
        _pruning(rows),
    ]  # fmt: skip


def scale_across(axes: Axes, gaps: list[float], errors: list[float]) -> None:
    """The scale of gaps from left to right, with few enough labels for a small panel."""
    axes.set_xscale(**scale(gaps, errors))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.grid(axis="y", visible=False)
    axes.set_axisbelow(True)


def scale(gaps: list[float], errors: list[float]) -> dict[str, Any]:
    """A linear axis; where the gaps span a wide range it is linear up to the usual noise and logarithmic above."""
    sizes = sorted(abs(gap) for gap in gaps if math.isfinite(gap) and gap)
    noise = sorted(2 * error for error in errors if math.isfinite(error) and error)
    if not sizes or sizes[-1] < 30 * sizes[len(sizes) // 2]:
        return {"value": "linear"}
    linear = noise[len(noise) // 2] if noise else sizes[len(sizes) // 4]
    return {"value": "symlog", "linthresh": 10 ** math.ceil(math.log10(linear))}


def _bars(name: str, title: str, rows: list[Row], caption: str) -> Picture:
    with mpl.rc_context(STYLE):
        height = 0.9 + 0.27 * len(rows)
        figure: Figure = canvas(WIDTH, height)
        axes = figure.add_axes((0.53, 0.5 / height, 0.44, 1 - 0.85 / height))
        places = range(len(rows), 0, -1)
        axes.barh(
            places,
            [row["gap"] for row in rows],
            xerr=[2 * row["gap_se"] if math.isfinite(row["gap_se"]) else 0.0 for row in rows],
            height=0.6,
            color=BAR,
            error_kw={"elinewidth": 1, "ecolor": "#333333", "capsize": 2},
        )
        # What has no null is NaN there, which is not drawn.
        axes.scatter([row["null_gap"] for row in rows], places, marker="d", s=22, color=NULL, zorder=3)
        gaps = [row[key] for row in rows for key in ("gap", "null_gap")]
        scale_across(axes, gaps, [row["gap_se"] for row in rows])
        axes.set_yticks(list(places), [row["setting"].removesuffix(" alone") for row in rows])
        axes.set_xlabel("gap in log perplexity (nats a token)")
        axes.set_title(title, loc="right")
        return Picture(name, title, caption, render(figure))


def _pruning(rows: list[Row]) -> Picture:
    by_name = {row["setting"]: row for row in rows}
    shares = [share for share in SPARSITIES if not isinstance(share, str)]
    title = "Pruning"
    with mpl.rc_context(STYLE):
        figure = canvas(WIDTH, 3.8)
        axes = figure.add_axes((0.15, 0.14, 0.82, 0.64))
        drawn: list[float] = []
        errors: list[float] = []
        for kind, colour in KINDS.items():
            found = {
                s.pruning.share: by_name[s.name]
                for s in SETTINGS
                if isinstance(s.pruning, Pruning) and s.pruning.kind == kind and s.name in by_name
            }
            curve = [found[share] for share in shares]
            gaps = [row["gap"] for row in curve]
            noise = [2 * row["gap_se"] if math.isfinite(row["gap_se"]) else 0.0 for row in curve]
            axes.errorbar(shares, gaps, yerr=noise, color=colour, marker="o", markersize=3.5, capsize=2, label=kind)
            axes.scatter([0.5], [found["2:4"]["gap"]], color=colour, marker="s", s=26, zorder=3, label=f"{kind}, 2:4")
            drawn += [*gaps, found["2:4"]["gap"]]
            errors += [row["gap_se"] for row in curve]
        chance = [found[share]["null_gap"] for share in shares]
        axes.plot(shares, chance, color=NULL, linestyle="--", marker="d", markersize=3.5, label="by chance (null)")
        axes.set_yscale(**scale([*drawn, *chance], errors))
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.set_xlabel("share of weights that are 0")
        axes.set_ylabel("gap in log perplexity (nats a token)")
        figure.suptitle(title, x=0.97, ha="right", fontsize=10)
        figure.legend(loc="upper left", bbox_to_anchor=(0.05, 0.95), ncols=3)
        return Picture("pruning", title, f"Squares: 2:4. {NOISE}", render(figure))
