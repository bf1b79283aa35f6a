"""Attention alone: every variant on every back end, forward and backward, beside its peers; one table a length.

    python -m benchmarks.attention [--length 256 2048] [--rounds 15] [--cpu-time] [--record]

`control` (CPU) is torch's own call inside an `autograd.Function` that changes nothing: what any variant pays for not
being built into torch. The rows `... (dense mask)` and `... (eager)` are how the authors' code of 2502.06415 computes
variants (c), (d) and (f). Ratios are the median over rounds of (the control's time / the row's time; on a GPU that of
torch's flash attention): 1.00 is as fast as it. The floor is that of benchmarks/floors.py, where the device is
known. `--record` puts our rows into kernels/measured.json, from which `backend="auto"` chooses.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from benchmarks import floors
from benchmarks.cases import learned, two_pass, variants
from benchmarks.peers import peers
from benchmarks.timing import Timing, clock_argument, machine, table, take_turns
from kernels import Parts, backends
from kernels import measured as measured_times

OURS = ("vendor", "triton", "blockwise")


@dataclass(frozen=True)
class Shape:
    """What is timed: B batch, H heads, G key/value heads, T tokens, D head size."""

    B: int
    H: int
    G: int
    T: int
    D: int
    dtype: torch.dtype
    device: str

    def floor(self, parts: Parts) -> float | None:
        """Seconds that forward and backward of a variant take at the least; None on an unknown device."""
        pairs, itemsize = floors.visible_pairs(self.T), self.dtype.itemsize
        sizes = (self.B, self.H, self.G, self.T, self.D)
        work = floors.forward(*sizes, pairs=pairs, itemsize=itemsize, two_pass=two_pass(parts))
        work += floors.backward(*sizes, pairs=pairs, itemsize=itemsize)
        return work.seconds(torch.cuda.get_device_name()) if self.device == "cuda" else None


@dataclass(frozen=True)
class Candidate:
    """One row: a call that runs forward and backward, and one that runs forward alone."""

    name: str
    variant: str
    backend: str | None  # ours, or None for a peer
    parts: Parts
    both: Callable[[], object]
    forward: Callable[[], object]


def candidates(shape: Shape) -> Iterator[Candidate]:
    """Ours on every back end that can compute the variant, then the peers, all on the same inputs."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> Tensor:
        x = torch.randn(shape.B, shape.T, heads, shape.D, generator=generator)
        return x.to(shape.device, shape.dtype).transpose(1, 2).requires_grad_()

    q, k, v = draw(shape.H), draw(shape.G), draw(shape.G)
    upstream = draw(shape.H).detach()
    leaves = [q, k, v]

    def candidate(name: str, variant: str, backend: str | None, parts: Parts, call: Callable[[], Tensor]) -> Candidate:
        def both() -> None:
            call().backward(upstream)
            for leaf in leaves:  # now: the next call's memory is counted from here
                leaf.grad = None

        def forward() -> None:
            with torch.no_grad():
                call()

        return Candidate(name, variant, backend, parts, both, forward)

    own = variants(shape.B, shape.H, shape.T, shape.D, shape.dtype, shape.device)
    leaves += [leaf for parts in own.values() for leaf in learned(parts)]
    for variant, parts in own.items():
        for backend in OURS:
            if backends.obstacle(backend, q, k, parts, None) is None:
                yield candidate(
                    f"{variant} [{backend}]",
                    variant,
                    backend,
                    parts,
                    lambda parts=parts, backend=backend: kernels.attend(q, k, v, parts, backend=backend),
                )
    for peer in peers(shape.H, shape.T, shape.D, shape.device):
        if peer.reach >= shape.T and shape.H == shape.G:
            yield candidate(peer.name, peer.variant, None, own[peer.variant], lambda call=peer.forward: call(q, k, v))


def measure(shape: Shape, rounds: int, clock: Callable[[], float]) -> list[tuple[Candidate, Timing]]:
    """Every candidate's forward and backward, in turns."""
    found = {one.name: one for one in candidates(shape)}
    timings = take_turns({name: one.both for name, one in found.items()}, rounds=rounds, calls=max(1, 2048 // shape.T))
    return [(found[name], timing) for name, timing in timings.items()]


def main(argv: list[str] | None = None) -> None:
    """Print one table for each length."""
    parser = argparse.ArgumentParser(prog="benchmarks.attention", description=__doc__.split("\n\n")[0])
    parser.add_argument("--length", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, nargs="+", default=[32])
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: what the device trains in"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    clock_argument(parser)
    parser.add_argument("--record", action="store_true", help="keep the times in kernels/measured.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype or ("bfloat16" if device == "cuda" else "float32"))
    for size in options.head_size:
        for length in options.length:
            shape = Shape(options.batch, options.heads, options.heads, length, size, dtype, device)
            measured = measure(shape, options.rounds, options.clock)
            baseline = next(timing for one, timing in measured if one.name in ("control", "torch SDPA flash"))
            rows = []
            for one, timing in measured:
                floor = shape.floor(one.parts) if one.backend else None  # a peer need not recompute as we do
                shown = "-" if floor is None else f"{floor * 1e3:.3f}"
                rows.append([one.name, f"{timing.median * 1e3:.3f}", f"{timing.speed_ratio(baseline):.3f}", shown])
            title = f"\nforward and backward, B {options.batch}, H {options.heads}, T {length}, D {size}, {dtype}"
            print(table(f"{title}; {machine()}", ["attention", "ms", "speed / control", "floor ms"], rows), flush=True)
            if options.record:
                measured_times.record(
                    device=backends.device_name(torch.device(device), dtype),
                    length=length,
                    head_dim=size,
                    times={(backends.kind(one.parts), one.backend): t.median for one, t in measured if one.backend},
                )


if __name__ == "__main__":
    main()
