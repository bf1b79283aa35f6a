"""One long table that every number of an analysis goes into, each beside its nulls."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COORDINATES = {  # what a number belongs to, and what stands where it does not apply
    "metric": "",  # an id of outliers/definitions.py or of docs/analysis.md
    "site": "",
    "layer": -1,
    "head": -1,
    "channel": -1,
    "sequence": -1,
    "position": -1,
    "token": "",  # its decoded text
    "kind": "",  # its class: initial, strong, weak, other
    "statistic": "value",
}
NULLS = ("null_random", "null_initial", "null_closed")
SCHEMA = pa.schema(
    [(name, pa.string() if isinstance(default, str) else pa.int32()) for name, default in COORDINATES.items()]
    + [(name, pa.float64()) for name in ("value", *NULLS)]
)


class Numbers:
    """Collects values with their coordinates, a whole array at a time."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in (*COORDINATES, "value")}

    def add(self, metric: str, value: Any, **coordinates: Any) -> None:
        """One number, or a one-dimensional array of them; each coordinate is one value or an array of that length."""
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        given = {"metric": metric} | coordinates
        if unknown := set(given) - set(COORDINATES):
            raise ValueError(f"not a coordinate: {', '.join(sorted(unknown))}")
        self._columns["value"].append(values)
        for name, default in COORDINATES.items():
            dtype = object if isinstance(default, str) else np.int32
            entries = np.asarray(given.get(name, default), dtype=dtype)
            self._columns[name].append(np.broadcast_to(entries, values.shape))

    def table(self) -> pa.Table:
        """All numbers, at least one, without nulls yet."""
        fields = [field for field in SCHEMA if field.name in self._columns]
        joined = {field.name: pa.array(np.concatenate(self._columns[field.name]), type=field.type) for field in fields}
        return pa.table(joined, schema=pa.schema(fields))


def without_nulls(table: pa.Table) -> pa.Table:
    """The table with empty columns of nulls: of numbers whose null is another number beside them."""
    for name in NULLS:
        table = table.append_column(name, pa.nulls(table.num_rows, pa.float64()))
    return table.cast(SCHEMA)


def beside(
    table: pa.Table, random: pa.Table, initial: pa.Table, closed: Mapping[str, float], measured: Mapping[str, str]
) -> pa.Table:
    """The table with the columns of `NULLS`: the same number on random tokens and with initial weights, and the closed
    form by metric (of its "value" and "max"). Empty where that measurement has no such number. measured: the metric
    whose number at the same place is the closed form under the model's own gates, by metric.

    Numbers of single sequences or tokens have no counterpart in other inputs and get none.
    """
    keys = [name for name in COORDINATES if name != "token"]
    ordered = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    for name, other in (("null_random", random), ("null_initial", initial)):
        single = pc.equal(other["sequence"], -1)
        matched = other.filter(single).select([*keys, "value"]).rename_columns([*keys, name])
        ordered = ordered.join(matched, keys=keys, join_type="left outer")
    ordered = ordered.sort_by("row")
    metrics, statistics = ordered["metric"].to_pylist(), ordered["statistic"].to_pylist()
    places = list(zip(ordered["layer"].to_pylist(), ordered["head"].to_pylist(), statistics, strict=True))
    values, nulls = ordered["value"].to_pylist(), set(measured.values())
    made = {(m, *at): value for m, at, value in zip(metrics, places, values, strict=True) if m in nulls}
    forms = [
        made.get((measured.get(metric, ""), *at), closed.get(metric) if at[-1] in ("value", "max") else None)
        for metric, at in zip(metrics, places, strict=True)
    ]
    return ordered.append_column("null_closed", pa.array(forms, pa.float64())).select(SCHEMA.names).cast(SCHEMA)
