"""Where numbers go: `metrics.csv` always, W&B and TensorBoard where the configuration names them.

All of them get the same numbers at the same step, the count of optimizer steps.
"""

import csv
import io
import logging
import netrc
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

import outliers
from errors import InputError

NAMES = ("wandb", "tensorboard")

# Time columns stand last: two identical runs differ in these alone.
TIMES = (
    "time/seconds",
    "time/left_seconds",
    "time/tokens_per_second",
    "time/mfu",
    "time/peak_memory_gib",
    "time/probe_seconds",
    "time/evaluation_seconds",
)

log = logging.getLogger("sinkless")


def columns() -> tuple[str, ...]:
    """The header of `metrics.csv`."""
    trained = ("step", "tokens", "train/loss", "train/grad_norm", "train/skipped", "learning_rate")
    validated = ("validation/loss", "validation/bits_per_byte")
    probed = (*outliers.HEADLINES, "quantization_gap", "quantization_gap_error")
    return (*trained, *validated, *(f"outliers/{name}" for name in probed), *TIMES)


def build(names: Iterable[str], folder: Path | str, name: str = "sinkless") -> list[Logger]:
    """The CSV and the loggers that are asked for. InputError: an unknown name."""
    folder = Path(folder)
    made: list[Logger] = [MetricsCSV(folder)]
    for wanted in names:
        if wanted == "wandb":
            made.append(Guarded("W&B", lambda: _wandb(folder, name)))
        elif wanted == "tensorboard":
            made.append(Guarded("TensorBoard", lambda: TensorBoardLogger(folder, name="tensorboard", version="")))
        else:
            raise InputError(f"logger {wanted!r} is unknown; beside metrics.csv there are {', '.join(NAMES)}")
    return made


class MetricsCSV(Logger):
    """`metrics.csv`: one row for each step that logged anything, an empty cell for what it did not log.

    Append-only with a fixed header. Numbers logged at one step gather in one row, which is written when another step
    comes or `save` is called. A resumed run calls `cut` first, so that no step is missing or there twice.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.header = columns()
        self._row: dict[str, Any] = {}
        self._written = -1
        self._begun = False
        self._unknown: set[str] = set()

    @property
    def name(self) -> str:
        """Name among the loggers."""
        return "csv"

    @property
    def version(self) -> str:
        """One file a run, so no versions."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run's directory."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of `step`. What has no column is in the other loggers only, and is named once.

        Before `cut` nothing is written: the file belongs to training, not to `validate`.
        """
        if not self._begun:
            return
        if step is None or step <= self._written:
            raise ValueError(f"metrics for step {step} after the row of step {self._written} was written")
        if self._row and self._row["step"] != step:
            self._write_row()
        self._row["step"] = step
        for key, value in metrics.items():
            if key in self.header:
                self._row[key] = value
            elif key not in self._unknown:
                self._unknown.add(key)
                log.warning("metrics.csv has no column for %s", key)

    def _write_row(self) -> None:
        cells = [_text(self._row.get(key)) for key in self.header]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(cells))
        self._written = self._row["step"]
        self._row = {}

    @rank_zero_only
    def save(self) -> None:
        """Write the row that is being gathered and force the file to the disk."""
        if self._row:
            self._write_row()
        if self._begun:
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Drop every row after `step` and what a crash left half-written; without a file, or with step -1, start anew.

        An existing file keeps its own header.
        """
        self._begun, self._row, rows = True, {}, []
        if step >= 0 and self.path.exists():
            with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
                lines = [line for line in file.read().split("\n")[:-1] if line]
            if lines:
                self.header = tuple(next(csv.reader(lines[:1])))
                whole = (row for row in csv.reader(lines[1:]) if len(row) == len(self.header) and row[0].isdigit())
                rows = [row for row in whole if int(row[0]) <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text("".join(_line(row) for row in (self.header, *rows)), encoding="utf-8")
        os.replace(temporary, self.path)
        self._written = int(rows[-1][0]) if rows else -1


class Guarded(Logger):
    """Another logger that must never end a run: its first failure is reported in one line, then it is silent."""

    def __init__(self, title: str, make: Callable[[], Logger]) -> None:
        super().__init__()
        self.title = title
        self._make: Callable[[], Logger] | None = make
        self._logger: Logger | None = None

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        # A service beside the run may fail in any way: none of them is worth the run.
        try:
            if self._make is not None:
                make, self._make = self._make, None
                self._logger = make()
            return None if self._logger is None else getattr(self._logger, method)(*arguments, **options)
        except Exception as error:
            log.warning("%s is off for the rest of this run: %s", self.title, str(error).partition("\n")[0])
            self._logger = None
            return None

    @property
    def name(self) -> str:
        """Name among the loggers."""
        return self.title

    @property
    def version(self) -> str:
        """One run a directory, so no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Pass on."""
        self._call("log_hyperparams", *arguments, **options)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass on."""
        self._call("log_metrics", dict(metrics), step=step)

    @rank_zero_only
    def save(self) -> None:
        """Pass on."""
        self._call("save")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Pass on."""
        self._call("finalize", status)


def _wandb(folder: Path, name: str) -> Logger:
    mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_key() else "offline")
    if "WANDB_MODE" not in os.environ and mode == "offline":
        log.info("W&B: offline, there is no API key; `wandb sync %s` uploads the run later", folder / "wandb")
    # WandbLogger's own `offline` sets an environment variable that wandb no longer reads.
    return WandbLogger(project="sinkless", name=name, save_dir=folder, mode=mode)


def _wandb_key() -> bool:
    """Whether W&B would find an API key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, (int, str)) else repr(float(value))


def _line(cells: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
