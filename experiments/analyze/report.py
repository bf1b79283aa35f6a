"""The page of one analysis: the main numbers beside their nulls, single outliers, and the figures."""

from collections import defaultdict
from html import escape

import pyarrow as pa
import pyarrow.compute as pc

from experiments.analyze.selection import select
from experiments.analyze.tables import agreement, changes, html_table, life, onsets, undone
from experiments.drawing.canvas import Picture
from experiments.drawing.document import document, figure
from experiments.drawing.words import number
from experiments.dynamics import Onset
from outliers.access import Decoder
from outliers.analysis.study import Study
from outliers.analysis.survey import DETAILED_SITES, DORMANT
from outliers.analysis.token_kinds import DESCRIPTIONS
from outliers.attention import OUTLIER_SHARE
from outliers.definitions import DEFINITIONS
from outliers.nulls import harmonic_share

LISTED, NAMED_POSITIONS = 12, 4
VALUES = ("value", "null_random", "null_initial", "null_closed")
EXISTENCE = ("block-output", "down-input", "down-weights", "attention", "attention-heads")
POSITION = (
    "by-layer-block_output", "by-class-block_output", "by-layer-down_input", "by-class-down_input", "down-columns",
    "modules", "received",
)  # fmt: skip
SINGLE = dict.fromkeys(("site", "layer", "channel", "sequence", "position", "token", "kind"))  # any of each


def page(
    decoder: Decoder, found: Study, pictures: list[Picture], sets_in: dict[str, Onset | None] | None = None
) -> str:
    """The whole document. sets_in: the run's `dynamics`, None where the model belongs to none."""
    table = found.table
    by_name = {picture.name: picture for picture in pictures}
    sections = [
        setting(decoder, found),
        section("Main numbers", headlines(table)),
        section("Outliers as 2502.06415 codes them", coded(table, found.tau, found.text.tokens.shape[1])),
        section("Existence", gallery(by_name, *EXISTENCE)),
        section("Position", gallery(by_name, *POSITION) + classes() + channels(table)),
        section("Sinks", gallery(by_name, "heads", "sink-keys") + heads(table)),
        section("Life cycle", life(table) + gallery(by_name, "life-operators", "life-channel", "spread")),
        section("Consistency", agreement(table)),
        section("Interventions", changes(table, found.tau)),
        section("Channel-wise outliers", undone(table)),
        section("Dynamics", "" if sets_in is None else onsets(sets_in)),
    ]
    return document(f"Outliers of {decoder.name}", "\n".join(part for part in sections if part))


def section(title: str, body: str) -> str:
    """A heading and what is under it; nothing without a body."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def gallery(pictures: dict[str, Picture], *names: str) -> str:
    """The pictures of those names that were drawn."""
    shown = [figure(pictures[name]) for name in names if name in pictures]
    return f'<div class="figures">{"".join(shown)}</div>' if shown else ""


def setting(decoder: Decoder, found: Study) -> str:
    """What was measured, in a line, and what could not be."""
    sizes, tokens_BT = decoder.sizes, found.text.tokens
    step = "" if decoder.step is None else f" at step {decoder.step:,}"
    parts = (
        f"{counted(sizes.layers, 'layer')}, {counted(sizes.heads, 'head')}, width {sizes.width}, "
        f"MLP {sizes.mlp_width}{step}",
        f"{counted(tokens_BT.shape[0], 'sequence')} of {tokens_BT.shape[1]} tokens: {found.text.name}",
        f"{'each' if found.text.bos else 'none'} begins with the tokenizer's BOS",
    )
    notes = "".join(f"<p><b>Note.</b> {escape(note)}.</p>" for note in found.notes)
    return f'<p class="soft">{escape("; ".join(parts))}. Every number with its nulls: numbers.parquet.</p>{notes}'


def counted(count: int, name: str) -> str:
    """A number and its noun."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def headlines(table: pa.Table) -> str:
    """Each headline of the probe's definitions: the value, and the same reduction of each null."""
    rows = []
    loss = select(table, "loss")
    if loss.num_rows:
        rows.append(["Loss (nats per token)", *(number(loss[name][0].as_py()) for name in VALUES)])
    for definition in DEFINITIONS.values():
        for headline in definition.headlines:
            chosen = select(table, definition.id, site=None, layer=None, head=None, statistic=headline.statistic)
            if headline.sites:
                chosen = chosen.filter(pc.is_in(chosen["site"], pa.array(headline.sites)))
            if not chosen.num_rows:
                continue
            cells = []
            for name in VALUES:
                values = chosen[name].drop_null()
                reduce = pc.max if headline.reduction == "max" else pc.mean
                cells.append(number(reduce(values).as_py() if len(values) else None))
            over = "largest" if headline.reduction == "max" else "mean"
            label = f'{escape(definition.title)}<span class="unit">{over}; {escape(definition.unit)}</span>'
            rows.append([label, *cells])
    note = (
        '<p class="soft">Reduced over layers, heads and sites as docs/metrics.md says. Nulls: the same model on '
        "uniform random tokens, the same text with initial weights, and the closed form where there is one. What forms "
        "on any text reads the same on random tokens, and is no less a sink or an outlier for it.</p>"
    )
    return html_table(["Measure", "Here", "Random tokens", "Initial weights", "Closed form"], rows) + note


def coded(table: pa.Table, tau: float, length: int) -> str:
    """Outlier tokens and keys, grouped by place, position and token class; the largest groups."""
    even = harmonic_share(length)
    warning = (
        f'<p class="soft">Uniform attention over {length} tokens gives the first key {number(even)} of it: in '
        "sequences this short the rule for keys tells nothing.</p>"
    )
    return "".join(
        f"<h3>{title}</h3>{grouped(select(table, metric, **SINGLE), unit)}"
        for metric, title, unit in (
            ("outlier_token", f"Tokens with max |x| above {tau:g} times the sequence's mean |x|", "largest / mean"),
            ("outlier_key", "Keys that receive a tenth of all attention", "share received"),
        )
    ) + (warning if even >= OUTLIER_SHARE else "")


def grouped(rows: pa.Table, unit: str) -> str:
    """A table of the groups with the most members."""
    groups = defaultdict(list)
    for row in rows.to_pylist():
        position = str(row["position"]) if row["position"] < NAMED_POSITIONS else f"{NAMED_POSITIONS} and later"
        groups[row["site"], row["channel"], position, row["kind"]].append(row)
    if not groups:
        return "<p>None.</p>"
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))
    cells = []
    for (site, channel, position, kind), members in largest[:LISTED]:
        layers = [row["layer"] for row in members]
        span = f"{min(layers)} to {max(layers)}" if min(layers) < max(layers) else f"{layers[0]}"
        where = f"<code>{site}</code>, channel {channel}" if site else "attention"
        peak = number(max(row["value"] for row in members))
        cells.append([where, position, kind, span, f"{len(members):,}", peak])
    names = ["Where", "Position", "Token class", "Layers", "Found, over sequences and layers", f"Largest ({unit})"]
    rest = len(largest) - LISTED
    more = f'<p class="soft">{rest} smaller groups are in numbers.parquet.</p>' if rest > 0 else ""
    return html_table(names, cells) + more


def classes() -> str:
    """The rule of the token classes."""
    items = "".join(f"<li><b>{kind}</b>: {escape(text)}</li>" for kind, text in DESCRIPTIONS.items())
    return f"<details><summary>Token classes</summary><ul>{items}</ul></details>"


def channels(table: pa.Table) -> str:
    """The three largest (layer, channel) of each site, by the mean over sequences of the channel's maximum."""
    rows = []
    for site in DETAILED_SITES:
        chosen = select(table, "magnitude", site=site, layer=None, channel=None, statistic="top1")
        chosen = chosen.filter(pc.greater(chosen["channel"], -1))
        best = chosen.take(pc.sort_indices(chosen, [("value", "descending")])[:3])
        for row in best.to_pylist():
            place = {"site": site, "layer": row["layer"], "channel": row["channel"]}
            median = select(table, "magnitude", statistic="median", **place)["value"][0].as_py()
            cells = (row["value"], median, row["null_random"], row["null_initial"])
            rows.append([f"<code>{site}</code>", str(row["layer"]), str(row["channel"]), *map(number, cells)])
    names = ["Site", "Layer", "Channel", "Largest |x|", "Median over tokens", "Random tokens", "Initial weights"]
    note = '<p class="soft">Largest |x|: of the channel over tokens, mean over sequences, as are median and nulls.</p>'
    return "<h3>Largest channels</h3>" + html_table(names, rows) + note


def heads(table: pa.Table) -> str:
    """How many heads are dormant on all, some or no inputs."""
    shares = select(table, "dormant_inputs", layer=None, head=None)["value"].to_pylist()
    if not shares:
        return "<p>This attention does not say what it computes, so its weights were not measured.</p>"
    always, never = sum(s == 1 for s in shares), sum(s == 0 for s in shares)
    return (
        f"<p>A head is dormant on an input where its gated weight on real keys after the first is below {DORMANT:g}. "
        f"Of {counted(len(shares), 'head')}: {always} on every input, {len(shares) - always - never} on some, {never} "
        "on none.</p>"
    )
