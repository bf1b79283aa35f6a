"""`compare` as a user runs it: real processes, a tiny model; and what it refuses before anything runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from errors import InputError
from experiments.arguments import attentions, cores, parse, seeds, threads_each
from experiments.compare import main
from experiments.pool import last_line
from experiments.runs import Run

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "trainer": {"max_steps": 12, "accelerator": "cpu"},
    "model": {"compile": "false", "network": {"context": 16, "layers": 1, "heads": 2, "width": 16}},
    "data": {"source": "bigram_backcopy", "batch_size": 4},
    "evaluation": {"every": 4},
    "outliers": {"every": 6, "sequences": 2},
    "checkpoints": {"every": 4},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def command(*words):
    return [sys.executable, str(ROOT / "train.py"), "compare", "--config", "tiny.yaml", *words]


def compare(place, *words):
    return subprocess.run(command(*words), cwd=place, capture_output=True, text=True, timeout=280)


def without_times(run):
    """metrics.csv without the columns that two identical runs do not share."""
    return {name: column.tolist() for name, column in run.metrics.items() if not name.startswith("time/")}


def test_end_to_end(place):
    words = ("--attention", "softmax,{name: sink_key_value, slots: 2}", "--seeds", "0-1", "--out", "out", "--jobs", "2")
    result = compare(place, *words)
    assert result.returncode == 0, result.stderr
    labels = ("softmax", "sink_key_value,slots=2")
    runs = {(label, seed): Run(place / "out" / label / f"seed={seed}") for label in labels for seed in (0, 1)}
    for (label, seed), run in runs.items():
        assert run.finished
        assert (run.label, run.seed) == (label, seed)
        assert (run.path / "log.txt").read_text()
        assert f"{label} seed={seed} finished" in result.stdout
    assert result.stdout.splitlines()[-1] == "report: out/report.html"
    assert (place / "out" / "report.html").stat().st_size > 100_000
    # Within a seed all share the corpus and the initial loss; a slot changes the start but little.
    assert len({run.corpus for run in runs.values()}) == 1
    start = {key: run.series("validation/loss")[1][0] for key, run in runs.items()}
    assert start["softmax", 0] != start["softmax", 1]
    assert start["softmax", 0] == pytest.approx(start["sink_key_value,slots=2", 0], abs=0.02)

    # The same command again does nothing but the report.
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("metrics.csv")}
    again = compare(place, *words)
    assert again.returncode == 0
    assert "4 of 4 runs are finished already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (place / "out").rglob("metrics.csv")} == before

    # Another configuration in the same directory is refused, and named.
    other = compare(place, *words, "--model.optimizer.lr", "0.01")
    assert other.returncode == 2
    assert "model.optimizer.lr" in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_an_interrupted_run_goes_on(place):
    words = ("--attention", "softmax", "--seeds", "0", "--trainer.max_steps", "6000", "--outliers.every", "0")
    words += ("--evaluation.every", "20", "--checkpoints.every", "20")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command(*words, "--out", "stopped"), cwd=place, start_new_session=True, **pipes)
    folder = place / "stopped" / "softmax" / "seed=0"
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # To the whole group, as `timeout` and service managers do: the process that runs are forked from must live on.
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert "the same command goes on" in output
    assert "ended with code 143" in output
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert 20 <= status["step"] < 6000
    stopped_at = status["step"]

    # It goes on from there: --stop_after says where to rest the next time, and no step is there twice.
    rest = compare(place, *words, "--out", "stopped", "--stop_after", str(stopped_at + 25))
    assert rest.returncode == 0, rest.stderr
    run = Run(folder)
    assert run.status.step == stopped_at + 25
    steps = run.metrics["step"].tolist()
    assert steps == sorted(set(steps))
    # And is the run that was never interrupted.
    whole = compare(place, *words, "--out", "whole", "--stop_after", str(stopped_at + 25))
    assert whole.returncode == 0, whole.stderr
    here, there = run.series("validation/loss"), Run(place / "whole" / "softmax" / "seed=0").series("validation/loss")
    common = [step for step in here[0] if step in set(there[0].tolist()) and step % 20 == 0]
    assert len(common) > 2
    assert [here[1][here[0] == s][0] for s in common] == [there[1][there[0] == s][0] for s in common]


def test_one_failure_does_not_stop_the_others(place):
    (place / "mine.py").write_text(
        "from models.attention import Mechanism\n\n\n"
        "class Breaks(Mechanism):\n"
        '    """Fails when it runs."""\n\n'
        "    def forward(self, q, k, v, hidden, first_key_BT=None):\n"
        '        raise RuntimeError("broken on purpose")\n'
    )
    result = compare(place, "--attention", "mine.Breaks,softmax", "--seeds", "0", "--out", "failing")
    assert result.returncode == 1
    assert "failed: mine.Breaks seed=0 (exit code 1): RuntimeError: broken on purpose" in result.stderr
    assert "log.txt" in result.stderr
    assert Run(place / "failing" / "softmax" / "seed=0").finished
    assert (place / "failing" / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attention", "softmax,sofmax"], "sofmax"),
        (["--attention", "softmax,{name: sink_key_value, slot: 4}"], "slots"),
        (["--attention", "softmax,{name: softmax}"], "softmax is given twice"),
        (["--attention", "softmax", "--model.network.widht", "8"], "widht"),
        (["--attention", "softmax", "--model.network.width", "15"], "15"),
        (["--attention", "softmax", "--model.network.vocab_size", "10"], "vocab_size 10 is smaller"),
        (["--attention", "softmax,absent.Mine"], "no module 'absent'"),
        (["--attention", "softmax", "--config", "more.yaml"], "no configuration file more.yaml"),
    ],
)
def test_everything_is_checked_before_the_first_run(place, words, message, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=message):
        main(["--config", "tiny.yaml", "--out", "refused", *words])
    assert not (place / "refused").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config, --attention"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "0,x"], "'x' is not a seed"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "1.5"], "not a seed"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "-1"], "--seeds"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "2-1"], "not a range"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "0,1,0"], "seed 0 is given twice"),
        (["--config", "c.yaml", "--attention", "softmax", "--jobs", "0"], "--jobs 0"),
        (["--config", "c.yaml", "--attention", "softmax", "--jobs", "two"], "invalid int value"),
        (["--config", "c.yaml", "--attention", ""], "is empty"),
        (["--config", "c.yaml", "--attention", "softmax,{name: "], "is not a list"),
        (["--config", "c.yaml", "--attention", "softmax,3"], "3 is neither a name"),
        (["--config", "c.yaml", "--attention", "softmax", "more"], "unexpected argument 'more'"),
        (["--config", "c.yaml", "--attention", "softmax", "--seed_everything", "3"], "give --seeds"),
        (["--config", "c.yaml", "--attention", "softmax", "--attention=sigmoid"], "--attention is given twice"),
        (["--config", "c.yaml", "--attention", "softmax", "--seeds", "0", "--seeds", "1"], "--seeds is given twice"),
        (["--config", "c.yaml", "--attention", "softmax", "--print_config"], "takes no --print_config: give it to fit"),
        (["--config", "c.yaml", "--attention", "softmax", "--model.attention=sigmoid"], "give --attention"),
        (["--config", "c.yaml", "--attention", "softmax", "--model.attention.slots", "2"], "give --attention"),
    ],
)
def test_a_command_line_that_cannot_be_meant(words, message):
    with pytest.raises(InputError) as caught:
        parse(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_out_that_is_no_directory_is_refused(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(InputError, match=r"--out tiny\.yaml cannot be written: tiny\.yaml is not a directory"):
        main(["--config", "tiny.yaml", "--attention", "softmax", "--out", "tiny.yaml"])


def test_what_is_read():
    argv = ["--config", "a/b.yaml", "--attention", "softmax", "--config=c.yaml", "--trainer.max_steps", "5"]
    found = parse([*argv, "--data.x=1"])
    assert (found.seeds, found.jobs, found.out) == ([0], 1, Path("runs/b"))
    assert found.configs == [Path("a/b.yaml"), Path("c.yaml")]
    assert found.overrides == ["--trainer.max_steps", "5", "--data.x=1"]
    assert seeds("3, 0-2") == [3, 0, 1, 2]
    assert attentions("softmax,{name: sink_key_value, slots: 4}") == ["softmax", {"name": "sink_key_value", "slots": 4}]


def test_each_run_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_each(1) == cores()
    assert threads_each(10_000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each(2) == 3


def test_runs_are_forked_from_a_process_that_has_lightning_loaded(tmp_path):
    """From a working directory outside the repository too, as a user's own is."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom experiments.pool import Pool\n"
        "if __name__ == '__main__':\n"
        "    look = \"import sys; sys.exit(0 if 'training.cli' in sys.modules else 3)\"\n"
        "    process = Pool(1).context.Process(target=exec, args=(look,))\n"
        "    process.start()\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom experiments import arguments, compare, report\n"
        "for main in (compare.main, report.main):\n"
        "    try:\n        main(['--help'])\n    except SystemExit as end:\n        assert end.code == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "--attention LIST" in result.stdout
    assert os.linesep in result.stdout


def test_the_last_line_of_a_log(tmp_path):
    (tmp_path / "log.txt").write_text("one\ntwo  \n\n")
    assert last_line(tmp_path / "log.txt") == "two"
    assert last_line(tmp_path / "missing.txt") == "no output"
