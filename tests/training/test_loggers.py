import logging

import pytest
from lightning.pytorch.loggers import Logger

import outliers
from errors import InputError
from training import loggers
from training.loggers import Guarded, MetricsCSV


@pytest.fixture
def metrics(tmp_path):
    made = MetricsCSV(tmp_path)
    made.cut(-1)
    return made


def rows(logger):
    return [line.split(",") for line in logger.path.read_text().splitlines()]


def test_the_header_is_fixed_and_times_stand_last():
    header = loggers.columns()
    assert header[:6] == ("step", "tokens", "train/loss", "train/grad_norm", "train/skipped", "learning_rate")
    probed = [name.removeprefix("outliers/") for name in header if name.startswith("outliers/")]
    assert probed == [*outliers.HEADLINES, "quantization_gap", "quantization_gap_error"]
    first = min(i for i, name in enumerate(header) if name.startswith("time/"))
    assert all(name.startswith("time/") for name in header[first:])


def test_numbers_of_one_step_share_a_row_and_absent_ones_are_empty(metrics):
    metrics.log_metrics({"tokens": 0}, step=0)
    metrics.log_metrics({"train/loss": 0.1}, step=0)
    metrics.log_metrics({"tokens": 640, "validation/loss": 1 / 3}, step=10)
    metrics.save()
    header, first, second = rows(metrics)
    assert tuple(header) == loggers.columns()
    assert first[:5] == ["0", "0", "0.1", "", ""]
    assert float(second[header.index("validation/loss")]) == 1 / 3
    assert second[0] == "10"


def test_a_number_without_a_column_is_named_once(metrics, caplog):
    for step in (1, 2):
        metrics.log_metrics({"mine": 1.0, "tokens": step}, step=step)
    metrics.save()
    assert [record.message for record in caplog.records] == ["metrics.csv has no column for mine"]
    assert len(rows(metrics)) == 3


def test_a_step_cannot_be_written_twice(metrics):
    metrics.log_metrics({"tokens": 1}, step=5)
    metrics.save()
    with pytest.raises(ValueError, match="step 5"):
        metrics.log_metrics({"tokens": 2}, step=5)


def test_cut_drops_later_rows_and_a_half_written_one_and_keeps_the_old_header(tmp_path):
    rest_of_a_crash = b"\0\0\xff,1\n"
    (tmp_path / "metrics.csv").write_bytes(b"step,train/loss\n0,\n5,1.5\n" + rest_of_a_crash + b"10,1.25\n15,1.1")
    metrics = MetricsCSV(tmp_path)
    metrics.cut(5)
    metrics.log_metrics({"train/loss": 1.0, "tokens": 9}, step=7)
    metrics.save()
    assert metrics.path.read_text() == "step,train/loss\n0,\n5,1.5\n7,1.0\n"


def test_cut_to_minus_one_starts_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,\n5,1.5\n")
    metrics = MetricsCSV(tmp_path)
    metrics.cut(-1)
    assert rows(metrics) == [list(loggers.columns())]


class Broken(Logger):
    name, version = "broken", ""

    def log_hyperparams(self, *_, **__):
        raise ConnectionError("no network\nsecond line")

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no network")


@pytest.mark.parametrize("method", ["log_hyperparams", "log_metrics"])
def test_a_failing_logger_is_reported_in_one_line_and_ends_nothing(caplog, method):
    guarded = Guarded("W&B", Broken)
    for _ in range(3):
        getattr(guarded, method)({"a": 1})
        guarded.log_metrics({"a": 1.0}, step=1)
    assert [r.message for r in caplog.records] == ["W&B is off for the rest of this run: no network"]


def test_a_logger_that_cannot_even_start_ends_nothing(caplog):
    def make():
        raise ModuleNotFoundError("No module named 'wandb'")

    Guarded("W&B", make).log_metrics({"a": 1.0}, step=1)
    assert "W&B is off for the rest of this run: No module named 'wandb'" in caplog.text


def test_an_unknown_logger_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"logger 'mlflow' is unknown; .*wandb, tensorboard"):
        loggers.build(["mlflow"], tmp_path)


def test_wandb_is_offline_without_a_key_and_gets_the_same_step(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    caplog.set_level(logging.INFO, logger="sinkless")
    _, guarded = loggers.build(["wandb"], tmp_path)
    guarded.log_metrics({"train/loss": 2.0}, step=30)
    run = guarded._logger.experiment
    assert run.settings._offline
    assert run.summary["train/loss"] == 2.0
    assert run.summary["trainer/global_step"] == 30
    guarded.finalize("success")
    run.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "W&B: offline, there is no API key" in caplog.text
