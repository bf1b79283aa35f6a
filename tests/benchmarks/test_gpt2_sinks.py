"""The stage `outliers` of benchmarks/gpu.sh, rehearsed: real trainings that are killed and cut off, and go on."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpt2_sinks, gpu, python_text
from benchmarks.cases import Call, Refused
from experiments.runs import Run
from outliers import HEADLINES
from outliers.compression.recipe import SETTINGS
from training.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
KILLED_AT_STEP_5 = """
import os, signal, sys
for name in ("jsonargparse", "datasets", "wandb"):
    sys.modules[name] = None
from benchmarks import gpu
from training.callbacks.checkpoints import Checkpoints
on_step_end = Checkpoints.on_step_end
def and_die(self, trainer, module, step):
    on_step_end(self, trainer, module, step)
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.on_step_end = and_die
gpu.main(["outliers", "--device", "cpu", "--out", sys.argv[1]])
"""
TIMES = {"tokens/s", "peak GiB"}


@pytest.fixture(autouse=True)
def _two_mechanisms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt2_sinks, "MECHANISMS", ("softmax", "context_scaling"))


def call(out: Path, looks: float = float("inf")) -> Call:
    """A call whose time is over when somebody has looked at the clock so many times."""
    return Call("cpu", out, deadline=looks, clock=itertools.count(1).__next__)


def rows(out: Path) -> dict[str, dict[str, str]]:
    read = gpu._read(out / "outliers.csv")
    return {key: dict(cell.split("=", 1) for cell in cells) for key, cells in read.items()}


def test_a_killed_and_cut_off_stage_ends_with_the_numbers_of_an_undisturbed_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed behind the first checkpoint, without the libraries that the GPU machine lacks; then cut off three times.
    out = tmp_path / "disturbed"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_STEP_5, str(out)], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    first = RunDirectory(gpt2_sinks.folder("softmax", call(out)))
    assert first.last_checkpoint.exists()
    assert not (out / "outliers.csv").exists()

    assert gpu.run("outliers", call(out, looks=4)) == (0, 4, 0)  # before the job, and after steps 5, 6 and 7
    assert first.status().state == "stopped"
    assert "softmax/training: stopped and saved at step 8 of 12" in capsys.readouterr().out
    assert gpu.run("outliers", call(out, looks=10)) == (1, 3, 0)  # jobs and steps take 6 of them
    assert "softmax/compression: 4 of 62 evaluations done; they begin again" in capsys.readouterr().out
    assert gpu.run("outliers", call(out)) == (4, 0, 0)
    table = capsys.readouterr().out
    assert [line.split() for line in table.splitlines() if line.split() == ["softmax", "context_scaling"]]
    assert gpu.run("outliers", call(out, looks=0)) == (4, 0, 0)  # nothing is measured again
    assert "first_key_mass_gated " in capsys.readouterr().out

    found = rows(out)
    for name in ("softmax", "context_scaling"):
        assert set(HEADLINES) <= found[f"{name}/training"].keys()
        assert {setting.name for setting in SETTINGS} < found[f"{name}/compression"].keys()
        run = Run(gpt2_sinks.folder(name, call(out)))
        assert (run.finished, run.label, run.seed, len(run.series("outliers/entropy")[0])) == (True, name, 0, 7)
        entropy = run.series("outliers/entropy")[1]
        assert found[f"{name}/training"]["entropy"] == f"{entropy[-1]:.4g} ({entropy[0]:.4g})"

    monkeypatch.setattr(gpt2_sinks, "MECHANISMS", ("softmax",))
    assert gpu.run("outliers", call(tmp_path / "undisturbed")) == (2, 0, 0)
    undisturbed = rows(tmp_path / "undisturbed")
    # The corpus is named after its folder, and its hash with it.
    for key, there in undisturbed.items():
        assert {k: v for k, v in found[key].items() if k not in TIMES} == {
            k: v for k, v in there.items() if k not in TIMES
        }

    # Another configuration in that place is refused, with its rows left alone.
    (out / "outliers.csv").unlink()
    monkeypatch.setitem(gpt2_sinks.REHEARSAL, "trainer", {**gpt2_sinks.REHEARSAL["trainer"], "max_steps": 14})
    with pytest.raises(Refused, match=r"another configuration: trainer.max_steps is 12 there, 14 here"):
        gpu.run("outliers", call(out))
    assert not (out / "outliers.csv").exists()


def test_a_training_that_meets_nan_is_a_row_and_the_next_mechanism_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt2_sinks, "MECHANISMS", ("softmax",))
    model = gpt2_sinks.REHEARSAL["model"]
    monkeypatch.setitem(gpt2_sinks.REHEARSAL, "model", {**model, "optimizer": {"lr": 1e30}, "schedule": {"warmup": 0}})
    assert gpu.run("outliers", call(tmp_path)) == (2, 0, 2)
    found = rows(tmp_path)
    assert "met a number that is not finite" in found["softmax/training"]["reason"]
    assert found["softmax/compression"]["reason"] == "its training did not come to an end"


def test_sources_are_copied_once_and_as_text(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one / "deep", two):
        folder.mkdir(parents=True)
    (one / "deep" / "a.py").write_text("a = 1\n")
    (two / "same.py").write_text("a = 1\n")
    (two / "b.py").write_text("b = 2\n")
    (two / "latin.py").write_bytes("é".encode("latin-1"))
    (two / "empty.py").touch()
    (two / "c.txt").write_text("c")
    python_text.collect(tmp_path / "text", [one, two])
    (two / "later.py").write_text("later\n")
    python_text.collect(tmp_path / "text", [one, two])
    files = [path for path in (tmp_path / "text").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path / "text").as_posix() for path in files) == ["one/deep/a.py", "two/b.py"]
    assert {path.stat().st_mtime for path in files} == {0.0}


def test_a_row_that_a_killed_call_was_writing_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("whole,result=ok\r\nhalf,resu")
    assert gpu._read(tmp_path / "speed.csv") == {"whole": ["result=ok"]}
    assert (tmp_path / "speed.csv").read_bytes() == b"whole,result=ok\r\n"


def test_the_table_warns_of_different_texts() -> None:
    different = {"softmax/training": {"corpus": "a"}, "context_scaling/training": {"corpus": "b"}}
    assert "do not compare" in gpt2_sinks.summary(different)[-1]
    assert gpt2_sinks.summary({}) == []
