"""Attention metrics of one layer, per head, from `kernels.statistics`: no T×T matrix anywhere.

`accumulate` takes a chunk of sequences, `finish` gives the values by metric id; definitions: outliers/definitions.py.
All are raw, that is before a gate, except the gate-weighted mass: a closed gate makes a raw sink harmless.

Shapes: B sequences of the chunk, H query heads, G key/value heads, R real tokens, D head size, E = min(R, 64).
"""

import torch
from torch import Tensor

from kernels import AttentionStatistics
from kernels.parts import Parts
from outliers.activations import exceeds
from outliers.nulls import even_rows
from outliers.running import Running

SINK_THRESHOLD = 0.3  # ε of 2410.10781
LATER_QUERIES = 16  # a key with fewer later queries is no candidate for "any key": a head may look at itself
OUTLIER_SHARE = 0.1  # 2502.06415's code: a key that receives at least this share of all queries' mass


def accumulate(
    running: Running, stats: AttentionStatistics, parts: Parts, prefix: int = 0, first_key_BT: Tensor | None = None
) -> None:
    """Add a chunk of whole sequences: the statistics of a mechanism's parts, with what they were asked for."""
    B, _, R = stats.first_key.shape
    first = stats.first_key.double()
    gate = stats.gate.double()
    running.add("sequences", first.new_tensor(B))
    running.add("rows", first.new_tensor(B * R))
    running.add("first", first.sum((0, 2)))
    running.add("gate", gate.sum((0, 2)))
    running.add("gated_first", (gate * first).sum((0, 2)))
    even_BR = even_rows(parts, R, prefix, first_key_BT).to(gate.device)
    running.add("gated_even", (gate * even_BR[:, None]).sum((0, 2)))
    running.add("explicit", stats.sink_mass.sum((0, 2)))
    running.add("entropy", stats.entropy.sum((0, 2)))
    running.add("support", stats.support.sum((0, 2)))
    # A comparison hides NaN; the weight on the first key shows it.
    for name, compared in (("argmax", stats.argmax_first), ("zeros", stats.zeros), ("dead", stats.dead)):
        running.add(name, torch.where(first.isnan(), torch.nan, compared.double()).sum((0, 2)))
    running.peak("max_logit", stats.max_logit.amax((0, 2)))

    # α_k = Σ_{i≥k} A_ik / (E − k + 1), k from 1: the mean mass on key k of the queries that see it (2410.10781).
    E = stats.received64.shape[-1]
    alpha_BHE = stats.received64 / torch.arange(E, 0, -1, device=first.device)
    running.add("sink_first", exceeds(alpha_BHE[..., 0], SINK_THRESHOLD).sum(0))
    if E > LATER_QUERIES:
        largest_BH = alpha_BHE[..., : E - LATER_QUERIES].amax(-1)
        running.add("sink_any", exceeds(largest_BH, SINK_THRESHOLD).sum(0))

    received_BR = stats.received.mean(1)
    heavy_BR = torch.where(received_BR.isnan(), torch.nan, (received_BR >= OUTLIER_SHARE * R).double())
    running.add("outlier_keys", heavy_BR.sum())


def accumulate_values(running: Running, v_BGRD: Tensor, heads: int) -> None:
    """Add the values' norms (B, G, R real tokens, D): all that `value_drain` needs; a group counts for its heads."""
    norm_BHR = v_BGRD.float().norm(dim=-1).double().repeat_interleave(heads // v_BGRD.shape[1], dim=1)
    B, _, R = norm_BHR.shape
    running.add("value_first", norm_BHR[..., 0].sum(0))
    running.add("value_later", norm_BHR[..., 1:].sum((0, 2)))
    running.add("value_firsts", norm_BHR.new_tensor(B))
    running.add("value_laters", norm_BHR.new_tensor(B * (R - 1)))


def finish(running: Running) -> dict[str, Tensor]:
    """Values by metric id: (H,) each, () for `outlier_keys`. What was not recorded, or cannot exist, is absent."""
    sums = running.sums
    values: dict[str, Tensor] = {}
    if "value_first" in sums and sums["value_laters"] > 0:
        first, later = sums["value_first"] / sums["value_firsts"], sums["value_later"] / sums["value_laters"]
        values["value_drain"] = first / later
    if "rows" not in sums:
        return values
    for metric, name in (
        ("first_key_mass", "first"),
        ("explicit_sink_mass", "explicit"),
        ("gate_mean", "gate"),
        ("entropy", "entropy"),
        ("effective_support", "support"),
        ("zero_weights", "zeros"),
        ("dead_rows", "dead"),
        ("argmax_first", "argmax"),
    ):
        values[metric] = sums[name] / sums["rows"]
    # A head whose gate is exactly 0 everywhere passes nothing on, so its sink has no weight either.
    for metric, name in (("first_key_mass_gated", "gated_first"), ("first_key_mass_gated_even", "gated_even")):
        values[metric] = torch.where(sums["gate"] == 0, 0.0, sums[name] / sums["gate"])
    values["sink_rate@0.3"] = sums["sink_first"] / sums["sequences"]
    if "sink_any" in sums:
        values["sink_rate@0.3_any"] = sums["sink_any"] / sums["sequences"]
    values["outlier_keys"] = sums["outlier_keys"] / sums["sequences"]
    values["max_logit"] = running.peaks["max_logit"]
    return values
