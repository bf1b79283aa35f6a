"""Several ranks of `fit`, as real processes: one order of the data, one start, one stop, one failure."""

import hashlib
import json
import random
import time
from pathlib import Path

import pytest
import torch
import yaml
from forked_ranks import Forked, start

CONFIG = {
    "trainer": {
        "max_steps": 6,
        "accelerator": "cpu",
        "precision": "64-true",
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "watcher.Watcher"}],
    },
    "model": {"compile": "false", "network": {"context": 16, "layers": 1, "heads": 2, "width": 16}},
    "data": {"source": "text.txt", "tokenizer": "bytes", "batch_size": 2, "tokens_per_step": 128},
    "evaluation": {"every": 3},
    "outliers": {"every": 0},
}
# A user's callback: writes a hash of every row of every batch, and does on rank 1 at step 2 what WATCHER asks for.
WATCHER = """
import hashlib, os, signal, time
from pathlib import Path
from lightning.pytorch import Callback


class Watcher(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        hashes = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in batch["inputs"]]
        folder = Path(trainer.default_root_dir)
        with open(folder / f"rows.{trainer.world_size}.{trainer.global_rank}", "a") as file:
            file.write(f"{trainer.global_step} {' '.join(hashes)}\\n")
        deed = folder / "deed"
        if trainer.global_rank == 1 and trainer.global_step == 2 and deed.exists():
            exec(deed.read_text())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    words = random.Random(0).choices(["the", "cat", "dog", "sat", "on", "mat", "and", "then", "ran"], k=4000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "watcher.py").write_text(WATCHER)
    (folder / "my.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def fit(place: Path, world: int, out: str, *words: str, deed: str = "", constants=None) -> Forked:
    (place / out).mkdir(exist_ok=True)
    if deed:
        (place / out / "deed").write_text(deed)
    argv = ["--config", "my.yaml", "--out", out, "--trainer.devices", str(world), *words]
    return start(place, [argv] * world, constants)


def done(ranks: Forked) -> Forked:
    codes = ranks.codes()
    assert codes == [0] * len(codes), ranks.output()
    return ranks


def weights(folder: Path) -> torch.Tensor:
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([tensor.flatten() for tensor in state.values()])


def batches(folder: Path) -> dict[int, list[str]]:
    """The rows of each step's global batch, in a fixed order."""
    steps: dict[int, list[str]] = {}
    for file in folder.glob("rows.*"):
        for line in file.read_text().splitlines():
            step, *rows = line.split()
            steps.setdefault(int(step), []).extend(rows)
    return {step: sorted(rows) for step, rows in sorted(steps.items())}


def test_the_same_batches_on_any_number_of_ranks_and_from_one_number_to_another(place):
    done(fit(place, 1, "one"))
    four = done(fit(place, 4, "four"))
    assert "128 tokens a step: 1 × 2 sequences of 16 tokens on each of 4 ranks" in four.output()[0]
    assert not any(four.output()[1:])
    done(fit(place, 2, "parts", "--stop_after", "2"))
    done(fit(place, 1, "parts", "--stop_after", "4", "--data.batch_size", "4"))
    done(fit(place, 4, "parts"))

    one = batches(place / "one")
    assert list(one) == list(range(6))
    assert all(len(rows) == 8 for rows in one.values())
    assert len({hashlib.sha256(" ".join(rows).encode()).hexdigest() for rows in one.values()}) == 6
    for other in ("four", "parts"):
        assert batches(place / other) == one
        assert torch.allclose(weights(place / other), weights(place / "one"), rtol=0, atol=1e-13)  # order of sums

    found = json.loads((place / "parts/environment.json").read_text())
    starts = [*found["earlier"], found]
    assert [(s["world"], s["batch_size"], s["accumulation"]) for s in starts] == [(2, 2, 2), (1, 4, 2), (4, 2, 1)]
    assert {s["tokens_per_step"] for s in starts} == {128}

    again = fit(place, 2, "parts")  # finished: rank 1 must not wait for a run that does not begin
    assert again.codes() == [0, 0]
    assert "parts is finished, 6 steps" in again.output()[0]
    refused = fit(place, 2, "parts", "--data.tokens_per_step", "64")
    assert refused.codes() == [2, 2]
    assert "a step has 128 tokens there, 64 here" in refused.output()[0]
    assert refused.output()[1] == ""


def one_line(ranks: Forked, *parts: str) -> None:
    """All ranks leave with 2, rank 0 with one line and the others without a word."""
    assert ranks.codes() == [2] * len(ranks.files), ranks.output()
    first, *others = ranks.output()
    assert len(first.splitlines()) == 1
    for part in ("error: ", *parts):
        assert part in first
    assert not any(others)


def test_bad_input_is_one_line_on_rank_0_wherever_it_is_met(place):
    base = ["--config", "my.yaml", "--out", "refused", "--trainer.devices", "2"]
    one_line(start(place, [[*base, "--model.network.width", "17"]] * 2), "width 17")
    one_line(start(place, [base, [*base, "--data.source", "absent.txt"]]), "rank 1: ", "absent.txt")
    one_line(
        start(place, [base, [*base, "--model.optimizer.lr", "0.5"]]),
        "rank 1 does not start as rank 0: model.optimizer.lr is 0.001 on rank 0, 0.5 there",
    )
    one_line(start(place, [[*base[:-1], "4"]] * 2), "2 ranks were started", "4 × 1")
    assert not (place / "refused").exists()


def test_a_signal_to_one_rank_saves_once_and_stops_all_at_the_same_step(place):
    ranks = fit(place, 2, "stopped", deed="deed.unlink(); os.kill(os.getpid(), signal.SIGUSR1); time.sleep(2)")
    assert ranks.codes() == [138, 138], ranks.output()
    assert "SIGUSR1: saving after this step" in ranks.output()[0]
    assert ranks.output()[1] == ""
    step = torch.load(place / "stopped/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == 3  # the step in which the signal came, on both
    assert list(batches(place / "stopped")) == [0, 1, 2]
    done(fit(place, 2, "stopped"))
    assert batches(place / "stopped") == batches(place / "one")


@pytest.mark.parametrize(
    ("deed", "codes", "said"),
    [
        ("raise ArithmeticError('too far')", [1, 1], "error: rank 1: ArithmeticError: too far"),
        ("os.kill(os.getpid(), signal.SIGKILL)", [1, -9], "error: rank 1 does not answer any more (2 s)"),
        ("time.sleep(60)", [1, 1], "rank 1 is in "),
    ],
)
def test_the_failure_of_a_rank_ends_all(place, deed, codes, said):
    out = f"failed{abs(hash(deed))}"
    began = time.monotonic()
    ranks = fit(place, 2, out, "--rank_timeout", "3", deed=deed, constants={"SILENCE": 2.0, "GRACE": 1.0})
    assert ranks.codes() == codes, ranks.output()
    assert time.monotonic() - began < 60
    first, other = ranks.output()
    assert said in first
    assert ("ArithmeticError" in other) == ("Arithmetic" in deed)
    assert first.count("Traceback") + other.count("Traceback") <= 1
    assert json.loads((place / out / "status.json").read_text())["state"] == "failed"


def test_a_rank_that_fit_started_itself_is_named_when_it_is_killed(place):
    (place / "own").mkdir()
    (place / "own/deed").write_text("os.kill(os.getpid(), signal.SIGKILL)")
    argv = ["--config", "my.yaml", "--out", "own", "--trainer.devices", "2"]
    ranks = start(place, [argv])
    assert ranks.codes() == [1], ranks.output()
    assert ranks.output()[0].splitlines()[-1] == "error: rank 1 was killed by SIGKILL"
    assert "Traceback" not in ranks.output()[0]
    assert json.loads((place / "own/status.json").read_text())["state"] == "failed"
    assert len((place / "own/rows.2.1").read_text().splitlines()) == 5  # it trained: two steps of two micro-batches
