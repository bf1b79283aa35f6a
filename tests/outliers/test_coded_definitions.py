"""The criteria that the code of 2502.06415 uses, evaluated here in float64 from its formulas alone: the same findings.

On a network of ours and on a LLaMA, both with grouped heads and a gated MLP, in which outliers of all three kinds are
planted. Nothing of `outliers` but the table that is under test: tensors come from the modules' own hooks.
"""

from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, nn

from models import GPT, GPTConfig
from outliers.access import Decoder
from outliers.access.hugging_face import decoder_of as of_hugging_face
from outliers.access.ours import decoder_of as of_ours
from outliers.analysis.survey import Survey
from outliers.analysis.token_kinds import kinds

LAYERS, HEADS, GROUPS, WIDTH, HEAD_DIM, MLP, VOCABULARY, T = 3, 4, 2, 64, 16, 96, 60, 80
MARKED = 7  # the token that carries a massive activation
LAYER, HEAD, CHANNEL, CONSTANT, FEATURE = 1, 2, 5, 40, 17
TAU, SHARE, EPSILON = 1000, 0.1, 1e-8  # of the authors' code


@dataclass
class Opened:
    """A decoder, and where its own modules keep what the definitions speak of."""

    decoder: Decoder
    blocks: list[nn.Module]
    down: list[nn.Module]
    matrices: list[dict[str, Tensor]]


def ours() -> Opened:
    sizes = {"vocab_size": VOCABULARY, "context": T, "layers": LAYERS, "heads": HEADS, "kv_heads": GROUPS}
    gpt = GPT(GPTConfig(**sizes, width=WIDTH, mlp="swiglu", mlp_width=MLP, norm="rmsnorm", positions="rotary"))
    matrices = []
    for block in gpt.blocks:
        q, k, v = block.attention.qkv.weight.split([HEADS * HEAD_DIM, GROUPS * HEAD_DIM, GROUPS * HEAD_DIM])
        up, gate = block.mlp.up.weight.split(MLP)
        matrices.append({"q": q, "k": k, "v": v, "o": block.attention.out.weight, "up": up, "gate": gate})
        matrices[-1]["down"] = block.mlp.down.weight
    return Opened(of_ours(gpt), list(gpt.blocks), [block.mlp.down for block in gpt.blocks], matrices)


def llama() -> Opened:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=LAYERS, hidden_size=WIDTH, intermediate_size=MLP, vocab_size=VOCABULARY,
        num_attention_heads=HEADS, num_key_value_heads=GROUPS, max_position_embeddings=T,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    blocks = list(model.model.layers)
    matrices = [
        {name: getattr(block.self_attn, f"{name}_proj").weight for name in "qkvo"}
        | {name: getattr(block.mlp, f"{name}_proj").weight for name in ("up", "gate", "down")}
        for block in blocks
    ]
    return Opened(of_hugging_face(model, "llama"), blocks, [block.mlp.down_proj for block in blocks], matrices)


@torch.no_grad()
def plant(opened: Opened) -> None:
    """MARKED has a huge value in CHANNEL, every token the same one in CONSTANT. In LAYER the marked token opens one
    feature of the MLP, one head looks at it from everywhere, and the down projection has a fat column."""
    embedding, matrices = opened.decoder.embedding, opened.matrices[LAYER]
    embedding[:, CONSTANT] = 1.0
    embedding[MARKED, CHANNEL] = 3000.0
    query, key = (
        HEAD * HEAD_DIM + HEAD_DIM - 1,
        HEAD * GROUPS // HEADS * HEAD_DIM + HEAD_DIM - 1,
    )  # the slowest rotation
    for name, row, channel, weight in (
        ("q", query, CONSTANT, 2.0),
        ("k", key, CHANNEL, 1.0),
        ("gate", FEATURE, CHANNEL, 500.0),
        ("up", FEATURE, CHANNEL, 1.0),
    ):
        matrices[name][row] = 0.0
        matrices[name][row, channel] = weight
    matrices["gate"][FEATURE, CONSTANT] = -200.0
    matrices["down"][9, 33] = 2.0


@pytest.fixture(scope="module", params=[ours, llama], ids=["ours", "llama"])
def surveyed(request):
    """(opened, tensors by (site, layer), (q, k) by layer, the rows of the table)."""
    opened = request.param()
    plant(opened)
    tokens = torch.randint(MARKED + 1, VOCABULARY, (3, T), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = MARKED
    tokens[1, 37] = MARKED
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(site: str, layer: int):
        def hook(module, args, output=None):
            x = args[0] if output is None else output
            kept[site, layer] = (x if isinstance(x, Tensor) else x[0]).double().clone()

        return hook

    attended = {}
    handles = [block.register_forward_hook(keep("block_output", n)) for n, block in enumerate(opened.blocks)]
    handles += [down.register_forward_pre_hook(keep("down_input", n)) for n, down in enumerate(opened.down)]
    decoder = opened.decoder
    with decoder.hooked([], lambda layer, q, k, v, parts: attended.__setitem__(layer, (q.double(), k.double()))):
        decoder.nats(tokens)
    for handle in handles:
        handle.remove()
    table = Survey(decoder, *kinds(decoder, tokens)).run(tokens).table().to_pylist()
    return opened, kept, attended, table


def found(table: list[dict], metric: str, *names: str) -> dict[tuple, float]:
    return {tuple(row[name] for name in names): row["value"] for row in table if row["metric"] == metric}


def test_outlier_tokens_at_both_sites(surveyed):
    _, kept, _, table = surveyed
    expected = {}
    for (site, layer), x_BTC in kept.items():
        for b, a_TC in enumerate(x_BTC.abs()):
            for t, a_C in enumerate(a_TC):
                if a_C.max() > TAU * a_TC.mean():
                    expected[site, layer, b, t, int(a_C.argmax())] = float(a_C.max() / a_TC.mean())
    assert {key[0] for key in expected} == {"block_output", "down_input"}
    assert {key[2:4] for key in expected} == {(0, 0), (1, 0), (1, 37), (2, 0)}
    names = ("site", "layer", "sequence", "position", "channel")
    assert found(table, "outlier_token", *names) == pytest.approx(expected, rel=1e-12)


def test_weight_ratios_of_all_seven_matrices(surveyed):
    opened, _, _, table = surveyed
    expected, columns = {}, {}
    for layer, matrices in enumerate(opened.matrices):
        assert len(matrices) == 7
        for name, weight_OI in matrices.items():
            a_OI = weight_OI.detach().double().abs()
            for metric, a in (("weight_column_max_to_mean", a_OI.T), ("weight_row_max_to_mean", a_OI)):
                ratios = sorted(float(line.max() / (line.mean() + EPSILON)) for line in a)
                expected[metric, name, layer, -1, "max"] = ratios[-1]
                expected[metric, name, layer, -1, "median"] = ratios[(len(ratios) - 1) // 2]
            if name == "down":
                for j, column in enumerate(a_OI.T):
                    columns["weight_column_max_to_mean", name, layer, j, "value"] = float(
                        column.max() / (column.mean() + EPSILON)
                    )
    names = ("metric", "site", "layer", "channel", "statistic")
    measured = {
        k: v
        for m in ("weight_column_max_to_mean", "weight_row_max_to_mean")
        for k, v in found(table, m, *names).items()
    }
    assert measured == pytest.approx(expected | columns, rel=1e-12)  # both in float64: the order of a sum
    assert max(columns, key=columns.get)[2:4] == (LAYER, 33)


def test_outlier_keys(surveyed):
    _, _, attended, table = surveyed
    expected = {}
    for layer, (q_BHTD, k_BGTD) in attended.items():
        for b in range(len(q_BHTD)):
            mean_TT = torch.zeros(T, T, dtype=torch.float64)
            for h in range(HEADS):
                scores_TT = q_BHTD[b, h] @ k_BGTD[b, h * GROUPS // HEADS].T / HEAD_DIM**0.5
                hidden_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
                mean_TT += scores_TT.masked_fill(hidden_TT, -torch.inf).softmax(-1) / HEADS
            for j, received in enumerate(mean_TT.sum(0).tolist()):
                if received >= SHARE * T:
                    expected[layer, b, j] = received / T
    assert set(expected) == {(LAYER, b, 0) for b in range(3)}  # the second marked token's key stays below the share
    measured = found(table, "outlier_key", "layer", "sequence", "position")
    assert measured == pytest.approx(expected, rel=1e-5)  # the statistics are float32
