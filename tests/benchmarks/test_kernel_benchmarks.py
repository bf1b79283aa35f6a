"""The kernels' benchmarks: floors counted by hand, the GPU stages rehearsed on the CPU, the measured choice."""

import csv
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kernels
from benchmarks import attention, correctness, floors, gpt2, gpu, targets
from benchmarks.cases import Call
from kernels import backends, measured


def test_visible_pairs() -> None:
    assert floors.visible_pairs(4) == 1 + 2 + 3 + 4
    assert floors.visible_pairs(4, torch.tensor([0, 0, 2, 9])) == 1 + 2 + 1 + 0


def test_floors_of_a_case_counted_by_hand() -> None:
    """B 1, H 2, G 1, T 4, D 8 in half precision: ten pairs a head."""
    work = floors.forward(1, 2, 1, 4, 8, pairs=10, itemsize=2)
    assert work.flops == 2 * 10 * (
        8 * 2 + 8 * 2
    )  # heads · pairs · (q·k and P·v, a multiplication and an addition each)
    assert work.bytes == 2 * (4 * 8) * (2 + 2 + 1 + 1) + 4 * 2 * 4  # q, y; k, v; L
    assert floors.backward(1, 2, 1, 4, 8, pairs=10, itemsize=2).flops == 7 * 2 * 10 * 8 * 2
    assert floors.forward(1, 2, 1, 4, 8, pairs=10, itemsize=2, two_pass=True).flops == 1.5 * work.flops


def test_a_floor_is_the_slower_of_matrix_and_memory_and_never_a_guess() -> None:
    assert floors.Work(989.4e12, 1.0).seconds("NVIDIA H100 80GB HBM3") == pytest.approx(1.0)
    assert floors.Work(1.0, 4.8e12).seconds("NVIDIA H200") == pytest.approx(1.0)
    assert floors.Work(1.0, 1.0).seconds("NVIDIA GeForce RTX 4090") is None


@pytest.mark.parametrize("stage", ["determinism", "statistics"])
def test_a_stage_writes_each_row_once_and_goes_on(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = gpu.STAGES[stage]
    monkeypatch.setitem(gpu.STAGES, stage, lambda call: list(every(call))[:2])
    assert gpu.run(stage, Call("cpu", tmp_path, time.monotonic())) == (0, 2, 0)
    assert gpu.run(stage, Call("cpu", tmp_path, time.monotonic() + 600)) == (2, 0, 0)
    with open(tmp_path / f"{stage}.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 2
    assert all("result=ok" in row for row in rows)
    assert gpu.run(stage, Call("cpu", tmp_path, 0.0)) == (2, 0, 0)  # nothing is measured again


def test_a_wrong_kernel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("softmax", "triton", "float32", correctness.SITUATIONS["packed"], 16, 1, 2, 40, "cpu")
    monkeypatch.setitem(gpu.STAGES, "correctness", lambda call: [("one", lambda: correctness.errors(*case))])
    assert gpu.run("correctness", Call("cpu", tmp_path / "right", time.monotonic() + 600)) == (1, 0, 0)
    true_attend = kernels.attend

    def slightly_off(q, *args, backend, **options):
        y = true_attend(q, *args, backend=backend, **options)
        return y * 1.0001 if backend == "triton" else y

    monkeypatch.setattr(kernels, "attend", slightly_off)
    assert gpu.run("correctness", Call("cpu", tmp_path / "wrong", time.monotonic() + 600)) == (1, 0, 1)


def test_one_wrong_row_of_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5e-6 in one row of 320: the norm of the whole error stays under the bar, the row's own does not."""
    case = ("softmax", "triton", "float32", correctness.SITUATIONS["whole"], 16, 2, 4, 40, "cpu")
    true_attend = kernels.attend

    def one_row_off(q, *args, backend, **options):
        y = true_attend(q, *args, backend=backend, **options)
        if backend == "triton":
            factor = torch.ones(y.shape[:3])
            factor[0, 0, 0] += 1.5e-6
            y = y * factor[..., None]
        return y

    monkeypatch.setattr(kernels, "attend", one_row_off)
    row = correctness.errors(*case)
    assert row["result"] == "WRONG"
    assert float(row["error / eager error"]) < 2 < float(row["worst row / eager's"])


@pytest.mark.parametrize("about", correctness.SITUATIONS)
def test_every_situation_of_the_correctness_stage(about: str) -> None:
    """Where the kernels are right, a row says so; slots and logits take extreme sinks."""
    for name in ("sink_logit", "sink_key_value, row gate")[: 2 if about.startswith("sinks") else 1]:
        case = (name, "triton", "float32", correctness.SITUATIONS[about], 16, 1, 2, 20, "cpu")
        assert correctness.errors(*case)["result"] == "ok", name


def test_a_kernel_that_returns_nan_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("softmax", "triton", "float32", correctness.SITUATIONS["whole"], 16, 1, 2, 40, "cpu")
    true_attend = kernels.attend

    def nan(q, *args, backend, **options):
        y = true_attend(q, *args, backend="reference", **options)
        return y * float("nan") if backend == "triton" else y

    monkeypatch.setattr(kernels, "attend", nan)
    assert correctness.errors(*case)["result"] == "WRONG"


def test_the_train_stage_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A bare loop and the Trainer on the CPU: rows with speeds, losses that fall, and the lines on the bars."""
    monkeypatch.setitem(gpu.STAGES, "train", lambda call: list(gpt2.train(call))[:2])
    assert gpu.run("train", Call("cpu", tmp_path, time.monotonic() + 600)) == (2, 0, 0)
    assert torch.get_float32_matmul_precision() == "highest"  # as before: other rows compute in full float32
    loop, fit = capsys.readouterr().out.splitlines()[:2]
    assert loop.startswith("softmax/auto  tokens/s=")
    assert "  waits=0  " in fit
    assert gpu.run("train", Call("cpu", tmp_path, 0.0)) == (2, 0, 0)
    assert "softmax/auto: " in capsys.readouterr().out


def test_the_bars_of_the_train_stage() -> None:
    speeds = {"softmax/auto": "400000", "softmax/fit": "392000", "sink_key/auto": "380000", "sigmoid/auto": "100000"}
    rows = {name: {"tokens/s": speed} for name, speed in speeds.items()} | {"softpick/auto": {"result": "failed"}}
    rows["softmax/fit"]["fit / bare loop"] = "0.975"
    assert gpt2.bars(rows) == [
        "softmax/auto: 400,000 tokens/s; the bar on an H200 is 430,000",
        "softmax/fit: 0.975 of softmax's bare loop; the bar is 0.97: met",
        "sink_key/auto: 0.950 of softmax's bare loop; the bar is 0.97: MISSED",
        "sigmoid/auto: 0.250 of softmax's bare loop",
    ]
    assert gpt2.bars({}) == []


def test_a_timed_call_computes_gradients_and_keeps_none() -> None:
    """What one call left behind would be missing from the memory of the next."""
    shape = attention.Shape(1, 2, 2, 16, 16, torch.float32, "cpu")
    one = next(one for one in attention.candidates(shape) if one.name == "sink_key_value [vendor]")
    found: list[int] = []
    for leaf in (one.parts.sinks.keys, one.parts.sinks.values):
        leaf.register_hook(lambda grad: found.append(grad.numel()))
    one.both()
    assert found == [2 * 16, 2 * 16]
    assert one.parts.sinks.keys.grad is None


def test_the_targets_of_the_speed_stage() -> None:
    times = {
        "softmax [triton]": (1.0, 3.0), "softmax [vendor]": (1.2, 3.4), "torch SDPA flash": (1.2, 2.9),
        "torch SDPA cuDNN": (0.9, 2.85), "sink_key_value [triton]": (1.0, 3.12), "sink_key_value [vendor]": (1.1, 3.0),
        "sink_key_value (dense mask)": (4.0, 16.0), "softpick [triton]": (1.25, 4.0),
    }  # fmt: skip
    rows = {
        f"{name}/D64/T4096": {"forward ms": str(forward), "both ms": str(both)}
        for name, (forward, both) in times.items()
    }
    rows["sigmoid [triton]/D64/T4096"] = {"result": "failed"}
    assert [line.removeprefix("D 64, T 4096: ") for line in targets.lines(rows)] == [
        "softmax's forward over FA2's 1.20, target 1.15: met",
        "softmax's backward over FA2's 0.85, target 0.9: MISSED",
        "softmax, best back end, over torch's fastest kernel 0.95, target 0.95: met",
        "sink_key_value, best back end, over torch's fastest kernel 0.95, target 0.95: met",
        "sink_key_value over our softmax 0.96, target 0.98: MISSED",
        "softpick's forward over our softmax's 0.80, target 0.9: MISSED",
        "sink_key_value over the authors' way 5.33, target 5.0: met",
    ]
    assert targets.lines({}) == []


def test_waits_are_watched_between_logging_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.trainer import Watch, waits

    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    watch, step = Watch(), SimpleNamespace(global_step=0, log_every_n_steps=2)
    for step.global_step in range(5):
        watch.on_train_batch_start(step)
        step.global_step += 1
        modes.append(str(step.global_step))
        watch.on_train_batch_end(step, None)
    # Steps 1 and 2 compile; a window ends before the numbers of its last step are read.
    assert modes == ["1", "2", "default", "warn", "3", "warn", "4", "default", "warn", "5"]
    with waits() as found:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert len(found) == 2
    assert found[0].startswith("test_kernel_benchmarks.py:")


def test_without_a_gpu_the_script_says_so() -> None:
    python = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(["bash", "benchmarks/gpu.sh", "speed"], capture_output=True, text=True, env=python)
    assert run.returncode == 2
    assert run.stderr.strip() == "error: no CUDA device is visible to torch; --device cpu rehearses the stages"


def test_the_measured_times_decide_what_auto_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "measured.json"
    path.write_text("[]")
    monkeypatch.setattr(measured, "PATH", path)
    measured._entries.cache_clear()
    q = torch.zeros(1, 2, 64, 16)
    chosen = [backends.choose("auto", q, q, kernels.Parts(), None)]
    measured.record("cpu float32", 16, 100, {("softmax", "vendor"): 2e-3, ("softmax", "blockwise"): 1e-3})
    measured.record("cpu float32", 16, 4000, {("softmax", "vendor"): 1e-3, ("softmax", "blockwise"): 2e-3})
    chosen.append(backends.choose("auto", q, q, kernels.Parts(), None))
    long = torch.zeros(1, 2, 3000, 16)
    chosen.append(backends.choose("auto", long, long, kernels.Parts(), None))
    measured._entries.cache_clear()
    assert chosen == ["vendor", "blockwise", "vendor"]
    assert [entry["length"] for entry in json.loads(path.read_text())] == [100, 4000]


def test_the_benchmark_prints_every_variant_and_its_peers() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.attention", "--length", "32", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    ).stdout
    rows = ("torch SDPA", "control", "softmax [vendor]", "elastic_softmax [blockwise]", "sigmoid (eager)")
    for row in (*rows, "context_bias (dense mask)"):
        assert f"\n{row}  " in run
    assert "[triton]" not in run
