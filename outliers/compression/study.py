"""Every setting of the recipe on one model: losses, gaps, their noise and their nulls, as one table.

A gap is the difference of log perplexity, in nats a token: positive where compression hurts. Noise is the standard
error over sequences: of the mean for a loss, of the mean of paired differences for a gap. Its null is the gap of
`recipe.null` on the same sequences.
"""

import math
from collections.abc import Callable, Sequence

import pyarrow as pa
import torch
from torch import Tensor

from errors import InputError
from outliers.access import Decoder
from outliers.compression.apply import applied
from outliers.compression.calibrate import Calibration, calibrate
from outliers.compression.recipe import EVERYWHERE, LINEAR_INPUTS, SETTINGS, VERSION, Setting, null

FULL = "full precision"
W8A8 = next(setting for setting in SETTINGS if setting.name == "w8a8 absmax")
CALIBRATING = 16  # sequences at most; a fifth of those there are where that is less

SCHEMA = pa.schema(
    [
        ("recipe", pa.string()),
        ("group", pa.string()),
        ("setting", pa.string()),
        ("nats", pa.float64()),  # −log p a token
        ("nats_se", pa.float64()),  # standard error over sequences; NaN for one sequence
        ("perplexity", pa.float64()),
        ("gap", pa.float64()),  # nats − those in full precision
        ("gap_se", pa.float64()),  # paired
        ("null", pa.string()),  # the null's name; "" where there is none
        ("null_gap", pa.float64()),
        ("null_gap_se", pa.float64()),
        ("excess", pa.float64()),  # gap − null_gap
        ("excess_se", pa.float64()),  # paired
    ]
)


def split(tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(sequences to evaluate, sequences to calibrate with): every fifth calibrates, at most 16. InputError for one."""
    count = len(tokens_BT)
    if count < 2:
        raise InputError(
            "the text makes 1 sequence; one to calibrate with and one to evaluate are needed: give more text or a "
            "smaller --length"
        )
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.arange(count - 1, -1, -5)[:CALIBRATING]] = True
    return tokens_BT[~chosen], tokens_BT[chosen]


def study(
    decoder: Decoder,
    tokens_BT: Tensor,
    calibration: Calibration,
    settings: Sequence[Setting] = SETTINGS,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> pa.Table:
    """Evaluate (B, T) tokens under every setting and its null -> a table of `SCHEMA`, full precision first.

    progress: called before each evaluation with its name and how many are done, of how many.
    """
    nulls = {setting: null(setting) for setting in settings}
    # Settings that do the same have one evaluation: several share a null.
    work = {_key(setting): setting for setting in [*settings, *filter(None, nulls.values())]}
    found: dict[tuple, Tensor] = {}
    progress(FULL, 0, len(work) + 1)
    full_B = decoder.nats(tokens_BT).mean(1)
    for key, setting in work.items():
        progress(setting.name, len(found) + 1, len(work) + 1)
        with applied(decoder, setting, calibration):
            found[key] = decoder.nats(tokens_BT).mean(1)
    rows = [_row(Setting(FULL, "full precision"), full_B, full_B, None, None)]
    for setting, its_null in nulls.items():
        null_B = found[_key(its_null)] if its_null else None
        rows.append(_row(setting, found[_key(setting)], full_B, its_null, null_B))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def w8a8_gap(decoder: Decoder, tokens_BT: Tensor) -> tuple[float, float]:
    """Gap of `w8a8 absmax` and its standard error; of (B, T) tokens every fifth sequence calibrates."""
    evaluated_BT, calibrating_BT = split(tokens_BT)
    calibration = calibrate(decoder, calibrating_BT, LINEAR_INPUTS, percentiles=False)
    full_B = decoder.nats(evaluated_BT).mean(1)
    with applied(decoder, W8A8, calibration):
        return _mean(decoder.nats(evaluated_BT).mean(1) - full_B)


def calibrated(decoder: Decoder, tokens_BT: Tensor) -> Calibration:
    """What `study` needs to know of the sequences (B, T) that are not evaluated."""
    return calibrate(decoder, tokens_BT, EVERYWHERE)


def _key(setting: Setting) -> tuple:
    return setting.weights, setting.activations, setting.pruning


def _row(setting: Setting, nats_B: Tensor, full_B: Tensor, its_null: Setting | None, null_B: Tensor | None) -> dict:
    nats, nats_se = _mean(nats_B)
    row = {"recipe": VERSION, "group": setting.group, "setting": setting.name, "nats": nats, "nats_se": nats_se}
    row["perplexity"] = math.inf if nats > 700 else math.exp(nats)
    row["gap"], row["gap_se"] = _mean(nats_B - full_B)
    row["null"] = its_null.name if its_null else ""
    nothing = torch.full_like(nats_B, math.nan)
    row["null_gap"], row["null_gap_se"] = _mean(nothing if null_B is None else null_B - full_B)
    row["excess"], row["excess_se"] = _mean(nothing if null_B is None else nats_B - null_B)
    return row


def _mean(values_B: Tensor) -> tuple[float, float]:
    """Mean and its standard error; NaN for one value."""
    error = values_B.std() / math.sqrt(len(values_B)) if len(values_B) > 1 else torch.tensor(math.nan)
    return float(values_B.mean()), float(error)
