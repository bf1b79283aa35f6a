"""Paired statistics over seeds: Student's t without scipy, intervals, Holm's correction, and threshold crossings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUNDING = float(np.finfo(np.float32).eps)  # what is compared has been computed in float32


def t_inside(t: float, degrees: int) -> float:
    """P(|T| < t) for Student's t with an integer number of degrees of freedom.

    The finite series of Abramowitz and Stegun, 26.7.3 (odd) and 26.7.4 (even): exact, nothing is approximated.
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom are at least 1, not {degrees}")
    if math.isinf(t):
        return 1.0
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(degrees // 2):
        total += term
        # Odd: 2·4···/(3·5···); even: 1·3···/(2·4···); each factor brings two more powers of the cosine.
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def t_quantile(probability: float, degrees: int) -> float:
    """The t with P(|T| < t) = probability, by bisection of `t_inside`; 0 < probability < 1."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability lies between 0 and 1, not at {probability}")
    low, high = 0.0, 1.0
    while t_inside(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if t_inside(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True)
class Interval:
    """A mean over n paired differences, its 95 % t interval and the two-sided p-value of "the mean is 0"."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def interval(values: Sequence[float], confidence: float = 0.95, least: float = 0.0) -> Interval:
    """Student's t interval of the mean; it takes the values as about normal, which few of them cannot confirm.

    least: the smallest standard deviation to believe. Shares that are counted (0 of 16, 16 of 16) come out equal in
    every seed long before they are known exactly, and a spread of 0 would make any difference certain.
    Unbounded, with p = 1, where nothing tells the noise: one value, values other than 0 that are equal but for
    rounding, without a `least`, or one that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    n, mean = len(array), float(array.mean())
    if n < 2 or not np.isfinite(array).all():
        return Interval(mean, -math.inf, math.inf, 1.0, n)
    deviation = max(float(array.std(ddof=1)), least)
    if deviation <= ROUNDING * float(np.abs(array).max()):
        half = 0.0 if mean == 0 else math.inf
        return Interval(mean, mean - half, mean + half, 1.0, n)
    error = deviation / math.sqrt(n)
    half = t_quantile(confidence, n - 1) * error
    return Interval(mean, mean - half, mean + half, 1 - t_inside(mean / error, n - 1), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given: reject where the adjusted value is under the level.

    Valid whatever the dependence between the comparisons (Holm, 1979).
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def first_crossing(steps: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """The step at which a falling curve first reaches `target`, linear between its points; None if it never does."""
    before: tuple[float, float] | None = None
    for step, loss in zip(steps, losses, strict=True):
        if loss <= target:
            if before is None or before[1] == loss:
                return float(step)
            share = (before[1] - target) / (before[1] - loss)
            return float(before[0] + share * (step - before[0]))
        before = (float(step), float(loss))
    return None
