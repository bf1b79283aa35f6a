"""Read run directories: configuration, logged metrics, probes and state, finished or not.

Nothing here writes, and nothing fails because a run has only just begun: what is not on disk yet is empty.
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from errors import InputError
from training.run_directory import RunDirectory, Status

if TYPE_CHECKING:
    from models import GPTConfig
    from outliers.nulls import Setting

Content = TypeVar("Content")
MARKS = ("config.yaml", "status.json", "metrics.csv")
SKIPPED_FOLDERS = {"checkpoints", "probes", "figures", "wandb", "lightning_logs", "data", "corpora"}


class Run:
    """One run directory.

    Attributes are read once, when first asked for. `label` is the attention variant's short name, `seed` its seed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as a dictionary; empty where it is missing."""
        return RunDirectory(self.path).config() or {}

    def option(self, dotted: str, default: Any = None) -> Any:
        """The configuration's value at `dotted`, for example `model.optimizer.lr`."""
        value: Any = self.config
        for key in dotted.split("."):
            if not isinstance(value, dict) or key not in value:
                return default
            value = value[key]
        return value

    @cached_property
    def environment(self) -> dict[str, Any]:
        """environment.json: versions, device and command of the newest start; empty where it is missing."""
        return _json(self.path / "environment.json")

    @property
    def corpus(self) -> str | None:
        """The hash of the corpus that the run trained on, from corpus.json."""
        return _json(self.path / "corpus.json").get("hash")

    @cached_property
    def parameters(self) -> int | None:
        """The model's number of parameters, counted on a network without storage; None where it cannot be built."""
        network, attention = self.network, self.option("model.attention")
        if network is None or attention is None:
            return None
        try:
            return _count(network, json.dumps(attention))
        except ValueError:  # an unknown vocabulary, or a user's class that cannot be imported from here
            return None

    @cached_property
    def network(self) -> "GPTConfig | None":
        """The network's sizes, the vocabulary from corpus.json; None where the configuration does not hold them."""
        sizes = self.option("model.network")
        if not isinstance(sizes, dict):
            return None
        from models import GPTConfig

        vocabulary = sizes.get("vocab_size") or _json(self.path / "corpus.json").get("vocab_size")
        try:
            return GPTConfig(**{**sizes, "vocab_size": vocabulary})
        except TypeError:  # a key that this version does not know
            return None

    @cached_property
    def setting(self) -> "Setting | None":
        """What the closed forms of the probe's nulls depend on; None where the configuration does not say, and where
        documents are masked: they hold for rows that see every key before them."""
        from outliers import nulls

        attention, sequences = self.option("model.attention"), self.option("outliers.sequences")
        if self.network is None or attention is None or not isinstance(sequences, int):
            return None
        if self.option("data.documents") == "masked":
            return None
        try:
            return nulls.setting(self.network, attention, sequences)
        except ValueError:  # a user's class that cannot be imported from here
            return None

    @cached_property
    def status(self) -> Status:
        """status.json as it was when first asked for; a run that has not written it is "not started" at step 0."""
        steps = self.option("trainer.max_steps")
        return RunDirectory(self.path).status() or Status("not started", 0, steps if isinstance(steps, int) else 0)

    @property
    def finished(self) -> bool:
        """Whether the run took all its steps."""
        return self.status.state == "finished"

    @cached_property
    def label(self) -> str:
        """The variant's label from the configuration, else from the folder's name."""
        attention = self.option("model.attention")
        if attention is None:
            return self.path.parent.name if self.path.name.startswith("seed=") else self.path.name
        from models.attention import label

        try:
            return label(attention)
        except ValueError:  # a user's class that cannot be imported from here still has a readable spelling
            if isinstance(attention, str):
                return attention
            options = (f"{key}={value}" for key, value in attention.items() if key != "name")
            return ",".join([str(attention.get("name")), *options])

    @cached_property
    def seed(self) -> int | None:
        """The seed from the configuration, else from a folder named seed=N."""
        seed = self.option("seed_everything")
        if isinstance(seed, int) and not isinstance(seed, bool):
            return seed
        digits = self.path.name.removeprefix("seed=")
        return int(digits) if digits.isdigit() else None

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """metrics.csv by column, float64; NaN where a step did not log that column."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return {}
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        if not rows:
            return {}
        header = rows[0]
        # A run that is being written may end in half a line.
        body = [row for row in rows[1:] if len(row) == len(header)]
        table = np.array([[_number(cell) for cell in row] for row in body], dtype=np.float64)
        return dict(zip(header, table.reshape(len(body), len(header)).T, strict=True))

    def series(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one logged column, only where it was logged, in the order of the steps."""
        values, steps = self.metrics.get(column), self.metrics.get("step")
        if values is None or steps is None:
            return np.empty(0), np.empty(0)
        there = ~np.isnan(values)
        return steps[there], values[there]

    def last(self, column: str) -> float | None:
        """The last logged value of a column, or None."""
        _, values = self.series(column)
        return float(values[-1]) if len(values) else None

    @cached_property
    def probes(self) -> pa.Table | None:
        """All probes' rows in one table (columns in `outliers`), by step; None where there is no probe.

        Raises InputError where a file is damaged.
        """
        files = sorted((self.path / "probes").glob("step=*.parquet"))
        if not files:
            return None
        return pa.concat_tables([_read(pq.read_table, file) for file in files], promote_options="permissive")

    @cached_property
    def sentence(self) -> dict[str, np.ndarray] | None:
        """probes/sentence.npz: one sentence's magnitudes by layer, token and channel; None where it is missing.

        Raises InputError where the file is damaged.
        """
        path = self.path / "probes" / "sentence.npz"
        return _read(_arrays, path) if path.is_file() else None


def find(folder: Path | str) -> list[Path]:
    """The run directories in `folder` (itself included), sorted.

    Raises InputError where `folder` is no directory or holds no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory: report takes a run's folder or one that contains runs")
    found = sorted(_walk(folder))
    if not found:
        raise InputError(f"{folder} contains no run (a folder with config.yaml, status.json or metrics.csv)")
    return found


def comparison_folder(run: Path) -> Path:
    """The folder of the comparison that a run belongs to: X for X/<label>/seed=<n>, else the run's parent."""
    run = run.absolute()
    return run.parent.parent if run.name.startswith("seed=") else run.parent


def is_run(folder: Path) -> bool:
    """Whether the folder holds a run. A configuration alone is none: configs/ is full of them."""
    return any((folder / mark).is_file() for mark in MARKS[1:]) or (
        folder.name.startswith("seed=") and (folder / MARKS[0]).is_file()
    )


def _walk(folder: Path) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and child.name not in SKIPPED_FOLDERS and child.name[0] != ".":
            yield from _walk(child)


def _read(reader: Callable[[Path], Content], path: Path) -> Content:
    try:
        return reader(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise InputError(f"{path} cannot be read ({error}); remove it to report without it") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


@lru_cache(maxsize=64)
def _count(network: "GPTConfig", attention: str) -> int:
    import torch

    from models import GPT

    with torch.device("meta"):
        return GPT(network, json.loads(attention)).parameter_count()


def _number(cell: str) -> float:
    try:
        return float(cell) if cell else float("nan")
    except ValueError:
        return float("nan")
