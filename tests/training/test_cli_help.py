"""Help and mistyped commands answer without importing what takes seconds; the short help says what the parser does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from models import attention
from training.command_line import CommandLine
from training.help import HELP

TRAIN_PY = Path(__file__).resolve().parents[2] / "train.py"
SLOW = {"torch", "lightning", "jsonargparse", "numpy", "yaml", "datasets", "pyarrow", "matplotlib"}


def train_py(*arguments: str) -> tuple[int, str, str, set[str]]:
    """Exit code, stdout, stderr without the import times, and the top-level modules that were imported."""
    command = [sys.executable, "-X", "importtime", str(TRAIN_PY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    times = [line for line in lines if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in times}
    return done.returncode, done.stdout, "\n".join(line for line in lines if line not in times), imported


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_help_imports_nothing_slow(command):
    code, out, _, imported = train_py(command, "--help")
    assert code == 0
    assert out == HELP[command]
    assert not imported & SLOW


def test_the_list_of_commands():
    code, out, _, imported = train_py("--help")
    assert code == 0
    for command in ("prepare", "fit", "validate", "compare", "convert", "report"):
        assert re.search(rf"^  {command} +\w", out, re.M)
    assert not imported & SLOW
    assert train_py()[0] == 2


def test_an_unknown_command_is_one_line_with_the_nearest():
    code, _, err, imported = train_py("fti", "--config", "x.yaml")
    assert code == 2
    assert "'fti'" in err
    assert "Did you mean fit?" in err
    assert len(err.splitlines()) == 1
    assert not imported & SLOW


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_the_short_help_agrees_with_the_parser(command):
    parser = CommandLine(command, []).parser
    defaults = parser.get_defaults()
    entries = re.split(r"--(?=[a-z])", HELP[command].partition("\n")[2])[1:]
    described = [(entry.split()[0], found[1]) for entry in entries if (found := re.search(r"\[([^\]]*)\]", entry))]
    assert len(described) > (25 if command == "fit" else 2)
    for name, text in described:
        if name in ("out", "loggers"):
            continue
        given = text.split(":")[0]
        value = defaults[name]
        assert given == ("null" if value is None else str(value)), name
    named = set(re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", HELP[command])) - {"print_config", "help.all"}
    assert named - set(defaults.keys()) <= {"config", "model.attention.slots"}


def test_the_short_help_names_every_attention():
    listed = re.search(r"--model.attention NAME\s+(.*?), or your", HELP["fit"], re.S)
    assert re.split(r",\s+", listed[1]) == attention.names()
