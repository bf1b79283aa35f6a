"""What outliers do: at every site they are changed, and the loss says whether anything used them.

2402.17762 sets massive activations to zero and to their mean; 2505.21670 tells those that are used (true) from those
that the residual stream only carries (fake). Rules: docs/analysis.md.

Shapes: B sequences, T tokens, C channels of the site.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from outliers.access import Decoder
from outliers.access.decoder import Function
from outliers.analysis.numbers import Numbers

MARGIN = 0.01  # nats a token: a smaller change of the loss is none
ERRORS = 2  # standard errors that a verdict leaves for noise
ACTIONS = ("zero", "mean", "clip", "zero_random")


@dataclass
class Found:
    """The outliers of one place: how many, and by channel (C,) their sums and counts."""

    count: int = 0
    sums: Tensor | float = 0.0
    counts: Tensor | float = 0.0

    def mean(self) -> Tensor:
        """(C,) the mean outlier of each channel; 0 where it has none."""
        return self.sums / torch.as_tensor(self.counts).clamp_min(1)


def outliers(x_BTC: Tensor, tau: float) -> Tensor:
    """True where |x| > tau · mean |x| of the sequence."""
    a_BTC = x_BTC.abs()
    return a_BTC > tau * a_BTC.mean((1, 2), keepdim=True)


class Interventions:
    """Changes the outliers of one place at a time and measures the loss. Sites: every operator's output in every block,
    the residual stream, the embeddings and the final norm. say: is told of each place."""

    attended = None

    def __init__(self, decoder: Decoder, tau: float, say: Callable[[str], None]):
        self.decoder, self.tau, self.say = decoder, tau, say
        self._found = {
            place: Found()
            for place in decoder.places
            if place[0] != "logits" and (place[0] != "block_input" or place[1] == 0)
        }

    def hooks(self) -> list[tuple[str, int, Function]]:
        """Count the outliers."""
        return [(*place, _counting(found, self.tau)) for place, found in self._found.items()]

    def conclude(self, tokens_BT: Tensor, losses_B: Tensor) -> Numbers:
        """A pass for each action at each place that has outliers."""
        numbers = Numbers()
        for place, at in self._found.items():
            coordinates = {"site": place[0], "layer": place[1]}
            numbers.add("outliers", at.count, **coordinates)
            if not at.count:
                continue
            self.say(f"changing {at.count:,} outliers at {place[0]}, layer {place[1]}")
            for action in ACTIONS:
                with self.decoder.hooked([(*place, changing(action, self.tau, at.mean()))]):
                    change_B = self.decoder.nats(tokens_BT).mean(1) - losses_B
                mean, error = mean_and_error(change_B)
                numbers.add("loss_change", mean, statistic=action, **coordinates)
                numbers.add("loss_change_error", error, statistic=action, **coordinates)
                if action == "zero":
                    numbers.add("outliers_used", used(mean, error), **coordinates)
        return numbers


def _counting(found: Found, tau: float) -> Callable[[Tensor], None]:
    def count(x_BTC: Tensor) -> None:
        outlier_BTC = outliers(x_BTC, tau)
        found.count += int(outlier_BTC.sum())
        found.sums = found.sums + (x_BTC * outlier_BTC).sum((0, 1))
        found.counts = found.counts + outlier_BTC.sum((0, 1))

    return count


def changing(action: str, tau: float, mean_C: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that changes the outliers of (B, T, C).

    zero; mean: to the channel's mean outlier over the text; clip: to ±tau · mean |x|; zero_random: as many entries of
    each sequence, drawn from a fixed seed, are zeroed in their place (the null).
    """
    generator = torch.Generator().manual_seed(0)

    def change(x_BTC: Tensor) -> Tensor:
        outlier_BTC = outliers(x_BTC, tau)
        if action == "zero":
            return x_BTC.masked_fill(outlier_BTC, 0)
        if action == "mean":
            return torch.where(outlier_BTC, mean_C.to(x_BTC.dtype), x_BTC)
        if action == "clip":
            limit_B11 = tau * x_BTC.abs().mean((1, 2), keepdim=True)
            return torch.where(outlier_BTC, x_BTC.sign() * limit_B11, x_BTC)
        chosen_BN = torch.zeros_like(outlier_BTC).flatten(1)
        for chosen_N, outlier_N in zip(chosen_BN, outlier_BTC.flatten(1), strict=True):
            ordinary = (~outlier_N).nonzero()[:, 0]
            picks = torch.randperm(len(ordinary), generator=generator)[: int(outlier_N.sum())]
            chosen_N[ordinary[picks]] = True
        return x_BTC.masked_fill(chosen_BN.view_as(x_BTC), 0)

    return change


def mean_and_error(values_B: Tensor) -> tuple[float, float]:
    """The mean over sequences and its standard error; infinite for one sequence."""
    error = float(values_B.std() / len(values_B) ** 0.5) if len(values_B) > 1 else float("inf")
    return float(values_B.mean()), error


def used(mean: float, error: float) -> float:
    """1 (true: removal hurts), 0 (fake: it changes nothing), −1 (harmful: it helps), NaN (the noise does not tell)."""
    low, high = mean - ERRORS * error, mean + ERRORS * error
    if low > MARGIN:
        return 1.0
    if high < -MARGIN:
        return -1.0
    return 0.0 if low > -MARGIN and high < MARGIN else float("nan")
