"""The times that `backend="auto"` chooses by: measured.json, filled in by `python -m benchmarks.attention --record`.

An entry is (device and dtype, variant kind, head size, length) with the seconds of forward and backward on each back
end that could compute it. A call takes the nearest entry of its device and kind, by the ratio of lengths and head
sizes; no entry, no opinion.
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
def knows(device: str) -> bool:
    """Whether anything was measured there: if not, a compiled graph need not depend on the length."""
    return any(entry["device"] == device for entry in _entries())


@torch.compiler.assume_constant_result
def order(device: str, kind: str, head_dim: int, length: int, preference: tuple[str, ...]) -> tuple[str, ...]:
    """The back ends, fastest first at the nearest measured point; those not measured there last, as preferred."""
    near = [entry for entry in _entries() if entry["device"] == device and entry["kind"] == kind]
    if not near:
        return preference

    def distance(entry: dict[str, Any]) -> float:
        return abs(math.log(entry["length"] / length)) + abs(math.log(entry["head_dim"] / head_dim))

    seconds = min(near, key=distance)["seconds"]
    return tuple(sorted(preference, key=lambda backend: seconds.get(backend, math.inf)))


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
