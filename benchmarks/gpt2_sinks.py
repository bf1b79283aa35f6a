"""Stage `outliers` of benchmarks/gpu.py: GPT-2 124M long enough for sinks to form, with each mechanism of 2502.06415.

What `configs/studies/gpt2_124m_sinks.yaml` says, trained by the parts of `fit` (Trainer, callbacks, run directory)
without its command line, on the Python sources of the machine. Each mechanism gives two rows: `<mechanism>/training`
(loss, every headline of the probe at the last step, onsets) and `<mechanism>/compression` (every gap of the recipe).
In parentheses stands a number's null: of a headline its value at initialisation, of a gap that of the recipe.

A training that the call's time or a kill cuts off goes on from its last checkpoint, exactly (training/resume.py). What
is left in OUT/outliers/<mechanism>/seed=0 are ordinary run directories: `train.py report OUT/outliers` reads them.
Needs torch, triton, lightning, tokenizers, pyarrow, yaml, safetensors; nothing of datasets, jsonargparse or wandb.
"""

import gc
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.seed import seed_everything
from lightning.pytorch import Trainer

from benchmarks import python_text
from benchmarks.cases import Call, Job, Refused, Row, Unfinished
from benchmarks.timing import table
from benchmarks.trainer import Deadline
from errors import InputError
from experiments.compress import results
from experiments.dynamics import dynamics, outcome, set_in
from experiments.runs import Run
from outliers import HEADLINES
from outliers.access import open_decoder, sequences
from outliers.compression import study
from training import loggers
from training.assembly import FIXED, callbacks
from training.callbacks.checkpoints import Checkpoints
from training.callbacks.evaluation import Evaluation
from training.callbacks.outlier_probe import OutlierProbe
from training.callbacks.signals import Stop
from training.checkpoint_io import recover
from training.data_module import CorpusData
from training.guard import NonFiniteError
from training.module import LanguageModel
from training.quiet import quiet
from training.run_directory import RunDirectory
from training.split import Split, accumulation

CONFIG = Path(__file__).parents[1] / "configs" / "studies" / "gpt2_124m_sinks.yaml"
# (a) to (f) of the paper; those that say most first, should the time not suffice for all.
MECHANISMS = ("softmax", "context_scaling", "sink_key_value", "sigmoid", "fixed_bias", "context_bias")
START = 120.0  # seconds that a job on a GPU takes before its first step: compiling, and the probe of initial weights
SEQUENCES = 20  # of the compression's text, as train.py compress has it; every fifth calibrates
# A rehearsal's text, and what it trains in the place of the study, group by group.
SMALL_PACKAGE = Path(json.__file__).parent
REHEARSAL: dict[str, dict[str, Any]] = {
    "trainer": {"max_steps": 12, "log_every_n_steps": 2, "precision": "32-true"},
    "model": {
        "compile": "false",
        "network": {"vocab_size": None, "context": 32, "layers": 2, "heads": 2, "width": 16, "bias": False},
    },
    "data": {"vocab_size": 300, "tokens_per_step": 128, "batch_size": 2, "workers": 0, "validation_sequences": 8},
    "evaluation": {"every": 4},
    "outliers": {"every": 2},
    "checkpoints": {"every": 4},
}


def outliers(call: Call) -> Iterator[Job]:
    """A mechanism after the other: its training, then what compression costs its last checkpoint."""
    for name in MECHANISMS:
        yield f"{name}/training", lambda name=name: _training(name, call)
        yield f"{name}/compression", lambda name=name: _compression(name, call)


def configuration(name: str, call: Call) -> dict[str, Any]:
    """The run's configuration: the study's with the mechanism, and the places of this call."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    if call.device == "cpu":
        config |= {group: config[group] | values for group, values in REHEARSAL.items()}
    config["model"]["attention"] = {"name": name}
    config["data"] |= {"source": str(call.out / "text"), "folder": str(call.out / "data")}
    return config


def folder(name: str, call: Call) -> Path:
    """The run directory of a mechanism, as `train.py report` expects those of a comparison."""
    return call.out / "outliers" / name / "seed=0"


def _begin(call: Call) -> None:
    """Give back what the job before has left: graphs, of which there is a limit, and memory. Unfinished: no time."""
    if call.device == "cuda" and call.left < START:
        raise Unfinished(f"not begun, {call.left:.0f} s are left")
    torch._dynamo.reset()
    gc.collect()
    if call.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _training(name: str, call: Call) -> Row:
    _begin(call)
    directory = RunDirectory(folder(name, call))
    try:
        with quiet(), directory.occupied():
            _train(directory, configuration(name, call), call)
    except NonFiniteError as error:
        return {"result": "failed", "reason": str(error)}
    except InputError as error:
        raise Refused(str(error)) from None
    return _measured(Run(directory.path))


def _train(directory: RunDirectory, config: dict[str, Any], call: Call) -> None:
    """Train from the last checkpoint, or from the start, to the last step. Unfinished: the call's time was over."""
    seed, context = config["seed_everything"], config["model"]["network"]["context"]
    seed_everything(seed, verbose=False)
    data = CorpusData(**config["data"], context=context, seed=seed)
    batch_size, wanted = data.batch_size, data.tokens_wanted
    micro_batches = accumulation(wanted, None, batch_size=batch_size, context=context, world=1)
    split = Split(1, 1, "SingleDeviceStrategy", batch_size, micro_batches, context)
    if directory.enter(config, split):
        return
    sources = [SMALL_PACKAGE] if call.device == "cpu" else python_text.roots()
    python_text.collect(Path(config["data"]["source"]), sources)
    data.prepare_data()
    recover(directory.last_checkpoint, directory.previous_checkpoint)
    directory.record(config, sys.argv, call.device, split)
    stop = Stop()
    trainer = Trainer(
        **config["trainer"],
        **FIXED,
        accelerator=call.device,
        devices=1,
        accumulate_grad_batches=micro_batches,
        default_root_dir=directory.path,
        logger=loggers.build([], directory.path),
        callbacks=[
            Deadline(call),
            *callbacks(
                directory,
                Evaluation(**config["evaluation"]),
                OutlierProbe(**config["outliers"]),
                stop,
                Checkpoints(**config["checkpoints"]),
            ),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = directory.last_checkpoint
    trainer.fit(LanguageModel(**config["model"], seed=seed), data, ckpt_path=last if last.exists() else None)
    if stop.exit_code:
        raise SystemExit(stop.exit_code)
    if trainer.global_step < trainer.max_steps:
        raise Unfinished(f"stopped and saved at step {trainer.global_step} of {trainer.max_steps}")
    # A call that was killed after its last checkpoint had not said so.
    directory.write_status("finished", trainer.global_step, trainer.max_steps)


def _measured(run: Run) -> Row:
    """What a finished run has logged. Onsets: the step, and between which steps it may have been."""
    row: Row = {
        "step": run.status.step,
        "parameters": run.parameters,
        "corpus": (run.corpus or "")[:12],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "tokens/s": f"{run.last('time/tokens_per_second'):.0f}",
        "peak GiB": f"{run.last('time/peak_memory_gib'):.1f}",
        "training loss": _number(run.last("train/loss")),
        "validation loss": _number(run.last("validation/loss")),
        "bits per byte": _number(run.last("validation/bits_per_byte")),
    }
    for name in (*HEADLINES, "quantization_gap"):
        _, values = run.series(f"outliers/{name}")
        if len(values):
            row[name] = f"{_number(values[-1])} ({_number(values[0])})"
    for column, onset in dynamics(run).items():
        found = "none" if onset is None else outcome(column, onset)
        if set_in(column, onset):
            found = f"{onset.step:.0f} [{onset.low:.0f}, {onset.high:.0f}]"
        row[f"onset of {column.removeprefix('outliers/')}"] = found
    falls = (losses := run.series("validation/loss")[1])[-1] < losses[0]
    return row | {"result": "ok" if falls else "WRONG"}


def _compression(name: str, call: Call) -> Row:
    """Gap ± its standard error (its null) of every setting; the whole table is in the run's folder `compressed`."""

    def watch(setting: str, done: int, total: int) -> None:
        if call.over:
            raise Unfinished(f"{done} of {total} evaluations done; they begin again")

    run = folder(name, call)
    status = RunDirectory(run).status()
    if status is None or status.state != "finished":
        return {"result": "failed", "reason": "its training did not come to an end"}
    _begin(call)
    decoder = open_decoder(str(run))
    text = sequences(decoder, "validation", count=SEQUENCES, length=decoder.sizes.context)
    evaluated_BT, calibrating_BT = study.split(text.tokens)
    decoder.module.to(call.device)
    gaps = study.study(decoder, evaluated_BT, study.calibrated(decoder, calibrating_BT), progress=watch)
    results.write(run / "compressed", gaps, results.Subject(decoder, text, len(evaluated_BT), len(calibrating_BT)))
    full, *rest = gaps.to_pylist()
    row: Row = {"perplexity, full precision": f"{full['perplexity']:.4g}"}
    for setting in rest:
        null = "" if math.isnan(setting["null_gap"]) else f" ({_number(setting['null_gap'])})"
        row[setting["setting"]] = f"{_number(setting['gap'])} ± {setting['gap_se']:.1g}{null}"
    return row | {"result": "ok"}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def summary(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The table of mechanisms: a line for each number, a column for each mechanism that has been measured."""
    names = [name for name in MECHANISMS if f"{name}/training" in rows]
    if not names:
        return []
    columns = [{**rows[f"{name}/training"], **_gaps(rows.get(f"{name}/compression", {}))} for name in names]
    lines = dict.fromkeys(key for column in columns for key in column)
    found = [[key, *(column.get(key, "-") for column in columns)] for key in lines]
    title = "\nmechanisms; in parentheses the null: of a headline its value at initialisation, of a gap the recipe's"
    text = [table(title, ["", *names], found)]
    if len({column.get("corpus") for column in columns}) > 1:
        text.append("The mechanisms were trained on different texts (corpus): their numbers do not compare.")
    return text


def _gaps(row: Mapping[str, str]) -> dict[str, str]:
    return {f"compressed: {key}": value for key, value in row.items()}
