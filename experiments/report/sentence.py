"""One sentence in 3-D: the magnitudes of a layer's output over tokens and channels (figure 1 of 2502.06415)."""

import matplotlib as mpl
import numpy as np

from experiments.drawing.canvas import STYLE, Picture, canvas, render, wrapped
from experiments.drawing.spikes import share, spikes
from experiments.report.comparison import Comparison


def sentence(comparison: Comparison) -> Picture | None:
    """|h| of one sentence over tokens and channels in one layer, a panel a variant, the same height scale."""
    seed, arrays = _sentences(comparison)
    if not arrays:
        return None
    baseline = next(iter(arrays.values()))
    layer = int(np.argmax(baseline["block_output"].max(axis=(1, 2))))
    top = max(float(a["block_output"][min(layer, len(a["block_output"]) - 1)].max()) for a in arrays.values())
    shown = [variant for variant in comparison.variants if variant.label in arrays]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    names = [wrapped(variant.label, 34) for variant in shown]
    wide, tall, name = 3.6, 3.2, 0.16 * max(text.count("\n") + 1 for text in names)
    title = 0.34 + name
    figure = canvas(wide * columns, (tall + title) * lines)
    with mpl.rc_context(STYLE):
        for i, variant in enumerate(shown):
            magnitudes = arrays[variant.label]["block_output"]
            row, column = divmod(i, columns)
            # A 3-D axes keeps wide margins inside its box: a box larger than its cell uses the cell.
            box = (column * wide - 0.1, (lines - 1 - row) * (tall + title) - 0.1, wide - 0.05, tall + 0.3)
            axes = figure.add_axes(share(figure, box), projection="3d")
            spikes(axes, magnitudes[min(layer, len(magnitudes) - 1)], variant.colour, top)
            left, above = share(figure, ((column + 0.5) * wide, (lines - row) * (tall + title) - 0.1, 0, 0))[:2]
            figure.text(left, above, names[i], fontsize=9.5, color=variant.colour, ha="center", va="top")
            below = above - (name + 0.08) / figure.get_figheight()
            largest = _largest(magnitudes[min(layer, len(magnitudes) - 1)], arrays[variant.label])
            figure.text(left, below, largest, fontsize=7.5, ha="center", va="top")
    return Picture(
        "sentence", f"One sentence: magnitudes of the block output, layer {layer}",
        f"|h| over tokens and channels after training, seed {seed}; the layer in which {comparison.baseline.label}'s "
        "largest value stands; the same height scale for all. After figure 1 of 2502.06415.",
        render(figure), wide=True,
    )  # fmt: skip


def _sentences(comparison: Comparison) -> tuple[int | None, dict[str, dict[str, np.ndarray]]]:
    """The first seed in which the most variants kept their sentence, and the arrays by variant."""
    best: tuple[int | None, dict[str, dict[str, np.ndarray]]] = (None, {})
    for seed in comparison.seeds:
        arrays = {
            v.label: v.runs[seed].sentence for v in comparison.variants if seed in v.runs and v.runs[seed].sentence
        }
        if len(arrays) > len(best[1]):
            best = (seed, arrays)  # type: ignore[assignment]
    return best


def _largest(magnitudes: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    """Where the largest value stands, with its token's text."""
    token, channel = np.unravel_index(int(magnitudes.argmax()), magnitudes.shape)
    texts = arrays.get("texts")
    name = f" {str(texts[token])!r}" if texts is not None and len(texts) > token else ""
    return f"largest {magnitudes[token, channel]:.3g}: token {token}{name}, channel {channel}"
