"""Any decoder through one interface: ours and every supported architecture of transformers agree on what a site is."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

import kernels
from errors import InputError
from models import GPT, GPTConfig
from models.huggingface import gpt2_state
from outliers.access import SITES, Decoder, open_decoder
from outliers.access.hugging_face import _quiet
from outliers.access.hugging_face import decoder_of as of_hugging_face
from outliers.access.ours import decoder_of as of_ours

TOKENS = torch.randint(101, (3, 24), generator=torch.Generator().manual_seed(0))
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 101,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=101, n_positions=32),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=28),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
}


def random_model(family: str) -> Any:
    """A small model in which every parameter is random: biases and gains too."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def our_gpt(attention: str = "softmax", **changes: Any) -> GPT:
    sizes = {"vocab_size": 101, "context": 32, "layers": 2, "heads": 4, "width": 32, "init_std": 0.2} | changes
    gpt = GPT(GPTConfig(**sizes), attention)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return gpt


def captured(
    decoder: Decoder, run: Callable[[Decoder, torch.Tensor], Any] = Decoder.nats
) -> tuple[dict[tuple[str, int], torch.Tensor], dict[int, Any], Any]:
    """Every site's tensor, every attention's arguments, and what the pass returns: the losses."""
    seen: dict[tuple[str, int], torch.Tensor] = {}
    attended: dict[int, Any] = {}

    def keep(place: tuple[str, int]):
        return lambda x: seen.__setitem__(place, x.clone())

    hooks = [(*place, keep(place)) for place in decoder.places]
    with decoder.hooked(hooks, lambda layer, q, k, v, parts: attended.__setitem__(layer, (q, k, v, parts))):
        result = run(decoder, TOKENS)
    return seen, attended, result


def decoders() -> list[Any]:
    return [*FAMILIES, "ours", "ours, swiglu"]


def build(which: str) -> Decoder:
    if which in FAMILIES:
        return of_hugging_face(random_model(which), which)
    if which == "ours":
        return of_ours(our_gpt())
    return of_ours(
        our_gpt(
            mlp="swiglu",
            mlp_width=48,
            norm="rmsnorm_single",
            pad_vocab=8,
            positions="rotary",
            kv_heads=2,
            bias=False,
            qk_norm=True,
        )
    )


@pytest.mark.parametrize("which", decoders())
def test_every_site_is_what_its_name_says(which):
    """The sites of one forward pass satisfy the network's equations with its own matrices."""
    decoder = build(which)
    seen, attended, nats = captured(decoder)
    sizes = decoder.sizes
    assert (sizes.layers, sizes.heads, sizes.width, sizes.vocab_size) == (2, 4, 32, 101)
    assert sizes.groups == (4 if which in ("gpt2", "ours") else 2)
    sites = set(SITES) - ({"norm_final", "logits"} | (set() if sizes.gated else {"gate"}))
    assert set(seen) == {(s, n) for s in sites for n in range(2)} | {("norm_final", -1), ("logits", -1)}

    def linear(inputs: torch.Tensor, matrix: torch.Tensor, outputs: torch.Tensor) -> None:
        """outputs − inputs · Wᵀ is a bias: the same for every token."""
        rest = outputs - inputs @ matrix.T
        assert (rest - rest[:1, :1]).abs().max() < 2e-5
        assert outputs.std() > 0.01

    activation = F.silu if sizes.gated else lambda x: F.gelu(x, approximate="tanh")
    for n in range(2):
        at = {site: x for (site, layer), x in seen.items() if layer == n}
        matrices = decoder.matrices(n)
        assert set(matrices) == {"q", "k", "v", "o", "up", "down"} | ({"gate"} if sizes.gated else set())
        torch.testing.assert_close(at["block_input"] + at["attention_output"] + at["mlp_output"], at["block_output"])
        for name in ("q", "k", "v"):
            linear(at["norm_attention"], matrices[name], at[name])
        linear(at["out_input"], matrices["o"], at["attention_output"])
        linear(at["norm_mlp"], matrices["up"], at["up"])
        linear(at["down_input"], matrices["down"], at["mlp_output"])
        if sizes.gated:
            linear(at["norm_mlp"], matrices["gate"], at["gate"])
            product = activation(at["gate"]) * at["up"]
        else:
            product = activation(at["up"])
        torch.testing.assert_close(product, at["down_input"])
        q, k, v, parts = attended[n]
        y = kernels.attend(q, k, v, parts).transpose(1, 2).flatten(2)
        torch.testing.assert_close(y, at["out_input"], atol=2e-5, rtol=1e-4)  # flash or math: another order of sums
        gain = decoder.gains()["norm_mlp", n]
        assert gain.shape == ((1,) if which == "ours, swiglu" else (32,))
    torch.testing.assert_close(seen["block_output", 0], seen["block_input", 1])
    logits = seen["norm_final", -1] @ decoder.head[: sizes.vocab_size].T
    torch.testing.assert_close(logits, seen["logits", -1])
    expected = -logits.double().log_softmax(-1)[:, :-1].gather(2, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(nats, expected, atol=1e-5, rtol=1e-5)
    assert nats.dtype == torch.float64


def test_watching_changes_no_number_and_leaves_nothing_behind():
    decoder = of_hugging_face(random_model("llama"), "llama")
    decoder.module.train()
    before = decoder.nats(TOKENS)
    _, _, during = captured(decoder)
    assert torch.equal(decoder.nats(TOKENS), before)
    assert (during - before).abs().max() < 1e-5
    assert decoder.module.training
    assert decoder.module.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder.module.modules())


@pytest.mark.parametrize("which", ["gpt2", "ours, swiglu"])
def test_a_pass_without_logits_shows_the_same_tensors(which):
    decoder = build(which)
    expected, _, nats = captured(decoder)
    seen, attended, nothing = captured(decoder, Decoder.forward)
    assert nothing is None
    assert len(attended) == 2
    assert seen.pop(("logits", -1)).shape == (3, 1, 101)
    for place, x in seen.items():
        assert torch.equal(x, expected[place]), place
    assert captured(decoder)[2].equal(nats)  # nothing is left at the head


def test_our_gpt_gives_the_same_numbers_as_hugging_faces(tmp_path):
    """From sharded safetensors, and from .bin; every site, every attention argument, every matrix."""
    gpt = our_gpt()
    model = transformers.GPT2LMHeadModel(FAMILIES["gpt2"]())
    model.load_state_dict(gpt2_state(gpt))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "config.json").write_text((tmp_path / "sharded" / "config.json").read_text())
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    shutil.copytree(tmp_path / "bin", tmp_path / "old")  # as files of the hub from before torch 1.6 are
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ours, attended, nats = captured(of_ours(gpt))
    for folder in ("sharded", "bin", "old"):
        decoder = open_decoder(f"hf:{tmp_path / folder}")
        assert decoder.vocabulary is None
        theirs, their_attended, their_nats = captured(decoder)
        assert set(theirs) == set(ours)
        for place, x in ours.items():
            assert (x - theirs[place]).abs().max() < 1e-4 * max(1.0, float(x.abs().max())), place
        for layer, arguments in attended.items():
            for mine, other in zip(arguments[:3], their_attended[layer][:3], strict=True):
                torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
        for name, matrix in of_ours(gpt).matrices(1).items():
            assert torch.equal(matrix, decoder.matrices(1)[name]), name
        assert (nats - their_nats).abs().max() < 1e-4
    half = open_decoder(f"hf:{tmp_path / 'bin'}", "bfloat16")
    assert half.dtype == torch.bfloat16
    assert 0 < (half.nats(TOKENS) - nats).abs().mean() < 0.1


@pytest.mark.parametrize("which", ["gpt2", "qwen2", "ours", "ours, swiglu"])
def test_what_a_hook_returns_takes_the_tensors_place(which):
    """Halving the columns of one site is halving the matrix and bias that made it: shown where there is no bias."""
    decoder = build(which)
    before = decoder.nats(TOKENS)
    for site, layer in decoder.places:
        with decoder.hooked([(site, layer, lambda x: x * 0.5)]):
            assert not torch.equal(decoder.nats(TOKENS), before) or site == "k", (site, layer)
        with decoder.hooked([(site, layer, lambda x: x.clone())]):
            assert torch.equal(decoder.nats(TOKENS), before), (site, layer)
    changes = [("up", 1, lambda x: x * 0), ("up", 1, lambda x: x + 1)]  # in the order given
    seen = []
    with decoder.hooked([*changes, ("up", 1, lambda x: seen.append(x.clone()))]):
        decoder.nats(TOKENS)
    assert all(bool((x == 1).all()) for x in seen)


@pytest.mark.parametrize("which", ["gpt2", "llama", "ours, swiglu"])
def test_matrices_are_replaced_in_place_and_come_back_bit_for_bit(which):
    decoder = build(which)
    saved = {name: p.detach().clone() for name, p in decoder.module.named_parameters()}
    before = decoder.nats(TOKENS)
    for name in decoder.matrices(0):
        with decoder.preserved():
            decoder.matrices(1)[name].mul_(-1.5)
            assert not torch.equal(decoder.nats(TOKENS), before), name
        assert all(torch.equal(p, saved[n]) for n, p in decoder.module.named_parameters())
    with pytest.raises(KeyError), decoder.preserved():  # after a fault too
        decoder.matrices(0)["q"].zero_(), decoder.matrices(0)["no such matrix"]
    assert torch.equal(decoder.nats(TOKENS), before)


def test_a_prefix_token_and_an_attention_without_parts():
    decoder = of_ours(our_gpt(attention="sink_token"))
    seen, attended, nats = captured(decoder)
    assert decoder.sizes.prefix_tokens == 1
    assert seen["block_output", 0].shape[1] == 25
    assert nats.shape == (3, 23)
    assert attended[0][0].shape[2] == 25


def saved(folder: Path, model: Any, size: str = "1GB", **changes: Any) -> str:
    model.save_pretrained(folder, max_shard_size=size)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def test_retries_of_the_hub_are_not_told_one_by_one():
    hub, theirs = logging.getLogger("huggingface_hub.utils._http"), logging.getLogger("transformers")
    before = [hub.getEffectiveLevel(), theirs.getEffectiveLevel()]
    with _quiet(transformers):
        assert not hub.isEnabledFor(logging.WARNING)
        assert not theirs.isEnabledFor(logging.WARNING)
    assert [hub.getEffectiveLevel(), theirs.getEffectiveLevel()] == before


def test_bad_models_are_one_line(tmp_path, monkeypatch):
    llama = random_model("llama")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    )
    half = saved(tmp_path / "half", llama)
    (tmp_path / "half" / "model.safetensors").write_bytes((tmp_path / "half" / "model.safetensors").read_bytes()[:-9])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text((tmp_path / "half" / "config.json").read_text())
    sharded, cut = (saved(tmp_path / name, llama, size="20KB") for name in ("sharded", "cut"))
    first, second, *_ = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    (tmp_path / "sharded" / second).unlink()
    (tmp_path / "cut" / first).write_bytes((tmp_path / "cut" / first).read_bytes()[:-9])
    index = saved(tmp_path / "index", llama, size="20KB")
    (tmp_path / "index" / "model.safetensors.index.json").write_text('{"weight_map": ')
    bins = {name: tmp_path / name for name in ("bin_cut", "bin_empty", "bin_junk", "bin_lost")}
    whole = "pytorch_model.bin"
    for folder in bins.values():
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / "half" / "config.json").read_text())
        torch.save(llama.state_dict(), folder / whole)
    (bins["bin_cut"] / whole).write_bytes((bins["bin_cut"] / whole).read_bytes()[:-9])
    (bins["bin_empty"] / whole).write_bytes(b"")
    (bins["bin_junk"] / whole).write_bytes(b"hello world")
    (bins["bin_lost"] / whole).unlink()
    (bins["bin_lost"] / f"{whole}.index.json").write_text('{"weight_map": {"lm_head.weight": "one.bin"}}')
    tokenizer = saved(tmp_path / "tokenizer", llama)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    cases = {
        str(tmp_path / "nothing"): "is not a model: no run directory, checkpoint",
        str(tmp_path / "empty"): "is not a model: a folder without a run's config.yaml",
        str(tmp_path / "notes.txt"): "is not a model: a file of one ends in .ckpt or .safetensors",
        "hf:": "hf: needs a name or a folder",
        f"hf:{tmp_path / 'empty'}": "is not a model: there is no",
        half: "model.safetensors is truncated or damaged",
        sharded: f"{second} is missing, which model.safetensors.index.json names",
        cut: f"{first} is truncated or damaged",
        index: "model.safetensors.index.json is damaged",
        f"hf:{bins['bin_cut']}": "pytorch_model.bin is truncated or damaged (",
        f"hf:{bins['bin_empty']}": "pytorch_model.bin is truncated or damaged (EOFError)",
        f"hf:{bins['bin_junk']}": "pytorch_model.bin is truncated or damaged (",
        f"hf:{bins['bin_lost']}": "one.bin is missing, which pytorch_model.bin.index.json names",
        saved(tmp_path / "words", llama, num_hidden_layers="three"): "num_hidden_layers': TypeError",
        tokenizer: f"the tokenizer of {tokenizer} cannot be loaded: a file of it is damaged",
        f"hf:{tmp_path / 'none'}": "cannot be loaded",
        saved(tmp_path / "deeper", random_model("llama"), num_hidden_layers=3): "weights are missing, such as",
        saved(tmp_path / "wider", random_model("llama"), intermediate_size=64): "weights do not have the shape that",
        saved(tmp_path / "bert", bert): "is a bert (BertForMaskedLM), which is not supported; supported are gpt2",
        saved(tmp_path / "odd", llama, model_type="gizmo"): "cannot be loaded",
        saved(tmp_path / "nan", llama): "the weights of model.layers.1.mlp.up_proj.weight hold NaN or inf",
    }
    for model, message in cases.items():
        with pytest.raises(InputError, match=re.escape(message)) as error:
            open_decoder(model)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="dtype 'int3': choose from float32"):
        open_decoder("hf:gpt2", "int3")
    with pytest.raises(InputError, match="a sequence of 33 tokens is longer than the 32 positions of llama"):
        build("llama").nats(torch.zeros(1, 33, dtype=torch.int64))
    with pytest.raises(InputError, match="longer than the 28 positions"):  # the sliding window
        build("mistral").nats(torch.zeros(1, 29, dtype=torch.int64))
    with pytest.raises(InputError, match="token 101 is outside the vocabulary of 101"):
        build("gpt2").nats(torch.full((1, 4), 101))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match="hf: models need transformers, which is not installed"):
        open_decoder("hf:gpt2")
