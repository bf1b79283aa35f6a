"""The times that `backend="auto"` chooses by: measured.json, filled in by `python -m benchmarks.attention --record`.

An entry is (device, variant kind, head size, length) with the seconds of forward and backward on each back end. A call
takes the nearest entry of its device and kind, by the ratio of lengths and head sizes; no entry, no opinion.
"""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

PATH = Path(__file__).with_name("measured.json")


@torch.compiler.assume_constant_result
def seconds(device: str, kind: str, head_dim: int, length: int) -> dict[str, float]:
    """Seconds by back end at the nearest measured point; {} where this device or kind of variant was not measured."""
    near = [entry for entry in _entries() if entry["device"] == device and entry["kind"] == kind]
    if not near:
        return {}

    def distance(entry: dict[str, Any]) -> float:
        return abs(math.log(entry["length"] / length)) + abs(math.log(entry["head_dim"] / head_dim))

    return dict(min(near, key=distance)["seconds"])


def record(device: str, head_dim: int, length: int, times: Mapping[tuple[str, str], float]) -> None:
    """Put measured seconds, by (variant kind, back end), in the place of those of the same point."""
    by_kind: dict[str, dict[str, float]] = {}
    for (kind, backend), value in times.items():
        by_kind.setdefault(kind, {})[backend] = float(f"{value:.3g}")
    point = {"device": device, "head_dim": head_dim, "length": length}
    kept = [x for x in _entries() if {key: x[key] for key in point} != point or x["kind"] not in by_kind]
    kept += [{**point, "kind": kind, "seconds": found} for kind, found in by_kind.items()]
    kept.sort(key=lambda x: (x["device"], x["head_dim"], x["length"], x["kind"]))
    PATH.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in kept) + "\n]\n")
    _entries.cache_clear()


@cache
def _entries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PATH.read_text())
    return found
