"""The whole recipe against docs/compression.md: a network, its calibration, grids and masks in numpy, float64."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_quantise_and_prune import absmax_by_hand, zero_point_by_hand

from models import GPT, GPTConfig
from outliers.access.ours import decoder_of
from outliers.compression import study
from outliers.compression.apply import applied
from outliers.compression.recipe import SETTINGS, SPARSITIES, VERSION, label

LAYERS, HEADS, GROUPS, D, C, T = 2, 4, 2, 8, 32, 24
INPUT = {
    "q": "norm_attention", "k": "norm_attention", "v": "norm_attention", "o": "out_input",
    "up": "norm_mlp", "gate": "norm_mlp", "down": "down_input",
}  # fmt: skip
LINEAR = set(INPUT.values())
CLASSES = {
    "qkv": {"norm_attention"}, "o": {"out_input"}, "up": {"norm_mlp"}, "down": {"down_input"},
    "residual": {"block_output"}, "kv": {"k", "v"},
}  # fmt: skip
Matrices = dict[tuple[str, int], np.ndarray]
Change = Callable[[str, int, np.ndarray], np.ndarray]


def unchanged(site: str, layer: int, x: np.ndarray) -> np.ndarray:
    return x


class ByHand:
    """A SwiGLU network with grouped heads, learned positions and a tied head; its matrices can be replaced."""

    def __init__(self, gpt: GPT):
        self.state = {name: value.numpy().copy() for name, value in gpt.state_dict().items()}
        self.matrices: Matrices = {}
        for layer in range(LAYERS):
            qkv, both = (self.state[f"blocks.{layer}.{name}.weight"] for name in ("attention.qkv", "mlp.up"))
            rows = np.cumsum([HEADS * D, GROUPS * D])
            self.matrices |= {(n, layer): m for n, m in zip("qkv", np.split(qkv, rows), strict=True)}
            self.matrices |= {(n, layer): m for n, m in zip(("up", "gate"), np.split(both, 2), strict=True)}
            self.matrices["o", layer] = self.state[f"blocks.{layer}.attention.out.weight"]
            self.matrices["down", layer] = self.state[f"blocks.{layer}.mlp.down.weight"]

    def nats(self, tokens: np.ndarray, matrices: Matrices, change: Change = unchanged) -> np.ndarray:
        """Mean −log p of each sequence's tokens but the first."""
        h = self.state["embedding.weight"][tokens] + self.state["positions.weight"][: tokens.shape[1]]
        for layer in range(LAYERS):
            h = self.block(h, layer, matrices, change)
        h = change("norm_final", -1, self.norm(h, "norm"))
        logits = h[:, :-1] @ self.state["embedding.weight"].T
        total = np.log(np.exp(logits).sum(-1))
        return (total - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]).mean(1)

    def block(self, h: np.ndarray, layer: int, matrices: Matrices, change: Change) -> np.ndarray:
        def linear(name: str, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
            return x @ matrices[name, layer].T + bias

        def site(name: str, x: np.ndarray) -> np.ndarray:
            return change(name, layer, x)

        prefix, (B, T, _) = f"blocks.{layer}", h.shape
        biases = np.split(self.state[f"{prefix}.attention.qkv.bias"], np.cumsum([HEADS * D, GROUPS * D]))
        x = site("norm_attention", self.norm(h, f"{prefix}.norm_attention"))
        q, k, v = (
            site(name, linear(name, x, bias)).reshape(B, T, -1, D).transpose(0, 2, 1, 3)
            for name, bias in zip("qkv", biases, strict=True)
        )
        k, v = (np.repeat(part, HEADS // GROUPS, axis=1) for part in (k, v))
        scores = np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 1, 3, 2) / math.sqrt(D), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
        y = linear("o", site("out_input", y), self.state[f"{prefix}.attention.out.bias"])
        h = h + site("attention_output", y)
        x = site("norm_mlp", self.norm(h, f"{prefix}.norm_mlp"))
        biases = np.split(self.state[f"{prefix}.mlp.up.bias"], 2)
        up, gate = (site(n, linear(n, x, bias)) for n, bias in zip(("up", "gate"), biases, strict=True))
        x = site("down_input", gate / (1 + np.exp(-gate)) * up)
        y = site("mlp_output", linear("down", x, self.state[f"{prefix}.mlp.down.bias"]))
        return site("block_output", h + y)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


def grid(x: np.ndarray, kind: str, bits: int, axis: int | None, seen: np.ndarray | None = None) -> np.ndarray:
    """On the grid of the ranges of `seen` (default: of x itself) along an axis; None: one range."""
    seen = x if seen is None else seen
    if kind == "absmax":
        return absmax_by_hand(x, abs(seen).max(axis, keepdims=True), bits)
    return zero_point_by_hand(x, seen.min(axis, keepdims=True), seen.max(axis, keepdims=True), bits)


def least_squares(w: np.ndarray) -> np.ndarray:
    steps = [k * (abs(w).max() + 0.5) / 100 / 127 for k in range(1, 101)]
    grids = [np.clip(np.rint(w / step), -128, 127) * step for step in steps]
    return min(grids, key=lambda rounded: ((rounded - w) ** 2).sum())


def pruned(w: np.ndarray, kind: str, share: float | str, inputs: np.ndarray) -> np.ndarray:
    score = abs(w) * (1 if kind == "magnitude" else np.sqrt((inputs**2).sum(0)))
    if share == "2:4":
        groups, gone = score.reshape(-1, 4), 2
    else:
        groups = score.reshape(1, -1) if kind == "magnitude" else score
        gone = math.floor(round(share * groups.shape[1], 6))
    kept = np.ones_like(groups)
    np.put_along_axis(kept, np.argsort(groups, axis=1, kind="stable")[:, :gone], 0, axis=1)
    return w * kept.reshape(w.shape)


class Recipe:
    """Settings by their names, from what the calibrating sequences showed."""

    def __init__(self, network: ByHand, tokens: np.ndarray):
        self.matrices = network.matrices
        self.batches: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
        for batch in np.array_split(tokens, 4):
            network.nats(batch, network.matrices, self._see)
        self.seen = {place: np.concatenate(found) for place, found in self.batches.items()}

    def _see(self, site: str, layer: int, x: np.ndarray) -> np.ndarray:
        self.batches[site, layer].append(x.reshape(-1, x.shape[-1]))
        return x

    def weights(self, kind: str, bits: int, per: str) -> Matrices:
        return {place: grid(w, kind, bits, None if per == "tensor" else 1) for place, w in self.matrices.items()}

    def pruned(self, kind: str, share: float | str) -> Matrices:
        return {
            (n, layer): pruned(w, kind, share, self.seen[INPUT[n], layer]) for (n, layer), w in self.matrices.items()
        }

    def activations(self, kind: str, bits: int, per: str, sites: set[str] = LINEAR) -> Change:
        def change(site: str, layer: int, x: np.ndarray) -> np.ndarray:
            if site not in sites:
                return x
            if per == "token":
                return grid(x, kind, bits, -1)
            return grid(x, kind, bits, 0 if per == "channel" else None, self.seen[site, layer])

        return change

    def running(self, site: str, layer: int, x: np.ndarray) -> np.ndarray:
        low = high = None
        for batch in self.batches[site, layer]:
            ends = np.percentile(batch, (100 - 99.999, 99.999))
            low, high = ends if low is None else (0.9 * low + 0.1 * ends[0], 0.9 * high + 0.1 * ends[1])
        return zero_point_by_hand(x, low, high, 8)

    def settings(self) -> dict[str, tuple[Matrices, Change]]:
        found: dict[str, tuple[Matrices, Change]] = {}
        words = {"absmax": "absmax", "zero_point": "zero-point"}
        for bits in (8, 4):
            for kind, word in words.items():
                for per in ("tensor", "channel"):
                    found[f"w{bits} {word} per {per}"] = self.weights(kind, bits, per), unchanged
                found[f"w{bits}a{bits} {word}"] = (
                    self.weights(kind, bits, "tensor"), self.activations(kind, bits, "tensor"),
                )  # fmt: skip
                for per in ("token", "channel"):
                    found[f"w{bits}a{bits} {word} per channel, per {per}"] = (
                        self.weights(kind, bits, "channel"), self.activations(kind, bits, per),
                    )  # fmt: skip
        found["w8a8 qualcomm"] = {place: least_squares(w) for place, w in self.matrices.items()}, self.running
        for name, sites in CLASSES.items():
            found[f"a8 {name} alone"] = self.matrices, self.activations("absmax", 8, "tensor", sites)
        for kind in ("magnitude", "wanda"):
            for share in SPARSITIES:
                found[f"{kind} {label(share)}"] = self.pruned(kind, share), unchanged
        return found


@pytest.fixture(scope="module")
def both():
    """The network as torch and as numpy have it, and its settings by hand."""
    config = GPTConfig(
        vocab_size=40, context=T, layers=LAYERS, heads=HEADS, kv_heads=GROUPS, width=C, mlp="swiglu", init_std=0.3
    )
    gpt = GPT(config).double()
    tokens = torch.randint(40, (20, T), generator=torch.Generator().manual_seed(0))
    evaluated, calibrating = study.split(tokens)
    assert torch.equal(calibrating, tokens[4::5])
    network = ByHand(gpt)
    by_hand = Recipe(network, calibrating.numpy()).settings()
    return decoder_of(gpt), evaluated, calibrating, network, by_hand


def test_every_row_is_what_the_document_says(both):
    """Loss, gap and its error of all settings. 1e-12: rounding in float64, which decides no code here."""
    decoder, evaluated, calibrating, network, by_hand = both
    table = study.study(decoder, evaluated, study.calibrated(decoder, calibrating))
    rows = {row["setting"]: row for row in table.to_pylist()}
    full = network.nats(evaluated.numpy(), network.matrices)
    assert rows.pop("full precision")["nats"] == pytest.approx(full.mean(), abs=1e-12)
    assert {row["recipe"] for row in rows.values()} == {VERSION}
    assert rows.keys() <= by_hand.keys()
    for name, row in rows.items():
        nats = network.nats(evaluated.numpy(), *by_hand[name])
        assert row["nats"] == pytest.approx(nats.mean(), abs=1e-12), name
        assert row["gap"] == pytest.approx((nats - full).mean(), abs=1e-12), name
        assert row["gap_se"] == pytest.approx((nats - full).std(ddof=1) / 4, abs=1e-12), name


def test_every_matrix_is_what_the_document_says_and_no_other_weight_is_touched(both):
    decoder, _, calibrating, network, by_hand = both
    calibration = study.calibrated(decoder, calibrating)
    inner = [f"{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")]
    for setting in SETTINGS:
        with applied(decoder, setting, calibration):
            for layer in range(LAYERS):
                for name, matrix in decoder.matrices(layer).items():
                    expected = by_hand[setting.name][0][name, layer]
                    assert np.allclose(matrix.numpy(), expected, rtol=1e-13, atol=0), (setting.name, name)
                    if setting.pruning is not None:
                        assert np.array_equal(matrix.numpy() == 0, expected == 0)
            for name, parameter in decoder.module.named_parameters():
                if not name.endswith(tuple(inner)):
                    assert np.array_equal(parameter.detach().numpy(), network.state[name]), (setting.name, name)
