"""The life of an outlier token (2502.06415): where its value emerges, how attention sees it, where it disappears.

In each sequence the token t* is where the largest |h| of the model's largest channel c* stands, over all block outputs.

Shapes: B sequences, T tokens, C channels of a site, H query heads, G key/value heads, D head size.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import kernels
from kernels import Parts
from outliers.access import Decoder
from outliers.access.decoder import Function
from outliers.analysis.numbers import Numbers

# In the order in which a block computes them; `gate` only where there is one.
OPERATORS = (
    "block_input", "norm_attention", "q", "k", "v", "out_input", "attention_output",
    "norm_mlp", "up", "gate", "down_input", "mlp_output", "block_output",
)  # fmt: skip
WRITERS = ("block_input", "attention_output", "mlp_output", "block_output")


class LifeCycle:
    """Emergence, spread and disappearance, as means over sequences: a pass to find the token, another to follow it."""

    attended = None

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._peaks: list[Tensor] = []  # by chunk of sequences (b, T, C), the largest |h| over layers

    def hooks(self) -> list[tuple[str, int, Function]]:
        """Block outputs."""
        return [("block_output", n, partial(self._block, n)) for n in range(self.decoder.sizes.layers)]

    def _block(self, layer: int, x_BTC: Tensor) -> None:
        a_BTC = x_BTC[:, self.decoder.sizes.prefix_tokens :].float().abs()
        if layer == 0:  # a new chunk
            self._peaks.append(a_BTC)
        else:
            torch.maximum(self._peaks[-1], a_BTC, out=self._peaks[-1])

    def largest(self) -> tuple[int, Tensor]:
        """c*, whose largest |h| of a sequence is the largest in the mean over sequences, and (B,) the positions t*."""
        peak_BTC = torch.cat(self._peaks)
        channel = int(peak_BTC.amax(1).mean(0).argmax())
        return channel, peak_BTC[..., channel].argmax(1)

    def conclude(self, tokens_BT: Tensor, losses_B: Tensor) -> Numbers:
        """Follow the token."""
        channel, token_B = self.largest()
        numbers = Numbers()
        numbers.add("outlier_channel", channel)
        numbers.add("outlier_position", token_B, sequence=range(len(token_B)))
        follow = Follow(self.decoder, channel, token_B, tokens_BT.shape[1])
        with self.decoder.hooked(follow.hooks(), follow.attended):
            self.decoder.forward(tokens_BT)
        follow.write(numbers)
        return numbers


class Follow:
    """Watches one token of each sequence through every operator. Sums over sequences by (metric, site, layer, head)."""

    def __init__(self, decoder: Decoder, channel: int, token_B: Tensor, length: int):
        self.decoder, self.channel, self.token_B, self.length = decoder, channel, token_B, length
        self.sums: dict[tuple[str, str, int], Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self._start: dict[tuple[str, int], int] = defaultdict(int)

    def hooks(self) -> list[tuple[str, int, Callable[[Tensor], None]]]:
        """Every operator of every block."""
        return [
            (site, layer, self._at(site, layer))
            for layer in range(self.decoder.sizes.layers)
            for site in OPERATORS
            if (site, layer) in self.decoder.places
        ]

    def _tokens(self, site: str, layer: int, count: int) -> Tensor:
        """t* of the sequences that this call holds."""
        start = self._start[site, layer]
        self._start[site, layer] += count
        return self.token_B[start : start + count]

    def _add(self, metric: str, site: str, layer: int, values: Tensor) -> None:
        self.sums[metric, site, layer] = self.sums[metric, site, layer] + values.double().sum(0)

    def _at(self, site: str, layer: int) -> Callable[[Tensor], None]:
        def look(x_BTC: Tensor) -> None:
            x_BTC = x_BTC[:, -self.length :].float()
            token_b = self._tokens(site, layer, len(x_BTC))
            own_BC = x_BTC[torch.arange(len(x_BTC)), token_b]
            peak_BT = x_BTC.abs().amax(2)
            self._add("token_top1", site, layer, own_BC.abs().amax(1))
            self._add("others_top1", site, layer, without(peak_BT, token_b).median(1).values)
            if site in WRITERS:
                self._add("channel_value", site, layer, own_BC[:, self.channel])

        return look

    def attended(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, parts: Parts | None) -> None:
        """Spread: what the token's query, key and value are beside the others', and the logits of its key."""
        prefix, H = self.decoder.sizes.prefix_tokens, q_BHTD.shape[1]
        token_b = self._tokens("attention", layer, len(q_BHTD))
        rows = torch.arange(len(token_b))
        for name, x_BHTD in (("q", q_BHTD), ("k", k_BGTD), ("v", v_BGTD)):
            norm_BHT = x_BHTD[:, :, prefix:].float().norm(dim=-1)
            for b, t in zip(rows.tolist(), token_b.tolist(), strict=True):
                others = norm_BHT[b, :, torch.arange(norm_BHT.shape[2]) != t].mean(-1)
                self._add(f"{name}_norm_ratio", "", layer, (norm_BHT[b, :, t] / others)[None])
        if parts is None:
            return
        k_BHTD = k_BGTD[:, :, prefix:].repeat_interleave(H // k_BGTD.shape[1], dim=1).float()
        received_BHT = kernels.statistics(q_BHTD, k_BGTD, parts, prefix=prefix).received
        for b, t in zip(rows.tolist(), token_b.tolist(), strict=True):
            q_HqD = q_BHTD[b, :, prefix + t :].float()  # the queries that see the key
            scale = q_HqD.shape[-1] ** -0.5
            self._add("logit", "", layer, (q_HqD @ k_BHTD[b, :, t, :, None]).mean((1, 2))[None] * scale)
            self._add("logit_others", "", layer, others_logit(q_HqD, k_BHTD[b], t)[None] * scale)
            self._add("probability", "", layer, (received_BHT[b, :, t] / (self.length - t))[None])

    def write(self, numbers: Numbers) -> None:
        """All means, and what each branch adds to the channel relative to what comes in."""
        count = len(self.token_B)
        means = {key: total / count for key, total in self.sums.items()}
        for (metric, site, layer), value in means.items():
            if value.ndim:
                numbers.add(f"spread_{metric}", value, layer=layer, head=range(len(value)))
            else:
                numbers.add(f"life_{metric}", value, site=site, layer=layer)
        for layer in range(self.decoder.sizes.layers):
            came, left = (float(means["channel_value", site, layer]) for site in ("block_input", "block_output"))
            removed = 1 - left / came if came else float("nan")
            numbers.add("life_cancelled", removed, layer=layer)


def without(values_BT: Tensor, token_B: Tensor) -> Tensor:
    """(B, T − 1): each row without one position."""
    keep_BT = torch.ones_like(values_BT, dtype=torch.bool)
    keep_BT[torch.arange(len(token_B)), token_B] = False
    return values_BT[keep_BT].view(len(token_B), -1)


def others_logit(q_HqD: Tensor, k_HTD: Tensor, t: int) -> Tensor:
    """(H,) mean of q_i·k_j over the queries i ≥ t and the keys j ≤ i other than t; 0 where there is none.

    Σ_j≤i k_j is a running sum, so no q × T matrix is made.
    """
    k_HTD = k_HTD.clone()
    k_HTD[:, t] = 0
    sums_HqD = k_HTD.cumsum(1)[:, t:]
    pairs = sum(range(t, k_HTD.shape[1]))
    return (q_HqD * sums_HqD).sum((1, 2)) / max(pairs, 1)
