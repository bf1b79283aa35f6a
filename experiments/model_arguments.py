"""What the commands that open a trained model read off their command line, in one place."""

import argparse
import tempfile
from pathlib import Path

from errors import InputError
from experiments.arguments import Parser


def model_parser(command: str, description: str, epilog: str, *, model: str, sequences: int, what: str) -> Parser:
    """A parser with MODEL, --out, --text, --sequences and --length.

    model, what: the help of MODEL and --sequences; sequences: the default.
    """
    parser = Parser(
        prog=f"train.py {command}", description=description, epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument(
        "--text", metavar="TEXT",
        help="a file, built-in, validation (of the model's run) or random (default: validation, else built-in)",
    )  # fmt: skip
    parser.add_argument(
        "--sequences", type=int, default=sequences, metavar="N", help=f"{what} (default {sequences})"
    )  # fmt: skip
    parser.add_argument("--length", type=int, metavar="N", help="tokens a sequence (default: the context, at most 256)")
    return parser


def made(out: Path) -> Path:
    """The folder of the results. InputError: a file is in its place, or it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # before all is measured, not after
            pass
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out} is a file, or lies in one; give a folder") from None
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None
    return out
