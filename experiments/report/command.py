"""The command: read the runs, assess them, draw, and write DIR/report.html, DIR/results.csv and DIR/figures/*.png."""

from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import Parser

DESCRIPTION = "Rebuild the report of all runs in a folder, finished or not, from what is on disk."


def main(argv: Sequence[str] | None = None) -> int:
    """`report DIR`. Raises InputError where DIR is no directory or holds no run."""
    parser = Parser(prog="train.py report", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", type=Path, help="a comparison's folder, or one with several of them")
    arguments = parser.parse_args(argv)
    print(f"report: {build(arguments.folder)}")
    return 0


def build(folder: Path | str) -> Path:
    """Write the report of every comparison under `folder` and return the path of the HTML file."""
    # Imported here: `report --help` must not wait for torch and matplotlib.
    from experiments.drawing.canvas import save
    from experiments.report import html
    from experiments.report.assess import assess
    from experiments.report.comparison import load
    from experiments.report.figures import curves
    from experiments.report.maps import maps
    from experiments.report.onsets import onset_lines
    from experiments.report.results import as_csv, results

    folder = Path(folder)
    comparisons = load(folder)
    sections, names, said = [], [], []
    for index, comparison in enumerate(comparisons):
        pictures = [*curves(comparison), *maps(comparison)]
        save(folder / "figures", pictures, f"{comparison.name}-" if len(comparisons) > 1 else "")
        assessment = assess(comparison)
        lines = results(comparison, assessment)
        sets_in = onset_lines(comparison)
        said += [(comparison, line) for line in (*lines, *sets_in)]
        sections.append(html.section(index, comparison, assessment, lines, sets_in, pictures))
        names.append(comparison.name)
    (folder / "results.csv").write_text(as_csv(said), encoding="utf-8")
    path = folder / "report.html"
    path.write_text(html.page("Attention variants compared", sections, names), encoding="utf-8")
    return path
