"""Compile every shipped kernel for GPUs that are not here, and read off what the machine code needs.

    python -m benchmarks.compile_kernels [--all] [--head-size 64 128] [--dtype bfloat16] [--architecture 80 90 100]

Every distinct kernel that the launches of `kernels/fused` would start; a row of the table is a launch with all the
variants that it serves: registers a thread, shared memory a program, and whether tensor cores multiply (HMMA, HGMMA or
UTC…MMA instructions by architecture). A fault is a spill (a stack frame, or a load or store of local memory), more
shared memory than the device has, or in half precision a missing tensor-core instruction (up to head size 128: of the
architecture's own kind); the exit code is then 1. Every kernel is a line on stderr when it is compiled; Triton keeps it
in its cache, so that a call which was stopped goes on where it was. `--all` goes over every dtype and class of head
sizes.

The launches are the library's own, on CPU tensors, under a driver that compiles and does not run: what is compiled is
what a GPU would get, specialisations included. Only what each variant adds is compiled; equal kernels once.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import DTYPES, variants
from benchmarks.timing import table
from kernels import Parts, SinkSlots

SHARED = {
    80: 166_912,
    90: 232_448,
    100: 232_448,
}  # bytes that one program may use: CUDA C++ guide, compute capabilities
TENSOR_CORE = {80: r"\bHMMA\b", 90: r"\bHGMMA\b", 100: r"\bUTC\w*MMA\b"}  # the architecture's own
ANY_TENSOR_CORE = r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b"
OWN_UP_TO = 128  # head size; beyond it the sums of dK and dV leave no room for the tiles that HGMMA asks for
MATRIX_KERNELS = ("forward", "statistics", "columns", "dkdv", "dq")
BATCH, HEADS, GROUPS, LENGTH = 1, 4, 2, 1024


def compiled_variants(head_dim: int, dtype: torch.dtype) -> dict[str, tuple[Parts, bool]]:
    """What is compiled: parts by name, and whether with a first key for each row."""
    found = {name: (parts, False) for name, parts in variants(BATCH, HEADS, LENGTH, head_dim, dtype).items()}
    for name in ("softmax", "sigmoid", "softpick", "clipped_softmax", "elastic_softmax"):
        found[f"{name}, first keys"] = (found[name][0], True)
    return found


class CompileOnly:
    """A Triton driver of a device that is not there. Each architecture is another device, with a cache of its own."""

    def __init__(self) -> None:
        self.architecture = 90

    def get_current_target(self) -> Any:
        """The device to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        """One index for each architecture."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        """None is used."""
        return 0


@dataclass(frozen=True)
class Code:
    """One compiled kernel."""

    kernel: str
    variant: str
    head_dim: int
    dtype: str
    architecture: int
    tiles: str
    registers: int
    stack: int
    spills: int
    shared: int
    mma: str
    seconds: float

    def faults(self) -> list[str]:
        """Why it must not be shipped."""
        found = []
        if self.stack or self.spills:
            found.append(f"{self.stack} bytes of stack, {self.spills} spilling instructions")
        if self.shared > SHARED[self.architecture]:
            found.append(f"{self.shared} bytes of shared memory, {SHARED[self.architecture]} allowed")
        wanted = TENSOR_CORE[self.architecture] if self.head_dim <= OWN_UP_TO else ANY_TENSOR_CORE
        if self.kernel in MATRIX_KERNELS and self.dtype != "float32" and not re.search(wanted, self.mma):
            found.append(f"{self.mma or 'no tensor-core instruction'} where {wanted} is wanted")
        return found

    def line(self) -> str:
        """One line of progress."""
        name = f"sm_{self.architecture} {self.dtype} {self.head_dim} {self.kernel} of {self.variant}, {self.tiles}"
        needs = f"{self.registers} registers, {self.shared} bytes shared, {self.seconds:.0f} s"
        return f"{name}: {needs}; {'; '.join(self.faults()) or 'ok'}"


class Recorder:
    """Stands in for a kernel of launch.py: compiles what is launched, once, and remembers it."""

    def __init__(self, name: str, kernel: Any, study: "Study"):
        self.name, self.kernel, self.study = name, kernel, study

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def compile_only(*arguments: Any, **options: Any) -> None:
            began = time.monotonic()
            compiled = self.kernel.run(*arguments, grid=grid, warmup=True, **options)
            self.study.add(self.name, compiled, options, time.monotonic() - began)

        return compile_only


class Study:
    """Compiles the launches of variants and collects `Code`."""

    def __init__(self) -> None:
        import triton

        from kernels.fused import launch

        self.launch, self.driver = launch, CompileOnly()
        triton.runtime.driver.set_active(self.driver)
        launch._architecture = lambda q: self.driver.architecture
        for name in ("forward", "rows", "dkdv", "dq", "columns"):
            setattr(launch, f"{name}_kernel", Recorder(name, getattr(launch, f"{name}_kernel"), self))
        self.seen: set[str] = set()
        self.codes: list[Code] = []
        self.labels: tuple[str, int, str] = ("", 0, "")

    def add(self, kernel: str, compiled: Any, options: dict[str, Any], seconds: float) -> None:
        """Keep a compiled kernel that was not seen before."""
        if compiled.hash in self.seen:
            return
        self.seen.add(compiled.hash)
        name, head_dim, dtype = self.labels
        if kernel == "forward" and options["STATISTICS"]:
            kernel = "statistics"
        tiles = f"{options['BLOCK_M']}×{options.get('BLOCK_N', '-')} w{options['num_warps']} s{options['num_stages']}"
        architecture = self.driver.architecture
        registers, stack, sass = disassemble(compiled.asm["cubin"])
        code = Code(
            kernel=kernel,
            variant=name,
            head_dim=head_dim,
            dtype=dtype,
            architecture=architecture,
            tiles=tiles,
            registers=registers,
            stack=stack,
            spills=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
            shared=compiled.metadata.shared,
            mma=" ".join(sorted(set(re.findall(ANY_TENSOR_CORE, sass)))),
            seconds=seconds,
        )
        self.codes.append(code)
        print(code.line(), file=sys.stderr, flush=True)

    def compile(self, name: str, parts: Parts, first_keys: bool, head_dim: int, dtype: str) -> None:
        """Compile forward, statistics and backward of one variant as the library launches them."""
        from kernels.fused import operators

        self.labels = (name, head_dim, dtype)
        kind = DTYPES[dtype]
        q = torch.zeros(BATCH, LENGTH, HEADS, head_dim, dtype=kind).transpose(1, 2)
        k = torch.zeros(BATCH, LENGTH, GROUPS, head_dim, dtype=kind).transpose(1, 2)
        first = torch.zeros(BATCH, LENGTH, dtype=torch.int32) if first_keys else None
        q, k, variant = operators.variant_of(q, k, parts, first, head_dim**-0.5)
        y, lse, kept = self.launch.forward(q, k, k, variant, training=True)
        self.launch.backward(q, None, q, k, k, variant, y, lse, kept)
        if parts.gate is None and parts.added is None and not isinstance(parts.sinks, SinkSlots):
            lse, statistics = self.launch.measure(q, k, variant)
            self.launch.received(q, k, variant, lse, statistics[0], statistics[0], 64)


def disassemble(cubin: bytes) -> tuple[int, int, str]:
    """Registers a thread, bytes of stack a thread, and the machine code's text."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _output([knobs.nvidia.cuobjdump.path, "-res-usage", str(path)])
        sass = _output([knobs.nvidia.nvdisasm.path, "-c", str(path)])
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return int(registers), int(stack), sass


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rows(codes: list[Code]) -> Iterator[list[str]]:
    """The table's lines: one for each launch, over all variants that it serves."""
    launches: dict[tuple[Any, ...], list[Code]] = {}
    for c in codes:
        launches.setdefault((c.kernel, c.dtype, c.head_dim, c.architecture, c.tiles), []).append(c)
    for (kernel, dtype, head_dim, architecture, tiles), group in sorted(launches.items()):
        registers, shared = [c.registers for c in group], max(c.shared for c in group)
        yield [
            kernel,
            dtype,
            str(head_dim),
            f"sm_{architecture}",
            tiles,
            str(len(group)),
            f"{min(registers)} to {max(registers)}",
            f"{shared / 1024:.0f} of {SHARED[architecture] // 1024}",
            ", ".join(sorted({c.mma or "-" for c in group})),
            str(sum(bool(c.faults()) for c in group)),
        ]


def compile_point(point: tuple[int, str, int], only: list[str] | None) -> list[Code]:
    """Compile every variant, or those named, for (architecture, dtype, head size); in a process of its own."""
    architecture, dtype, head_dim = point
    study = Study()
    study.driver.architecture = architecture
    for name, (parts, first_keys) in compiled_variants(head_dim, DTYPES[dtype]).items():
        if only is None or name in only:
            study.compile(name, parts, first_keys, head_dim, dtype)
    return study.codes


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if any kernel must not be shipped."""
    parser = argparse.ArgumentParser(prog="benchmarks.compile_kernels", description=__doc__.split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="every dtype, head sizes 16 to 256")
    parser.add_argument("--head-size", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--architecture", type=int, nargs="+", choices=sorted(SHARED), default=sorted(SHARED))
    parser.add_argument("--variant", nargs="+", help="these variants only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(argv)
    if options.all:
        options.head_size, options.dtype = [16, 32, 64, 80, 128, 256], list(DTYPES)
    points = [(a, d, h) for a in options.architecture for d in options.dtype for h in options.head_size]
    codes: list[Code] = []
    # A fresh process a point: a study replaces the kernels of the library.
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        for point, found in zip(points, pool.map(compile_point, points, [options.variant] * len(points)), strict=True):
            codes += found
            print("sm_{} {} {}:".format(*point), len(found), "kernels", file=sys.stderr, flush=True)
    header = ["kernel", "dtype", "D", "device", "tiles", "kernels", "registers", "shared KiB", "MMA", "faults"]
    import triton

    print(table(f"kernels compiled by triton {triton.__version__}", header, list(rows(codes))))
    bad = [code for code in codes if code.faults()]
    print(f"{len(codes)} kernels, {len(bad)} with a fault")
    return 1 if bad or not codes else 0


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("error: TRITON_INTERPRET is set; the interpreter compiles nothing")
    sys.exit(main())
