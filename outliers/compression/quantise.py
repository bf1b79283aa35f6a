"""Round to nearest on a uniform grid of b bits, and back: what a number becomes, in its own dtype.

AbsMax (symmetric, as in LLM.int8(), 2208.07339, section 2.1):
    Δ = r / (2^(b−1) − 1);   x̂ = Δ · clip(round(x / Δ), −(2^(b−1) − 1), 2^(b−1) − 1)
Zero-point (asymmetric, 2106.08295, section 2.1), the range widened to hold 0:
    Δ = (h − l) / (2^b − 1);   z = clip(round(−l / Δ), 0, 2^b − 1);   x̂ = Δ · (clip(round(x / Δ) + z, 0, 2^b − 1) − z)

Ranges broadcast against x: a number for a whole tensor, (O, 1) for the rows of a matrix, (B, T, 1) for tokens.
Half is rounded to even. Computed in at least float32.
"""

import torch
from torch import Tensor

SMALLEST = 1e-30  # of a step: where a range is 0 everything becomes 0
QUALCOMM_SMALLEST = 1e-8  # of the upper end, in 2306.12929's code
CANDIDATES, MARGIN = 100, 0.5  # of the search for the range of least squares, there too


def widened(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def absmax(x: Tensor, limit: Tensor, bits: int, *, clip: bool = True, lowest: int = 0) -> Tensor:
    """AbsMax with the range r = limit. clip=False: the grid goes on beyond it. lowest=−1: one more code below."""
    most = 2 ** (bits - 1) - 1
    wide = widened(x)
    step = (limit.to(wide) / most).clamp(min=SMALLEST)
    codes = torch.round(wide / step)
    return ((codes.clamp(lowest - most, most) if clip else codes) * step).to(x.dtype)


def zero_point(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Zero-point with the range from l = low to h = high."""
    most = 2**bits - 1
    wide = widened(x)
    low, high = low.to(wide).clamp(max=0), high.to(wide).clamp(min=0)
    step = ((high - low) / most).clamp(min=SMALLEST)
    zero = torch.round(-low / step).clamp(0, most)
    codes = torch.round(wide / step) + zero
    return ((codes.clamp(0, most) - zero) * step).to(x.dtype)


def least_squares_limit(x: Tensor, bits: int) -> Tensor:
    """The range whose AbsMax grid has the smallest squared error, as 2306.12929's code looks for it.

    100 candidates k · (max|x| + 0.5) / 100; there the lowest code is −2^(b−1), one more than above.
    """
    wide = widened(x)
    most = 2 ** (bits - 1) - 1
    candidates = torch.arange(1, CANDIDATES + 1, device=x.device) * ((wide.abs().amax() + MARGIN) / CANDIDATES)
    errors = []
    for limit in candidates:
        step = limit / most
        errors.append(((wide / step).round_().clamp_(-most - 1, most).mul_(step).sub_(wide)).square_().sum())
    return candidates[int(torch.stack(errors).argmin())]
