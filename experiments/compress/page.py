"""The page of a compression study."""

from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from experiments.compress.figures import figures
from experiments.compress.results import Subject
from experiments.drawing import document
from experiments.drawing.canvas import save
from experiments.drawing.words import counted, number
from outliers.compression.recipe import CLASSES, GROUPS, VERSION

Row = dict[str, Any]
TITLES = {
    "weights": "Weights alone",
    "weights and activations": "Weights and activations",
    "one class of activations": "One class of activations in 8 bits, all else in full precision",
    "pruning": "Pruning",
}
READING = (
    "Gap: log perplexity under the setting minus in full precision, in nats a token, ± its standard error over "
    "sequences (paired). Null: the gap of the same number of bits where every range is that of Gaussian entries of the "
    "same root mean square (so nothing stands out and nothing is clipped), or of a mask by chance. Excess: gap − null; "
    "in bold where it exceeds twice its standard error. A gap within twice its error is noise."
)


def write(out: Path, table: pa.Table, subject: Subject) -> Path:
    """DIR/compression.html and DIR/figures/*.png; returns the page's path."""
    rows = table.to_pylist()
    pictures = figures(rows)
    save(out / "figures", pictures)
    body = [f'<p class="soft">{escape(_setting(rows[0], subject))}</p>', f"<p>{escape(READING)}</p>"]
    body.append('<div class="figures">' + "".join(document.figure(picture) for picture in pictures) + "</div>")
    for group in GROUPS:
        body.append(f"<h3>{escape(TITLES[group])}</h3>{_table([row for row in rows if row['group'] == group])}")
        if group == "one class of activations":
            classes = "; ".join(f"{name}: {', '.join(sites)}" for name, sites in CLASSES.items())
            body.append(f'<p class="soft">Sites of the classes: {escape(classes)}.</p>')
    path = out / "compression.html"
    path.write_text(document.document(f"What compression costs {subject.decoder.name}", "\n".join(body)), "utf-8")
    return path


def _setting(full: Row, subject: Subject) -> str:
    sizes, text = subject.decoder.sizes, subject.text
    bos = "each begins with BOS" if text.bos else "not all begin with BOS"
    return (
        f"Recipe {VERSION}. {counted(sizes.layers, 'layer')}, width {sizes.width}, {counted(sizes.heads, 'head')}. "
        f"{text.name}: {counted(subject.evaluated, 'sequence')} of {subject.length} tokens evaluated, "
        f"{subject.calibrating} more for calibration; {bos}. In full precision "
        f"{_pair(full['nats'], full['nats_se'])} nats a token, perplexity {number(full['perplexity'])}."
    )


def _table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = [number(row["perplexity"]), _pair(row["gap"], row["gap_se"])]
        if row["null"]:
            excess = _pair(row["excess"], row["excess_se"])
            clear = row["excess"] > 2 * row["excess_se"]
            cells += [_pair(row["null_gap"], row["null_gap_se"]), f"<b>{excess}</b>" if clear else excess]
        else:
            cells += ["none", ""]
        lines.append(
            f'<tr><th scope="row">{escape(row["setting"])}</th>' + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"
        )
    return document.table(["Setting", "Perplexity", "Gap", "Null", "Excess"], lines)


def _pair(value: float, error: float) -> str:
    return f"{number(value)} ± {number(error)}"
