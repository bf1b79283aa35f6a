"""Muon beside AdamW: the update, which parameter gets which, the guard, and a whole run."""

from dataclasses import replace

import pytest
import torch
from tiny_run import differences, metrics, tensors, tiny_run
from torch.distributed.fsdp import fully_shard

from errors import InputError
from models import GPT, GPTConfig
from training import optimizers
from training.muon import MuonAdamW
from training.optimizers import OptimizerConfig

NETWORK = GPTConfig(vocab_size=30, context=8, layers=2, heads=2, kv_heads=1, width=16, mlp="swiglu", mlp_width=24)
MUON = OptimizerConfig("muon", lr=1e-2, weight_decay=0.3)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def orthogonal(gradient: torch.Tensor) -> torch.Tensor:
    """Five Newton–Schulz iterations in float64: X <- a X + (b X Xᵀ + c (X Xᵀ)²) X, from X = G / |G|."""
    X = gradient.double() / gradient.double().norm()
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def test_two_steps_are_those_of_newton_schulz_in_float64_for_each_matrix_of_a_stack():
    weight, bias = torch.nn.Parameter(drawn(0, 20, 8)), torch.nn.Parameter(torch.ones(3))
    constants = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer = MuonAdamW([(weight, [8, 12])], [{"params": [bias]}], momentum=0.9, weight_decay=0.3, **constants)
    momentum = torch.zeros(20, 8, dtype=torch.float64)
    for seed in (1, 2):
        weight.grad, bias.grad = torch.cat([drawn(seed, 8, 8), drawn(seed + 5, 12, 8) * 7]), torch.ones(3)
        before = weight.detach().double()
        momentum = 0.9 * momentum + 0.1 * weight.grad.double()
        ahead = 0.1 * weight.grad.double() + 0.9 * momentum
        optimizer.step()
        update = (0.97 * before - weight.detach().double()) / (0.1 * 0.2)
        each = torch.cat([max(part.shape) ** 0.5 * orthogonal(part) for part in ahead.split([8, 12])])
        # float32: 15 products, and singular values near 0 grow by 3.4 in each iteration.
        assert (update - each).norm() < 1e-4 * each.norm()
        assert (update - 20**0.5 * orthogonal(ahead)).norm() > 0.2 * each.norm()
    assert torch.allclose(optimizer.state[weight]["momentum_buffer"].double(), momentum, atol=1e-7)
    assert bias.detach().tolist() == pytest.approx([(1 - 0.1 * 0.01) ** 2 - 0.2] * 3, abs=2e-3)


def test_a_matrix_alone_moves_as_under_torchs_own_muon():
    ours, theirs = (torch.nn.Parameter(drawn(0, 24, 16)) for _ in range(2))
    bias = torch.nn.Parameter(torch.zeros(1))
    constants = {"momentum": 0.9, "weight_decay": 0.3}
    optimizer = MuonAdamW([(ours, [24])], [{"params": [bias]}], lr=0.05, betas=(0.9, 0.95), eps=1e-8, **constants)
    peer = torch.optim.Muon([theirs], lr=0.05, adjust_lr_fn="match_rms_adamw", **constants)
    for seed in range(1, 4):
        before = ours.detach().clone()
        theirs.grad = ours.grad = drawn(seed, 24, 16)
        optimizer.step()
        peer.step()
    assert torch.equal(optimizer.state[ours]["momentum_buffer"], peer.state[theirs]["momentum_buffer"])
    # torch iterates in bfloat16, 8 bits: a per cent or two of the update.
    assert (ours - theirs).norm() < 0.05 * (ours - before).norm()


def test_every_parameter_is_in_one_group_and_muon_has_the_blocks_matrices():
    gpt = GPT(replace(NETWORK, tie_embeddings=False, qk_norm=True), "sink_key_value")
    optimizer = optimizers.build(MUON, gpt)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, gpt.parameters()))
    names = {id(parameter): name for name, parameter in gpt.named_parameters()}
    *adamw, muon = optimizer.param_groups
    assert {names[id(weight)].partition(".")[2].partition(".")[2] for weight in muon["params"]} == {
        "attention.qkv.weight", "attention.out.weight", "mlp.up.weight", "mlp.down.weight"
    }  # fmt: skip
    assert muon["weight_decay"] == 0.3
    assert [group["weight_decay"] for group in adamw] == [0.3, 0.0]
    assert {names[id(parameter)] for parameter in adamw[0]["params"]} == {
        "embedding.weight", "positions.weight", "head.weight"
    }  # fmt: skip


def test_q_k_v_up_and_gate_get_updates_of_their_own():
    block = (gpt := GPT(NETWORK)).blocks[1]
    optimizer = optimizers.build(replace(MUON, weight_decay=0.0), gpt)
    before = {name: matrix.detach().clone() for name, matrix in block.matrices().items()}
    gradients = {name: (seed + 1) * drawn(seed, *matrix.shape) for seed, (name, matrix) in enumerate(before.items())}
    block.attention.qkv.weight.grad = torch.cat([gradients[name] for name in "qkv"])
    block.mlp.up.weight.grad = torch.cat([gradients["up"], gradients["gate"]])
    optimizer.step()
    for name in ("q", "k", "v", "up", "gate"):
        update = (before[name] - block.matrices()[name].detach()) / (1e-2 * 0.2 * max(before[name].shape) ** 0.5)
        expected = orthogonal(gradients[name])  # the first momentum is a multiple of the gradient
        assert (update - expected).norm() < 1e-4 * expected.norm(), name


def test_a_bad_gradient_leaves_weights_momentum_and_moments_untouched():
    gpt = GPT(NETWORK)
    optimizer = optimizers.build(MUON, gpt)

    def step(found: float) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        gpt(torch.arange(8)[None]).square().sum().backward()
        if found:
            gpt.blocks[1].mlp.down.weight.grad[0, 0] = torch.nan
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        state = [value for part in optimizer.state.values() for value in part.values()]
        return {str(index): x.detach().clone() for index, x in enumerate([*gpt.parameters(), *state])}

    first, held = step(0.0), step(1.0)
    assert differences(first, held) == []
    assert len(differences(first, step(0.0))) > len(list(gpt.parameters()))


def test_a_run_resumes_bitwise_under_accumulation_and_its_loss_falls(tmp_path, text):
    options = {
        "steps": 8, "optimizer": replace(MUON, weight_decay=0.1), "accumulation": 2, "batch_size": 2, "log_every": 1,
        "network": {"dropout": 0.1, "mlp": "swiglu"},
    }  # fmt: skip
    whole = tiny_run(tmp_path / "whole", text, **options).fit()
    tiny_run(tmp_path / "parts", text, stop_after=5, **options).fit()
    resumed = tiny_run(tmp_path / "parts", text, **options).fit(tmp_path / "parts/checkpoints/last.ckpt")
    assert resumed.trainer.global_step == 8
    assert differences(tensors(whole), tensors(resumed)) == []
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "whole") if row["train/loss"]]
    assert losses[-1] < losses[0] - 0.3
    other = tiny_run(tmp_path / "other", text, steps=8, accumulation=2, batch_size=2, network={"mlp": "swiglu"})
    with pytest.raises(InputError, match=r"optimizer\.name is muon in the checkpoint, adamw here"):
        other.fit(tmp_path / "parts/checkpoints/last.ckpt")


def test_sharded_weights_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        gpt = GPT(NETWORK)
        fully_shard(gpt)
        with pytest.raises(InputError, match="muon, whose update needs whole matrices"):
            optimizers.build(MUON, gpt)
    finally:
        torch.distributed.destroy_process_group()
