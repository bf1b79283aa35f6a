"""Reads numbers back out of an analysis's table."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from outliers.analysis.numbers import COORDINATES


def select(table: pa.Table, metric: str, **coordinates: Any) -> pa.Table:
    """The rows of one metric. A coordinate that is not given must not apply to them; None takes any."""
    wanted = COORDINATES | {"metric": metric} | coordinates
    keep = None
    for name, value in wanted.items():
        if value is not None:
            here = pc.equal(table[name], pa.scalar(value, table.schema.field(name).type))
            keep = here if keep is None else pc.and_(keep, here)
    return table.filter(keep)


def grid(table: pa.Table, rows: str, columns: str, value: str = "value") -> np.ndarray:
    """(rows, columns) of a selection by two of its coordinates, from 0; NaN where there is no number."""
    r, c = table[rows].to_numpy(), table[columns].to_numpy()
    if not len(r):
        return np.empty((0, 0))
    found = np.full((r.max() + 1, c.max() + 1), np.nan)
    found[r, c] = table[value].to_numpy(zero_copy_only=False)
    return found


def by_layer(table: pa.Table, metric: str, value: str = "value", **coordinates: Any) -> np.ndarray:
    """(layers,) of one metric; NaN where a layer has no number."""
    selected = select(table, metric, layer=None, **coordinates)
    layers = selected["layer"].to_numpy()
    found = np.full(max(0, layers.max(initial=-1) + 1), np.nan)
    found[layers[layers >= 0]] = selected[value].to_numpy(zero_copy_only=False)[layers >= 0]
    return found
