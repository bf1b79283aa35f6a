"""A run, its checkpoint and its weights file open as the network that was trained, with its tokenizer and its text."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_run import CONTEXT, tiny_run

from errors import InputError
from outliers.access import open_decoder, sequences
from outliers.analysis.fresh import fresh
from outliers.analysis.survey import Survey
from outliers.analysis.token_kinds import kinds


@pytest.fixture(scope="module")
def run(text, tmp_path_factory):
    """The directory of a real run of three steps on bytes, as `fit` leaves it, and the weights that it ended with."""
    folder = tmp_path_factory.mktemp("run") / "softmax"
    made = tiny_run(folder, text, steps=3, weights=3, checkpoints=3, outliers=3, seed=7).fit()
    options = {"source": str(text), "tokenizer": "bytes", "folder": str(folder.parent / "data"), "batch_size": 4}
    (folder / "config.yaml").write_text("data:\n" + "".join(f"  {key}: {value}\n" for key, value in options.items()))
    return folder, made


def test_run_checkpoint_and_weights_open_as_the_trained_network(run):
    folder, made = run
    tokens = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    expected = -made.module.gpt(tokens).log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    checkpoints = folder / "checkpoints"
    for path in (folder, checkpoints / "last.ckpt", checkpoints / "weights-step=000003.safetensors"):
        decoder = open_decoder(str(path))
        assert (decoder.step, decoder.run) == (3, folder)
        assert decoder.vocabulary.bos == 256
        torch.testing.assert_close(decoder.nats(tokens).float(), expected.detach())
    wide = open_decoder(str(folder), "float64")
    assert wide.dtype == torch.float64


def test_the_initial_weights_of_an_analysis_are_those_that_the_run_began_with(run):
    """The null of initial weights, on the probe's tokens, is the run's probe of step 0, bit for bit."""
    folder, made = run
    tokens = made.data.probe_tokens(2)
    names = ("metric", "site", "layer", "head", "statistic")
    rows = pq.read_table(folder / "probes" / "step=000000.parquet").to_pylist()
    probed = [row for row in rows if row["inputs"] == "probe"]
    assert len(probed) > 200
    for path in (folder, folder / "checkpoints" / "weights-step=000003.safetensors"):
        start = fresh(open_decoder(str(path)))
        found = Survey(start, *kinds(start, tokens), single=False).run(tokens).table().to_pylist()
        plain = [row for row in found if row["channel"] == row["position"] == -1 and not row["kind"]]
        values = {tuple(row[name] for name in names): row["value"] for row in plain}
        for row in probed:
            np.testing.assert_equal(values[tuple(row[name] for name in names)], row["value"], err_msg=str(row))


def test_text_is_cut_behind_bos_and_the_validation_set_is_the_runs(run, tmp_path):
    folder, made = run
    decoder = open_decoder(str(folder))
    validation = sequences(decoder, count=4)
    assert torch.equal(validation.tokens, made.data.probe_tokens(4))
    assert str(folder) in validation.name
    file = tmp_path / "a.txt"
    file.write_text("abcdefghij" * 3)
    text = sequences(decoder, str(file), count=5, length=8)
    assert text.tokens.tolist() == [[256, *map(ord, ("abcdefghij" * 3)[i : i + 7])] for i in (0, 7, 14, 21)]
    assert text.bos
    assert decoder.vocabulary.decode(text.tokens[0].tolist()) == "abcdefg"
    built_in = sequences(decoder, "built-in", count=3)
    assert built_in.tokens.shape == (3, CONTEXT)
    assert decoder.vocabulary.decode(built_in.tokens[0].tolist()).startswith("The harbour")
    random = sequences(decoder, "random", count=50)
    assert bool((random.tokens[:, 0] == 256).all())
    assert len(random.tokens[:, 1:].unique()) > 200
    file.write_bytes(b"\xff\xfe")
    cases = [
        ({"text": str(tmp_path / "none")}, "No such file or directory .a file, or built-in, validation, random"),
        ({"text": str(file)}, "is not UTF-8: byte 0"),
        ({"count": 0}, "0 sequences: give at least 1"),
        ({"length": 1}, "sequences of 1 tokens predict nothing"),
        ({"length": CONTEXT + 1}, f"longer than the {CONTEXT} positions"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            sequences(decoder, **options)
    file.write_text("abc")
    with pytest.raises(InputError, match="has 3 tokens, fewer than one sequence of 8"):
        sequences(decoder, str(file), length=8)


def test_another_corpus_and_files_that_are_no_model(run, tmp_path):
    folder, _ = run
    decoder = open_decoder(str(folder / "checkpoints" / "last.ckpt"))
    described = folder / "corpus.json"
    before = described.read_text()
    try:
        described.write_text(before.replace('"hash": "', '"hash": "0'))
        with pytest.raises(InputError, match="its source now gives"):
            sequences(decoder)
    finally:
        described.write_text(before)
    stranger = tmp_path / "odd.ckpt"
    torch.save({"state_dict": {"gpt.x": torch.zeros(1)}}, stranger)
    with pytest.raises(InputError, match="is no model of `fit`"):
        open_decoder(str(stranger))
    stranger.write_bytes(b"PK")
    with pytest.raises(InputError, match="is damaged"):
        open_decoder(str(stranger))
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(InputError, match="is a run without a checkpoint"):
        open_decoder(str(tmp_path))
