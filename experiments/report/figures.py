"""Curves against steps: losses, differences paired by seed, and the probe's headlines beside their nulls."""

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.drawing.canvas import STYLE, Picture, canvas, render, wrapped
from experiments.report.comparison import Comparison, Variant
from experiments.report.measures import LOSS, Measure, at, headlines, nulls, strongest
from experiments.runs import Run

Series = Callable[[Run], tuple[np.ndarray, np.ndarray]]
WIDTH, HEIGHT = 5.0, 3.6


def curves(comparison: Comparison) -> list[Picture]:
    """Training loss, validation loss, its difference from the baseline, and one picture for each other measure."""
    pictures = [
        _curve(
            comparison, "training-loss", "Training loss", "nats per token",
            lambda run: _smooth(*run.series("train/loss")), "Running mean over 1/40 of the steps logged.",
            zoom=True,
        ),
        _curve(
            comparison, "validation-loss", "Validation loss", "nats per token", lambda run: run.series(LOSS),
            "The validation set is fixed.", zoom=True,
        ),
        _difference(comparison),
        *(_measure(comparison, measure) for measure in comparison.measures if not measure.is_loss),
    ]  # fmt: skip
    return [picture for picture in pictures if picture is not None]


def over_seeds(runs: list[Run], series: Series) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, values (seed, step)) over the union of the runs' steps, NaN where a run has none; None if all empty."""
    found = [pair for run in runs if len((pair := series(run))[0])]
    if not found:
        return None
    steps = np.unique(np.concatenate([steps for steps, _ in found]))
    values = np.full((len(found), len(steps)), np.nan)
    for row, (where, what) in zip(values, found, strict=True):
        row[np.searchsorted(steps, where)] = what
    return steps, values


def draw_band(axes: Axes, variant: Variant, steps: np.ndarray, values: np.ndarray, markers: bool) -> None:
    """A variant's mean over seeds with the seeds' range around it."""
    style = {"color": variant.colour, "linestyle": variant.style}
    if markers or len(steps) == 1:
        style |= {"marker": variant.marker, "markersize": 3.4}
    # Every column has at least one seed, so no mean is of nothing.
    axes.plot(steps, np.nanmean(values, axis=0), **style)
    if len(values) > 1:
        axes.fill_between(
            steps, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=variant.colour, alpha=0.18, linewidth=0
        )


def plot(variants: list[Variant], width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes and, above them where it covers no data, the variants' key."""
    labels = [wrapped(variant.label) for variant in variants]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(len(labels), int(width * 14 / (longest + 7))))
    rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
    key = 0.12 + sum(0.06 + 0.15 * max(label.count("\n") + 1 for label in row) for row in rows)
    figure = canvas(width, height + key)
    tall = height + key
    axes = figure.add_axes((0.82 / width, 0.5 / tall, 1 - 1.3 / width, 1 - (0.82 + key) / tall))
    handles = [Line2D([], [], color=variant.colour, linestyle=variant.style, linewidth=2.2) for variant in variants]
    # Matplotlib fills a legend column by column; ordered so that it reads row by row.
    order = [i for start in range(columns) for i in range(start, len(labels), columns)]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper left",
        ncols=columns,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.3,
    )
    return figure, axes


def _curve(
    comparison: Comparison, name: str, title: str, unit: str, series: Series, caption: str, *,
    zoom: bool = False, lines: list[tuple[str, float]] | None = None, markers: bool = False,
    variants: list[Variant] | None = None, varying: bool = False,
) -> Picture | None:  # fmt: skip
    """None where nothing is logged, or, with `varying`, where all is one number, which the table says better."""
    drawn = []
    for variant in variants or comparison.variants:
        found = over_seeds([variant.runs[seed] for seed in sorted(variant.runs)], series)
        if found is not None:
            drawn.append((variant, *found))
    if not drawn or (varying and len(np.unique(np.concatenate([values.ravel() for _, _, values in drawn]))) == 1):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = plot([variant for variant, _, _ in drawn], WIDTH, HEIGHT)
        for variant, steps, values in drawn:
            draw_band(axes, variant, steps, values, markers)
        for text, value in lines or []:
            axes.axhline(value, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                text, (1, value), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                fontsize=7.5, color="#666666", va="center",
            )  # fmt: skip
        if zoom:
            _zoom(axes, [(steps, values) for _, steps, values in drawn])
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(unit)
        axes.set_title(title, loc="left", pad=7)
        axes.margins(x=0.02)
    return Picture(name, title, caption, render(figure))


def _zoom(axes: Axes, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Leave the first tenth of training out of the range: its fall would flatten everything that differs."""
    late = [values[:, steps >= steps[0] + 0.1 * (steps[-1] - steps[0])] for steps, values in drawn if len(steps) > 4]
    finite = np.concatenate([np.empty(0), *(values[np.isfinite(values)] for values in late)])
    if len(finite):
        low, high = float(finite.min()), float(finite.max())
        pad = 0.05 * (high - low) or 0.01
        axes.set_ylim(low - pad, high + pad)


def _difference(comparison: Comparison) -> Picture | None:
    baseline = comparison.baseline

    def difference(run: Run) -> tuple[np.ndarray, np.ndarray]:
        steps, values = run.series(LOSS)
        if run.seed not in baseline.runs:
            return np.empty(0), np.empty(0)
        base_steps, base = baseline.runs[run.seed].series(LOSS)
        shared, ours, theirs = np.intersect1d(steps, base_steps, return_indices=True)
        return shared, values[ours] - base[theirs]

    alike = [variant for variant in comparison.others if not comparison.unlike(variant)]
    if not alike:
        return None
    return _curve(
        comparison, "validation-loss-difference", f"Validation loss − {baseline.label}'s", "nats per token", difference,
        f"Paired by seed: the same tokens, order and initial values. Below 0 is better than {baseline.label}.",
        zoom=True, lines=[("", 0.0)], variants=alike,
    )  # fmt: skip


def _measure(comparison: Comparison, measure: Measure) -> Picture | None:
    def series(run: Run) -> tuple[np.ndarray, np.ndarray]:
        if measure.column:
            return run.series(measure.column)
        points = [(step, value) for step in headlines(run, "probe") if (value := at(run, measure, step)) is not None]
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        return steps, values

    hardest = [strongest(measure, nulls(run, measure)) for run in comparison.baseline.runs.values()]
    known = [value for value in hardest if value is not None]
    lines = [("null", sum(known) / len(known))] if known and measure.worse else []
    return _curve(
        comparison, f"curve-{measure.id}", measure.title, measure.unit, series, "",
        lines=lines, markers=True, varying=True,
    )  # fmt: skip


def _smooth(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    window = len(values) // 40
    if window < 2:
        return steps, values
    return steps[window - 1 :], np.convolve(values, np.ones(window) / window, mode="valid")
