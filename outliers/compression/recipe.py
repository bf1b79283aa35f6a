"""The frozen table of settings. Another table gets another version: numbers of one version can be compared."""

from dataclasses import dataclass, replace
from typing import Literal

from outliers.compression.prune import Share

VERSION = "compress-1"

# Where the input of each matrix is found.
INPUTS = {
    "q": "norm_attention",
    "k": "norm_attention",
    "v": "norm_attention",
    "o": "out_input",
    "up": "norm_mlp",
    "gate": "norm_mlp",
    "down": "down_input",
}
# The classes of activations that are quantised alone.
CLASSES = {
    "qkv": ("norm_attention",),
    "o": ("out_input",),
    "up": ("norm_mlp",),
    "down": ("down_input",),
    "residual": ("block_output",),
    "kv": ("k", "v"),
}
LINEAR_INPUTS = ("norm_attention", "out_input", "norm_mlp", "down_input")
EVERYWHERE = (
    *LINEAR_INPUTS, "q", "k", "v", "attention_output", "up", "gate", "mlp_output", "block_output", "norm_final",
)  # fmt: skip
SPARSITIES: tuple[Share, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, "2:4")

RANGES: dict[Literal["absmax", "zero_point"], str] = {"absmax": "absmax", "zero_point": "zero-point"}

Group = Literal["weights", "weights and activations", "one class of activations", "pruning", "full precision", "null"]


@dataclass(frozen=True)
class Weights:
    """one: the range is that of a tensor, or of a channel (one output's inputs).

    range: absmax; zero_point; least_squares (AbsMax with the range of the smallest squared error); or the null
    gaussian: AbsMax with the range that Gaussian entries of the same root mean square would have, nothing clipped.
    """

    bits: int
    range: Literal["absmax", "zero_point", "least_squares", "gaussian"]
    one: Literal["tensor", "channel"]


@dataclass(frozen=True)
class Activations:
    """one: tensor or channel, static, from calibration; or token, its own.

    range: absmax; zero_point; running (zero-point from percentiles averaged over batches); gaussian as for weights.
    """

    bits: int
    range: Literal["absmax", "zero_point", "running", "gaussian"]
    one: Literal["tensor", "channel", "token"]
    sites: tuple[str, ...] = LINEAR_INPUTS


@dataclass(frozen=True)
class Pruning:
    """kind: magnitude, wanda, or the null random, a mask by chance."""

    kind: Literal["magnitude", "wanda", "random"]
    share: Share


@dataclass(frozen=True)
class Setting:
    """One row of the table: what is done to weights, to activations, or which weights go."""

    name: str
    group: Group
    weights: Weights | None = None
    activations: Activations | None = None
    pruning: Pruning | None = None


def null(setting: Setting) -> Setting | None:
    """What the same bits or the same share cost where nothing stands out; None where there is no such null."""
    if setting.pruning is not None:
        return Setting(
            f"random {label(setting.pruning.share)}", "null", pruning=replace(setting.pruning, kind="random")
        )
    weights, activations = setting.weights, setting.activations
    if activations is not None and activations.range == "running":
        return None
    return Setting(
        f"{setting.name}, Gaussian",
        "null",
        weights=weights and replace(weights, range="gaussian"),
        activations=activations and replace(activations, range="gaussian"),
    )


def label(share: Share) -> str:
    """`50 %`, or `2:4`."""
    return share if isinstance(share, str) else f"{share:.0%}".replace("%", " %")


def _quantised(name: str, weights: Weights, activations: Activations | None = None) -> Setting:
    return Setting(name, "weights and activations" if activations else "weights", weights, activations)


SETTINGS: tuple[Setting, ...] = (
    *(
        _quantised(f"w{bits} {word} per {one}", Weights(bits, kind, one))
        for bits in (8, 4)
        for kind, word in RANGES.items()
        for one in ("tensor", "channel")
    ),
    _quantised("w8a8 absmax", Weights(8, "absmax", "tensor"), Activations(8, "absmax", "tensor")),
    _quantised("w8a8 qualcomm", Weights(8, "least_squares", "tensor"), Activations(8, "running", "tensor", EVERYWHERE)),
    _quantised("w8a8 zero-point", Weights(8, "zero_point", "tensor"), Activations(8, "zero_point", "tensor")),
    _quantised("w4a4 absmax", Weights(4, "absmax", "tensor"), Activations(4, "absmax", "tensor")),
    *(
        _quantised(
            f"w{bits}a{bits} {RANGES[kind]} per channel, per {one}",
            Weights(bits, kind, "channel"),
            Activations(bits, kind, one),
        )
        for bits in (8, 4)
        for kind, one in (("absmax", "token"), ("zero_point", "token"), ("absmax", "channel"))
    ),
    *(
        Setting(f"a8 {name} alone", "one class of activations", activations=Activations(8, "absmax", "tensor", sites))
        for name, sites in CLASSES.items()
    ),
    *(
        Setting(f"{kind} {label(share)}", "pruning", pruning=Pruning(kind, share))
        for kind in ("magnitude", "wanda")
        for share in SPARSITIES
    ),
)
GROUPS = ("weights", "weights and activations", "one class of activations", "pruning")
