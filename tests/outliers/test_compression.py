"""The recipe on real networks: ranges, gaps, nulls, and planted outliers that only their own class may feel."""

import math

import numpy as np
import pytest
import torch

from errors import InputError
from models import GPT, GPTConfig
from outliers.access import Decoder
from outliers.access.ours import decoder_of
from outliers.compression import study
from outliers.compression.apply import applied, mask, rounded
from outliers.compression.calibrate import calibrate
from outliers.compression.recipe import CLASSES, EVERYWHERE, SETTINGS, Activations, Pruning, Setting, Weights, null

C, FAT = 32, 3000.0
CLASS_SETTINGS = [setting for setting in SETTINGS if setting.group == "one class of activations"]
BY_NAME = {setting.name: setting for setting in SETTINGS}


def network(norm: str = "layernorm") -> GPT:
    """Two layers whose predictions are far from uniform, so that a disturbance costs something."""
    return GPT(GPTConfig(vocab_size=40, context=24, layers=2, heads=2, width=C, norm=norm, init_std=0.4))


@torch.no_grad()
def sampled(gpt: GPT, sequences: int = 20, length: int = 24) -> torch.Tensor:
    """Tokens from the network's own distribution: any other network predicts them worse in the mean."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(40, (sequences, 1), generator=generator)
    while tokens.shape[1] < length:
        following = torch.multinomial(gpt(tokens)[:, -1].softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, following), dim=1)
    return tokens


@torch.no_grad()
def plant(gpt: GPT, site: str) -> None:
    """One fat channel at a site of layer 1 (residual: of the whole stream); what reads it is scaled back or blind."""
    block = gpt.blocks[1]
    if site == "qkv":
        block.norm_attention.weight[5] *= FAT
        block.attention.qkv.weight[:, 5] /= FAT
    elif site == "up":
        block.norm_mlp.weight[5] *= FAT
        block.mlp.up.weight[:, 5] /= FAT
    elif site == "o":
        v = block.matrices()["v"]
        v[5] *= FAT
        block.attention.out.weight[:, 5] /= FAT
    elif site == "down":
        block.mlp.up.weight[7] = 0
        block.mlp.up.bias[7] = FAT
        block.mlp.down.weight[:, 7] = 0
    else:
        # One channel is nearly the whole norm of the residual stream; each gain gives the others their size back.
        gpt.embedding.weight[:, 5] = FAT

        def undo(norm: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            square = inputs[0].square().mean((0, 1))
            norm.weight.fill_(float((square.sum() / (square.sum() - square[5])).sqrt()))
            norm.weight[5] = 0

        norms = [part for block in gpt.blocks for part in (block.norm_attention, block.norm_mlp)] + [gpt.norm]
        hooks = [norm.register_forward_pre_hook(undo) for norm in norms]
        gpt(torch.arange(24)[None])
        for hook in hooks:
            hook.remove()


def gaps(decoder: Decoder, tokens: torch.Tensor) -> dict[str, float]:
    evaluated, calibrating = study.split(tokens)
    table = study.study(decoder, evaluated, study.calibrated(decoder, calibrating), CLASS_SETTINGS)
    rows = {row["setting"]: row for row in table.to_pylist()}
    return {name: rows[f"a8 {name} alone"]["gap"] for name in CLASSES}


@pytest.mark.parametrize("site", ["none", "qkv", "o", "up", "down", "residual"])
def test_a_planted_channel_is_felt_by_its_own_class_alone(site):
    gpt = network("rmsnorm" if site == "residual" else "layernorm")
    if site == "residual":
        gpt.head.weight = torch.nn.Parameter(gpt.head.weight.detach().clone())  # not tied: the head does not read it
    if site != "none":
        plant(gpt, site)
    found = gaps(decoder_of(gpt), sampled(gpt))
    # The values carry what the output projection reads: a fat channel there is one in the cache too.
    felt = {"none": set(), "o": {"o", "kv"}}.get(site, {site})
    for name, gap in found.items():
        assert (gap > 0.1) == (name in felt), found
        assert name in felt or abs(gap) < 0.02, found


def test_the_null_says_that_the_range_is_the_cause():
    """A fat channel costs w8a8 much, the same root mean square without it little; full precision feels nothing."""
    gpt = network()
    plant(gpt, "down")
    decoder, tokens = decoder_of(gpt), sampled(gpt)
    evaluated, calibrating = study.split(tokens)
    calibration = study.calibrated(decoder, calibrating)
    setting = BY_NAME["a8 down alone"]
    row = study.study(decoder, evaluated, calibration, [setting]).to_pylist()[1]
    assert row["gap"] > 5 * row["gap_se"] > 0
    assert row["excess"] == pytest.approx(row["gap"] - row["null_gap"])
    # The null's own root mean square holds the fat channel, so it is no small number: but a grid of each channel is.
    by_channel = Setting("a8 down by channel", "null", activations=Activations(8, "absmax", "channel", ("down_input",)))
    with applied(decoder, by_channel, calibration):
        assert abs(float((decoder.nats(evaluated) - _full(decoder, evaluated)).mean())) < 0.02


def _full(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    return decoder_of(decoder.module).nats(tokens)


def test_ranges_are_those_of_the_tensors_seen():
    gpt = network()
    decoder, tokens = decoder_of(gpt), sampled(gpt, 10)
    calibration = calibrate(decoder, tokens, EVERYWHERE)
    batches: list[np.ndarray] = []
    for batch in tokens.tensor_split(4):
        with decoder.hooked([("down_input", 1, lambda x: batches.append(x.double().numpy().reshape(-1, 4 * C)))]):
            decoder.nats(batch)
    whole, seen = np.concatenate(batches), calibration["down_input", 1]
    assert np.array_equal(seen.peak, abs(whole).max(0))
    assert (float(seen.low), float(seen.high)) == (whole.min(), whole.max())
    assert np.allclose(seen.square, (whole**2).sum(0), rtol=1e-6)  # squares of float32
    assert seen.rows == 240
    low, high = None, None
    for batch in batches:
        ends = np.percentile(batch.astype(np.float32), (100 - 99.999, 99.999))
        low, high = ends if low is None else (0.9 * low + 0.1 * ends[0], 0.9 * high + 0.1 * ends[1])
    assert seen.running == pytest.approx((low, high), rel=1e-6)


def test_a_setting_does_what_it_says_and_leaves_nothing():
    """w8a8 absmax by hand: every matrix on its grid, every input of a matrix on the grid of calibration."""
    gpt = network()
    decoder, tokens = decoder_of(gpt), sampled(gpt, 10)
    before = {name: parameter.detach().clone() for name, parameter in gpt.named_parameters()}
    evaluated, calibrating = study.split(tokens)
    calibration = study.calibrated(decoder, calibrating)
    full = decoder.nats(evaluated)
    for setting in (*SETTINGS, *filter(None, map(null, SETTINGS))):
        with applied(decoder, setting, calibration):
            changed = [n for n, p in gpt.named_parameters() if not torch.equal(p, before[n])]
            touched = setting.weights is not None or setting.pruning is not None
            assert len(changed) == (8 if touched else 0), setting.name  # four stacked matrices in each of two blocks
            if setting.name in ("w8a8 absmax", "a8 kv alone", "w4a4 zero-point per channel, per token"):
                assert not torch.equal(decoder.nats(evaluated), full)
        assert all(torch.equal(p, before[n]) for n, p in gpt.named_parameters()), setting.name
    assert torch.equal(decoder.nats(evaluated), full)
    seen: dict[str, torch.Tensor] = {}
    hooks = [(site, 1, lambda x, site=site: seen.__setitem__(site, x.clone())) for site in ("norm_mlp", "up")]
    with applied(decoder, BY_NAME["w8a8 absmax"], calibration), decoder.hooked(hooks):
        decoder.nats(evaluated[:2])
        up = gpt.blocks[1].matrices()["up"].detach().clone()
    step = float(calibration["norm_mlp", 1].peak.max()) / 127
    codes = seen["norm_mlp"] / step
    assert (codes - codes.round()).abs().max() < 1e-3
    assert codes.abs().max() <= 127.001
    assert len(codes.round().unique()) > 100
    fine = before["blocks.1.mlp.up.weight"]
    torch.testing.assert_close(up, (fine / (fine.abs().max() / 127)).round() * (fine.abs().max() / 127))
    torch.testing.assert_close(seen["up"], seen["norm_mlp"] @ up.T + gpt.blocks[1].mlp.up.bias)


def test_weight_grids_and_masks_of_a_matrix():
    matrix = torch.randn(12, 16)
    for one, groups in (("tensor", matrix.reshape(1, -1)), ("channel", matrix)):
        for bits in (8, 4):
            got = rounded(matrix, Weights(bits, "absmax", one)).reshape(groups.shape)
            for row, values in zip(got, groups, strict=True):
                step = float(values.abs().max()) / (2 ** (bits - 1) - 1)
                assert (row - values).abs().max() <= step / 2 * 1.0001
                assert len(row.unique()) <= 2**bits - 1
    norm = torch.arange(1.0, 17.0)
    kept = mask(matrix, Pruning("wanda", 0.5), norm, seed=0)
    assert (kept.sum(1) == 8).all()
    assert int(mask(matrix, Pruning("magnitude", 0.3), norm, seed=0).sum()) == 192 - 57
    assert kept.float().mean(0)[8:].mean() > kept.float().mean(0)[:8].mean()


def test_the_whole_table(tmp_path):
    gpt = network()
    decoder, tokens = decoder_of(gpt), sampled(gpt, 10)
    evaluated, calibrating = study.split(tokens)
    assert (len(evaluated), len(calibrating)) == (8, 2)
    assert not any(torch.equal(one, other) for one in evaluated for other in calibrating)
    told: list[tuple[str, int, int]] = []
    table = study.study(
        decoder, evaluated, study.calibrated(decoder, calibrating), progress=lambda *what: told.append(what)
    )
    rows = {row["setting"]: row for row in table.to_pylist()}
    assert list(rows) == ["full precision", *(setting.name for setting in SETTINGS)]
    assert [done for _, done, _ in told] == list(range(told[0][2]))
    full = rows["full precision"]
    nats = decoder.nats(evaluated).mean(1)
    assert full["nats"] == pytest.approx(float(nats.mean()))
    assert full["nats_se"] == pytest.approx(float(nats.std()) / math.sqrt(8))
    assert full["perplexity"] == pytest.approx(math.exp(full["nats"]))
    assert full["gap"] == 0.0
    for row in list(rows.values())[1:]:
        assert row["gap"] == pytest.approx(row["nats"] - full["nats"])
        assert row["gap_se"] > 0
        assert (row["null"] == "") == math.isnan(row["null_gap"]) == (row["setting"] == "w8a8 qualcomm")
    # Tokens are the network's own samples, so less information costs more.
    assert rows["w4a4 absmax"]["gap"] > rows["w8a8 absmax"]["gap"] + 0.05
    assert rows["w4 absmax per tensor"]["gap"] > rows["w8 absmax per tensor"]["gap"]
    pruned = [rows[f"magnitude {share} %"]["gap"] for share in (10, 30, 60)]
    assert pruned == sorted(pruned)
    assert rows["magnitude 30 %"]["excess"] < -0.05  # better than by chance
    assert rows["magnitude 50 %"]["null_gap"] == rows["wanda 50 %"]["null_gap"]


def test_one_sequence_is_refused():
    with pytest.raises(InputError, match="the text makes 1 sequence; one to calibrate with"):
        study.split(torch.zeros(1, 8, dtype=torch.int64))
