"""The doctor's table: what is well, what is not, and which rank does not answer."""

import re
import shutil

import pytest
from forked_ranks import start

from errors import InputError
from training import doctor, ranks


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (mark, text)."""
    lines = [(line[:4].strip(), *line[5:].split(maxsplit=1)) for line in text.splitlines()]
    return {name: (mark, *rest) for mark, name, *rest in lines}


def test_one_device(capsys):
    assert doctor.main(["--accelerator", "cpu", "--devices", "1", "--stop_after", "3"]) == 0
    found = table(capsys.readouterr().out)
    for name in ("python", "torch", "lightning", "disk"):
        assert found[name][0] == "ok"
    assert {"reference", "vendor", "blockwise"} <= set(re.findall(r"\w+", found["attention"][1]))
    assert "all-reduce" not in found


def test_what_is_wrong_is_marked_and_the_exit_code_is_1(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.0")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1))
    assert doctor.main(["--accelerator=cpu"]) == 1
    found = table(capsys.readouterr().out)
    assert found["torch"] == ("BAD", "1.0 (<2.14,>=2.11)")
    assert found["disk"][0] == "BAD"


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="devices: 0"):
        doctor.main(["--accelerator", "cpu", "--devices", "0"])
    with pytest.raises(InputError, match=r"trainer\.devices is 999 on a CPU"):
        doctor.main(["--accelerator", "cpu", "--devices", "999"])


def test_two_ranks_answer_and_sum(tmp_path):
    both = start(tmp_path, [["--accelerator", "cpu", "--devices", "2"]] * 2, command="doctor")
    assert both.codes() == [0, 0], both.output()
    found = table(both.output()[0])
    assert found["all-reduce"][0] == "ok"
    assert found["all-reduce"][1].startswith("2 ranks")
    assert found["rank"][0] == "ok"
    assert both.output()[1] == ""


def test_a_rank_that_does_not_answer_is_named():
    alone = ranks.Ranks(0, 3, ("127.0.0.1", 0), holds=True)
    second = ranks.Ranks(1, 3, (alone.host, alone.port), holds=False)
    try:
        second.gather("doctor", "here", 1, "")
        with pytest.raises(InputError, match=r"no answer from rank 2 of 3 in 1 s: asleep"):
            alone.gather("doctor", "here", 1, "asleep")
    finally:
        second._close()
        alone._done.set()
