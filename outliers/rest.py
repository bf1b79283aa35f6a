"""A network while it is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, eager and without gradient; every submodule's mode as before on leaving."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            module.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
