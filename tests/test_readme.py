"""The README's commands are accepted by the commands they call, its make targets exist, and its links lead somewhere.

CI runs them all: `make readme` types them, and `make lint` and `make test` are its own steps.
"""

import re
import shlex
from pathlib import Path

from experiments import arguments, compare
from training import cli, doctor

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = [shlex.split(line, comments=True) for line in BLOCKS.splitlines() if line.strip()]


def of(command: str) -> list[list[str]]:
    found = [words[3:] for words in COMMANDS if words[:3] == ["python", "train.py", command]]
    assert found, f"the README shows no {command}"
    return found


def test_every_command_is_one_that_this_file_checks():
    known = {"prepare", "fit", "compare", "report", "analyze", "compress", "doctor"}
    for words in COMMANDS:
        by_hand = words[:2] == ["python", "train.py"] and words[2] in known
        assert words[0] == "make" or by_hand or words == [".", ".venv/bin/activate"], words


def test_the_environment_is_activated_before_python_is_called():
    called = [words[0] for words in COMMANDS if words[0] != "make"]
    assert called[0] == "."


def test_fit_accepts_its_arguments(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in of("fit"):
        config = cli.check(argv)
        assert config["trainer"]["max_steps"] == 50
        assert config["model"]["attention"] == {"name": "context_scaling"}


def test_doctor_accepts_its_arguments(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in of("doctor"):
        assert cli.plan(doctor.as_fit(argv)).split.world == 2


def test_compare_accepts_its_arguments(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in of("compare"):
        assert len(compare.plan(arguments.parse(argv))) == 6


def test_prepare_and_report_read_what_the_other_commands_made(monkeypatch):
    monkeypatch.chdir(ROOT)
    for argv in of("prepare"):
        assert Path(argv[argv.index("--config") + 1]).is_file()
    made = {argv[argv.index("--out") + 1] for argv in of("compare")}
    for argv in of("report") + of("analyze") + of("compress"):
        assert any(argv[0] == folder or argv[0].startswith(f"{folder}/") for folder in made), argv[0]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in {words[1] for words in COMMANDS if words[0] == "make"} | set(re.findall(r"`make (\w+)`", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), target
