"""The two forms of the loss are one function: values, gradients, ignored targets."""

import pytest
import torch

from training.loss import IGNORED, nats, nats_to_compile


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_for_the_compiler_is_pytorchs(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    targets = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(1))
    targets[0, :3] = IGNORED
    values, gradients = [], []
    for loss in (nats, nats_to_compile):
        values.append(loss(logits, targets))
        gradients.append(torch.autograd.grad(0.3 * values[-1], logits)[0])
    assert values[0].dtype == values[1].dtype
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert not gradients[1][0, :3].any()


def test_gradient_of_the_loss_for_the_compiler() -> None:
    logits = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[4, IGNORED, 0]])
    assert torch.autograd.gradcheck(lambda x: nats_to_compile(x, targets), logits)
