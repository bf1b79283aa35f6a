"""The report's tables: measures by variant, nulls, runs, definitions. All return HTML with every text escaped."""

import math
from html import escape
from statistics import fmean

from experiments.drawing.document import table
from experiments.drawing.words import number, signed
from experiments.report.assess import DIFFERS, NO_DIFFERENCE, Assessment
from experiments.report.comparison import Comparison
from experiments.report.measures import CLOSED_FORM, INITIALISATION, RANDOM_TOKENS, at
from experiments.report.results import Cell, Line
from experiments.runs import Run
from outliers.definitions import DEFINITIONS, FULL_SITES, NOTATION, SITES, WEIGHT_SITES

EVERYWHERE = {FULL_SITES: "every site but out_input", tuple(SITES): "every site", WEIGHT_SITES: "every matrix"}
TAGS = {DIFFERS: "yes", NO_DIFFERENCE: "no"}
NOTHING = "–"


def results(comparison: Comparison, lines: list[Line]) -> str:
    """Rows are measures, each beside its null; columns are variants."""
    return (
        f"{lines_table(comparison, lines, 'Measure', 'where nothing is learned')}"
        '<p class="soft">Mean ± standard deviation over finished seeds. Δ: paired by seed against the baseline, with '
        "its 95 % t interval. Null: the baseline’s, the hardest of the three listed below; in a cell the variant’s "
        "own, in closed form or else at initialisation. Speed and memory as logged: runs that shared the machine "
        "slowed each other. All numbers, not rounded: results.csv.</p>"
    )


def lines_table(comparison: Comparison, lines: list[Line], what: str, null: str) -> str:
    """Lines as a table under their groups. what, null: the heading of the lines, and what their null is."""
    rows, group = [], ""
    for line in lines:
        if row := line_row(comparison, line):
            if line.group != group:
                rows.append(_group(group := line.group, len(comparison.variants)))
            rows.append(row)
    return table([what, f"Null<span class=unit>{null}</span>", *heads(comparison)], rows, "results")


def heads(comparison: Comparison) -> list[str]:
    """The variants as headings of columns."""
    names = []
    for variant in comparison.variants:
        swatch = f'<span class="swatch" style="background:{variant.colour}"></span>'
        note = "<span class=unit>baseline</span>" if variant is comparison.baseline and comparison.others else ""
        names.append(f"{swatch}{escape(_breakable(variant.label))}{note}")
    return names


def line_row(comparison: Comparison, line: Line, *, with_null: bool = True) -> str:
    """A line as a row, with a column of nulls or without; nothing where no variant has anything in it."""
    cells = [line_cell(line, line.cells.get(variant.label, Cell())) for variant in comparison.variants]
    if all(cell == NOTHING for cell in cells):
        return ""
    unit = "; ".join(part for part in (line.unit, line.detail) if part)
    named = f"{escape(line.title)}{f'<span class=unit>{escape(unit)}</span>' if unit else ''}"
    if with_null:
        null = "" if line.null is None else f'{number(line.null[0])}<span class="unit">{escape(line.null[1])}</span>'
        cells.insert(0, null)
    return f'<tr><th scope="row">{named}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def line_cell(line: Line, cell: Cell) -> str:
    """Mean ± deviation, then under each other what is said with it, the difference, the own null and the verdict."""
    if not cell.values and not cell.note:
        return NOTHING
    show = (lambda value: f"{value:,.0f}".replace("-", "−")) if line.whole else number
    text = ""
    if cell.values and not line.by_seed:
        text = show(cell.mean)
    elif cell.values:
        deviation = cell.deviation
        text = (
            f"<span class=spread>{show(cell.mean)} ± {show(deviation)}</span>" if deviation is not None
            else f"{show(cell.mean)}<span class=delta>{'1 seed' if len(cell.values) == 1 else 'not finite'}</span>"
        )  # fmt: skip
    if cell.span is not None:
        text += f'<span class="delta">between {show(cell.span[0])} and {show(cell.span[1])}</span>'
    text += f'<span class="delta">{escape(cell.note)}</span>' if cell.note else ""
    if (d := cell.difference) is not None:
        span = f" <span>[{signed(d.low)}, {signed(d.high)}]</span>" if math.isfinite(d.low) else ""
        text += f'<span class="delta">Δ {signed(d.mean)}{span}</span>'
    text += "" if cell.own_null is None else f'<span class="delta">null {number(cell.own_null[0])}</span>'
    if (verdict := cell.verdict) is not None:
        tag = TAGS.get(verdict.word, "na")
        text += f'<span class="tag {tag}" title="{escape(verdict.reason)}">{escape(verdict.word)}</span>'
    return text


def onsets(comparison: Comparison, lines: list[Line], sentences: list[str]) -> str:
    """The steps at which curves set in by variant, and the sentences on their order."""
    rows = [line_row(comparison, line, with_null=False) for line in lines]
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        f"{table(['What sets in', *heads(comparison)], rows, 'results')}"
        '<p class="soft">The step at which a curve is halfway from its first value to the farthest one, mean ± '
        "standard deviation over finished seeds; between: from the earliest to the latest step that it may have been "
        "in any seed, by the distance between probes and twice the curve’s noise. None: it does not move clearly, or "
        "has too few probes; a curve that is back by the end of the run, or moves to where fewer outliers lie, has not "
        "set in. A step says when a curve moves, not that it exceeds its null: for that see the table above.</p>"
        + (f"<p>Which before which, beyond the bounds of both:</p><ul>{told}</ul>" if told else "")
    )


def nulls(comparison: Comparison, assessment: Assessment) -> str:
    """Every null of the baseline, and what its trained weights read on random tokens."""
    rows = []
    for measure in comparison.measures:
        null = assessment.nulls.get(measure.id)
        if null is None:
            continue
        runs = comparison.baseline.finished.values()
        trained = [value for run in runs if (value := at(run, measure, None, "random")) is not None]
        cells = [null.parts.get(name) for name in (INITIALISATION, RANDOM_TOKENS, CLOSED_FORM)]
        cells.append(fmean(trained) if trained and not measure.of_weights else None)
        numbers = "".join(f"<td>{number(cell)}</td>" for cell in cells)
        exceeded = "yes" if null.exceeded else null.reason
        rows.append(f'<tr><th scope="row">{escape(measure.title)}</th>{numbers}<td>{escape(exceeded)}</td></tr>')
    label = escape(comparison.baseline.label)
    names = [
        *("Measure", "At initialisation", "Random tokens, untrained", "Closed form"),
        *(f"{label} trained, on random tokens", f"{label} exceeds its null"),
    ]
    return (
        f'<p class="soft">Means over {label}’s finished seeds. The null is the hardest of the first three. '
        "What trained weights read on random tokens is no null: a sink that forms on any text is still a sink.</p>"
        f"{table(names, rows)}"
    )


def runs(comparison: Comparison) -> str:
    """What each run was: state, corpus, device, versions, command. What all have in common is said once."""
    described = [_described(run) for run in comparison.runs]
    shared = [name for name in described[0] if len({run[name] for run in described}) == 1 and len(described) > 1]
    names = [name for name in described[0] if name not in shared]
    rows = [
        "<tr>"
        + "".join(f"<td>{_code(run[name]) if name == 'Command' else escape(run[name])}</td>" for name in names)
        + "</tr>"
        for run in described
    ]
    common = [("Folder", str(comparison.folder)), *((name, described[0][name]) for name in shared)]
    lines = "".join(f"<li>{escape(name)}: {_code(text)}</li>" for name, text in common)
    return f'<ul class="soft">{lines}</ul>{table(names, rows, "runs")}'


def _described(run: Run) -> dict[str, str]:
    versions, command = run.environment.get("versions") or {}, run.environment.get("command") or ""
    return {
        "Variant": run.label,
        "Seed": "–" if run.seed is None else str(run.seed),
        "State": f"{run.status.state}, step {run.status.step:,} of {run.status.max_steps:,}",
        "Corpus hash": (run.corpus or "–")[:16],
        "Device": str(run.environment.get("device") or "–"),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "–",
        "Commit": str(run.environment.get("git_commit") or "–")[:12],
        "Command": " ".join(command) if isinstance(command, list) else str(command),
    }


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def definitions() -> str:
    """The table of definitions that the probe measures by."""
    rows = []
    for d in DEFINITIONS.values():
        cells = (d.formula, d.unit, EVERYWHERE.get(d.sites, ", ".join(d.sites)), d.null.text, d.source)
        named = f"{escape(d.title)}<span class=unit><code>{escape(d.id)}</code></span>"
        rows.append(f'<tr><th scope="row">{named}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>')
    metrics = table(["Metric", "Definition", "Unit", "Sites", "Null", "Source"], rows)
    sites = "".join(f"<li><code>{escape(site)}</code>: {escape(what)}</li>" for site, what in SITES.items())
    return (
        '<section id="definitions"><h2>Definitions</h2><details><summary>Every metric’s definition, null and source'
        f'</summary><p class="soft">{escape(NOTATION)}</p>{metrics}'
        f'<p class="soft">Sites:</p><ul class="soft">{sites}</ul></details></section>'
    )


def _group(title: str, variants: int) -> str:
    return f'<tr class="group"><th colspan="{variants + 2}" scope="colgroup">{escape(title)}</th></tr>'


def _breakable(label: str) -> str:
    """Zero-width spaces where a long name may break."""
    for mark in (",", ".", "_", "="):
        label = label.replace(mark, mark + "\u200b")
    return label
