"""The report of comparisons as HTML."""

from html import escape

from experiments.drawing.canvas import Picture
from experiments.drawing.document import document, figure
from experiments.drawing.words import counted
from experiments.report import tables
from experiments.report.assess import Assessment
from experiments.report.comparison import Comparison
from experiments.report.onsets import orders
from experiments.report.results import Line
from experiments.report.wording import Findings, findings

BAND = "Line: mean over seeds; band: smallest to largest seed."
MAPS = (
    "Means over seeds. Each line of a panel is a layer, 0 below; by step, each column is a probe. One colour scale for "
    "all variants of a row, its ends at the right."
)


def page(title: str, sections: list[str], names: list[str]) -> str:
    """The whole document. `names` are the sections' headings, for the list of contents."""
    contents = ""
    if len(names) > 1:
        links = " · ".join(f'<a href="#s{i}">{escape(name)}</a>' for i, name in enumerate(names))
        contents = f'<p class="soft">Comparisons: {links} · <a href="#definitions">definitions</a></p>'
    return document(title, f"{contents}\n{''.join(sections)}\n{tables.definitions()}")


def section(
    index: int, comparison: Comparison, assessment: Assessment, lines: list[Line], sets_in: list[Line],
    pictures: list[Picture],
) -> str:  # fmt: skip
    """One comparison: its setting, what it shows, the table, when curves set in, the figures and the run details."""
    curves = "".join(figure(picture) for picture in pictures if not picture.wide)
    maps = "".join(figure(picture) for picture in pictures if picture.wide and not picture.minor)
    minor = "".join(figure(picture) for picture in pictures if picture.minor)
    drawn = f"<h3>Curves</h3>\n<p class=soft>{BAND} Dashed: {escape(comparison.baseline.label)}’s null.</p>"
    drawn += f'<div class="figures">{curves}</div>\n' if curves else "<p>Nothing has been logged yet.</p>\n"
    if maps:
        drawn += f'<h3>Maps</h3>\n<p class="soft">{MAPS}</p><div class="figures">{maps}</div>\n'
    if minor:
        drawn += (
            f'<details><summary>More maps by layer and step</summary><div class="figures">{minor}</div></details>\n'
        )
    onsets = (
        f"<h3>When each sets in</h3>\n{tables.onsets(comparison, sets_in, orders(comparison))}\n" if sets_in else ""
    )
    note = "Differences are variant − baseline, means over pairs of one seed, with 95 % t intervals in brackets."
    return (
        f'<section id="s{index}">\n<h2 class="{"first" if index == 0 else ""}">{escape(comparison.name)}</h2>\n'
        f'<p class="soft">{escape(setting(comparison))}</p>\n'
        f"{blocks(findings(comparison, assessment), assessment.made)}\n"
        f'<p class="soft">{note}</p>'
        f"<h3>Measures by variant</h3>\n{tables.results(comparison, lines)}\n"
        f"{onsets}"
        f"{drawn}"
        f"<details><summary>Nulls</summary>{tables.nulls(comparison, assessment)}</details>\n"
        f"<details><summary>Run details</summary>{tables.runs(comparison)}</details>\n</section>\n"
    )


def blocks(found: Findings, made: int) -> str:
    """What may be concluded, what may not, and what cannot be said, beside each other. made: comparisons assessed."""
    equal = "No measure came out undecided." if made else "Nothing could be assessed."
    listed = "".join(
        f'<div class="{kind}"><h3>{heading}</h3>{_list(sentences, nothing)}</div>'
        for kind, heading, sentences, nothing in (
            ("shows", "What this comparison shows", found.shows, "No difference beyond seed noise was established."),
            ("shows-not", "Where no difference was seen", found.shows_not, equal),
            ("cannot", "What it cannot say", found.cannot, "Nothing."),
        )
    )
    return f'<div class="findings">{listed}</div>'


def setting(comparison: Comparison) -> str:
    """The model, the data and the schedule in one line."""
    option = comparison.baseline_option
    network = option("model.network") or {}
    parts = [counted(network[key], key.removesuffix("s")) for key in ("layers", "heads") if network.get(key)]
    parts += [f"{key} {network[key]}" for key in ("width", "context") if network.get(key)]
    if source := option("data.source"):
        parts.append(f"source {source}")
    steps = max((run.status.max_steps for run in comparison.runs), default=0)
    if steps:
        parts.append(f"{steps:,} steps")
    tokens = max((run.last("tokens") or 0 for run in comparison.runs), default=0)
    if tokens:
        parts.append(f"{tokens:,.0f} training tokens")
    rate = option("model.optimizer.lr")
    if rate is not None:
        parts.append(f"learning rate {rate:g} {comparison.schedule()}".rstrip())
    done = sum(run.finished for run in comparison.runs)
    variants, seeds = len(comparison.variants), comparison.seeds
    parts.append(counted(variants, "variant"))
    parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    parts.append(f"{done} of {len(comparison.runs)} runs finished")
    return "; ".join(parts) + "."


def _list(sentences: list[str], nothing: str) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences or [nothing])}</ul>"
