"""A run's directory: what stands in it, and the rule by which `fit` enters it.

    config.yaml        reproduces the run: `fit --config RUN/config.yaml --out ELSEWHERE`
    environment.json   versions, git commit, device, command and batch of the latest start; in `earlier` of the others
    status.json        {"state": "running | finished | stopped | failed", "step": n, "max_steps": m}
    metrics.csv, probes/, checkpoints/, tokenizer.json      written while it trains

The rule: the same command again continues, a finished run says so, and another configuration is refused. On another
number of ranks it is the same configuration as long as the global batch is the same.
"""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from errors import InputError
from training.split import Split

PACKAGES = ("torch", "triton", "lightning", "numpy", "tokenizers", "datasets", "pyarrow", "jsonargparse")

# What may change between two starts of one run, because no number depends on it.
FREE = (
    "trainer.enable_model_summary",
    "trainer.profiler",
    "loggers",
    "checkpoints.",
    "data.workers",
    "data.folder",
)
# What may change as long as an optimizer step sees as many tokens: the data's order does not depend on the split, but
# sums are taken in another order, and each rank draws its own dropout.
SPLIT = (
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.accumulate_grad_batches",
    "data.batch_size",
    "data.tokens_per_step",
)


@dataclass(frozen=True)
class Status:
    """How far a run is. `state`: running, finished, stopped or failed; `step` of `max_steps` optimizer steps."""

    state: str
    step: int
    max_steps: int


class RunDirectory:
    """The files of one run. Creating the object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint, whether or not it exists."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before it, whether or not it exists."""
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def config_file(self) -> Path:
        """The configuration that reproduces the run."""
        return self.path / "config.yaml"

    def config(self) -> dict[str, Any] | None:
        """The saved configuration; None where there is no run yet. InputError: the file is damaged."""
        if not self.config_file.exists():
            return None
        try:
            config = yaml.safe_load(self.config_file.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise InputError(f"{self.config_file} is not a readable configuration; choose another --out")
        return config

    def status(self) -> Status | None:
        """The last written status; None where there is none or it cannot be read."""
        try:
            return Status(**json.loads((self.path / "status.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write_status(self, state: str, step: int, max_steps: int) -> None:
        """Replace status.json at once: a reader never sees half a file."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.path / "status.json", json.dumps({"state": state, "step": step, "max_steps": max_steps}) + "\n"
        )

    def enter(self, config: dict[str, Any], split: Split) -> bool:
        """Apply the rule to a configuration. True: a run of this configuration is here and is finished.

        InputError: the directory holds a run of another configuration (the message names the keys and both values) or
        of another global batch, or a checkpoint without its configuration. A run that has not made a step yet is no
        obstacle: nothing is lost.
        """
        here, status = self.config(), self.status()
        if here is not None and not self.last_checkpoint.exists() and (status is None or status.step == 0):
            return False
        if here is None:
            if self.last_checkpoint.exists():
                raise InputError(
                    f"{self.path} holds a checkpoint but no config.yaml, so that nobody can say what it continues; "
                    "choose another --out"
                )
            return False
        lines = differences(here, config)
        tokens = self._environment().get("tokens_per_step", split.tokens_per_step)
        if tokens != split.tokens_per_step:
            lines.insert(0, f"a step has {tokens:,} tokens there, {split.tokens_per_step:,} here ({split})")
        if lines:
            more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
            raise InputError(
                f"{self.path} holds a run of another configuration: {'; '.join(lines[:4])}{more}. Choose another --out."
            )
        return status is not None and status.state == "finished"

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Hold the directory against other processes.

        InputError: one of them is training in it now, it cannot be written, or its disk is full.
        The lock goes with the process, however that ends. A file system without locks grants it to everybody.
        """
        try:
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below, after the whole run
        except OSError as error:
            raise InputError(f"--out {self.path} cannot be written: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process is training in {self.path}; choose another --out") from None
            except OSError:
                pass
            try:
                yield
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(
                    f"no space left on the disk of {self.path}; with more of it the same command goes on from the last "
                    "checkpoint"
                ) from None
            finally:
                # What was refused leaves no empty directory behind.
                if made and [file.name for file in self.path.iterdir()] == [".lock"]:
                    (self.path / ".lock").unlink()
                    with suppress(OSError):  # the first one that holds something else ends it
                        for folder in made:
                            folder.rmdir()

    def record(self, config: dict[str, Any], command: list[str], device: str, split: Split) -> None:
        """Write config.yaml, and put this start into environment.json."""
        header = f"# Reproduces this run: python train.py fit --config {self.config_file} --out ELSEWHERE\n"
        write_atomically(self.config_file, header + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        file = self.path / "environment.json"
        before = self._environment()
        earlier = before.pop("earlier", [])
        now = environment(command, device) | split.record() | {"earlier": [*earlier, before] if before else []}
        write_atomically(file, json.dumps(now, indent=1) + "\n")

    def _environment(self) -> dict[str, Any]:
        """environment.json; empty where it is missing or damaged."""
        try:
            found = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that at any moment either the old or the new content is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def environment(command: list[str], device: str) -> dict[str, Any]:
    """What a number may depend on besides the configuration."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "git_commit": git_commit(),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "executable": sys.executable,
    }


def git_commit() -> str | None:
    """The checkout's commit, with `-dirty` where tracked files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}. An empty dict stays a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(here: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """One text a key whose value differs and on which numbers depend: "model.network.width is 64 there, 128 here".

    An option of the model or the data that a run from before its time lacks had the effect of its default.
    """
    there, ours = flatten(_with_later_options(here)), flatten(_with_later_options(given))
    absent = object()
    lines = []
    for key in sorted(there.keys() | ours.keys()):
        old, new = there.get(key, absent), ours.get(key, absent)
        if old != new and not key.startswith((*FREE, *SPLIT)):
            lines.append(f"{key} is {_show(old, absent)} there, {_show(new, absent)} here")
    return lines


def _with_later_options(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the options of the model and the data that it lacks, at their defaults."""
    from training.data_module import CorpusData  # Lightning: what only reads a run's directory does without it
    from training.module import LanguageModel

    groups = {"model": LanguageModel, "data": CorpusData}
    return config | {name: _filled(config.get(name, {}), _defaults(group)) for name, group in groups.items()}


def _defaults(group: type) -> dict[str, Any]:
    """The defaults of a class's arguments, as YAML holds them: a dataclass is a dict, a tuple a list."""
    values = {name: parameter.default for name, parameter in signature(group).parameters.items()}
    return json.loads(json.dumps(values, default=asdict))


def _filled(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given`, with what it and its groups lack from `defaults`."""
    groups = {name: _filled(value, defaults[name]) for name, value in given.items() if _is_group(value, defaults, name)}
    return defaults | given | groups


def _is_group(value: Any, defaults: dict[str, Any], name: str) -> bool:
    return isinstance(value, dict) and isinstance(defaults.get(name), dict)


def _show(value: Any, absent: object) -> str:
    return "absent" if value is absent else json.dumps(value, ensure_ascii=False)
