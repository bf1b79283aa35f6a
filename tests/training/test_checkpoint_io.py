import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from errors import InputError
from training.checkpoint_io import AtomicCheckpointIO, write

CONTENT = {"weights": torch.arange(5000.0), "step": 7, "names": ["a", "b"]}


@pytest.fixture
def last(tmp_path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


@pytest.fixture
def small_files():
    """No file may grow beyond 16 kB: the disk refuses in the middle of a write, as when it is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_was_saved_is_loaded_with_weights_only(last):
    loaded = AtomicCheckpointIO().load_checkpoint(last)
    assert torch.equal(loaded["weights"], CONTENT["weights"])
    assert (loaded["step"], loaded["names"]) == (7, ["a", "b"])
    assert os.listdir(last.parent) == ["last.ckpt"]


def test_atomic_checkpoint_a_failed_write_leaves_the_old_file_and_no_rest(last, small_files):
    before = last.read_bytes()
    with pytest.raises(
        InputError, match=r"cannot write .*last\.ckpt: File too large; last\.ckpt is still the one before"
    ):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(10000)}, last)
    assert last.read_bytes() == before
    assert os.listdir(last.parent) == ["last.ckpt"]


def test_atomic_checkpoint_a_crash_while_writing_leaves_the_old_file(last):
    before = last.read_bytes()

    def crash(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(last, crash)
    assert last.read_bytes() == before
    assert os.listdir(last.parent) == ["last.ckpt"]


def test_the_previous_checkpoint_is_kept_whole(last, tmp_path):
    older = last.read_bytes()
    AtomicCheckpointIO().save_checkpoint({"step": 8}, last, {"previous": tmp_path / "previous.ckpt"})
    assert (tmp_path / "previous.ckpt").read_bytes() == older
    assert AtomicCheckpointIO().load_checkpoint(last)["step"] == 8
    AtomicCheckpointIO().save_checkpoint({"step": 9}, last, {"previous": tmp_path / "previous.ckpt"})
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "previous.ckpt")["step"] == 8
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


def test_a_failed_write_does_not_touch_the_previous_checkpoint(last, tmp_path, small_files):
    (tmp_path / "previous.ckpt").write_bytes(b"older")
    with pytest.raises(InputError):
        AtomicCheckpointIO().save_checkpoint(
            {"weights": torch.zeros(10000)}, last, {"previous": tmp_path / "previous.ckpt"}
        )
    assert (tmp_path / "previous.ckpt").read_bytes() == b"older"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_one_clear_line(last, share):
    data = last.read_bytes()
    last.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"checkpoint .*last\.ckpt is damaged: it is truncated or no checkpoint"):
        AtomicCheckpointIO().load_checkpoint(last)


def test_one_flipped_bit_fails_the_checksum_and_the_other_checkpoint_is_named(last, tmp_path):
    AtomicCheckpointIO().save_checkpoint(CONTENT, last, {"previous": tmp_path / "previous.ckpt"})
    data = bytearray(last.read_bytes())
    data[data.index(CONTENT["weights"][2000:2010].numpy().tobytes())] ^= 1
    last.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"fails its checksum; the one before it is .*previous\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(last)


def test_every_flipped_byte_of_the_archive_is_found_or_harmless(last):
    """The zip's own records too: one of its bytes makes PyTorch return memory that was never written."""
    data = last.read_bytes()
    weights = CONTENT["weights"].numpy().tobytes()
    inside = range(data.index(weights), data.index(weights) + len(weights))
    for place in set(range(len(data))) - set(inside):
        for flip in (0x10, 0xFF):
            last.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
            try:
                loaded = AtomicCheckpointIO().load_checkpoint(last)
            except InputError:
                continue
            assert torch.equal(loaded.pop("weights"), CONTENT["weights"]), (place, flip)
            assert loaded == {"step": 7, "names": ["a", "b"]}, (place, flip)


@pytest.mark.parametrize("content", [[1], {"code": object}])
def test_a_file_of_another_program_is_refused(last, content):
    torch.save(content, last)
    with pytest.raises(InputError, match=r"last\.ckpt is no checkpoint of `fit`"):
        AtomicCheckpointIO().load_checkpoint(last)


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*last\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
