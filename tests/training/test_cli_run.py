"""Runs of a small network on a small text file, started as a user starts them."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from errors import InputError
from training.cli import run, validate
from training.module import LanguageModel

TRAIN_PY = Path(__file__).resolve().parents[2] / "train.py"
CONFIG = """
trainer: {max_steps: 6, log_every_n_steps: 1}
model:
  attention: softmax
  compile: false
  backend: vendor
  network: {context: 32, layers: 1, heads: 2, width: 32, dropout: 0.1}
  schedule: {name: wsd, warmup: 2}
data: {source: text.txt, tokenizer: bytes, batch_size: 4, validation_sequences: 8}
evaluation: {every: 3}
outliers: {every: 3, sequences: 2}
checkpoints: {every: 2}
"""
MECHANISM = '''
from torch import nn
from kernels import Parts, RowGate
from models.attention import Mechanism


class Gate(Mechanism):
    """A gate for each head."""

    def __init__(self, shape, *, beta: float = 2.0):
        super().__init__(shape)
        self.gate, self.beta = nn.Linear(shape.width, shape.heads), beta

    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        return Parts(gate=RowGate(self.gate(hidden_BTC).transpose(1, 2), span=self.beta))
'''

SENDS = """
import os, signal
from kernels import Parts
from models.attention import Mechanism


class Sends(Mechanism):
    def parts(self, q_BHTD, k_BGTD, hidden_BTC):
        os.kill(os.getpid(), signal.SIGINT)  # in the evaluation of the initial weights
        return Parts()
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A user's directory: a text, a configuration, and one finished run of it in `whole`."""
    folder = tmp_path_factory.mktemp("workplace")
    words = random.Random(0).choices(
        ["the", "a", "cat", "dog", "sat", "on", "mat", "and", "then", "ran", "home", "again"], k=8000
    )
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "my.yaml").write_text(CONFIG)
    (folder / "my_attention.py").write_text(MECHANISM)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["--config", "my.yaml", "--out", "whole"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _at_work(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def fit(*arguments: str) -> int:
    return run(["--config", "my.yaml", *arguments])


def metrics(out: str) -> list[dict[str, str]]:
    """metrics.csv without the columns that hold times."""
    with open(Path(out, "metrics.csv"), newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def status(out: str) -> dict:
    return json.loads(Path(out, "status.json").read_text())


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(TRAIN_PY), *arguments], capture_output=True, text=True, timeout=200, **options
    )


def test_a_run_leaves_what_the_design_promises():
    assert status("whole") == {"state": "finished", "step": 6, "max_steps": 6}
    for name in ("config.yaml", "environment.json", "metrics.csv", "checkpoints/last.ckpt", "corpus.json"):
        assert Path("whole", name).is_file(), name
    assert sorted(path.name for path in Path("whole/probes").glob("*.parquet")) == [
        f"step={step:06d}.parquet" for step in (0, 3, 6)
    ]
    rows = metrics("whole")
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert int(rows[-1]["tokens"]) == 6 * 4 * 32
    assert float(rows[-1]["validation/loss"]) < float(rows[0]["validation/loss"])
    environment = json.loads(Path("whole/environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["command"][1:] == ["fit", "--config", "my.yaml", "--out", "whole"]
    assert environment["device"] == "cpu"


def test_the_same_command_again_says_that_it_is_finished(capsys):
    before = Path("whole/metrics.csv").stat().st_mtime_ns
    assert fit("--out", "whole") == 0
    assert "whole is finished, 6 steps" in capsys.readouterr().out
    assert Path("whole/metrics.csv").stat().st_mtime_ns == before


def test_the_saved_configuration_reproduces_the_run_bit_for_bit():
    done = command("fit", "--config", "whole/config.yaml", "--out", "again")
    assert done.returncode == 0, done.stderr
    assert metrics("again") == metrics("whole")
    saved = [yaml.safe_load(Path(out, "config.yaml").read_text()) for out in ("whole", "again")]
    assert saved[0] == saved[1]


def test_a_printed_configuration_reproduces_the_run(capsys):
    assert fit("--print_config", "--model.optimizer.lr", "2e-3") == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert not Path("runs/my").exists()
    assert run(["--config", "printed.yaml", "--stop_after", "1", "--out", "printed"]) == 0
    assert fit("--model.optimizer.lr", "2e-3", "--stop_after", "1", "--out", "unprinted") == 0
    assert metrics("printed") == metrics("unprinted")


def test_stopped_and_resumed_equals_uninterrupted(capsys):
    # Step 3 is a step of evaluation and probe but not of a checkpoint.
    assert fit("--out", "parts", "--stop_after", "3") == 0
    assert status("parts") == {"state": "stopped", "step": 3, "max_steps": 6}
    assert fit("--out", "parts", "--stop_after", "3") == 0
    assert "parts is at step 3 already" in capsys.readouterr().out
    # By itself, and because it is told to.
    for arguments in (["--stop_after", "5"], ["--ckpt_path", "last"]):
        begun = Path("parts/metrics.csv").read_bytes()
        assert fit("--out", "parts", *arguments) == 0
        # It went on: even the times of the first steps are those of the first start.
        assert Path("parts/metrics.csv").read_bytes().startswith(begun)
    assert status("parts")["state"] == "finished"
    assert metrics("parts") == metrics("whole")
    assert len(json.loads(Path("parts/environment.json").read_text())["earlier"]) == 2


def test_another_configuration_in_the_directory_is_refused():
    before = Path("whole/config.yaml").read_bytes()
    with pytest.raises(InputError) as caught:
        fit("--out", "whole", "--model.attention", "sink_key_value", "--trainer.max_steps", "9")
    message = str(caught.value)
    assert 'model.attention.name is "softmax" there, "sink_key_value" here' in message
    assert "trainer.max_steps is 6 there, 9 here" in message
    assert "--out" in message
    # What no number depends on may change.
    assert fit("--out", "whole", "--data.workers", "1", "--checkpoints.every", "3") == 0
    assert Path("whole/config.yaml").read_bytes() == before


def test_last_where_there_is_none_is_refused_and_leaves_nothing():
    with pytest.raises(InputError, match=r"--ckpt_path last: there is no checkpoint nowhere/checkpoints/last.ckpt"):
        fit("--out", "nowhere", "--ckpt_path", "last")
    with pytest.raises(InputError, match=r"no checkpoint elsewhere\.ckpt"):
        fit("--out", "nowhere", "--ckpt_path", "elsewhere.ckpt")
    assert not Path("nowhere").exists()


def test_a_source_that_cannot_be_read_leaves_no_run():
    with pytest.raises(InputError, match="txet"):
        fit("--out", "mistaken", "--data.source", "txet.txt")
    assert not Path("mistaken").exists()
    assert fit("--out", "mistaken", "--stop_after", "1") == 0


def test_a_checkpoint_replaces_no_value_of_the_command_line():
    assert fit("--out", "branch", "--ckpt_path", "whole/checkpoints/last.ckpt", "--trainer.max_steps", "8",
               "--model.optimizer.lr", "5e-4", "--model.schedule.name", "constant") == 0  # fmt: skip
    rows = metrics("branch")
    assert [int(row["step"]) for row in rows] == [7, 8]
    assert [float(row["learning_rate"]) for row in rows] == [5e-4, 5e-4]
    assert yaml.safe_load(Path("branch/config.yaml").read_text())["ckpt_path"] == "whole/checkpoints/last.ckpt"
    with pytest.raises(InputError, match=r"of another network: model.network.width is 32 there, 64 here"):
        fit("--out", "wide", "--ckpt_path", "whole/checkpoints/last.ckpt", "--model.network.width", "64")


def test_a_run_that_began_from_another_runs_file_goes_on_from_its_own(capsys):
    start = ["--ckpt_path", "whole/checkpoints/last.ckpt", "--trainer.max_steps", "9"]
    assert fit("--out", "begun", *start) == 0
    assert fit("--out", "grown", *start, "--stop_after", "8") == 0
    begun = Path("grown/metrics.csv").read_bytes()
    assert fit("--out", "grown", *start) == 0
    assert Path("grown/metrics.csv").read_bytes().startswith(begun)
    assert metrics("grown") == metrics("begun")
    with pytest.raises(InputError, match=r"whole/checkpoints/last.ckpt is at step 6, and trainer.max_steps is 6"):
        fit("--out", "nothing_left", "--ckpt_path", "whole/checkpoints/last.ckpt")
    assert not Path("nothing_left").exists()


def test_a_run_killed_after_its_last_checkpoint_is_found_finished():
    assert fit("--out", "killed", "--trainer.max_steps", "2") == 0
    before = Path("killed/metrics.csv").read_bytes()
    Path("killed/status.json").write_text('{"state": "running", "step": 1, "max_steps": 2}')
    assert fit("--out", "killed", "--trainer.max_steps", "2") == 0
    assert status("killed") == {"state": "finished", "step": 2, "max_steps": 2}
    assert Path("killed/metrics.csv").read_bytes() == before


def test_stop_after_counts_what_a_killed_run_had_saved_not_what_it_had_done(capsys):
    assert fit("--out", "ahead", "--stop_after", "2") == 0
    Path("ahead/status.json").write_text('{"state": "running", "step": 5, "max_steps": 6}')  # killed at step 5
    assert fit("--out", "ahead", "--stop_after", "4") == 0
    assert status("ahead") == {"state": "stopped", "step": 4, "max_steps": 6}
    assert metrics("ahead") == [row for row in metrics("whole") if int(row["step"]) <= 4]
    capsys.readouterr()
    assert fit("--out", "ahead", "--stop_after", "4") == 0
    assert "is at step 4 already" in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint_of_fit_is_refused():
    torch.save({"weights": torch.ones(3)}, "foreign.ckpt")
    with pytest.raises(InputError, match=r"foreign\.ckpt is no checkpoint of `fit`: it does not say which network"):
        fit("--out", "nowhere", "--ckpt_path", "foreign.ckpt")
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("content", ["half", "nothing", "absent"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_and_says_so(content, capsys):
    out, last = f"damaged_{content}", Path(f"damaged_{content}/checkpoints/last.ckpt")
    assert fit("--out", out, "--stop_after", "5") == 0
    previous = last.with_name("previous.ckpt").read_bytes()
    whole = last.read_bytes()
    if content == "absent":
        last.unlink()
    else:
        last.write_bytes(whole[: len(whole) // 2] if content == "half" else b"")
    capsys.readouterr()
    assert fit("--out", out, "--stop_after", "4") == 0  # a start that trains nothing: step 4 is that of previous.ckpt
    assert fit("--out", out) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "going on from the checkpoint before it" in line]
    assert len(said) == 1
    assert str(last) in said[0]
    assert metrics(out) == metrics("whole")
    ours, theirs = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in (out, "whole"))
    assert all(torch.equal(ours["state_dict"][name], tensor) for name, tensor in theirs["state_dict"].items())
    assert last.with_name("damaged.ckpt").exists() == (content != "absent")
    assert last.with_name("previous.ckpt").read_bytes() == previous  # the damaged file never took its place


def test_two_damaged_checkpoints_are_refused_and_kept():
    assert fit("--out", "both", "--stop_after", "5") == 0
    files = [Path("both/checkpoints", name) for name in ("last.ckpt", "previous.ckpt")]
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"previous\.ckpt is damaged"):
        fit("--out", "both")
    assert [file.stat().st_size for file in files] == [1000, 1000]
    assert status("both")["step"] == 5


def test_a_disk_that_fills_up_during_a_checkpoint_loses_nothing():
    """No file of this process may grow beyond a limit that the logs stay under and a checkpoint does not."""
    arguments = ["--config", "my.yaml", "--out", "full"]
    assert run([*arguments, "--stop_after", "3"]) == 0
    size = Path("full/checkpoints/last.ckpt").stat().st_size
    before = Path("full/checkpoints/last.ckpt").read_bytes()
    limited = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))
sys.argv[0] = {str(TRAIN_PY)!r}
sys.path.insert(0, {str(TRAIN_PY.parent)!r})
import train
sys.exit(train.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", limited, "fit", *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot write full/checkpoints/last.ckpt: File too large")
    assert Path("full/checkpoints/last.ckpt").read_bytes() == before
    assert status("full")["state"] == "failed"
    assert run(arguments) == 0
    assert metrics("full") == metrics("whole")


def test_options_of_an_attention_survive_the_checkpoint():
    out = "runs/my/sink_key_value,slots=3/seed=2"
    assert fit("--model.attention.name", "sink_key_value", "--model.attention.slots", "3", "--seed_everything", "2",
               "--stop_after", "1") == 0  # fmt: skip
    spec = {"name": "sink_key_value", "slots": 3}
    assert yaml.safe_load(Path(out, "config.yaml").read_text())["model"]["attention"] == spec
    model = LanguageModel.load_from_checkpoint(Path(out, "checkpoints/last.ckpt"), weights_only=True)
    assert model.attention == spec
    assert model.seed == 2


def test_a_mechanism_of_ones_own_from_the_working_directory():
    spec = "{name: my_attention.Gate, beta: 1.5}"
    done = command("fit", "--config", "my.yaml", "--model.attention", spec, "--stop_after", "3")
    assert done.returncode == 0, done.stderr
    (out,) = Path("runs/my").glob("my_attention.Gate*/seed=0")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["attention"] == {"name": "my_attention.Gate", "beta": 1.5}
    assert float(metrics(str(out))[-1]["validation/loss"]) > 0
    assert (out / "probes/step=000003.parquet").is_file()


def test_validate_measures_the_last_checkpoint(capsys):
    assert validate(["--config", "whole/config.yaml"]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    last = metrics("whole")[-1]
    for name in ("validation/loss", "validation/bits_per_byte"):
        assert float(printed[name]) == pytest.approx(float(last[name]), abs=2e-6)
    assert validate(["--config", "whole/config.yaml", "--ckpt_path", "null"]) == 0
    initial = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(initial["validation/loss"]) == pytest.approx(float(metrics("whole")[0]["validation/loss"]), abs=2e-6)
    with pytest.raises(InputError, match="of another network"):
        validate(["--config", "whole/config.yaml", "--model.network.layers", "2"])
    with pytest.raises(InputError, match="no checkpoint"):
        validate(["--config", "my.yaml", "--out", "nowhere"])
    with pytest.raises(InputError, match="a vocabulary of 257 tokens, the corpus one of 64"):
        validate(["--config", "whole/config.yaml", "--data.source", "bigram_backcopy"])


def test_a_vocabulary_below_the_tokenizers_is_refused():
    with pytest.raises(InputError, match="vocab_size is 100, but the corpus has 257 tokens"):
        fit("--out", "small", "--model.network.vocab_size", "100")


def test_two_processes_do_not_train_in_one_directory_and_sigterm_saves():
    arguments = [sys.executable, str(TRAIN_PY), "fit", "--config", "my.yaml", "--out", "long"]
    arguments += ["--trainer.max_steps", "100000", "--evaluation.every", "0", "--outliers.every", "0"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        while not Path("long/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(InputError, match="another process is training in long"):
            run(arguments[3:])
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    found = status("long")
    assert found["state"] == "stopped"
    assert int(metrics("long")[-1]["step"]) == found["step"]


def test_ctrl_c_before_the_first_step_has_the_signals_exit_code():
    Path("my_signal.py").write_text(SENDS)
    done = command("fit", "--config", "my.yaml", "--model.attention", "my_signal.Sends", "--out", "early")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in done.stderr
    assert status("early") == {"state": "stopped", "step": 0, "max_steps": 6}


def test_a_mistake_is_one_line_and_exit_code_2():
    done = command("fit", "--config", "my.yaml", "--model.attention", "sotfmax")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: unknown attention 'sotfmax' (did you mean softmax?)")
