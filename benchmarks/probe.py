"""What the outlier probe costs: one probe beside one training step, and the share of training time at a cadence.

    python -m benchmarks.probe [--rounds 9]

The probe is the callback's default: its default number of sequences, every layer, site and head. The gap is what
`outliers.quantization_gap` adds to it (but for the copy of the weights).
"""

import argparse
from inspect import signature

import torch

from benchmarks.models import batches, small, step_of
from benchmarks.timing import clock_argument, machine, table, take_turns
from models import GPT
from outliers import Probe
from outliers.access.ours import decoder_of
from outliers.compression.study import w8a8_gap
from training.callbacks.outlier_probe import OutlierProbe


def main(argv: list[str] | None = None) -> None:
    """Print one table: a row for each batch size."""
    parser = argparse.ArgumentParser(prog="benchmarks.probe", description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    clock_argument(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    defaults = {name: parameter.default for name, parameter in signature(OutlierProbe).parameters.items()}
    config = small()
    model = GPT(config, "softmax")
    tokens, _ = batches(config, defaults["sequences"], count=1)[0]
    probe, decoder = Probe(model, tokens), decoder_of(model)
    rows = []
    for batch in options.batch:
        step = step_of(model, batches(config, batch))
        timings = take_turns(
            {"step": step, "probe": lambda: probe.measure(0), "gap": lambda: w8a8_gap(decoder, tokens)},
            rounds=options.rounds,
            clock=options.clock,
        )
        steps = 1 / timings["probe"].speed_ratio(timings["step"])
        rows.append(
            [
                str(batch),
                f"{timings['step'].median * 1e3:.1f}",
                f"{timings['probe'].median * 1e3:.1f}",
                f"{steps:.2f}",
                f"{steps / defaults['every']:.2%}",
                f"{timings['gap'].median * 1e3:.1f}",
                f"{1 / timings['gap'].speed_ratio(timings['probe']):.2f}",
            ]
        )
    title = f"\nthe probe, {defaults['sequences']} sequences of {config.context}, every {defaults['every']} steps"
    header = ["batch", "step ms", "probe ms", "probe in steps", "share of training", "gap ms", "gap in probes"]
    print(table(f"{title}; {machine()}", header, rows), flush=True)


if __name__ == "__main__":
    main()
