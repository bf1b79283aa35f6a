"""The command: open the model, measure it beside its nulls, draw, and write DIR/report.html, numbers and figures."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from errors import InputError
from experiments.model_arguments import made, model_parser

DESCRIPTION = """\
Analyse the outliers and attention sinks of one model, each number beside its nulls.
MODEL is a run directory, one of its checkpoints, a weights-*.safetensors, or hf:NAME or hf:/folder of Hugging Face's
(GPT-2, LLaMA, Mistral, Qwen2, Qwen3)."""
EPILOG = """\
Layout: DIR/report.html, DIR/numbers.parquet (every number), DIR/figures/*.png
Example: python train.py analyze runs/demo/text/softmax/seed=0 --out runs/analysis"""


def main(argv: Sequence[str] | None = None) -> int:
    """`analyze MODEL --out DIR`. Raises InputError for a model, text or size that does not fit."""
    parser = model_parser(
        "analyze", DESCRIPTION, EPILOG, model="what to analyse", sequences=10, what="sequences of the text"
    )
    parser.add_argument(
        "--tau", type=float, default=1000.0, metavar="X",
        help="an activation is an outlier above X times its sequence's mean |x| (default 1000, as in 2502.06415)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    path = build(arguments)
    print(f"report: {path}")
    return 0


def build(arguments: argparse.Namespace) -> Path:
    """Analyse a model and return the path of the report."""
    # Imported here: `analyze --help` must not wait for torch and matplotlib.
    from experiments.analyze.layer_figures import layer_figures
    from experiments.analyze.life_figures import life_figures
    from experiments.analyze.report import page
    from experiments.analyze.sentence_figures import sentence_figures
    from experiments.drawing.canvas import save
    from experiments.dynamics import dynamics, numbers
    from experiments.runs import Run
    from outliers.access import open_decoder, sequences
    from outliers.analysis.numbers import without_nulls
    from outliers.analysis.study import study
    from outliers.table import write

    if not 1 < arguments.tau < math.inf:
        raise InputError(f"--tau {arguments.tau:g}: give a number above 1")
    decoder = open_decoder(arguments.model)
    text = sequences(decoder, arguments.text, count=arguments.sequences, length=arguments.length)
    out = made(arguments.out)
    found = study(decoder, text, arguments.tau, _say)
    _say("drawing")
    pictures = [*sentence_figures(decoder, found.sentence), *layer_figures(found.table), *life_figures(found.table)]
    save(out / "figures", pictures)
    sets_in = dynamics(Run(decoder.run)) if decoder.run else None
    write(out / "numbers.parquet", found.table, *([without_nulls(numbers(sets_in).table())] if sets_in else []))
    path = out / "report.html"
    path.write_text(page(decoder, found, pictures, sets_in), encoding="utf-8")
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
