"""The page's tables of what was done to a model and what came of it. Cells are HTML."""

import math
from html import escape

import pyarrow as pa

from experiments.analyze.selection import by_layer, select
from experiments.drawing.words import number, signed
from experiments.dynamics import CLEAR, CURVES, FEWEST, Onset, before, outcome, set_in
from outliers.analysis.channels import CHANGES, RATIO, SITES
from outliers.analysis.interventions import ACTIONS, MARGIN

VERDICTS = {1.0: ("yes", "true"), 0.0: ("no", "fake"), -1.0: ("yes", "harmful")}
UNDECIDED = ("na", "undecided")
COMPARED = {
    "weight_activation": "Channels: activations and down projections",
    "activation_attention": "Positions: activations and attention",
}
CHANGED = {
    "gains_to_1": "Outlier gains set to 1",
    "gains_to_mean": "Outlier gains set to their norm’s mean",
    "columns_rescaled": "Triggering columns of W_q scaled to the median norm",
}


def html_table(names: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML already; the first of a row is its heading."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def one(table: pa.Table, metric: str, **coordinates: object) -> float | None:
    """The only number of that metric and place, None where there is none."""
    found = select(table, metric, **coordinates)["value"]
    return found[0].as_py() if len(found) else None


def life(table: pa.Table) -> str:
    """Which token and channel the figures follow."""
    positions = select(table, "outlier_position", sequence=None)["value"].to_pylist()
    first = sum(position == 0 for position in positions)
    over = {}
    for value in ("value", "null_random", "null_initial"):
        own, others = (by_layer(table, f"life_{name}_top1", value, site="block_output") for name in ("token", "others"))
        over[value] = number(float((own / others).max()))
    return (
        f"<p>Followed: channel {one(table, 'outlier_channel'):.0f}, the largest of the block outputs, at the token of "
        f"each sequence where it is largest (the first token in {first} of {len(positions)}). In a block output this "
        f"token’s largest |x| is up to {over['value']} times the other tokens’ median, with initial weights "
        f"{over['null_initial']}: where the two are close, an ordinary value is followed. On random tokens it is "
        f"{over['null_random']}; an outlier that needs no particular text is as large there.</p>"
    )


def agreement(table: pa.Table) -> str:
    """Overlap and intersection over union, each beside its mean under permutation."""
    rows = []
    for metric, title in COMPARED.items():
        for criterion, words in (("coded", "coded criteria"), ("largest", "the largest")):
            found = {
                name: one(table, f"{metric}_{name}", statistic=criterion)
                for name in ("overlap", "iou", "overlap_permuted", "iou_permuted", "p", "sets")
            }
            if found["overlap"] is None:
                rows.append([f"{title}, {words}", *["–"] * 4])
                continue
            pairs = [f"{number(found[n])} (permuted {number(found[f'{n}_permuted'])})" for n in ("overlap", "iou")]
            rows.append([f"{title}, {words}", *pairs, number(found["p"]), f"{found['sets']:.0f}"])
    note = (
        "Overlap: |A ∩ B| / |A|, A the activations’ set. The largest: three channels, or one position a sequence. "
        "p: the share of permutations that overlap as much. –: no activation is an outlier by the coded criterion."
    )
    names = ["Sets", "Overlap", "Intersection over union", "p", "Pairs of sets"]
    return html_table(names, rows) + f'<p class="soft">{note}</p>'


def changes(table: pa.Table, tau: float) -> str:
    """The loss change of each action at each place that has outliers, and the verdict."""
    rows = []
    for row in select(table, "outliers", site=None, layer=None).to_pylist():
        if not row["value"]:
            continue
        place = {"site": row["site"], "layer": row["layer"]}
        cells = []
        for action in ACTIONS:
            change = one(table, "loss_change", statistic=action, **place)
            cells.append(plus_minus(change, one(table, "loss_change_error", statistic=action, **place)))
        kind, word = VERDICTS.get(one(table, "outliers_used", **place), UNDECIDED)
        layer = "" if row["layer"] < 0 else str(row["layer"])
        verdict = f'<span class="tag {kind}">{word}</span>'
        rows.append([f"<code>{row['site']}</code>", layer, f"{row['value']:,.0f}", *cells, verdict])
    if not rows:
        return (
            f"<p>No activation at any site is above {tau:g} times its sequence’s mean |x|: nothing to change. A "
            "smaller --tau changes smaller ones.</p>"
        )
    names = [
        "Site",
        "Layer",
        "Outliers",
        "Set to 0",
        "Set to their mean",
        "Clipped",
        "As many random entries to 0",
        "Verdict",
    ]
    note = (
        "Change of the loss in nats per token ± its standard error over sequences, which a single sequence does not "
        f"have. True (used): setting the outliers to 0 costs more than {MARGIN:g} nats beyond two standard errors; "
        "harmful (used): it gains as much; fake (only carried): it does neither, beyond two standard errors; "
        "undecided: the noise does not tell."
    )
    return html_table(names, rows) + f'<p class="soft">{note}</p>'


def undone(table: pa.Table) -> str:
    """Outlier gains and triggering columns, and loss and channels with each kind undone."""
    named = []
    for metric, title in (("outlier_gain", "Norm gain"), ("triggering_column", "Column of W_q")):
        for row in select(table, metric, site=None, layer=None, channel=None).to_pylist():
            layer = "last norm" if row["layer"] < 0 else str(row["layer"])
            named.append((row["value"], [title, f"<code>{escape(row['site'])}</code>", layer, str(row["channel"])]))
    named.sort(key=lambda entry: -entry[0])
    sizes = f'<p class="soft">{largest_ratios(table)}</p>'
    if not named:
        return f"<p>No norm gain and no column of W_q is above {RATIO:g} times its median: nothing to undo.</p>{sizes}"
    rows = [[*cells, number(value)] for value, cells in named[:12]]
    more = f'<p class="soft">The largest 12 of {len(named)}.</p>' if len(named) > 12 else ""
    before = [_largest(table, site, "before") for site in SITES]
    after = [["Before", "–", "–", *map(number, before)]]
    for name in CHANGES:
        count = one(table, "channels_changed", statistic=name) or 0
        change = one(table, "channels_loss_change", statistic=name)
        error = one(table, "channels_loss_change_error", statistic=name)
        cost = "–" if change is None else plus_minus(change, error)
        cells = ["–"] * len(SITES) if change is None else [number(_largest(table, site, name)) for site in SITES]
        after.append([CHANGED[name], f"{count:.0f}", cost, *cells])
    names = ["", "Changed", "Loss change (nats ± standard error)", *(f"<code>{site}</code>" for site in SITES)]
    return (
        html_table(["What", "Site", "Layer", "Channel", "Over the median"], rows) + more + sizes
        + "<h3>Undone</h3>" + html_table(names, after)
        + '<p class="soft">At the sites: largest over median channel maximum, the largest over layers.</p>'
    )  # fmt: skip


def largest_ratios(table: pa.Table) -> str:
    """The largest gain and column of W_q over their medians, with the null."""
    parts = []
    for metric, title in (("gain_to_median", "norm gain"), ("query_column_to_median", "column of W_q")):
        rows = select(table, metric, site=None, layer=None, statistic="max")
        here, initial = (number(max(rows[name].to_pylist())) for name in ("value", "null_initial"))
        parts.append(f"the largest {title} is {here} times its median (initial weights: {initial})")
    return f"In the whole model, {', '.join(parts)}."


def plus_minus(change: float, error: float) -> str:
    """A change and its standard error, where it has one."""
    return f"{signed(change)} ± {number(error)}" if math.isfinite(error) else signed(change)


def _largest(table: pa.Table, site: str, statistic: str) -> float | None:
    values = select(table, "channel_ratio_after", site=site, layer=None, statistic=statistic)["value"].to_pylist()
    return max(values, default=None)


def onsets(found: dict[str, Onset | None]) -> str:
    """The steps at which a run's curves set in, in their order, and what the probes cannot tell apart."""
    if not found:
        return "<p>This run has logged none of the curves whose onset is looked for.</p>"
    rows, earlier = [], None
    for name, at in found.items():
        step = between = moved = order = "–"
        said = "not clear"
        if at is not None:
            moved, said = f"{number(at.start)} → {number(at.end)}", outcome(name, at)
            if at.gone is not None:
                said += f": from step {at.step:,.0f} to {at.gone:,.0f}"
        if at is not None and set_in(name, at):
            step, between = f"{at.step:,.0f}", f"{at.low:,.0f} to {at.high:,.0f}"
            order = (
                "" if earlier is None else "after the one above" if before(earlier, at) else "not told apart from it"
            )
            earlier = at
        rows.append([escape(CURVES[name]), said, step, between, moved, order])
    note = (
        "Sets in: moves to where more outliers lie, and is there at the end of the run. The step is where the curve is "
        "halfway from its first value to the farthest one; the bounds hold the distance between probes and twice the "
        f"curve’s noise. Not clear: fewer than {FEWEST} probes, or a movement below {CLEAR} times the curve’s noise or "
        "a tenth of its size."
    )
    names = ["What", "Outcome", "Step", "Between", "From → to", "Order"]
    return html_table(names, rows) + f'<p class="soft">{note}</p>'
