"""The probe: the model runs once, without gradient, on fixed tokens, and hooks measure it on the way.

Nothing of the model changes: weights, gradients, random state, training mode and compiled code stay as they were. It
runs in whatever autocast context is active, so that it sees the numbers of training; statistics are float32. Sequences
pass in chunks, and each tensor is measured when it appears and then let go, so memory does not grow with the batch.

Where a mechanism puts learned prefix tokens before the sequence, activation metrics and value norms read the real
tokens only, and the mass on the prefix counts as explicit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

import kernels
from errors import InputError
from models import GPT
from outliers import activations, attention, weights
from outliers.activations import Scratch
from outliers.definitions import DEFINITIONS
from outliers.rest import at_rest
from outliers.running import Running
from outliers.table import Rows

CHUNK_TOKENS = 2048  # larger chunks are hardly faster on a CPU, and memory grows with them


class Probe:
    """Measures `gpt` on fixed tokens.

    gpt: a models.GPT, on any device. tokens_BT: (sequences, length) int64, held out from training.
    first_key_BT: int32, the first token that each one sees, where the documents of a sequence are masked.
    random_tokens_BT: the same for `inputs="random"`; with first keys, which hold for both, of the same shape.
    chunk: sequences at a time, from the length where not given.
    Raises InputError for tokens that are not such a batch.
    """

    def __init__(
        self,
        gpt: GPT,
        tokens_BT: Tensor,
        *,
        first_key_BT: Tensor | None = None,
        random_tokens_BT: Tensor | None = None,
        chunk: int | None = None,
    ):
        self.gpt, self.first_key_BT = gpt, first_key_BT
        self.tokens = {"probe": tokens_BT}
        if random_tokens_BT is not None:
            self.tokens["random"] = random_tokens_BT
        for inputs, tokens in self.tokens.items():
            if tokens.ndim != 2 or tokens.numel() == 0 or tokens.dtype != torch.int64:
                raise InputError(
                    f"{inputs} tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; "
                    "the probe takes int64 of (sequences, length), both at least 1"
                )
        self.chunk = chunk

    def measure(self, step: int, inputs: str = "probe", extra: Mapping[str, Any] | None = None) -> pa.Table:
        """Run the model on the tokens named by `inputs` and return the table of `outliers.table.SCHEMA`.

        extra: values of the columns tokens, learning_rate and residual_dtype (where it is not given, the dtype of the
        block outputs that were seen). In a distributed run every process must call this.
        """
        if inputs not in self.tokens:
            raise InputError(f"inputs = {inputs!r}: this probe has {', '.join(self.tokens)}")
        device = next(self.gpt.parameters()).device
        tokens_BT = self.tokens[inputs].to(device)
        size = self.chunk or max(1, CHUNK_TOKENS // tokens_BT.shape[1])
        chunks = tokens_BT.split(size)
        first_keys = [None] * len(chunks) if self.first_key_BT is None else self.first_key_BT.to(device).split(size)
        watch = Watch(self.gpt, tokens_BT.shape[1])
        with watching(self.gpt, watch.hooks()):
            for chunk_bT, first_key_bT in zip(chunks, first_keys, strict=True):
                self.gpt(chunk_bT, first_key_bT)
        rows = watch.rows()
        return rows.table(step, inputs, {"residual_dtype": watch.residual_dtype} | dict(extra or {}))


Hook = tuple[nn.Module, str, Callable[..., Any]]  # module, "before" or "after", function


class Watch:
    """Where the hooks sit and what they have summed up. length: T, the real tokens of a sequence."""

    def __init__(self, gpt: GPT, length: int):
        self.gpt = gpt
        self.length = length
        self.scratch = Scratch()
        self.sites: dict[tuple[str, int], Running] = defaultdict(Running)
        self.heads: dict[int, Running] = defaultdict(Running)
        self.residual_dtype = ""

    def hooks(self) -> Iterator[Hook]:
        """Every place that is measured."""
        for layer, block in enumerate(self.gpt.blocks):
            yield block, "after", self.after("block_output", layer)
            yield block.norm_attention, "after", self.after("norm_attention", layer)
            yield block.norm_mlp, "after", self.after("norm_mlp", layer)
            yield block.attention.out, "before", self.before("out_input", layer)
            yield block.attention.out, "after", self.after("attention_output", layer)
            yield block.mlp.down, "before", self.before("down_input", layer)
            yield block.mlp.down, "after", self.after("mlp_output", layer)
            yield block.attention.mechanism, "before", self.attention(layer)
        yield self.gpt.norm, "after", self.after("norm_final", -1)

    def after(self, site: str, layer: int) -> Callable[..., None]:
        """A hook that measures a module's output."""
        return lambda module, args, kwargs, output: self.site(site, layer, output)

    def before(self, site: str, layer: int) -> Callable[..., None]:
        """A hook that measures a module's first argument."""
        return lambda module, args, kwargs: self.site(site, layer, args[0])

    def site(self, site: str, layer: int, x_BTC: Tensor) -> None:
        """Add one chunk's activations."""
        running, x_BTC = self.sites[site, layer], x_BTC[:, -self.length :]
        if site == "out_input":
            activations.channel_peaks(running, x_BTC, self.scratch)
        else:
            activations.accumulate(running, x_BTC, self.scratch)
        if site == "block_output":
            self.residual_dtype = str(x_BTC.dtype).removeprefix("torch.")

    def attention(self, layer: int) -> Callable[..., None]:
        """A hook that measures a mechanism's call, as far as its `parts` tell what it does."""

        def hook(mechanism: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            q_BHTD, k_BGTD, v_BGTD, hidden_BTC, first_key_BT = args
            running = self.heads[layer]
            attention.accumulate_values(running, v_BGTD[:, :, -self.length :], q_BHTD.shape[1])
            if mechanism.measurable():
                parts = mechanism.parts(q_BHTD, k_BGTD, hidden_BTC)
                prefix = self.gpt.prefix_tokens
                stats = kernels.statistics(q_BHTD, k_BGTD, parts, first_key_BT=first_key_BT, prefix=prefix)
                attention.accumulate(running, stats, parts, prefix, first_key_BT)

        return hook

    def rows(self) -> Rows:
        """All values measured, the weights' too."""
        rows = Rows()
        for (site, layer), running in self.sites.items():
            for metric, value in activations.finish(running).items():
                rows.add(metric, float(value), site=site, layer=layer)
        for layer, running in self.heads.items():
            for metric, value in attention.finish(running).items():
                if DEFINITIONS[metric].scope == "layer":
                    rows.add(metric, float(value), layer=layer)
                    continue
                for head, entry in enumerate(value.tolist()):
                    rows.add(metric, entry, layer=layer, head=head)
        for layer, block in enumerate(self.gpt.blocks):
            for name, matrix in block.matrices().items():
                for (metric, statistic), value in weights.measure(matrix).items():
                    rows.add(metric, float(value), site=name, layer=layer, statistic=statistic)
        return rows


@contextmanager
def watching(gpt: GPT, hooks: Iterator[Hook]) -> Iterator[None]:
    """The model in evaluation mode, eager and without gradient, with hooks; as before on leaving."""
    with ExitStack() as stack:
        stack.enter_context(at_rest(gpt))
        for module, when, hook in hooks:
            register = module.register_forward_pre_hook if when == "before" else module.register_forward_hook
            stack.callback(register(hook, with_kwargs=True).remove)
        # The logits are not measured, and at small width they cost more than a block: give the head one token.
        head = gpt.head.register_forward_pre_hook(lambda module, args: (args[0][:, -1:],))
        stack.callback(head.remove)
        yield
