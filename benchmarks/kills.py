"""One run killed at random moments and begun again each time, beside the same run left alone.

    python -m benchmarks.kills --kills 30

Both are `train.py fit` processes as a user starts them; the kill is SIGKILL to the whole process group, at a random
moment of the start-up or of training, which writes a checkpoint every other step. Nothing may differ at the end: the
checkpoint (weights, optimizer, random number generators), metrics.csv but for its times, the probes, the files. Exit
code 1 where something does.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TRAIN_PY = Path(__file__).resolve().parent.parent / "train.py"
STEPS = 600
# Dropout, accumulation and a logging interval of three steps: each has a state that a resumed run must get back.
SETTINGS = {
    "data.source": "bigram_backcopy",
    "data.batch_size": 4,
    "data.validation_sequences": 16,
    "trainer.accumulate_grad_batches": 2,
    "trainer.log_every_n_steps": 3,
    "model.network.context": 32,
    "model.network.layers": 2,
    "model.network.width": 64,
    "model.network.dropout": 0.1,
    "model.compile": "false",
    "evaluation.every": 20,
    "outliers.every": 20,
    "outliers.sequences": 4,
    "checkpoints.every": 2,
}


def command(out: Path, settings: dict[str, Any]) -> list[str]:
    """The command line of a run."""
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(TRAIN_PY), "fit", "--out", str(out), *words]


def killed(
    arguments: list[str], out: Path, kills: int, draw: random.Random, seconds: float, say: Callable[[str], None]
) -> int:
    """Run a command, kill it `kills` times and let it end; the number of kills that met it alive.

    A kill comes, one time in four, within `seconds` of the start; otherwise within `seconds` of the first new
    checkpoint of this start.
    """
    met = 0
    for number in range(kills):
        process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        before = _changed(out)
        in_training = draw.random() >= 0.25
        while in_training and process.poll() is None and _changed(out) == before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, seconds))
        if process.poll() is None:  # the run, once reaped, has no group any more
            met += 1
            os.killpg(process.pid, signal.SIGKILL)
        errors = process.communicate()[1]
        if "Traceback" in errors or process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the run failed before kill {number + 1}:\n{errors}")
        say(f"kill {number + 1} of {kills}: {'done already' if process.returncode == 0 else _progress(out)}")
        if process.returncode == 0:
            break
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return met


def _changed(out: Path) -> int | None:
    try:
        return (out / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _progress(out: Path) -> str:
    try:
        return "at step " + (out / "metrics.csv").read_text().splitlines()[-1].split(",")[0]
    except (FileNotFoundError, IndexError):
        return "before the first step"


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two run directories, apart from times, commands and places."""
    found = []
    files = [
        {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and not p.name.endswith(".ckpt")}
        for run in (one, other)
    ]
    found += [f"{name} is in one directory alone" for name in sorted(files[0] ^ files[1])]
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (one, other)]
    for key in ("state_dict", "optimizer_states", "rng", "global_step"):
        found += _unequal(states[0][key], states[1][key], key)
    if _rows(one) != _rows(other):
        found.append("metrics.csv")
    for probe in sorted((one / "probes").glob("*.parquet")):
        twin = other / "probes" / probe.name
        if twin.exists() and probe.read_bytes() != twin.read_bytes():
            found.append(f"probes/{probe.name}")
    return found


def _unequal(one: Any, other: Any, where: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"the keys of {where}"]
        return [line for key in one for line in _unequal(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [line for i in range(len(one)) for line in _unequal(one[i], other[i], f"{where}.{i}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [where]


def _rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def main(argv: list[str] | None = None) -> int:
    """Run both, compare, print what differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=STEPS, help="Optimizer steps of the run.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    choice = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        settings = SETTINGS | {"trainer.max_steps": choice.steps, "data.folder": Path(folder, "data")}
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        subprocess.run(command(whole, settings), check=True, stdout=subprocess.DEVNULL)
        # So short that the run is not done before the last kill.
        seconds = float(_last(whole, "time/seconds")) / choice.kills / 2
        met = killed(command(parts, settings), parts, choice.kills, random.Random(choice.seed), seconds, _say)
        found = differences(whole, parts)
    print(f"{met} kills met the run alive, {choice.steps} steps: {'; '.join(found) or 'nothing differs'}")
    return 1 if found else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _last(run: Path, column: str) -> str:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))[-1][column]


if __name__ == "__main__":
    sys.exit(main())
