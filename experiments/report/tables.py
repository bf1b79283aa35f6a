"""The report's tables: measures by variant, nulls, runs, definitions. All return HTML with every text escaped."""

import math
from collections.abc import Callable
from html import escape
from statistics import fmean, stdev

from experiments.drawing.document import table
from experiments.drawing.words import number, signed
from experiments.report.assess import DIFFERS, NO_DIFFERENCE, Assessment, own_null, values
from experiments.report.comparison import Comparison, Variant
from experiments.report.measures import CLOSED_FORM, INITIALISATION, RANDOM_TOKENS, Measure, at, measures
from experiments.runs import Run
from outliers.definitions import DEFINITIONS, FULL_SITES, NOTATION, SITES, WEIGHT_SITES

EVERYWHERE = {FULL_SITES: "every site but out_input", tuple(SITES): "every site", WEIGHT_SITES: "every matrix"}
TAGS = {DIFFERS: "yes", NO_DIFFERENCE: "no"}


def results(comparison: Comparison, assessment: Assessment) -> str:
    """Rows are measures, each beside its null; columns are variants."""
    names = ["Measure", "Null<span class=unit>where nothing is learned</span>"]
    for variant in comparison.variants:
        swatch = f'<span class="swatch" style="background:{variant.colour}"></span>'
        note = "<span class=unit>baseline</span>" if variant is comparison.baseline and comparison.others else ""
        names.append(f"{swatch}{escape(_breakable(variant.label))}{note}")
    every = measures()
    rows = [
        _measure_row(comparison, assessment, every[0]),
        _row(
            "Bits per byte", "bits; the loss in another unit", "",
            [_last(v, "validation/bits_per_byte") for v in comparison.variants],
        ),
        _row(
            f"Steps to {comparison.baseline.label}’s final validation loss", "optimizer steps", "",
            [_steps_cell(assessment, v) for v in comparison.variants],
        ),
        *(_measure_row(comparison, assessment, measure) for measure in every[1:] if measure.worse),
        _group("Described, not judged", len(comparison.variants)),
        *(_measure_row(comparison, assessment, measure) for measure in every[1:] if not measure.worse),
        _row("Parameters added", "", "", [_parameters_cell(comparison, v) for v in comparison.variants]),
        _row("Speed", "tokens per second", "", [_time_cell(v, "time/tokens_per_second") for v in comparison.variants]),
        _row("Peak memory", "GiB", "", [_time_cell(v, "time/peak_memory_gib") for v in comparison.variants]),
        _row("Runs", "", "", [escape(_states(v)) for v in comparison.variants]),
    ]  # fmt: skip
    return (
        f"{table(names, rows, 'results')}"
        '<p class="soft">Mean ± standard deviation over finished seeds. Δ: paired by seed against the baseline, with '
        "its 95 % t interval. Null: the baseline’s, the hardest of the three listed below; in a cell the variant’s "
        "own, in closed form or else at initialisation. Speed and memory as logged: runs that shared the machine "
        "slowed each other.</p>"
    )


def nulls(comparison: Comparison, assessment: Assessment) -> str:
    """Every null of the baseline, and what its trained weights read on random tokens."""
    rows = []
    for measure in measures():
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


def _measure_row(comparison: Comparison, assessment: Assessment, measure: Measure) -> str:
    cells = [_measure_cell(comparison, assessment, measure, variant) for variant in comparison.variants]
    unit = "; ".join(part for part in (measure.unit, measure.detail) if part)
    return _row(measure.title, unit, _null_cell(assessment, measure), cells)


def _measure_cell(comparison: Comparison, assessment: Assessment, measure: Measure, variant: Variant) -> str:
    found, runs = values(variant, measure)
    if not found:
        return "–"
    text = _spread(found)
    if not variant.finished:
        text += f'<span class="delta">unfinished: step {max(run.status.step for run in runs):,}</span>'
    verdict = assessment.verdict(measure, variant.label)
    if verdict is not None and verdict.difference is not None:
        d = verdict.difference
        span = f" <span>[{signed(d.low)}, {signed(d.high)}]</span>" if math.isfinite(d.low) else ""
        text += f'<span class="delta">Δ {signed(d.mean)}{span}</span>'
    own = own_null(comparison, measure, runs)
    text += "" if own is None else f'<span class="delta">null {number(own)}</span>'
    if verdict is None:
        return text
    tag = TAGS.get(verdict.word, "na")
    return f'{text}<span class="tag {tag}" title="{escape(verdict.reason)}">{escape(verdict.word)}</span>'


def _null_cell(assessment: Assessment, measure: Measure) -> str:
    null = assessment.nulls.get(measure.id)
    if null is None or null.value is None:
        return ""
    hardest = min(null.parts, key=lambda name: abs(null.parts[name] - null.value))
    return f'{number(null.value)}<span class="unit">{escape(hardest)}</span>'


def _steps_cell(assessment: Assessment, variant: Variant) -> str:
    found = assessment.steps_to.get(variant.label)
    if found is None:
        return "–"
    if found.note:
        return f'<span class="delta">{escape(found.note)}</span>'
    reached = [step for step in found.by_seed.values() if step is not None]
    missed = len(found.by_seed) - len(reached)
    text = _spread(reached, lambda steps: f"{steps:,.0f}") if reached else ""
    return text + (
        f'<span class="delta">not reached in {missed} of {len(found.by_seed)} seeds</span>' if missed else ""
    )


def _parameters_cell(comparison: Comparison, variant: Variant) -> str:
    if variant.parameters is None:
        return "–"
    if variant is comparison.baseline:
        return f'{variant.parameters:,}<span class="delta">in total</span>'
    extra = comparison.extra_parameters(variant)
    if extra is None:
        return f'{variant.parameters:,}<span class="delta">in total</span>'
    return f'{extra[0]:+,}<span class="delta">{extra[1]:+.3%}</span>'.replace("-", "−")


def _time_cell(variant: Variant, column: str) -> str:
    found = []
    for run in variant.runs.values():
        _, logged = run.series(column)
        if len(logged):
            found.append(float(sorted(logged)[len(logged) // 2]))
    return number(fmean(found)) if found else "–"


def _last(variant: Variant, column: str) -> str:
    found = [value for run in (variant.finished or variant.runs).values() if (value := run.last(column)) is not None]
    return _spread(found) if found else "–"


def _spread(found: list[float], show: Callable[[float], str] = number) -> str:
    if len(found) < 2:
        return f"{show(found[0])}<span class=delta>1 seed</span>"
    return f"<span class=spread>{show(fmean(found))} ± {show(stdev(found))}</span>"


def _states(variant: Variant) -> str:
    counts: dict[str, int] = {}
    for run in variant.runs.values():
        counts[run.status.state] = counts.get(run.status.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _row(title: str, unit: str, null: str, cells: list[str]) -> str:
    if all(cell == "–" for cell in cells):
        return ""
    named = f"{escape(title)}{f'<span class=unit>{escape(unit)}</span>' if unit else ''}"
    return f'<tr><th scope="row">{named}</th><td>{null}</td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _group(title: str, variants: int) -> str:
    return f'<tr class="group"><th colspan="{variants + 2}" scope="colgroup">{escape(title)}</th></tr>'


def _breakable(label: str) -> str:
    """Zero-width spaces where a long name may break."""
    for mark in (",", ".", "_", "="):
        label = label.replace(mark, mark + "\u200b")
    return label
