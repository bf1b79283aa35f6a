"""`train.py compress` on a real checkpoint: files, page and figures say the same; what is wrong is one line."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers

import train
from experiments.drawing.words import number
from experiments.progress import Countdown
from outliers.compression.recipe import SETTINGS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A small LLaMA with a byte-level tokenizer beside it, as a folder of the hub's format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, vocab_size=257, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    return f"hf:{folder}"


def test_files_figures_and_page(model, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert train.main(["compress", model, "--out", str(out), "--sequences", "5", "--length", "32"]) == 0
    assert capsys.readouterr().out == f"compression: {out / 'compression.html'}\n"
    table = pq.read_table(out / "compression.parquet").to_pylist()
    with open(out / "compression.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["full precision", *(setting.name for setting in SETTINGS)]
    for row, entry in zip(rows, table, strict=True):
        assert float(row["gap"]) == entry["gap"]
        named = [row[key] for key in ("sequences", "length", "text", "recipe")]
        assert named == ["4", "32", "built-in text", "compress-1"]
    page = (out / "compression.html").read_text()
    assert "each begins with BOS" in page
    assert "4 sequences of 32 tokens evaluated, 1 more for calibration" in page
    assert f"perplexity {number(math.exp(table[0]['nats']))}." in page
    for row in table[1:]:
        assert f'<th scope="row">{row["setting"]}</th><td>{number(row["perplexity"])}</td>' in page
    figures = sorted(path.name for path in (out / "figures").iterdir())
    assert figures == ["classes.png", "pruning.png", "quantisation.png"]
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page.partition("</style>")[2]


def test_what_is_wrong_is_one_line_and_exit_code_2(model, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    cases = {
        (model,): "the following arguments are required: --out",
        (str(tmp_path / "none"), "--out", "o"): "is not a model",
        (model, "--out", str(file)): "is a file, or lies in one; give a folder",
        (model, "--out", str(file / "below")): "is a file, or lies in one; give a folder",
        (model, "--out", str(tmp_path / ("x" * 300))): "cannot be written: File name too long",
        (model, "--out", "o", "--length", "65"): "longer than the 64 positions",
        (model, "--out", "o", "--text", "validation"): "belongs to no run, so it has no validation set",
        (model, "--out", "o", "--sequences", "1"): "the text makes 1 sequence",
        (model, "--out", "o", "--dtype", "int8"): "dtype 'int8': choose from float32",
    }
    for arguments, message in cases.items():
        assert train.main(["compress", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not Path("o").exists()


def test_help_answers_without_torch():
    code = """
import sys, train
try:
    train.main(["compress", "--help"])
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--sequences" in done.stdout


def test_countdown_tells_the_time_left(capsys):
    with Countdown("compressing") as countdown:
        countdown._started -= 30
        countdown.show("w8", 3, 9)
        countdown.show("w4", 4, 9)
    assert capsys.readouterr().err == "compressing: 3 of 9 done, about 1 min 0 s left; now w8\n"
