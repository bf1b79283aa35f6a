"""FSDP2 on two processes with gloo: the numbers of ddp, exact resume, and checkpoints that any strategy takes up."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fsdp_ranks import OPTIONS
from tiny_run import differences, metrics, tiny_run

from errors import InputError
from models.checkpoints import load, load_weights, rebuild
from outliers.access import open_decoder
from outliers.access.ours import decoder_of
from outliers.compression.study import w8a8_gap
from training.checkpoint_io import recover
from training.cli import check
from training.command_line import CommandLine
from training.convert import main as convert

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory, text) -> Path:
    """The directories that `fsdp_ranks.main` leaves."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, HERE / "fsdp_ranks.py", folder, text]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def checkpoint(run: Path) -> dict:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)


def checkpoint_step(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def tensors(saved: dict) -> dict[str, torch.Tensor]:
    """Weights and optimizer state by name."""
    states = saved["optimizer_states"][0]["state"]
    moments = {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}
    return saved["state_dict"] | moments


def test_fsdp2_equals_ddp(runs):
    ddp, sharded = (metrics(runs / name) for name in ("ddp", "chain"))
    for one, other in zip(ddp[:6], sharded[:6], strict=True):
        assert one.keys() == other.keys()
        for column, value in one.items():
            assert bool(value) == bool(other[column])
            if value:  # the order of sums over ranks differs: a few units of the last place of float32
                assert float(other[column]) == pytest.approx(float(value), rel=1e-5), column


def test_an_interrupted_run_equals_the_whole_one_bit_for_bit(runs):
    whole, parts = (checkpoint(runs / name) for name in ("whole", "parts"))
    assert differences(tensors(whole), tensors(parts)) == []
    assert all(torch.equal(one["torch"], other["torch"]) for one, other in zip(whole["rng"], parts["rng"], strict=True))
    assert not torch.equal(whole["rng"][0]["torch"], whole["rng"][1]["torch"])
    assert metrics(runs / "whole") == metrics(runs / "parts")
    for path in (runs / "whole/probes").iterdir():
        assert (path.suffix == ".npz") or path.read_bytes() == (runs / "parts/probes" / path.name).read_bytes()
    assert (runs / "whole/probes/sentence.npz").exists()


def test_the_quantization_gap_is_that_of_the_whole_weights(runs, text):
    data = tiny_run(runs / "gap", text, **OPTIONS).data
    data.open()
    rows = {row["step"]: float(row["outliers/quantization_gap"] or "nan") for row in metrics(runs / "whole")}
    for step in ("4", "8"):
        gpt, _ = rebuild(runs / f"whole/checkpoints/weights-step={step:0>6}.safetensors")
        gap, _ = w8a8_gap(decoder_of(gpt), data.probe_tokens(2))
        assert rows[step] == pytest.approx(gap, abs=1e-6)  # float32: a loss of 5 has steps of 5e-7
        assert abs(gap) > 1e-5


def test_a_run_goes_on_under_ddp_fsdp2_and_one_process(runs, text):
    """Steps 1 to 3 under ddp, 4 and 5 under fsdp2, 6 to 8 here, against ddp all the way."""
    last = runs / "chain/checkpoints/last.ckpt"
    tiny_run(runs / "chain", text, batch_size=4, **OPTIONS).fit(last)
    whole, chain = checkpoint(runs / "ddp"), checkpoint(runs / "chain")
    assert whole["optimizer_states"][0]["param_groups"] == chain["optimizer_states"][0]["param_groups"]
    for name, tensor in tensors(whole).items():
        assert torch.allclose(tensors(chain)[name], tensor, atol=1e-5), name
    for one, other in zip(metrics(runs / "ddp"), metrics(runs / "chain"), strict=True):
        for column in ("step", "tokens", "train/loss", "validation/loss"):
            assert one[column] == other[column] or float(other[column]) == pytest.approx(float(one[column]), rel=1e-5)


def test_weights_alone_are_whole_and_tied(runs):
    weights, description = load_weights(runs / "whole/checkpoints/weights-step=000008.safetensors")
    saved = checkpoint(runs / "whole")["state_dict"]
    assert {f"gpt.{name}" for name in weights} == saved.keys()
    assert all(torch.equal(saved[f"gpt.{name}"], tensor) for name, tensor in weights.items())
    assert weights["head.weight"].data_ptr() == weights["embedding.weight"].data_ptr()
    assert description["attention"] == {"name": "sink_token"}


def test_a_sharded_checkpoint_resumes_bit_for_bit_and_is_swept(runs):
    folder = runs / "shards/checkpoints"
    loaded, whole = load(folder / "last.ckpt"), checkpoint(runs / "whole")
    assert loaded.keys() == whole.keys()
    assert differences(tensors(whole), tensors(loaded)) == []
    assert loaded["optimizer_states"][0]["param_groups"] == whole["optimizer_states"][0]["param_groups"]
    assert metrics(runs / "whole") == metrics(runs / "shards")
    links = {(folder / name).readlink().name for name in ("last.ckpt", "previous.ckpt")}
    assert links == {path.name for path in folder.glob("*.sharded")}
    parts = [path.stat().st_size for path in (folder / "last.ckpt").glob("*.distcp")]
    assert len(parts) == 2
    assert max(parts) < 0.7 * sum(parts)
    gpt, step = rebuild(folder / "last.ckpt")
    assert step == 8
    assert torch.equal(gpt.head.weight, whole["state_dict"]["gpt.head.weight"])


def test_one_process_goes_on_from_shards(runs, text):
    options = {**OPTIONS, "network": {"dropout": 0.0}}
    moved = tiny_run(runs / "moved", text, batch_size=4, accumulation=2, **options).fit(runs / "five/last.ckpt")
    assert moved.trainer.global_step == 8
    assert [row["step"] for row in metrics(runs / "moved")] == ["6", "7", "8"]
    assert (runs / "moved/checkpoints/last.ckpt").is_file()


def test_one_file_after_shards_leaves_no_folder_behind(runs, text):
    shutil.copytree(runs / "five", runs / "mixed/checkpoints", symlinks=True)
    options = {**OPTIONS, "network": {"dropout": 0.0}}
    tiny_run(runs / "mixed", text, batch_size=4, accumulation=2, checkpoints=6, **options).fit(
        runs / "mixed/checkpoints/last.ckpt"
    )
    folder = runs / "mixed/checkpoints"
    assert not list(folder.glob("*.sharded"))
    assert [checkpoint_step(folder / name) for name in ("last.ckpt", "previous.ckpt")] == [8, 6]


def test_convert_makes_one_file_of_shards_of_a_file_and_of_a_run(runs, tmp_path, capsys):
    written = []
    for name, source in (("a", "shards/checkpoints/last.ckpt"), ("b", "whole/checkpoints/last.ckpt"), ("c", "whole")):
        assert convert([str(runs / source), str(tmp_path / f"{name}.safetensors")]) == 0
        assert "tensors of step 8" in capsys.readouterr().out
        written.append(load_weights(tmp_path / f"{name}.safetensors"))
    there, description = load_weights(runs / "whole/checkpoints/weights-step=000008.safetensors")
    for weights, header in written:
        assert differences(there, weights) == []
        assert header == description | {"activation_checkpointing": header["activation_checkpointing"]}
    opened = open_decoder(str(runs / "shards/checkpoints/last.ckpt"))
    assert (differences(there, opened.module.state_dict()), opened.step) == ([], 8)
    for source, target, part in (
        ("nothing", "d.safetensors", "there is no checkpoint .*nothing"),
        ("data", "d.safetensors", "neither a checkpoint nor a run"),
        ("whole", "d.bin", r"must end in \.safetensors"),
        ("whole", "a.safetensors", "is there already"),
    ):
        with pytest.raises(InputError, match=part):
            convert([str(runs / source), str(tmp_path / target)])
    with pytest.raises(InputError, match="given 1 arguments"):
        convert(["x"])


@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "rest.ckpt"])
def test_damage_in_any_file_of_a_sharded_checkpoint_is_found(runs, tmp_path, name):
    copy = tmp_path / "copy.ckpt"
    shutil.copytree(runs / "five/last.ckpt", copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"copy\.ckpt is damaged: .*{name.split('.')[-1]}"):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"its {name} is missing"):
        load(copy)


def test_a_damaged_last_of_shards_falls_back_to_the_one_before(runs, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(runs / "five", folder, symlinks=True)
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    (last / "__0_0.distcp").write_bytes(b"")
    recover(last, previous)
    assert "is damaged: its __0_0.distcp fails its checksum" in caplog.text
    assert load(last)["global_step"] == 3


def test_a_disk_that_is_full_on_one_rank_leaves_the_checkpoint_before(runs):
    for rank in (0, 1):
        message = (runs / f"full-{rank}.txt").read_text()
        assert message.startswith("cannot write ")
        assert message.endswith("last.ckpt is still the one before")
        assert "\n" not in message
    folder = runs / "full/checkpoints"
    assert load(folder / "last.ckpt")["global_step"] == 2
    assert len(list(folder.glob("*.sharded"))) == 1


def test_metadata_may_name_no_other_function(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(os.system))
    torch.save({"files": {}, "aliases": {}, "param_groups": []}, tmp_path / "rest.ckpt")
    with pytest.raises(InputError, match=r"names \w+\.system"):
        load(tmp_path)


def test_an_overflow_on_one_rank_is_named_by_all_of_them(runs):
    texts = {(runs / f"overflow-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(texts) == 1
    assert texts.pop().startswith("step 3 met a number that is not finite, first in the output of blocks.1.mlp.down")


def test_shards_without_fsdp2_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"checkpoints\.sharded is true, but trainer\.strategy is auto"):
        check(["--checkpoints.sharded", "true"])


def test_64_bit_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"trainer\.precision is 64-true; under fsdp2 it is 32-true"):
        check(["--trainer.strategy", "fsdp2", "--trainer.precision", "64-true"])


def test_one_device_has_nothing_to_shard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = CommandLine("fit", ["--trainer.strategy=fsdp2", "--trainer.devices=1", "--trainer.accelerator=cpu"])
    plan = command.plan()
    assert plan.config["trainer"]["strategy"] == "fsdp2"
    assert type(command.make(plan)[0].strategy).__name__ == "SingleDeviceStrategy"


@pytest.mark.parametrize(
    ("strategy", "part"),
    [
        ("fsdp", "did you mean fsdp2"),
        ("deepspeed", "auto, ddp, fsdp2, single_device"),
        ("ddp_spawn", "it is one of auto, ddp"),
    ],
)
def test_a_strategy_that_breaks_our_guarantees_is_refused(strategy, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"trainer\.strategy is {strategy}.*{part}"):
        check(["--trainer.strategy", strategy, "--trainer.devices", "2", "--trainer.accelerator", "cpu"])
