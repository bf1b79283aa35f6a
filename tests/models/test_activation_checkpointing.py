"""Computing blocks again in the backward changes memory, and no number."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models import GPT, GPTConfig
from models.attention import examples

CONFIG = GPTConfig(vocab_size=50, context=16, layers=3, heads=2, width=16, dropout=0.2)


def step(gpt: GPT) -> tuple[Tensor, list[Tensor], int]:
    """(loss, gradients, calls of the blocks' forwards) of one training step that begins at one random state."""
    calls: list[int] = []
    handles = [block.mlp.register_forward_hook(lambda *_: calls.append(1)) for block in gpt.blocks]
    torch.manual_seed(3)
    tokens_BT = torch.arange(32).view(2, 16)
    loss = gpt(tokens_BT).square().mean()
    loss.backward()
    for handle in handles:
        handle.remove()
    return loss.detach(), [parameter.grad for parameter in gpt.parameters()], len(calls)


@pytest.mark.parametrize("attention", examples())
def test_loss_and_gradients_are_bitwise_those_of_keeping_everything(attention: str) -> None:
    plain = step(GPT(CONFIG, examples()[attention]))
    again = step(GPT(CONFIG, examples()[attention], activation_checkpointing=True))
    assert torch.equal(plain[0], again[0])
    assert all(torch.equal(one, other) for one, other in zip(plain[1], again[1], strict=True))
    assert (plain[2], again[2]) == (3, 6)


def test_what_the_forward_keeps_is_the_blocks_inputs() -> None:
    def kept(gpt: GPT) -> int:
        """Bytes that the blocks keep for the backward, those of weights left out."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in gpt.parameters()}
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = gpt(torch.arange(32).view(2, 16))
        assert out.requires_grad
        return sum(storages.values())

    assert kept(GPT(CONFIG, activation_checkpointing=True)) < kept(GPT(CONFIG)) / 4


def test_blocks_compiled_in_place_are_computed_again_too() -> None:
    results = []
    for again in (False, True):
        torch._dynamo.reset()
        gpt = GPT(replace(CONFIG, layers=1), activation_checkpointing=again)
        for block in gpt.blocks:
            block.compile(backend="aot_eager")  # captures and differentiates as the real one does, without a compiler
        results.append(step(gpt))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.equal(one, other)
