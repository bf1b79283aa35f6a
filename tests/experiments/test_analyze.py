"""`analyze`: a report, its figures and every number from one command; one line for what it cannot take."""

import csv
import errno
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import train
from errors import InputError
from experiments.analyze.layer_figures import layer_figures
from experiments.analyze.life_figures import life_figures
from experiments.analyze.report import page
from experiments.analyze.sentence_figures import FINEST, LINES, pooled, pooling, sentence_figures
from experiments.model_arguments import made
from models import GPT, GPTConfig
from outliers.access import sequences
from outliers.access.hugging_face import decoder_of as of_hugging_face
from outliers.access.ours import decoder_of as of_ours
from outliers.analysis.study import study

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 80, "n_positions": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A GPT-2 in Hugging Face's format with a massive activation at one token, without a tokenizer."""
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES))
    with torch.no_grad():
        model.transformer.wte.weight[7, 3] = 2000.0
    model.save_pretrained(path)
    return path


def test_one_command_gives_a_report_with_its_figures_and_numbers(folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["analyze", f"hf:{folder}", "--text", "random", "--sequences", "3", "--length", "48", "--tau", "400"]
    assert train.main([*argv, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert str(out / "report.html") in printed.out
    assert "has no tokenizer" in printed.err
    html = (out / "report.html").read_text()
    figures = sorted(path.name for path in (out / "figures").iterdir())
    assert len(figures) >= 10
    assert html.count("data:image/png;base64,") == len(figures)
    assert "has no tokenizer" in html
    assert "in sequences this short" not in html
    assert {"modules.png", "sink-keys.png", "received.png"} <= set(figures)
    assert "http" not in re.sub(r"https?://[^\s\"<]*arxiv[^\s\"<]*", "", html)  # needs no network
    table = pq.read_table(out / "numbers.parquet").to_pylist()
    found = [row for row in table if row["metric"] == "outlier_token"]
    assert {(row["channel"], row["token"]) for row in found} == {(3, "#7")}
    assert "channel 3" in html
    beside = [row for row in table if row["metric"] == "inf_norm"]
    assert all(row["null_random"] is not None and row["null_initial"] is not None for row in beside)
    of_weights = {
        "weight_column_max_to_mean", "weight_row_max_to_mean", "gain_to_median", "query_column_to_median",
    }  # fmt: skip
    weights = [row for row in table if row["metric"] in of_weights]
    assert {row["metric"] for row in weights} == of_weights
    assert all(row["null_random"] is None and row["null_initial"] is not None for row in weights)


def test_pooling_keeps_the_largest_and_is_said():
    values = np.zeros((50, 400))
    values[37, 399], values[0, 211] = 9.0, 5.0
    drawn = pooled(pooled(values, FINEST, 1), LINES, 0)
    assert drawn.shape == (LINES, FINEST)
    assert sorted(drawn[drawn > 0]) == [5, 9]
    assert "largest of up to 3 neighbouring channels × 2 neighbouring tokens" in pooling(
        (50, 400), ("channel", "token")
    )
    assert pooling((48, 64), ("channel", "token")) == ""


def changed(folder: Path, target: Path, **config) -> Path:
    """The model's folder with another configuration."""
    target.mkdir()
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (target / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return target


def test_what_it_cannot_take_is_one_line(folder, tmp_path, capsys):
    weights = load_file(folder / "model.safetensors")
    nan = changed(folder, tmp_path / "nan")
    name = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight"))
    weights[name][0, 0] = torch.nan
    save_file(weights, nan / "model.safetensors", {"format": "pt"})
    encoder = changed(folder, tmp_path / "bert", model_type="bert", architectures=["BertModel"])
    (tmp_path / "file").write_text("")
    tokenized = changed(folder, tmp_path / "tokenized")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tokenized / "tokenizer.json"))
    random = ["--text", "random", "--out", str(tmp_path / "out")]
    for argv, said in (
        ([str(tmp_path / "nothing"), *random], "is not a model"),
        ([f"hf:{encoder}", *random], "bert .* not supported; supported are gpt2, llama"),
        ([f"hf:{nan}", *random], "h.1.mlp.c_fc.weight hold NaN or inf"),
        ([f"hf:{folder}", *random, "--length", "65"], "65 tokens is longer than the 64 positions"),
        ([f"hf:{folder}", "--out", str(tmp_path / "out")], "has no tokenizer, so it reads no text"),
        ([f"hf:{folder}", *random, "--sequences", "0"], "0 sequences: give at least 1"),
        ([f"hf:{folder}", *random, "--tau", "0"], "--tau 0: give a number above 1"),
        ([f"hf:{folder}", "--text", "random", "--out", str(tmp_path / "file")], "is a file, or lies in one"),
        ([f"hf:{folder}", "--text", "random", "--out", str(tmp_path / "file" / "in")], "is a file, or lies in one"),
        ([f"hf:{tokenized}", *random[2:], "--text", str(tmp_path / "file")], "file is empty"),
        ([f"hf:{folder}"], "required: --out"),
    ):
        assert train.main(["analyze", *argv]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert re.search(said, error), error
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(monkeypatch, tmp_path):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert made(tmp_path / "new" / "out").is_dir()
    assert not list((tmp_path / "new" / "out").iterdir())
    monkeypatch.setattr("tempfile.TemporaryFile", full)  # as root, every folder can be written
    with pytest.raises(InputError, match="out cannot be written: No space left on device"):
        made(tmp_path / "out")


def test_activations_that_overflow_are_named_by_their_first_place():
    decoder = llama()
    with torch.no_grad():
        decoder.matrices(1)["up"].mul_(1e20)
        decoder.matrices(1)["down"].mul_(1e30)
    with pytest.raises(InputError, match="llama: activations hold NaN or inf from mlp_output, layer 1 on"):
        study(decoder, sequences(decoder, "random", count=1, length=20))


def test_help_does_not_wait_for_torch():
    code = "import sys, train\ntry: train.main(['analyze', '--help'])\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=48, vocab_size=80, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48,
    )  # fmt: skip
    return of_hugging_face(transformers.LlamaForCausalLM(config), "llama")


def silent():
    """Its attention does not say what it computes."""
    return of_ours(GPT(GPTConfig(vocab_size=80, context=48, layers=2, heads=4, width=32), "forward_only.Mean"))


def drawn(decoder, found):
    return [*sentence_figures(decoder, found.sentence), *layer_figures(found.table), *life_figures(found.table)]


@pytest.mark.parametrize("opened", [llama, silent])
def test_every_part_of_the_page_is_there_as_far_as_the_attention_lets_it(opened):
    decoder = opened()
    found = study(decoder, sequences(decoder, "random", count=2, length=40))
    # Drawing takes seconds: once for a model whose attention can be drawn, above, and once for one whose cannot.
    pictures = [] if opened is llama else drawn(decoder, found)
    html = page(decoder, found, pictures)
    drawn_only = ["Existence"] if pictures else []
    headings = re.findall(r"<h2>([^<]*)</h2>", html)
    assert headings == [
        "Main numbers", "Outliers as 2502.06415 codes them", *drawn_only, "Position", "Sinks", "Life cycle",
        "Consistency", "Interventions", "Channel-wise outliers",
    ]  # fmt: skip
    assert ("so its weights were not measured" in html) == (opened is silent)
    assert "Uniform attention over 40 tokens gives the first key 0.107 of it" in html  # the rule for keys says nothing
    names = {picture.name for picture in pictures}
    assert not {"heads", "attention", "attention-heads", "received"} & names
    assert ("spread" in names) == (opened is silent)  # the values' norms at least


def test_a_run_s_onsets_are_among_its_numbers(tiny_runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_runs / "softmax" / "seed=0", run)
    with (run / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "outliers/sink_rate@0.3", "outliers/value_drain", "outliers/top1_to_median"])
        rows.writerows([step, 0.1 + 0.8 * (step > 3), 1.0, 5 + 9 * (4 <= step <= 8)] for step in range(13))
    out = tmp_path / "out"
    assert train.main(["analyze", str(run), "--out", str(out), "--sequences", "2", "--length", "16"]) == 0
    table = pq.read_table(out / "numbers.parquet").to_pylist()
    onsets = {(r["metric"], r["statistic"]): r["value"] for r in table if r["metric"].startswith("onset_")}
    assert {key: round(value, 6) for key, value in onsets.items() if not math.isnan(value)} == {
        ("onset_sink_rate@0.3", "step"): 3.5,
        ("onset_sink_rate@0.3", "low"): 3.0,
        ("onset_sink_rate@0.3", "high"): 4.0,
        ("onset_sink_rate@0.3", "start"): 0.1,
        ("onset_sink_rate@0.3", "end"): 0.9,
        ("onset_top1_to_median", "start"): 5.0,
        ("onset_top1_to_median", "end"): 14.0,
        ("onset_top1_to_median", "came"): 3.5,
        ("onset_top1_to_median", "gone"): 8.5,
    }
    assert ("onset_value_drain", "step") in onsets
    html = (out / "report.html").read_text()
    assert "Attention sinks: sink rate</th><td>sets in</td><td>4</td><td>3 to 4</td>" in html
    assert "largest over median</th><td>comes and goes: from step 4 to 8</td><td>–</td>" in html
