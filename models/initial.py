"""Initial values: each parameter is drawn from a generator of its own, seeded by (seed, parameter name).

So two models that differ in their attention share every common parameter bit for bit, and an added parameter shifts
nothing. Values are drawn on the CPU in float32, whatever the parameter's device, and the global generator is left
alone.

A module declares its parameters' values in a dictionary `initial`: {"weight": Normal(0.02), "bias": Constant(0.0)}.
Names may reach into submodules ("gate.weight"); the outer declaration wins. An undeclared parameter keeps what its
constructor gave it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Normal:
    """Independent normal values of mean 0."""

    std: float

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """A float32 tensor of this shape on the CPU."""
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * self.std


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """A float32 tensor of this shape on the CPU; nothing is drawn."""
        return torch.full(shape, self.value, device="cpu", dtype=torch.float32)


@dataclass(frozen=True)
class Orthogonal:
    """A square matrix, uniform among the orthogonal ones."""

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """A float32 tensor of this shape on the CPU."""
        Q, R = torch.linalg.qr(torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32))
        return Q * R.diagonal().sign()  # without the sign the factor of a Gaussian matrix is not uniform


@dataclass(frozen=True)
class FirstRows:
    """The first `rows` rows as `initial` has them alone; those after, padding, are 0."""

    initial: Normal
    rows: int

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """A float32 tensor of this shape on the CPU."""
        values = torch.zeros(shape, device="cpu")
        values[: self.rows] = self.initial.sample(torch.Size((self.rows, *shape[1:])), generator)
        return values


Initial = Normal | Constant | Orthogonal | FirstRows


class Linear(nn.Linear):
    """`nn.Linear` (weight (outputs, inputs), bias (outputs)) that leaves its values to `fill`."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, weight: Initial, bias_value: float = 0.0):
        super().__init__(inputs, outputs, bias=bias)
        self.initial: dict[str, Initial] = {"weight": weight}
        if bias:
            self.initial["bias"] = Constant(bias_value)

    def reset_parameters(self) -> None:
        """Nothing: drawing twice would cost time and shift the global generator."""


class Embedding(nn.Embedding):
    """`nn.Embedding` (weight (rows, width)) that leaves its values to `fill`."""

    def __init__(self, rows: int, width: int, *, weight: Initial):
        super().__init__(rows, width)
        self.initial: dict[str, Initial] = {"weight": weight}

    def reset_parameters(self) -> None:
        """Nothing, as in `Linear`."""


def stable_seed(seed: int, name: str) -> int:
    """A 63-bit number from (seed, name), the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def fill(root: nn.Module, seed: int) -> None:
    """Give every declared parameter of `root` its initial value. Parameters on the meta device are passed over."""
    declared: dict[str, Initial] = {}
    for prefix, module in reversed(list(root.named_modules())):
        for name, initial in getattr(module, "initial", {}).items():
            declared[f"{prefix}.{name}" if prefix else name] = initial
    every_name = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    if unknown := sorted(set(declared) - every_name):
        raise ValueError(f"`initial` names {unknown[0]!r}, which is not a parameter")
    for name, parameter in root.named_parameters():
        if name in declared and not parameter.is_meta:
            generator = torch.Generator("cpu").manual_seed(stable_seed(seed, name))
            with torch.no_grad():
                parameter.copy_(declared[name].sample(parameter.shape, generator))


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Draw from a global CPU generator seeded by (seed, name) inside, and put the former state back after.

    For constructors of other people's modules, which draw from the global generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stable_seed(seed, name))
        yield
