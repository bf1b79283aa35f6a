"""The command: open the model, cut the text, run the recipe, write the files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import Parser, made

DESCRIPTION = """\
What compression costs MODEL, by the frozen recipe compress-1 (docs/compression.md): round-to-nearest quantisation of
weights and activations, of one class of activations at a time, and pruning. Each gap in log perplexity stands beside
its standard error over sequences and its null. Writes DIR/compression.html, .csv, .parquet and DIR/figures/*.png."""
EPILOG = """\
MODEL is a run directory, a checkpoint (last.ckpt, weights-*.safetensors), hf:NAME or hf:/folder.
Example: python train.py compress runs/demo/softmax/seed=0 --out runs/compressed"""


def main(argv: Sequence[str] | None = None) -> int:
    """`compress MODEL --out DIR`. InputError: one line on what is wrong with the model, the text or the folder."""
    parser = Parser(
        prog="train.py compress", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="what to compress; it is only read")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--text", metavar="TEXT",
        help="a file, built-in, validation or random (default: the run's validation set, else built-in)",
    )  # fmt: skip
    parser.add_argument(
        "--sequences", type=int, default=20, metavar="N",
        help="sequences at most; a fifth calibrates, the others are evaluated (default 20)",
    )  # fmt: skip
    parser.add_argument("--length", type=int, metavar="T", help="tokens a sequence (default: the context, at most 256)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default float32)")
    arguments = parser.parse_args(argv)
    print(f"compression: {compress(arguments)}")
    return 0


def compress(arguments: argparse.Namespace) -> Path:
    """Do it, and return the path of the page."""
    # Imported here: --help must not wait for torch.
    from experiments.compress import page, results
    from experiments.progress import Countdown
    from outliers.access import open_decoder, sequences
    from outliers.compression import study

    decoder = open_decoder(arguments.model, arguments.dtype)
    text = sequences(decoder, arguments.text, count=arguments.sequences, length=arguments.length)
    evaluated_BT, calibrating_BT = study.split(text.tokens)
    out = made(arguments.out)
    calibration = study.calibrated(decoder, calibrating_BT)
    with Countdown("compressing") as countdown:
        table = study.study(decoder, evaluated_BT, calibration, progress=countdown.show)
    subject = results.Subject(decoder, text, len(evaluated_BT), len(calibrating_BT))
    results.write(out, table, subject)
    return page.write(out, table, subject)
