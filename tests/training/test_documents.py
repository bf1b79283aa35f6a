"""Runs with documents masked, and with BOS at other places: what a document sees, and what a run may not change."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from tiny_run import CONTEXT, differences, metrics, tensors, tiny_run
from torch._dynamo.utils import counters

import outliers
from errors import InputError
from experiments.report.comparison import differing_keys
from models import GPT, GPTConfig
from training import compilation
from training.callbacks.evaluation import evaluate

ROTARY = GPTConfig(vocab_size=40, context=32, layers=2, heads=2, width=16, positions="rotary")
MASKED = {"documents": "masked"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Short documents, so that most sequences hold several."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    texts = ["".join(draw.choice("etaoin shr") for _ in range(draw.randint(3, 20))) for _ in range(600)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def packed_documents(lengths=(9, 14, 9)):
    """One sequence of several documents, its first keys, and where each document lies."""
    tokens = torch.randint(40, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    places = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    first_key = torch.cat([torch.full((1, p.stop - p.start), p.start, dtype=torch.int32) for p in places], 1)
    return tokens, first_key, places


@pytest.mark.parametrize(
    ("attention", "positions"),
    [
        ("softmax", "rotary"),
        ("context_scaling", "rotary"),
        ("softpick", "rotary"),
        ({"name": "clipped_softmax", "alpha": 1.0, "per_row": True}, "rotary"),
        ("sink_key_value", "none"),  # its key is not rotated, queries are: under rotary their product is not the same
    ],
)
def test_a_document_in_a_masked_sequence_is_as_if_it_were_alone(attention, positions):
    gpt = GPT(replace(ROTARY, positions=positions), attention).double()
    tokens, first_key, places = packed_documents()
    logits = gpt(tokens, first_key)
    for place in places:
        # Positions are not restarted, but rotary attention knows distances alone.
        alone = gpt(tokens[:, place], torch.zeros(1, place.stop - place.start, dtype=torch.int32))
        assert torch.allclose(logits[:, place], alone, rtol=0, atol=1e-6)  # the rotary table is in float32
    if attention == "softmax":
        assert not torch.allclose(gpt(tokens)[:, places[1]], logits[:, places[1]], atol=1e-3)


def test_no_gradient_crosses_from_one_document_to_another():
    gpt = GPT(ROTARY).double()
    tokens, first_key, places = packed_documents()
    tokens = torch.arange(32)[None].clone()  # every token another one, so that its embedding's row is its gradient
    gpt(tokens, first_key)[:, places[1]].square().sum().backward()
    gradient = gpt.embedding.weight.grad.clone()
    gpt.zero_grad()
    # The tied head's share of the gradient is the same in both, so the rest is that of the inputs.
    alone = tokens[:, places[1]]
    gpt(alone, torch.zeros(alone.shape, dtype=torch.int32)).square().sum().backward()
    assert torch.allclose(gradient, gpt.embedding.weight.grad, rtol=0, atol=1e-5)


def test_the_probe_follows_the_mask():
    gpt = GPT(ROTARY)
    tokens = torch.randint(40, (4, 16), generator=torch.Generator().manual_seed(1))
    joined, first_key = tokens.reshape(2, 32), torch.tensor([0] * 16 + [16] * 16, dtype=torch.int32).expand(2, 32)
    apart = outliers.headlines(outliers.Probe(gpt, tokens).measure(0))
    for chunk in (1, 2):
        masked = outliers.headlines(outliers.Probe(gpt, joined, first_key_BT=first_key, chunk=chunk).measure(0))
        for name in ("first_key_mass", "argmax_first"):
            assert masked[name] == pytest.approx(apart[name], rel=1e-4), name
    packed = outliers.headlines(outliers.Probe(gpt, joined).measure(0))
    assert packed["first_key_mass"] < 0.8 * apart["first_key_mass"]


def test_a_masked_run_trains_evaluates_probes_and_resumes_bitwise(tmp_path, records):
    options = {"data": MASKED, "outliers": 3, "network": {"positions": "rotary"}}
    whole = tiny_run(tmp_path / "whole", records, **options).fit()
    tiny_run(tmp_path / "torn", records, stop_after=3, **options).fit()
    last = tmp_path / "torn/checkpoints/last.ckpt"
    resumed = tiny_run(tmp_path / "torn", records, **options).fit(last)
    assert differences(tensors(whole), tensors(resumed)) == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "torn")

    found, nats = evaluate(whole.trainer, whole.module), 0.0
    data = whole.data
    for batch in data.validation_loader():
        logits = whole.module.gpt(batch["inputs"], batch["first_key"]).double().log_softmax(-1)
        chosen = batch["targets"] != -100
        nats -= logits[chosen].gather(1, batch["targets"][chosen][:, None]).sum().item()
    targets = torch.cat([batch["targets"].flatten() for batch in data.validation_loader()])
    targets = targets[targets != -100]
    assert found["validation/loss"] == pytest.approx(nats / len(targets), rel=1e-5)
    # The mark that ends a document is in the loss; its bytes are none.
    mark = data.corpus.tokenizer.end_of_text
    assert 0 < (targets == mark).sum() < len(targets)
    bits = nats / math.log(2) / int((targets != mark).sum())
    assert found["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-5)

    tokens, first_key = data.probe_tokens(2), data.probe_first_key(2)
    assert tokens.shape == first_key.shape == data.random_tokens(2).shape == (2, CONTEXT)
    assert first_key.max() > 0
    for name, choice in (("documents", {"documents": "packed"}), ("bos", {**MASKED, "bos": "none"})):
        other = tiny_run(tmp_path / "torn", records, **{**options, "data": choice})
        with pytest.raises(InputError, match=rf"trained with data.{name} (masked|document), this run has "):
            other.fit(last)


def test_a_sequence_begins_with_its_bos_everywhere(tmp_path, records):
    run = tiny_run(tmp_path / "run", records, steps=1, outliers=1, data={"bos": "sequence"}).fit()
    mark = run.data.corpus.tokenizer.end_of_text
    (batch,) = run.data.step_batches(0)
    held_out = next(iter(run.data.validation_loader()))
    for inputs in (batch["inputs"], held_out["inputs"], run.data.probe_tokens(2), run.data.sentence()[0][None]):
        assert (inputs[:, 0] == mark).all()
        assert (inputs[:, 1:] != mark).all()
    assert "first_key" not in batch
    assert run.data.sentence()[2] is None


def test_first_keys_do_not_compile_a_block_again(tmp_path, records, monkeypatch):
    """Traced as for the compiler, and run as traced: what the compiler makes of the graphs is test_module's matter."""

    def compile_blocks(blocks):
        for block in blocks:
            block.compile(backend="eager")

    monkeypatch.setattr(compilation, "wanted", lambda choice, device: choice == "true")
    monkeypatch.setattr(compilation, "compile_blocks", compile_blocks)
    monkeypatch.setattr(compilation, "compiled", lambda function: torch.compile(function, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    options = {"steps": 3, "outliers": 1, "data": MASKED, "evaluation": 0}
    traced = tiny_run(tmp_path / "traced", records, compile="true", **options).fit()
    assert counters["stats"]["unique_graphs"] == 2  # that of both blocks and the loss
    eager = tiny_run(tmp_path / "eager", records, **options).fit()
    for one, other in zip(eager.module.parameters(), traced.module.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)  # the loss that is compiled is written in another way


def test_what_cannot_be_masked_is_refused(tmp_path, records):
    with pytest.raises(InputError, match="sink_token cannot be combined with packed documents"):
        tiny_run(tmp_path / "run", records, attention="sink_token", data=MASKED).fit()
    run = tiny_run(tmp_path / "vendor", records, data=MASKED)
    run.module.backend = "vendor"
    with pytest.raises(InputError, match="vendor, which cannot compute a first key for each row"):
        run.fit()


def test_runs_that_differ_in_them_are_other_settings():
    configs = [{"data": {"documents": "packed", "bos": bos}} for bos in ("document", "none")]
    assert differing_keys(configs) == {"data.bos": ["document", "none"]}
