"""`train.py prepare`: reads the data group of a configuration; a slip is one line and exit code 2."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from data.command import main
from data.prepare import PrepareOptions
from errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path, text_folder):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"""
model: {{network: {{context: 32, vocab_size: 300}}}}
data:
  source: {text_folder}
  tokenizer: bpe
  vocab_size: 290
  validation_fraction: 1e-1
  batch_size: 4
  folder: {tmp_path / "corpora"}
"""
    )
    return path


def test_prepares_what_the_file_says(config, tmp_path, capsys):
    assert main(["--config", str(config)]) == 0
    out, err = capsys.readouterr()
    (folder,) = (p for p in (tmp_path / "corpora").iterdir() if p.is_dir())
    assert str(folder) in out
    assert "vocabulary 290" in out
    assert f"prepared {folder}" in err


@pytest.mark.parametrize("words", [["--data.vocab_size", "280"], ["--data.vocab_size=280"]])
def test_overrides_of_both_forms(config, words, capsys):
    for argv in (["--config", str(config), *words], [*words, "--config", str(config)]):
        assert main(argv) == 0
        assert "vocabulary 280" in capsys.readouterr().out


def test_later_files_override_earlier_ones(config, tmp_path, capsys):
    (tmp_path / "more.yaml").write_text("data: {tokenizer: bytes}")
    assert main(["--config", str(config), f"--config={tmp_path / 'more.yaml'}"]) == 0
    assert "vocabulary 257" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.sorce", "x"], "unknown key data.sorce (did you mean data.source?)"),
        (["--data.vocab_size=many"], "data.vocab_size 'many': give a whole number"),
        (["--data.vocab_size=2.5"], "give a whole number"),
        (["--data.vocab_size=true"], "give a whole number"),
        (["--data.streaming=1"], "data.streaming 1: give true or false"),
        (["--data.validation_fraction=half"], "give a number"),
        (["--data.max_documents=all"], "give a whole number or null"),
        (["--data.text_field=[a]"], "give text"),
        (["--data.tokenizer=byte"], "did you mean 'bytes'?"),
        (["--data.batch_size=none"], "data.batch_size 'none': give a whole number"),
        (["--data.seed=3"], "unknown key data.seed"),
        (["--data.documents=mask"], "data.documents is 'mask'; it is one of packed, masked; did you mean masked?"),
        (["--data.bos=null"], "data.bos None: give text"),
        (["--data.bos=begin"], "data.bos is 'begin'; it is one of document, sequence, none"),
        (["--data.source"], "--data.source needs a value"),
        (["--data.source={"], "is not a YAML value"),
        (["--dta.source", "x"], "unknown argument --dta.source"),
        (["surplus"], "unknown argument surplus"),
        (["--model.network.vocab_size=289"], "vocab_size 289 is smaller than the tokenizer's vocabulary of 290"),
        (["--model.network.context=10000000"], "fewer than one sequence"),
        (["--config", "configs/demo_txet.yaml"], "did you mean configs/demo_text.yaml?"),
    ],
)
def test_slips(config, words, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as caught:
        main(["--config", str(config), *words])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("data: [", "line 1 is not YAML"),
        ("data:\n  source: a: b\n", "line 2 is not YAML"),
        ("- data", "holds a list"),
        ("data: stdlib", "data is 'stdlib', not a group"),
        ("dta: {source: stdlib}", "unknown group 'dta' (did you mean 'data'?)"),
        ("data: {sources: stdlib}", "unknown key data.sources (did you mean data.source?)"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_files(tmp_path, content, expected):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        main(["--config", str(path)])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_names_every_option(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {field.name}: " in out for field in fields(PrepareOptions))


def test_exit_code_and_single_line_from_the_shell(tmp_path):
    words = ["prepare", "--data.source", "missing.txt", "--data.folder", str(tmp_path)]
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: data file missing.txt: no such file\n"


def test_training_side_imports_no_dataset_library():
    code = (
        "import sys, data.loading, data.corpus\n"
        "bad = {'datasets', 'tokenizers', 'pyarrow', 'lightning'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, data.command\n"
        "data.command.main(['--help'])\n"
        "bad = {'torch', 'datasets', 'tokenizers', 'pyarrow'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
