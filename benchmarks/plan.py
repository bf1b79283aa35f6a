"""What a run needs on each GPU, before one is rented: memory and communication under ddp and fsdp2, by formulas.

    python -m benchmarks.plan

Shapes: P parameters, N ranks, L layers, C width, V vocabulary, b sequences of T tokens at once. Weights, gradients and
AdamW's two moments are fp32, 4 bytes each (16 P); autocast computes in bfloat16. GiB are 2^30 bytes.

    ddp      16 P, and 4 P of buckets in which gradients are summed over ranks (N > 1). Once a step each rank sends
             2 (N − 1) / N · 4 P bytes: a ring all-reduce of the gradients.
    fsdp2    16 P / N; while it computes, all that stands outside of the blocks and two blocks whole, with gradients
             (8 bytes a parameter). In every micro-batch each rank sends (N − 1) / N · 4 bytes for each parameter
             that is gathered (blocks for forward and for backward, the rest once) and each gradient that is scattered.
             At N = 1 fsdp2 is a single device.
    both     2 bytes a parameter of what autocast keeps of the weights (fsdp2: of what is whole), activations, logits.

Activations: 34 b T C bytes a layer in half precision with flash attention (2205.05198, equation 2 without the attention
matrix), 2 b T C where each block is recomputed. Logits: 8 b T V, in fp32 with their gradient. What is left out: the
allocator's fragmentation, the libraries' own buffers (about 1 GiB on a GPU).
"""

from dataclasses import dataclass

import torch

from benchmarks.timing import table
from models import GPT, GPTConfig
from models.presets import PRESETS

GIB = 2**30
WEIGHT = GRADIENT = 4  # bytes a parameter
MOMENTS = 8
CAST = 2
ACTIVATION, RECOMPUTED, LOGIT = 34, 2, 8
RANKS = (1, 8, 64)
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "mlp": "swiglu", "tie_embeddings": False, "bias": False}


@dataclass(frozen=True)
class Case:
    """A network and the sequences that a GPU computes at once; recomputed: activation checkpointing."""

    network: GPTConfig
    batch_size: int
    recomputed: bool


CASES = {
    "124M": Case(PRESETS["gpt2_124m"], 12, False),
    # The shapes of TinyLlama 1.1B and LLaMA-2 7B.
    "1B": Case(
        GPTConfig(32000, context=2048, layers=22, heads=32, width=2048, kv_heads=4, mlp_width=5632, **LLAMA), 4, False
    ),
    "7B": Case(GPTConfig(32000, context=4096, layers=32, heads=32, width=4096, mlp_width=11008, **LLAMA), 1, True),
}


@dataclass(frozen=True)
class Count:
    """Parameters: all, and of one block."""

    all: int
    block: int
    layers: int

    @property
    def outside(self) -> int:
        """Parameters that stand outside of the blocks."""
        return self.all - self.layers * self.block


def count(network: GPTConfig) -> Count:
    """Parameters of the network under softmax, counted on a network without memory."""
    with torch.device("meta"):
        gpt = GPT(network, "softmax")
    block = sum(parameter.numel() for parameter in gpt.blocks[0].parameters())
    return Count(gpt.parameter_count(), block, network.layers)


def states(parameters: Count, ranks: int, strategy: str) -> float:
    """Bytes on each GPU of weights, gradients and moments, and of what the strategy keeps beside them."""
    whole = (WEIGHT + GRADIENT + MOMENTS) * parameters.all
    if ranks == 1:
        return whole
    if strategy == "ddp":
        return whole + GRADIENT * parameters.all
    gathered = parameters.outside + 2 * parameters.block
    return whole / ranks + (WEIGHT + GRADIENT) * gathered


def computing(case: Case, parameters: Count, ranks: int, strategy: str) -> float:
    """Bytes on each GPU of activations, logits and the weights that autocast has cast."""
    network, tokens = case.network, case.batch_size * case.network.context
    activations = (RECOMPUTED if case.recomputed else ACTIVATION) * tokens * network.width * network.layers
    if case.recomputed:  # and one block whole, while its backward runs
        activations += ACTIVATION * tokens * network.width
    whole = parameters.outside + 2 * parameters.block if strategy == "fsdp2" and ranks > 1 else parameters.all
    return activations + LOGIT * tokens * (network.vocab_size or 0) + CAST * whole


def sent(parameters: Count, ranks: int, strategy: str, micro_batches: int = 1) -> float:
    """Bytes that each GPU sends in an optimizer step."""
    share = (ranks - 1) / ranks
    if strategy == "ddp":
        return 2 * share * GRADIENT * parameters.all
    gathered = 2 * parameters.all - parameters.outside
    return share * (WEIGHT * gathered + GRADIENT * parameters.all) * micro_batches


def rows() -> list[list[str]]:
    """The plan: one row for each network, number of GPUs and strategy."""
    found = []
    for name, case in CASES.items():
        parameters = count(case.network)
        for ranks in RANKS:
            for strategy in ("ddp", "fsdp2") if ranks > 1 else ("ddp",):
                kept, used = states(parameters, ranks, strategy), computing(case, parameters, ranks, strategy)
                found.append(
                    [
                        f"{name} ({parameters.all:,})",
                        str(ranks),
                        strategy if ranks > 1 else "one device",
                        f"{case.batch_size} × {case.network.context}{', recomputed' if case.recomputed else ''}",
                        f"{kept / GIB:.1f}",
                        f"{used / GIB:.1f}",
                        f"{(kept + used) / GIB:.1f}",
                        f"{sent(parameters, ranks, strategy) / GIB:.2f}",
                    ]
                )
    return found


def main() -> None:
    """Print the plan."""
    header = ["network", "GPUs", "strategy", "at once", "states", "computing", "GiB a GPU", "GiB sent"]
    print(table("memory and communication on each GPU (sent: ddp a step, fsdp2 a micro-batch)", header, rows()))


if __name__ == "__main__":
    main()
