"""Existence: one sentence's magnitudes in 3-D, the down projections' weights, and attention maps."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis

from experiments.analyze.axes import colours
from experiments.drawing.canvas import STYLE, Picture, canvas, render
from experiments.drawing.spikes import Names, share, spikes
from outliers.access import Decoder
from outliers.analysis.sentence import Sentence

PANELS = 6
COLUMNS = 3
FINEST = 192  # columns that a panel can show: more are pooled by their maximum, so that no outlier is left out
LINES = 48
COLOUR = "#0072B2"


def sentence_figures(decoder: Decoder, sentence: Sentence) -> list[Picture]:
    """All pictures of one sentence, and the weights of the down projections in the same layers."""
    layers = shown_layers(sentence.block_output.max((1, 2)))
    text = f"First {len(sentence.texts)} tokens of the text. One height scale for all panels"
    outputs = {n: sentence.block_output[n] for n in layers}
    inputs = {n: sentence.down_input[n] for n in shown_layers(sentence.down_input.max((1, 2)))}
    weights = {n: decoder.matrices(n)["down"].float().abs().cpu().numpy() for n in layers}
    of_outputs, of_inputs = f"|h| after the block. {text}", f"After the MLP's activation. {text}"
    of_weights = "|W| of the matrix that writes the MLP's output"
    pictures = [
        spike_picture("block-output", "Magnitudes of block outputs", of_outputs, outputs, texts=sentence.texts),
        spike_picture("down-input", "The down projection's input", of_inputs, inputs, texts=sentence.texts),
        spike_picture("down-weights", "Down projections", of_weights, weights, ("input", "output"), "|W|"),
    ]
    if sentence.attention is not None:
        averaged = sentence.attention.mean(1)
        strongest = int(sentence.attention[:, :, 1:, 0].mean((1, 2)).argmax()) if len(sentence.texts) > 1 else 0
        pictures.append(
            map_picture("attention", "Attention, mean over heads",
                        "Rows: queries; columns: keys. Colour: the weight, before a gate.",
                        {f"layer {n}": averaged[n] for n in shown_layers(averaged[:, :, 0].mean(1))})
        )  # fmt: skip
        heads = {f"head {h}": heads for h, heads in enumerate(sentence.attention[strongest][:16])}
        caption = f"As above, layer {strongest}, where the first key receives the most" + (
            "." if sentence.attention.shape[1] <= 16 else "; the first 16 heads."
        )
        pictures.append(map_picture("attention-heads", "Attention by head", caption, heads, columns=4))
    return pictures


def shown_layers(size_L: np.ndarray) -> list[int]:
    """At most six layers: the first, the last, the one with the largest size, the others evenly between."""
    L = len(size_L)
    chosen = {0, L - 1, int(np.argmax(size_L))}
    for n in np.linspace(0, L - 1, PANELS).round().astype(int).tolist():
        if len(chosen) < min(PANELS, L):
            chosen.add(n)
    return sorted(chosen)


def pooled(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """At most `size` entries along an axis, each the largest of its neighbours."""
    length = values.shape[axis]
    if length <= size:
        return values
    return np.maximum.reduceat(values, np.arange(size) * length // size, axis=axis)


def spike_picture(
    name: str, title: str, caption: str, magnitudes: dict[int, np.ndarray],
    names: Names = ("channel", "token"), height: str = "|x|", texts: Sequence[str] = (),
) -> Picture:  # fmt: skip
    """One 3-D panel a layer, its largest value named above it."""
    wide, tall, head = 3.6, 3.2, 0.5
    columns = 2 if len(magnitudes) == 4 else min(COLUMNS, len(magnitudes))
    lines = -(-len(magnitudes) // columns)
    top = max(float(values.max()) for values in magnitudes.values())
    shape = next(iter(magnitudes.values())).shape
    figure = canvas(wide * columns, (tall + head) * lines)
    with mpl.rc_context(STYLE):
        for i, (layer, values) in enumerate(magnitudes.items()):
            row, column = divmod(i, columns)
            # A 3-D axes keeps wide margins inside its box: a box larger than its cell uses the cell.
            box = (column * wide - 0.1, (lines - 1 - row) * (tall + head) - 0.1, wide - 0.05, tall + 0.3)
            axes = figure.add_axes(share(figure, box), projection="3d")
            drawn = pooled(pooled(values, FINEST, 1), LINES, 0)
            spikes(axes, drawn, COLOUR, top, names)
            ticks(axes.xaxis, values.shape[1], drawn.shape[1])
            ticks(axes.yaxis, values.shape[0], drawn.shape[0], from_zero=False)  # it would touch the other axis's last
            left, above = share(figure, ((column + 0.5) * wide, (lines - row) * (tall + head) - 0.08, 0, 0))[:2]
            figure.text(left, above, f"layer {layer}", fontsize=9.5, color=COLOUR, ha="center", va="top")
            below = above - 0.2 / figure.get_figheight()
            figure.text(left, below, largest(values, names, height, texts), fontsize=7.5, ha="center", va="top")
    return Picture(name, title, f"{caption}{pooling(shape, names)}.", render(figure), wide=True)


def pooling(shape: tuple[int, int], names: Names) -> str:
    """Says how many lines and columns stand behind a drawn point; empty where it is one."""
    lines, columns = shape
    parts = [
        f"{-(-length // most)} neighbouring {name}s"
        for length, most, name in ((columns, FINEST, names[0]), (lines, LINES, names[1]))
        if length > most
    ]
    return f"; every point is the largest of up to {' × '.join(parts)}" if parts else ""


def ticks(axis: Axis, length: int, drawn: int, *, from_zero: bool = True) -> None:
    """The first, the middle and the last column or line, by their number before pooling."""
    named = {0: 0, drawn // 2: drawn // 2 * length // drawn, drawn - 1: length - 1}
    if not from_zero and drawn > 1:
        del named[0]
    axis.set_ticks(list(named), [str(number) for number in named.values()])


def largest(values: np.ndarray, names: Names, height: str, texts: Sequence[str]) -> str:
    """Where the largest value of a panel stands."""
    line, column = np.unravel_index(int(values.argmax()), values.shape)
    token = f" {texts[line]!r}" if texts else ""
    return f"largest {height} {values[line, column]:.3g}: {names[1]} {line}{token}, {names[0]} {column}"


def map_picture(name: str, title: str, caption: str, maps: dict[str, np.ndarray], columns: int = COLUMNS) -> Picture:
    """Attention maps from 0 to 1 on one colour scale."""
    columns = 2 if len(maps) == 4 and columns == COLUMNS else min(columns, len(maps))
    lines = -(-len(maps) // columns)
    side = 2.9 if columns <= COLUMNS else 2.3
    figure = canvas(side * columns + 0.7, (side + 0.25) * lines + 0.1)
    tall = figure.get_figheight()
    with mpl.rc_context(STYLE):
        for i, (label, values) in enumerate(maps.items()):
            row, column = divmod(i, columns)
            box = (column * side + 0.45, tall - (row + 1) * (side + 0.25) + 0.3, side - 0.6, side - 0.35)
            axes = figure.add_axes(share(figure, box))
            image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
            axes.set_title(label, fontsize=8.5)
            axes.grid(False)
            axes.tick_params(labelsize=7)
        colours(figure, image, (side * columns + 0.1, 0.4, 0.12, tall - 0.8))
    return Picture(name, title, caption, render(figure), wide=True)
