"""Run directories as training writes them, with made-up numbers: the report's tests need known ones."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from outliers import SCHEMA
from outliers.definitions import DEFINITIONS, HEADLINES
from outliers.table import Rows, headlines

Number = Callable[[str, int], float]  # (metric, step) -> value
LAYERS, HEADS = 2, 2


def flat(metric: str, step: int) -> float:
    """Every metric doubles over training; those whose small values are outliers halve. A null that is measured is left
    out (NaN), so that the closed form holds."""
    if metric == "first_key_mass_gated_even":
        return math.nan
    share = step / 200
    return 0.1 * (1 + share) if DEFINITIONS[metric].direction != "higher" else 1.0 - 0.5 * share


def write_run(
    folder: Path,
    attention: str | dict[str, Any],
    seed: int,
    *,
    label: str | None = None,
    loss: Callable[[int], float] = lambda step: 3.0 - step / 100,
    number: Number = flat,
    steps: int = 200,
    max_steps: int = 200,
    state: str = "finished",
    vocabulary: int | None = 300,
    corpus: str | None = "c0ffee",
    config: dict[str, Any] | None = None,
    probes: bool = True,
    random: bool = True,
    tokens_per_step: int = 1000,
    skipped: tuple[str, ...] = (),
    sentence: bool = True,
    logged: dict[str, Callable[[int], float]] | None = None,
) -> Path:
    """One run under folder/<label>/seed=<n>, logged every 10 steps, evaluated and probed every 50.

    logged: more columns of metrics.csv by step, or others than the probes would log.
    """
    run = folder / (label or (attention if isinstance(attention, str) else attention["name"])) / f"seed={seed}"
    run.mkdir(parents=True)
    written: dict[str, Any] = {
        "seed_everything": seed,
        "trainer": {"max_steps": max_steps},
        "model": {
            "attention": attention if isinstance(attention, dict) else {"name": attention},
            "network": {"layers": LAYERS, "heads": HEADS, "width": 32, "context": 64},
            "optimizer": {"lr": 1e-3},
            "schedule": {"name": "constant"},
        },
        "data": {"source": "stdlib"},
        "outliers": {"every": 50, "sequences": 4},
    }
    for dotted, value in (config or {}).items():
        *path, last = dotted.split(".")
        node = written
        for key in path:
            node = node[key]
        node[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    start = {"command": ["train.py", "fit"], "device": "CPU", "versions": {"torch": "2.13"}, "git_commit": "abc"}
    (run / "environment.json").write_text(json.dumps(start | {"earlier": []}))
    if corpus is not None:
        (run / "corpus.json").write_text(json.dumps({"hash": corpus, "kind": "text", "vocab_size": vocabulary}))
    (run / "status.json").write_text(json.dumps({"state": state, "step": steps, "max_steps": max_steps}))
    (run / "probes").mkdir()
    found = {}
    for step in range(0, steps + 1, 50) if probes else ():
        tables = [_probe(step, number, skipped, "probe")]
        if random and step in (0, max_steps):
            tables.append(_probe(step, number, skipped, "random"))
        pq.write_table(pa.concat_tables(tables), run / "probes" / f"step={step:06d}.parquet")
        found[step] = headlines(tables[0])
    if sentence and probes and state == "finished":
        magnitudes = np.random.default_rng(seed).random((LAYERS, 12, 32), dtype=np.float32)
        magnitudes[1, 0, 5] = 40
        np.savez(
            run / "probes" / "sentence.npz", block_output=magnitudes, tokens=np.arange(12), texts=np.array(["a"] * 12)
        )
    with (run / "metrics.csv").open("w", newline="") as file:
        names = ["step", "tokens", "train/loss", "learning_rate", "validation/loss", "validation/bits_per_byte"]
        names += [f"outliers/{name}" for name in (*HEADLINES, "quantization_gap")] + [
            "time/tokens_per_second",
            "time/peak_memory_gib",
        ]
        rows = csv.DictWriter(file, names, restval="")
        rows.writeheader()
        for step in range(0, steps + 1, 10):
            row: dict[str, Any] = {"step": step, "tokens": step * tokens_per_step, "learning_rate": 1e-3}
            if step:
                row |= {"train/loss": loss(step) + 0.01, "time/tokens_per_second": 1234.0, "time/peak_memory_gib": 0.5}
            if step % 50 == 0:
                row |= {"validation/loss": loss(step), "validation/bits_per_byte": loss(step) / 2}
                row |= {f"outliers/{name}": value for name, value in found.get(step, {}).items()}
                row |= {name: column(step) for name, column in (logged or {}).items()}
            rows.writerow(row)
    return run


def _probe(step: int, number: Number, skipped: tuple[str, ...], inputs: str) -> Any:
    rows = Rows()
    for d in DEFINITIONS.values():
        if d.id in skipped:
            continue
        value = number(d.id, step)
        if math.isnan(value):
            continue
        if d.scope == "activation":
            for site in d.sites:
                for layer in range(LAYERS) if site != "norm_final" else (-1,):
                    rows.add(d.id, value, site=site, layer=layer)
        elif d.scope == "head":
            for layer in range(LAYERS):
                for head in range(HEADS):
                    rows.add(d.id, value, layer=layer, head=head)
        elif d.scope == "layer":
            for layer in range(LAYERS):
                rows.add(d.id, value, layer=layer)
        else:
            for site in d.sites:
                for layer in range(LAYERS):
                    rows.add(d.id, value, site=site, layer=layer, statistic="max")
    table = rows.table(step, inputs, {"tokens": step * 1000, "learning_rate": 1e-3, "residual_dtype": "float32"})
    assert table.schema == SCHEMA
    return table
