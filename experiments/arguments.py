"""What `compare` reads off its command line, checked before anything slow is imported."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from errors import InputError

DESCRIPTION = """\
Train several attention variants with several seeds and write a report beside them.
Within a seed all variants share tokens, order and initial values; another seed changes both.
A finished run is not run again, an interrupted one goes on from its checkpoint."""
EPILOG = """\
Any other option is passed on to every run: --trainer.max_steps 500 --model.optimizer.lr 3e-4
Layout: OUT/<variant>/seed=<n>/ (each with its log.txt), OUT/report.html, OUT/results.csv, OUT/figures/*.png
Example: python train.py compare --config configs/demo_text.yaml --seeds 0-2 \\
             --attention 'softmax,context_scaling,{name: sink_key_value, slots: 4}' --out runs/three"""
OURS = {
    "--seed_everything": "--seeds 0,1,2",
    "--model.attention": "--attention softmax,context_scaling",
    "--ckpt_path": "nothing, it goes on by itself",
    "--print_config": "it to fit, since each run has its own configuration",
}
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Arguments:
    """configs: the YAML files, a later one wins. attentions: specifications as in YAML.
    overrides: dotted options for every run."""

    configs: list[Path]
    attentions: list[str | dict[str, Any]]
    seeds: list[int]
    out: Path
    jobs: int
    overrides: list[str]


class Parser(argparse.ArgumentParser):
    """argparse with its mistakes as InputError, in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError. Called by argparse."""
        raise InputError(f"{message} (see {self.prog} --help)")


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line. Raises InputError for what is missing, doubled or not of its form."""
    parser = Parser(
        prog="train.py compare", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, action="append", required=True, metavar="FILE", help="the experiment, as for fit"
    )
    parser.add_argument(
        "--attention", required=True, metavar="LIST",
        help="variants, separated by commas; with options as in YAML: softmax,{name: sink_key_value, slots: 4}",
    )  # fmt: skip
    parser.add_argument("--seeds", default="0", metavar="LIST", help="0,1,2 or 0-2 (default 0; 3 or more to judge)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the runs go (default runs/<first config>)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once; each gets cores/N threads")
    known, overrides = parser.parse_known_args(argv)
    for option in ("--attention", "--seeds", "--out", "--jobs"):
        if sum(word.partition("=")[0] == option for word in argv) > 1:
            raise InputError(f"{option} is given twice; it takes one value, a list where it can hold several")
    for word in overrides:
        name = word.partition("=")[0]
        ours = next((option for option in OURS if name == option or name.startswith(f"{option}.")), None)
        if ours:
            raise InputError(f"compare takes no {name}: give {OURS[ours]}")
    if overrides and not overrides[0].startswith("--"):
        raise InputError(f"unexpected argument {overrides[0]!r}: options are written --name value")
    if known.jobs < 1:
        raise InputError(f"--jobs {known.jobs}: at least 1 run at once")
    return Arguments(
        known.config, attentions(known.attention), seeds(known.seeds),
        known.out or Path("runs") / known.config[0].stem, known.jobs, overrides,
    )  # fmt: skip


def attentions(text: str) -> list[str | dict[str, Any]]:
    """The variants as YAML reads them in a list: `softmax,{name: sink_key_value, slots: 4}`."""
    try:
        loaded = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        raise InputError(
            f"--attention {text!r} is not a list such as softmax,{{name: sink_key_value, slots: 4}}"
        ) from None
    if not loaded:
        raise InputError("--attention is empty: name at least one variant, such as softmax,context_scaling")
    for spec in loaded:
        if not (isinstance(spec, str) or (isinstance(spec, dict) and isinstance(spec.get("name"), str))):
            raise InputError(f"--attention: {spec!r} is neither a name nor {{name: ..., option: value}}")
    return loaded


def seeds(text: str) -> list[int]:
    """`0,1,4` and `0-2` as integers, in the order given."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise InputError(f"--seeds {text!r}: {part.strip()!r} is not a seed; whole numbers such as 0,1,2 or 0-2")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST_SEEDS:
            raise InputError(f"--seeds {text!r}: {part.strip()!r} is not a range from a smaller to a larger seed")
        found += range(first, last + 1)
    doubled = sorted({seed for seed in found if found.count(seed) > 1})
    if doubled:
        raise InputError(f"--seeds {text!r}: seed {doubled[0]} is given twice")
    return found


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` runs at once: OMP_NUM_THREADS where it is set, else an equal share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() // jobs)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
