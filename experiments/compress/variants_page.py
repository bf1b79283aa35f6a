"""The page, file and figure of a comparison's variants under compression."""

from collections import defaultdict
from html import escape
from pathlib import Path

from experiments.compress.one import Options
from experiments.compress.side_by_side import MAIN, Rows, SideBySide, side_by_side
from experiments.compress.variants_figure import main_settings
from experiments.drawing import document
from experiments.drawing.canvas import save
from experiments.drawing.words import counted
from experiments.report import html, tables
from experiments.report.assess import DIFFERS, LEVEL, NO_DIFFERENCE, NOT_ASSESSABLE, SEEDS_NEEDED
from experiments.report.comparison import Comparison
from experiments.report.results import as_csv
from experiments.report.wording import ONE_VARIANT, Findings, difference, explained, withheld
from outliers.compression.recipe import VERSION
from outliers.compression.study import FULL

READING = (
    "Gap: log perplexity under the setting minus in full precision, in nats a token, mean ± standard deviation over "
    "seeds. Null: the baseline’s gap of the same number of bits where every range is that of Gaussian entries of the "
    "same root mean square, or of a mask by chance. Excess: gap − the variant’s own null. Δ: variant − baseline, "
    "paired by seed, with its 95 % t interval, which is not adjusted for the number of comparisons. The noise over "
    "sequences is on each run’s own page, in the folder named after it. All numbers, not rounded: compression.csv."
)


def write(out: Path, found: list[tuple[Comparison, Rows]], options: Options, left_out: list[str]) -> Path:
    """OUT/compression.html, .csv, figures; returns the page's path. left_out: each run that is not shown, and why."""
    sections, said = [], []
    for comparison, rows in found:
        if not any(rows.values()):
            continue  # all of its runs are left out, and named there
        results = side_by_side(comparison, rows)
        picture = main_settings(comparison, rows)
        save(out / "figures", [picture], f"{comparison.name}-" if len(found) > 1 else "")
        said += [(comparison, line) for line in results.lines]
        sections.append(
            f'<section><h2 class="{"" if sections else "first"}">{escape(comparison.name)}</h2>\n'
            f'<p class="soft">{escape(_setting(comparison, rows, options))}</p>\n'
            f"{html.blocks(_findings(results), _made(results))}\n"
            f'<div class="figures">{document.figure(picture)}</div>\n'
            f"{tables.lines_table(comparison, results.lines, 'Setting', 'the same without outliers')}</section>\n"
        )
    (out / "compression.csv").write_text(as_csv(said), encoding="utf-8")
    omitted = f'<p class="soft">Left out: {escape("; ".join(left_out))}.</p>' if left_out else ""
    path = out / "compression.html"
    body = f"<p>{escape(READING)}</p>{omitted}{''.join(sections)}"
    path.write_text(document.document("What compression costs, by variant", body), encoding="utf-8")
    return path


def _setting(comparison: Comparison, rows: Rows, options: Options) -> str:
    """What was evaluated on what."""
    full = [by_setting[FULL] for seeds in rows.values() for by_setting in seeds.values()]
    texts = {(row["sequences"], row["length"]) for row in full}
    evaluated = "; ".join(f"{counted(sequences, 'sequence')} of {length} tokens" for sequences, length in sorted(texts))
    source = "each run’s validation set" if options.text in (None, "validation") else options.text
    runs = ", ".join(f"{label} {len(seeds)}" for label, seeds in rows.items())
    return (
        f"Recipe {VERSION}, {options.dtype}. Evaluated: {source}, {evaluated}. Runs: {runs}. {html.setting(comparison)}"
    )


def _findings(results: SideBySide) -> Findings:
    """The main settings' verdicts in words, and how many of the others' came out so."""
    cannot = withheld(results.comparison, results.verdicts, "every setting")
    cannot.append(_method(results) if results.verdicts else ONE_VARIANT)
    return Findings(_said(results, DIFFERS), explained(_said(results, NO_DIFFERENCE)), cannot)


def _said(results: SideBySide, word: str) -> list[str]:
    found = defaultdict(list)
    for verdict in results.verdicts:
        if verdict.word == word:
            found[verdict.measure.title].append(difference(verdict))
    sentences = [f"{name}: {'; '.join(found[name])}." for name in MAIN if name in found]
    if more := sum(len(entries) for name, entries in found.items() if name not in MAIN):
        sentences.append(f"Other settings: {counted(more, 'comparison')}, in the table.")
    return sentences


def _made(results: SideBySide) -> int:
    return sum(verdict.word != NOT_ASSESSABLE for verdict in results.verdicts)


def _method(results: SideBySide) -> str:
    main = sum(v.word != NOT_ASSESSABLE and v.measure.title in MAIN for v in results.verdicts)
    return (
        f"Gaps are judged as the report judges its measures: at least {SEEDS_NEEDED} seeds, like settings, and a "
        "baseline whose gap exceeds the Gaussian null in every seed and beyond seed noise (0 for pruning, where a mask "
        "by chance costs more, and for w8a8 qualcomm, which has no null); then a paired t test at "
        f"{LEVEL:g}, corrected by Holm’s method over the {main} assessable comparisons of the main settings "
        f"({'; '.join(MAIN)}), and apart over the {_made(results) - main} of the others. Variants were not matched in "
        "loss for this."
    )
