"""The rule by which a run directory is entered, and what is written there beside the training's own files."""

import json
from dataclasses import asdict, replace

import pytest
import yaml

from errors import InputError
from training import run_directory
from training.optimizers import OptimizerConfig
from training.run_directory import RunDirectory, Status, differences, flatten, write_atomically
from training.split import Split

CONFIG = {"seed_everything": 0, "model": {"attention": {"name": "softmax"}, "network": {"width": 64}}, "loggers": []}
SPLIT = Split(1, 1, "SingleDeviceStrategy", 4, 2, 16)
TWO_RANKS = Split(1, 2, "DDPStrategy", 4, 1, 16)


def begun(folder, step: int) -> RunDirectory:
    directory = RunDirectory(folder)
    folder.mkdir(exist_ok=True)
    directory.record(CONFIG, ["train.py", "fit"], "cpu", SPLIT)
    directory.write_status("running", step, 10)
    return directory


def test_enter(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    assert directory.enter(CONFIG, SPLIT) is False
    assert not directory.path.exists()
    begun(directory.path, 3)
    assert directory.status() == Status("running", 3, 10)
    assert directory.enter(CONFIG, SPLIT) is False
    directory.write_status("finished", 10, 10)
    assert directory.enter(CONFIG, SPLIT) is True


def test_another_configuration_is_refused_once_there_is_something_to_lose(tmp_path):
    other = CONFIG | {"model": {"attention": {"name": "sink_key", "slots": 2}, "network": {"width": 128}}}
    directory = begun(tmp_path, 0)
    assert directory.enter(other, SPLIT) is False
    directory.write_status("running", 1, 10)
    with pytest.raises(InputError) as caught:
        directory.enter(other, SPLIT)
    for part in (
        'model.attention.name is "softmax" there, "sink_key" here',
        "model.attention.slots is absent there, 2 here",
        "model.network.width is 64 there, 128 here",
        str(tmp_path),
    ):
        assert part in str(caught.value)
    directory.write_status("running", 0, 10)
    directory.last_checkpoint.parent.mkdir()
    directory.last_checkpoint.touch()
    with pytest.raises(InputError):
        directory.enter(other, SPLIT)


def test_many_differences_are_counted(tmp_path):
    directory = begun(tmp_path, 1)
    with pytest.raises(InputError, match="and 2 more"):
        directory.enter(CONFIG | {f"key{n}": n for n in range(6)}, SPLIT)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- a", b""])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    directory = begun(tmp_path, 1)
    directory.config_file.write_bytes(content)
    with pytest.raises(InputError, match=r"config.yaml is not a readable configuration"):
        directory.enter(CONFIG, SPLIT)


def test_a_checkpoint_without_its_configuration_is_refused(tmp_path):
    directory = begun(tmp_path, 1)
    directory.last_checkpoint.parent.mkdir()
    directory.last_checkpoint.touch()
    directory.config_file.unlink()
    with pytest.raises(InputError, match=r"no config\.yaml"):
        directory.enter(CONFIG, SPLIT)


def test_what_no_number_depends_on_may_differ():
    here = {"data": {"workers": 0, "source": "a"}, "checkpoints": {"every": 5}, "loggers": []}
    there = {"data": {"workers": 4, "source": "a"}, "checkpoints": {"every": 9}, "loggers": ["wandb"]}
    assert differences(here, there) == []
    assert differences(here, {"data": {"workers": 4, "source": "b"}} | there | {"data": {"source": "b"}}) == [
        'data.source is "a" there, "b" here'
    ]


def test_an_option_that_an_older_run_lacks_had_the_effect_of_its_default():
    here = {"model": {"optimizer": {"lr": 0.1}, "attention": "softmax"}, "data": {"source": "a"}}
    optimizer = asdict(OptimizerConfig(lr=0.1)) | {"betas": [0.9, 0.95]}
    now = {
        "model": {"optimizer": optimizer, "attention": "softmax", "activation_checkpointing": False},
        "data": {"source": "a", "documents": "packed", "bos": "document", "max_tokens": None},
    }
    assert differences(here, now) == []
    optimizer["momentum"], now["data"]["bos"] = 0.9, "none"
    assert differences(here, now) == [
        'data.bos is "document" there, "none" here',
        "model.optimizer.momentum is 0.95 there, 0.9 here",
    ]


def test_another_split_of_the_same_global_batch_is_the_same_run(tmp_path):
    directory = begun(tmp_path, 1)
    split = {"trainer": {"devices": 2, "strategy": "ddp"}, "data": {"batch_size": 4}}
    assert directory.enter(CONFIG | split, TWO_RANKS) is False
    with pytest.raises(InputError, match=r"a step has 128 tokens there, 64 here \(64 tokens a step: 1 × 4 sequences"):
        directory.enter(CONFIG, replace(SPLIT, accumulation=1))


def test_a_half_written_status_is_none(tmp_path):
    directory = begun(tmp_path, 1)
    (tmp_path / "status.json").write_text('{"state": "runn')
    assert directory.status() is None


def test_the_environment_keeps_earlier_starts(tmp_path):
    directory = begun(tmp_path, 1)
    directory.record(CONFIG, ["train.py", "fit", "again"], "cuda", TWO_RANKS)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert (found["device"], found["command"][-1]) == ("cuda", "again")
    (earlier,) = found["earlier"]
    assert (earlier["device"], earlier["command"][-1]) == ("cpu", "fit")
    assert "earlier" not in earlier
    assert (earlier["world"], earlier["accumulation"], earlier["tokens_per_step"]) == (1, 2, 128)
    assert (found["world"], found["accumulation"], found["tokens_per_step"]) == (2, 1, 128)
    assert (found["strategy"], found["batch_size"]) == ("DDPStrategy", 4)
    assert set(found["versions"]) >= {"torch", "lightning", "numpy"}
    assert yaml.safe_load(directory.config_file.read_text()) == CONFIG


def test_the_lock_is_exclusive_and_leaves_nothing_in_an_empty_directory(tmp_path):
    (tmp_path / "kept").mkdir()
    directory = RunDirectory(tmp_path / "kept" / "variant" / "run")
    with directory.occupied():
        with pytest.raises(InputError, match="another process"), RunDirectory(directory.path).occupied():
            pass
        assert directory.path.exists()
    assert not directory.path.parent.exists()
    assert (tmp_path / "kept").exists()
    directory.path.mkdir(parents=True)
    begun(directory.path, 1)
    with directory.occupied():
        pass
    assert directory.config_file.exists()


def test_an_out_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), RunDirectory(tmp_path / "file").occupied():
        pass


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "\ud800")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_flatten_keeps_empty_groups():
    assert flatten({"a": {"b": {"c": 1}}, "d": {}}) == {"a.b.c": 1, "d": {}}


def test_no_git_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_directory.git_commit() is None
