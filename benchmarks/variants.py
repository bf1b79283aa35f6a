"""Training a small GPT with each attention mechanism: tokens/s as a ratio to softmax's, and peak memory.

    python -m benchmarks.variants [--context 256 2048] [--rounds 9] [--activation-checkpointing]

Time: one training step of each in turn, in one process; ratios as in benchmarks.timing.
Memory: each in a process of its own; the growth of the process's peak resident size over three steps.
"""

import argparse
import resource
import subprocess
import sys

import torch

from benchmarks.models import small, variant_step
from benchmarks.timing import clock_argument, machine, table, take_turns
from models.attention import examples, label


def peak_memory(attention: str, context: int, batch: int, activation_checkpointing: bool = False) -> float:
    """MiB that three training steps add to a fresh process's peak resident size (measured in a child process)."""
    command = [sys.executable, "-m", "benchmarks.variants", "--memory-of", attention]
    command += ["--context", str(context), "--tokens", str(batch * context)]
    if activation_checkpointing:
        command.append("--activation-checkpointing")
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_own_memory(attention: str, context: int, batch: int, activation_checkpointing: bool) -> float:
    """The child's side of `peak_memory`."""
    step = variant_step(small(context), examples()[attention], batch, activation_checkpointing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(argv: list[str] | None = None) -> None:
    """Print one table for each context."""
    parser = argparse.ArgumentParser(prog="benchmarks.variants", description=__doc__.split("\n\n")[0])
    parser.add_argument("--context", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step (default 4096)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--activation-checkpointing", action="store_true", help="compute blocks again in the backward")
    clock_argument(parser)
    parser.add_argument("--memory-of", metavar="ATTENTION", help="print one variant's peak memory in MiB, nothing else")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    again = options.activation_checkpointing
    for context in options.context:
        batch = max(1, options.tokens // context)
        if options.memory_of:
            print(measure_own_memory(options.memory_of, context, batch, again))
            continue
        steps = {name: variant_step(small(context), spec, batch, again) for name, spec in examples().items()}
        timings = take_turns(steps, rounds=options.rounds, clock=options.clock)
        memory = {name: peak_memory(name, context, batch, again) for name in examples()}
        rows = [
            [
                label(examples()[name]),
                f"{batch * context / timing.median:,.0f}",
                f"{timing.speed_ratio(timings['softmax']):.3f}",
                f"{memory[name]:.0f}",
                f"{memory[name] / memory['softmax']:.2f}",
            ]
            for name, timing in timings.items()
        ]
        header = ["attention", "tokens/s", "speed / softmax", "peak MiB", "memory / softmax"]
        print(table(f"\ntraining steps, context {context}, batch {batch}; {machine()}", header, rows), flush=True)


if __name__ == "__main__":
    main()
