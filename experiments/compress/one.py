"""The recipe on one model: open it, cut the text, evaluate, write the files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.compress import page, results
from experiments.model_arguments import made
from outliers.access import open_decoder, sequences
from outliers.compression import study


@dataclass(frozen=True)
class Options:
    """text, sequences, length: as `outliers.access.sequences` takes them. dtype: of weights and computation."""

    text: str | None
    sequences: int
    length: int | None
    dtype: str


def compress(model: str, out: Path, options: Options, progress: Callable[[str, int, int], None]) -> Path:
    """Do it, and return the path of the page.

    progress: see `study`. InputError: one line on what is wrong with the model, the text or the folder.
    """
    decoder = open_decoder(model, options.dtype)
    text = sequences(decoder, options.text, count=options.sequences, length=options.length)
    evaluated_BT, calibrating_BT = study.split(text.tokens)
    made(out)
    calibration = study.calibrated(decoder, calibrating_BT)
    table = study.study(decoder, evaluated_BT, calibration, progress=progress)
    subject = results.Subject(decoder, text, len(evaluated_BT), len(calibrating_BT))
    results.write(out, table, subject)
    return page.write(out, table, subject)
