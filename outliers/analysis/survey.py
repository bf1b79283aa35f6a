"""Existence, position and sinks: one pass over the text, every tensor measured when it appears and then let go.

Formulas are those of outliers/definitions.py, applied by the modules that the probe uses; what is added here is where:
by channel, by token class, by position, and the single tokens and keys that the coded criteria of 2502.06415 name.

Shapes: B sequences, T tokens, C channels, H heads, R real tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kernels
from errors import InputError
from kernels import AttentionStatistics, Parts
from outliers import activations, attention, weights
from outliers.access import Decoder
from outliers.access.decoder import CHUNK_TOKENS
from outliers.activations import OUTLIER_RATIO, Scratch, exceeds, lower_median
from outliers.analysis import channels
from outliers.analysis.numbers import Numbers
from outliers.analysis.token_kinds import KINDS
from outliers.attention import LATER_QUERIES, OUTLIER_SHARE, SINK_THRESHOLD
from outliers.definitions import DEFINITIONS, FULL_SITES, SITES
from outliers.running import Running

DETAILED_SITES = ("block_output", "down_input", "norm_attention", "norm_mlp")  # by channel and by token class
TOKEN_SITES = ("block_output", "down_input")  # where 2502.06415 looks for activation outliers
DORMANT = 0.3  # a head whose gated mass on real keys after the first is less does nothing on that input
STATISTICS = ("top1", "top2", "top3", "median", "mean")


class Survey:
    """Measures a decoder on (B, T) tokens. kinds_BT, texts: of `token_kinds.kinds`.

    single: also write down the single tokens and keys that are outliers as 2502.06415 codes it, a token above
    tau · mean |x|. of_weights: also measure the weights, which no text changes.
    """

    def __init__(
        self,
        decoder: Decoder,
        kinds_BT: Tensor,
        texts: Sequence[Sequence[str]],
        *,
        single: bool = True,
        of_weights: bool = True,
        tau: float = OUTLIER_RATIO,
    ):
        self.decoder, self.kinds_BT, self.texts, self.single, self.tau = decoder, kinds_BT, texts, single, tau
        self.prefix, self.of_weights = decoder.sizes.prefix_tokens, of_weights
        self.numbers = Numbers()
        self._scratch = Scratch()
        self._sites: dict[tuple[str, int], Running] = defaultdict(Running)
        self._places: dict[tuple[str, int], Running] = defaultdict(Running)
        self._heads: dict[int, Running] = defaultdict(Running)
        self._where: dict[int, Running] = defaultdict(Running)
        self._active: dict[int, list[Tensor]] = defaultdict(list)
        self._start = 0

    def run(self, tokens_BT: Tensor) -> Numbers:
        """All numbers of the pass, the weights' and the loss among them. InputError: activations overflow."""
        hooks = [(site, layer, self._at(site, layer)) for site, layer in self.decoder.places if site in SITES]
        nats = []
        with self.decoder.hooked(hooks, self._attended):
            for chunk_bT in tokens_BT.split(max(1, CHUNK_TOKENS // tokens_BT.shape[1])):
                nats.append(self.decoder.nats(chunk_bT))
                self._start += len(chunk_bT)
        self._check()
        self._loss(torch.cat(nats))
        self._write_sites()
        self._write_heads()
        if self.of_weights:
            self._write_weights()
        return self.numbers

    # While the model runs.

    def _at(self, site: str, layer: int) -> Callable[[Tensor], None]:
        def measure(x_BTC: Tensor) -> None:
            length = self.kinds_BT.shape[1]
            x_BTC = x_BTC[:, -length:]
            if site not in FULL_SITES:
                activations.channel_peaks(self._sites[site, layer], x_BTC, self._scratch)
                return
            self._magnitudes(site, layer, x_BTC)
            activations.accumulate(self._sites[site, layer], x_BTC, self._scratch)

        return measure

    def _magnitudes(self, site: str, layer: int, x_BTC: Tensor) -> None:
        running, at = self._places[site, layer], (site, layer)
        a_BTC = torch.abs(x_BTC.float(), out=self._scratch.like(x_BTC))
        kinds_BT = self.kinds_BT[self._start : self._start + len(a_BTC)]
        running.add("sequences", torch.tensor(float(len(a_BTC))))
        if site in TOKEN_SITES:
            peak_BT, channel_BT = a_BTC.max(-1)
            running.add("position", peak_BT.sum(0))
            if self.single:
                self._outlier_tokens(*at, a_BTC, peak_BT, channel_BT)
        if site not in DETAILED_SITES:
            return
        for a_TC, kinds_T in zip(a_BTC, kinds_BT, strict=True):
            running.add("channel_top1", a_TC.amax(0))
            running.add("channel_mean", a_TC.mean(0))
            running.add("channel_median", lower_median(a_TC.T.contiguous()))
            summaries = {KINDS[k]: summary(a_TC[kinds_T == k]) for k in kinds_T.unique().tolist()}
            for kind, values in ({"": summary(a_TC.clone())} | summaries).items():
                running.add(f"kind {kind}", values)
                running.add(f"count {kind}", torch.ones(()))

    def _outlier_tokens(self, site: str, layer: int, a_BTC: Tensor, peak_BT: Tensor, channel_BT: Tensor) -> None:
        """One number for each token with max_c |x_tc| > τ · mean |x|, in float64: the ratio of the two."""
        rough_B = a_BTC.mean((1, 2)) * self.tau
        for b in (peak_BT.amax(-1) > 0.99 * rough_B).nonzero()[:, 0].tolist():  # most sequences need no second look
            ratio_T = peak_BT[b].double() / a_BTC[b].double().mean()
            for t in (ratio_T > self.tau).nonzero()[:, 0].tolist():
                place = {"site": site, "layer": layer, "channel": int(channel_BT[b, t])}
                self.numbers.add("outlier_token", float(ratio_T[t]), **place, **self._token(self._start + b, t))

    def _token(self, sequence: int, t: int) -> dict[str, Any]:
        return {
            "sequence": sequence,
            "position": t,
            "token": self.texts[sequence][t],
            "kind": KINDS[self.kinds_BT[sequence, t]],
        }

    def _attended(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts | None) -> None:
        running = self._heads[layer]
        attention.accumulate_values(running, v_BGTD[:, :, self.prefix :], q_BHTD.shape[1])
        if parts is None:
            return
        stats = kernels.statistics(q_BHTD, k_BGTD, parts, prefix=self.prefix)
        attention.accumulate(running, stats, parts, self.prefix)
        self._keys(layer, stats)

    def _keys(self, layer: int, stats: AttentionStatistics) -> None:
        where = self._where[layer]
        R = stats.received.shape[-1]
        where.add("received", (stats.received.double() / R).sum(0))
        where.add("first", stats.first_key.double().sum((0, 2)))
        where.add("real", stats.received.double().sum((0, 2)))
        E = stats.received64.shape[-1]
        if E > LATER_QUERIES:
            alpha_BHE = stats.received64 / torch.arange(E, 0, -1)
            where.add("sinks", exceeds(alpha_BHE[..., : E - LATER_QUERIES], SINK_THRESHOLD).sum(0))
        self._active[layer].append(stats.received_gated[..., 1:].double().sum(-1) / R)
        if not self.single:
            return
        share_BR = stats.received.double().mean(1) / R
        for b, t in (share_BR >= OUTLIER_SHARE).nonzero().tolist():
            self.numbers.add("outlier_key", float(share_BR[b, t]), layer=layer, **self._token(self._start + b, t))

    # Afterwards.

    def _check(self) -> None:
        """InputError names the first place that holds NaN or inf: there is nothing to compare or draw."""
        for (site, layer), running in self._sites.items():  # in the order of the pass
            if "inf_norm" in running.sums and not bool(torch.isfinite(running.sums["inf_norm"])):
                where = site if layer < 0 else f"{site}, layer {layer}"
                raise InputError(
                    f"{self.decoder.name}: activations hold NaN or inf from {where} on, though no weight does"
                )

    def _loss(self, nats_BT: Tensor) -> None:
        each_B = nats_BT.mean(1)
        self.numbers.add("loss", each_B.mean())
        if len(each_B) > 1:
            self.numbers.add("loss", each_B.std() / len(each_B) ** 0.5, statistic="standard_error")

    def _write_sites(self) -> None:
        for (site, layer), running in self._sites.items():
            for metric, value in activations.finish(running).items():
                self.numbers.add(metric, value, site=site, layer=layer)
        for (site, layer), running in self._places.items():
            at = {"site": site, "layer": layer}
            sequences = float(running.sums["sequences"])
            for statistic in ("top1", "mean", "median"):
                if (found := running.sums.get(f"channel_{statistic}")) is not None:
                    self.numbers.add(
                        "magnitude", found / sequences, channel=np.arange(len(found)), statistic=statistic, **at
                    )
            for kind in ("", *KINDS):
                if (found := running.sums.get(f"kind {kind}")) is not None:
                    found = found / running.sums[f"count {kind}"]
                    for statistic, value in zip(STATISTICS, found.tolist(), strict=True):
                        self.numbers.add("magnitude", value, kind=kind, statistic=statistic, **at)
            if site in TOKEN_SITES:
                found = running.sums["position"] / sequences
                self.numbers.add("magnitude", found, position=np.arange(len(found)), statistic="top1", **at)

    def _write_heads(self) -> None:
        add, sequences = self.numbers.add, len(self.kinds_BT)
        for layer, running in self._heads.items():
            for metric, value in attention.finish(running).items():
                if DEFINITIONS[metric].scope == "layer":
                    add(metric, value, layer=layer)
                else:
                    add(metric, value, layer=layer, head=np.arange(len(value)))
        for layer, where in self._where.items():
            received_HR = (where.sums["received"] / sequences).numpy()
            heads, positions = received_HR.shape
            add("received", received_HR.mean(0), layer=layer, position=np.arange(positions))
            at = {"layer": layer, "head": np.arange(heads)}
            add("first_key_mass_normalised", where.sums["first"] / where.sums["real"], **at)
            active_BH = torch.cat(self._active[layer])
            add("active_mass", active_BH.mean(0), **at)
            add("dormant_inputs", (active_BH < DORMANT).double().mean(0), **at)
            if "sinks" in where.sums:
                rate = where.sums["sinks"].mean(0) / sequences
                add("sink_rate@0.3_key", rate, layer=layer, position=np.arange(len(rate)))
            for head in range(heads):
                add("received", received_HR[head], layer=layer, head=head, position=np.arange(positions))
                if "sinks" in where.sums:
                    rate = where.sums["sinks"][head] / sequences
                    add("sink_rate@0.3_key", rate, layer=layer, head=head, position=np.arange(len(rate)))

    def _write_weights(self) -> None:
        for layer in range(self.decoder.sizes.layers):
            for name, matrix_OI in self.decoder.matrices(layer).items():
                for (metric, statistic), value in weights.measure(matrix_OI).items():
                    self.numbers.add(metric, value, site=name, layer=layer, statistic=statistic)
                if name == "down":
                    ratio = weights.ratios(matrix_OI, 0)
                    at = {"site": name, "layer": layer, "channel": np.arange(len(ratio))}
                    self.numbers.add("weight_column_max_to_mean", ratio, **at)
        for metric, site, layer, ratio in channels.ratios(self.decoder):
            self.numbers.add(metric, ratio.max(), site=site, layer=layer, statistic="max")


def summary(a_NC: Tensor) -> Tensor:
    """(5,) the statistics of magnitudes by `STATISTICS`, the median the lower one of two. Reorders the entries."""
    found = torch.full((len(STATISTICS),), torch.nan, dtype=torch.float64)
    found[4] = a_NC.mean(dtype=torch.float64)
    # The three largest entries stand in the three rows with the largest entry; selecting them from all takes longer.
    rows_RC = a_NC[a_NC.amax(1).topk(min(3, len(a_NC))).indices]
    largest = rows_RC.flatten().topk(min(3, rows_RC.numel())).values
    found[: len(largest)] = largest.double()
    found[3] = lower_median(a_NC.reshape(1, -1))[0]
    return found
