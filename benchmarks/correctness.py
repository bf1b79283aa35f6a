"""Stage `correctness` of benchmarks/gpu.py: outputs, L and all gradients against float64.

The bar is twice the error of the eager formula in the same dtype, for the norm of every tensor's error and for its
worst row: a norm passes over one wrong row of thousands.

Shapes: B batch, H query heads, T queries, S keys, D head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kernels
from benchmarks.cases import DTYPES, Call, Job, Row, inputs, learned, variants
from kernels import Parts, Sigmoid, SinkLogits, SinkSlots, backends

FLOAT32 = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Situation:
    """What is asked of a variant.

    first: the first key of each of S rows, from their positions (S) and S. late: only the last third of the rows are
    queries, so that T < S. lse: the loss is on L too. sinks: added to sink logits, and multiplied with slots' keys.
    least: an error of this size in every number is allowed whatever eager's.
    """

    first: Callable[[Tensor, int], Tensor] | None = None
    late: bool = False
    lse: bool = False
    sinks: float | None = None
    least: float = 0.0

    def suits(self, parts: Parts) -> bool:
        """Whether the variant has what the situation is about."""
        return (not self.lse or not isinstance(parts.score, Sigmoid)) and (
            self.sinks is None or parts.sinks is not None
        )


SITUATIONS = {
    "whole": Situation(),
    # two documents, the second in a window
    "packed": Situation(lambda row, S: torch.where(row < S // 3, 0, (row - S // 4).clamp_min(S // 3))),
    "window": Situation(lambda row, S: (row - S // 4).clamp_min(0)),
    # A score alone has no gradient: dP − Δ is a difference of equal numbers, of which float32's rounding is left; the
    # eager formula never forms it.
    "one key": Situation(lambda row, S: row, least=4 * FLOAT32),
    "no key": Situation(lambda row, S: torch.where(row < S // 3, 0, torch.where(row < S // 2, row + 1, S // 2))),
    "dL": Situation(lse=True),
    "T < S": Situation(late=True),
    **{f"sinks {size:+g}": Situation(sinks=size) for size in (-100.0, -20.0, 20.0, 100.0)},
}


def correctness(call: Call) -> Iterator[Job]:
    """Every variant in every situation at head size 64; at the others as a whole and packed."""
    device, on_gpu = call.device, call.device == "cuda"
    length, batch, heads = (1000, 2, 8) if on_gpu else (40, 1, 2)
    sizes = (64, 128, 80) if on_gpu else (16,)
    for dtype in ("bfloat16", "float16", "float32") if on_gpu else ("float32",):
        for size in sizes:
            for name, parts in variants(1, 1, 1, 1, torch.float32).items():
                for about, situation in SITUATIONS.items():
                    if not situation.suits(parts) or (size != sizes[0] and about not in ("whole", "packed")):
                        continue
                    for backend in ("triton", "vendor"):
                        case = (name, backend, dtype, situation, size, batch, heads, length, device)
                        yield f"{name}/{backend}/{dtype}/D{size}/T{length}/{about}", lambda case=case: errors(*case)


def errors(
    name: str,
    backend: str,
    dtype: str,
    situation: Situation,
    size: int,
    batch: int,
    heads: int,
    length: int,
    device: str,
) -> Row:
    """One row: the largest ratio of a back end's error to the eager formula's, of norms and of worst rows."""
    kind = DTYPES[dtype]
    queries = length // 3 if situation.late else length
    parts = variants(batch, heads, queries, size, kind, device)[name]
    if situation.sinks is not None:
        parts = replace(parts, sinks=_extreme(parts.sinks, situation.sinks))
    q, k, v = inputs(batch, heads, max(1, heads // 2), length, size, kind, device)
    q = q.detach()[:, :, length - queries :].requires_grad_()
    first = None
    if situation.first is not None:
        row = torch.arange(length, device=device, dtype=torch.int32)
        first = situation.first(row, length).int().expand(batch, -1)
    reason = backends.obstacle(backend, q, k, parts, first)
    if reason is not None:
        return {"result": "cannot", "reason": reason}
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(q.shape, generator=generator, dtype=torch.float64).to(device)
    weight_L = torch.randn(q.shape[:3], generator=generator, dtype=torch.float64).to(device)

    def run(backend: str, *tensors: Tensor) -> list[Tensor]:
        leaves = [*tensors, *learned(parts)]
        if not situation.lse:
            y = kernels.attend(*tensors, parts, first_key_BT=first, backend=backend)
            return [y, *torch.autograd.grad((y * weight.to(y.dtype)).sum(), leaves)]
        y, L = kernels.attend_with_lse(*tensors, parts, first_key_BT=first, backend=backend)
        loss = (y * weight.to(y.dtype)).sum() + (L * weight_L.to(L.dtype)).sum()
        return [y, L, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    exact = run("reference", *(x.detach().double().requires_grad_() for x in (q, k, v)))
    found, eager = run(backend, q, k, v), run("reference", q, k, v)
    rounding = 2 * FLOAT32 * max(1.0, abs(situation.sinks or 0.0) / 4)  # e^x has |x| times the rounding of its exponent
    ratios = [compared(*each, rounding, situation.least) for each in zip(found, eager, exact, strict=True)]
    if any(ratio is None for ratio in ratios):
        return {"result": "WRONG", "reason": "not finite"}
    norm, row = (max(column) for column in zip(*ratios, strict=True))
    return {
        "result": "ok" if max(norm, row) <= 2 else "WRONG",
        "error / eager error": f"{norm:.2f}",
        "worst row / eager's": f"{row:.2f}",
    }


def _extreme(sinks: SinkLogits | SinkSlots | None, size: float) -> SinkLogits | SinkSlots:
    if isinstance(sinks, SinkLogits):
        return replace(sinks, logits=(sinks.logits + size).detach().requires_grad_())
    assert sinks is not None
    return replace(sinks, keys=(sinks.keys * size).detach().requires_grad_())


def compared(actual: Tensor, eager: Tensor, exact: Tensor, rounding: float, least: float) -> tuple[float, float] | None:
    """Errors of `actual` as multiples of eager's: of the norms, and of the worst rows; None where not finite.

    Eager's error is taken to be some size at the least, because a smaller one is luck: `rounding` of the tensor's norm,
    twice that for its worst row, an eighth of its dtype's epsilon, and `least` in each number.
    """
    actual, eager, exact = actual.detach(), eager.detach().double(), exact.detach().double()
    if not actual.isfinite().all():
        return None
    floor = max(torch.finfo(actual.dtype).eps / 8, rounding)

    def rows(x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).norm(dim=-1)

    size, unit = rows(exact), rows(torch.ones_like(exact))
    # What is 0 but for float64's rounding is measured against inputs of size 1.
    size = torch.where(size.norm() > 1e-12 * unit.norm(), size, unit)
    ours, theirs = rows(actual.double() - exact), rows(eager - exact)
    norm = ours.norm() / theirs.norm().clamp_min(floor * size.norm()).clamp_min(least * unit.norm())
    worst = ours.max() / theirs.max().clamp_min(max(floor, 2 * rounding) * size.max()).clamp_min(least * unit.max())
    return float(norm), float(worst)
