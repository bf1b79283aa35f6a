"""One view of every decoder: its sizes, the sites that can be watched or changed, the matrices that can be replaced.

What differs between architectures is data: a `Place` for each site, and for each block its matrices and gains.

Shapes: B sequences, T tokens, C width, M MLP width, H query heads, G key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import InputError
from kernels import Parts
from outliers.access.vocabulary import Vocabulary
from outliers.definitions import SITES as PROBED
from outliers.rest import at_rest

SITES = {
    "block_input": "the residual stream before a block",
    **PROBED,
    "q": "output of the query projection (T, H·D), before QK-norm and rotary positions",
    "k": "output of the key projection (T, G·D), before QK-norm and rotary positions",
    "v": "output of the value projection (T, G·D)",
    "up": "output of the MLP's up projection (T, M); without a gate, before the activation function",
    "gate": "output of the MLP's gate projection (T, M), before the activation function; absent without a gate",
    "logits": "output of the head (T, V); layer −1",
}
MATRICES = ("q", "k", "v", "o", "up", "gate", "down")
CHUNK_TOKENS = 1024  # of a forward pass with all its logits: 50,257 float32 logits a token are 200 MB

Function = Callable[[Tensor], Tensor | None]
AttentionFunction = Callable[[int, Tensor, Tensor, Tensor, Parts | None], None]


@dataclass(frozen=True)
class Sizes:
    """context: the longest sequence whose attention is full: positions, or a sliding window where that is shorter.

    groups: key/value heads. gated: the MLP has a gate. prefix_tokens: learned vectors that an attention of ours puts
    before the sequence; they come first at every site but norm_final and logits.
    """

    layers: int
    heads: int
    groups: int
    head_dim: int
    width: int
    mlp_width: int
    context: int
    vocab_size: int
    gated: bool
    prefix_tokens: int = 0


@dataclass(frozen=True)
class Place:
    """Where a site is found: a module's first argument or its output, or some columns of it."""

    module: nn.Module
    when: Literal["before", "after"]
    columns: slice | None = None


@dataclass(frozen=True)
class Layer:
    """One block. matrices: by the names of `MATRICES`, views (outputs, inputs) of the parameters themselves."""

    places: Mapping[str, Place]
    matrices: Callable[[], dict[str, Tensor]]
    gains: Mapping[str, nn.Parameter]


class Decoder:
    """A decoder-only transformer, opened.

    name: as the user gave it. layers: its blocks. outer: places outside the blocks. gains: of the final norm.
    head, embedding: (V, C), the rows of a padded vocabulary behind; one parameter where they are tied.
    attend: a context in which an `AttentionFunction` sees every attention. run: the run directory that it belongs to,
    if any. step: optimizer steps, where known.
    Raises InputError where a parameter is not finite.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        sizes: Sizes,
        layers: list[Layer],
        outer: Mapping[str, Place],
        *,
        final_gain: nn.Parameter,
        head: nn.Parameter,
        embedding: nn.Parameter,
        attend: Callable[[AttentionFunction], AbstractContextManager[None]],
        vocabulary: Vocabulary | None = None,
        run: Path | None = None,
        step: int | None = None,
    ):
        self.name, self.module, self.sizes, self.vocabulary, self.run, self.step = (
            name, module, sizes, vocabulary, run, step,
        )  # fmt: skip
        self.head, self.embedding = head, embedding
        self._layers, self._final_gain, self._attend = layers, final_gain, attend
        self.places: dict[tuple[str, int], Place] = {(site, -1): place for site, place in outer.items()}
        for number, layer in enumerate(layers):
            self.places |= {(site, number): place for site, place in layer.places.items()}
        for parameter_name, parameter in module.named_parameters():
            if not bool(torch.isfinite(parameter.detach()).all()):
                raise InputError(f"{name}: the weights of {parameter_name} hold NaN or inf")

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.head.dtype

    # Weights.

    def matrices(self, layer: int) -> dict[str, Tensor]:
        """A block's matrices (outputs, inputs) by name; writing into one changes the model. See `preserved`."""
        return self._layers[layer].matrices()

    def gains(self) -> dict[tuple[str, int], nn.Parameter]:
        """Norm gains (C,) by (site of the norm's output, layer), norm_final's layer being −1; (1,) of a single gain."""
        found = {(site, n): gain for n, layer in enumerate(self._layers) for site, gain in layer.gains.items()}
        return found | {("norm_final", -1): self._final_gain}

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """All weights as they were on leaving, bit for bit. Takes their memory once more."""
        before = [(parameter, parameter.detach().clone()) for parameter in self.module.parameters()]
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, values in before:
                    parameter.copy_(values)

    # Activations.

    @contextmanager
    def hooked(
        self, hooks: Iterable[tuple[str, int, Function]], attention: AttentionFunction | None = None
    ) -> Iterator[None]:
        """While it runs inside, each (site, layer, function) sees that tensor (B, T, ...), whole sequences of a chunk.

        What a function returns takes the tensor's place; None leaves it. Functions at one site run in the order given.
        attention: sees (layer, q (B, H, T, D), k, v (B, G, T, D), parts) as they are attended, queries and keys
        normed, rotated and scaled for τ = 1/√D; parts is None where the attention does not say what it computes.
        Raises KeyError for a site that this model does not have.
        """
        with ExitStack() as stack:
            for site, layer, function in hooks:
                stack.callback(_register(self.places[site, layer], function).remove)
            if attention is not None:
                stack.enter_context(self._attend(attention))
            yield

    def check(self, tokens_BT: Tensor) -> None:
        """InputError unless (B, T) fits: no longer than the context, every token in the vocabulary."""
        check_length(self, tokens_BT.shape[1])
        low, high = (int(bound) for bound in tokens_BT.aminmax())
        if low < 0 or high >= self.sizes.vocab_size:
            raise InputError(
                f"token {low if low < 0 else high} is outside the vocabulary of {self.sizes.vocab_size} of {self.name}"
            )

    def nats(self, tokens_BT: Tensor) -> Tensor:
        """−log p of each token but the first, given those before it: (B, T) int64 -> (B, T − 1) float64 on the CPU.

        Without gradient and in evaluation mode; a few sequences at a time. A loss is its mean, a perplexity exp of it.
        """
        found = []
        with at_rest(self.module):
            for chunk_bT, output in self._chunks(tokens_BT):
                logits_bTV = output if isinstance(output, Tensor) else output.logits
                wide = torch.promote_types(logits_bTV.dtype, torch.float32)
                # Rows as they lie in memory, the last token's too, for which any target will do: the loss of a
                # transposed tensor takes three times as long, and leaving a row out takes a copy.
                logits_NV = logits_bTV.to(wide).flatten(0, 1)
                nats_N = F.cross_entropy(logits_NV, chunk_bT.roll(-1, dims=1).flatten(), reduction="none")
                found.append(nats_N.view_as(chunk_bT)[:, :-1].double().cpu())
        return torch.cat(found)

    def forward(self, tokens_BT: Tensor) -> None:
        """The forward passes of `nats` for the sake of the hooks alone, without the cost of logits: (B, T) int64.

        What is hooked at `logits` sees the last token only.
        """

        def last(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][:, -1:], *args[1:])

        handle = self.places["logits", -1].module.register_forward_pre_hook(last)
        try:
            with at_rest(self.module):
                for _ in self._chunks(tokens_BT):
                    pass
        finally:
            handle.remove()

    def _chunks(self, tokens_BT: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """A few sequences at a time (b, T) on the model's device, and what the model makes of them."""
        self.check(tokens_BT)
        for chunk_bT in tokens_BT.split(max(1, CHUNK_TOKENS // tokens_BT.shape[1])):
            chunk_bT = chunk_bT.to(self.device)
            yield chunk_bT, self.module(chunk_bT)


def check_length(decoder: Decoder, length: int) -> None:
    """InputError for a sequence that the model's attention does not span, or that predicts nothing."""
    if length < 2:
        raise InputError(f"sequences of {length} tokens predict nothing; give a length of at least 2")
    if length > decoder.sizes.context:
        raise InputError(
            f"a sequence of {length} tokens is longer than the {decoder.sizes.context} positions of {decoder.name}"
        )


def _register(place: Place, function: Function) -> Any:
    def replaced(x: Tensor) -> Tensor | None:
        if place.columns is None:
            return function(x)
        new = function(x[..., place.columns])
        if new is None:
            return None
        whole = x.clone()
        whole[..., place.columns] = new
        return whole

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = replaced(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return replaced(output)
        new = replaced(output[0])  # a block of an older transformers returns a tuple
        return None if new is None else (new, *output[1:])

    if place.when == "before":
        return place.module.register_forward_pre_hook(before, with_kwargs=True)
    return place.module.register_forward_hook(after)
