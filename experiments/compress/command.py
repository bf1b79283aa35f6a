"""The command: one model by the recipe, or every finished run of a comparison, side by side."""

from collections.abc import Sequence
from pathlib import Path

from errors import InputError
from experiments.model_arguments import model_parser

DESCRIPTION = """\
What compression costs MODEL, by the frozen recipe compress-1 (docs/compression.md): round-to-nearest quantisation of
weights and activations, of one class of activations at a time, and pruning. Each gap in log perplexity stands beside
its standard error over sequences and its null. Writes DIR/compression.html, .csv, .parquet and DIR/figures/*.png."""
EPILOG = """\
MODEL is a run directory, a checkpoint (last.ckpt, weights-*.safetensors), hf:NAME or hf:/folder; or the folder of a
comparison: every finished run is compressed into DIR/<variant>/seed=<n>/, and the page shows the variants side by
side. What is there already is not done again; of a run that cannot be compressed the last line says why (exit code 2).
Examples: python train.py compress runs/demo/text/softmax/seed=0 --out runs/compressed
          python train.py compress runs/demo/text --out runs/compressed_variants"""


def main(argv: Sequence[str] | None = None) -> int:
    """`compress MODEL --out DIR`.

    InputError: one line on what is wrong with the model, the text or the folder; of several runs, after all others are
    done, which could not be compressed.
    """
    parser = model_parser(
        "compress", DESCRIPTION, EPILOG, model="what to compress; it is only read", sequences=20,
        what="sequences at most; every fifth, 16 in all, calibrates, the others are evaluated",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or float64 (default float32)")
    arguments = parser.parse_args(argv)
    # Imported here: --help must not wait for torch.
    from experiments.compress.one import Options, compress
    from experiments.compress.several import compress_all, holds_several
    from experiments.progress import Countdown

    options = Options(arguments.text, arguments.sequences, arguments.length, arguments.dtype)
    refused: dict[str, str] = {}
    if holds_several(arguments.model):
        path, refused = compress_all(Path(arguments.model).expanduser(), arguments.out, options)
    else:
        with Countdown("compressing") as countdown:
            path = compress(arguments.model, arguments.out, options, countdown.show)
    print(f"compression: {path}", flush=True)
    if refused:
        named = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise InputError(f"not compressed, the page shows the others: {named}")
    return 0
