"""GPT-2 weights in Hugging Face's layout, in and out.

There a linear layer is a `Conv1D`, whose weight is (inputs, outputs): the transpose of ours. The head is tied.
`transformers` is not imported: a state dictionary is a mapping of names to tensors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from models.config import GPTConfig
from models.gpt import GPT
from models.layers import EPSILON

# ours -> Hugging Face's, and whether the matrix is transposed; {} is the layer
OUTER = {
    "embedding.weight": ("wte.weight", False),
    "positions.weight": ("wpe.weight", False),
    "norm.weight": ("ln_f.weight", False),
    "norm.bias": ("ln_f.bias", False),
}
LAYER = {
    f"blocks.{{}}.{ours}.{kind}": (f"h.{{}}.{theirs}.{kind}", transposed and kind == "weight")
    for ours, theirs, transposed in (
        ("norm_attention", "ln_1", False),
        ("attention.qkv", "attn.c_attn", True),
        ("attention.out", "attn.c_proj", True),
        ("norm_mlp", "ln_2", False),
        ("mlp.up", "mlp.c_fc", True),
        ("mlp.down", "mlp.c_proj", True),
    )
    for kind in ("weight", "bias")
}


def layout(layers: int) -> Iterator[tuple[str, str, bool]]:
    """(our name, their name, transposed) for every tensor of a GPT-2 with this many layers; a tied head apart."""
    for ours, (theirs, transposed) in OUTER.items():
        yield ours, theirs, transposed
    for layer in range(layers):
        for ours, (theirs, transposed) in LAYER.items():
            yield ours.format(layer), theirs.format(layer), transposed


def load_gpt2(
    source: nn.Module | Mapping[str, Tensor],
    *,
    heads: int | None = None,
    attention: str | dict[str, Any] = "softmax",
    seed: int = 0,
    backend: str = "auto",
) -> GPT:
    """A GPT with the weights of a `GPT2LMHeadModel` or of its state dictionary (names with or without `transformer.`).

    heads: of a state dictionary, which does not say; by default width / 64 as in every published GPT-2. A mechanism's
    own parameters take their initial values from `seed`. Dropout is 0. Raises InputError where the weights do not fit.
    """
    if isinstance(source, nn.Module):
        heads = heads or hugging_face_heads(source)
        source = source.state_dict()
    weights = {name.removeprefix("transformer."): tensor for name, tensor in source.items()}
    # Causal masks were saved as buffers by older versions; the head is the embedding.
    weights = {name: x for name, x in weights.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    head = weights.pop("lm_head.weight", None)
    if not {"wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight"} <= set(weights):
        raise InputError("not a GPT-2 state dictionary: wte.weight, wpe.weight or h.0.mlp.c_fc.weight is missing")
    if head is not None and not torch.equal(head, weights["wte.weight"]):
        raise InputError("lm_head.weight differs from wte.weight; only a GPT-2 with a tied head can be loaded")
    vocab_size, width = weights["wte.weight"].shape
    config = GPTConfig(
        vocab_size=vocab_size,
        context=weights["wpe.weight"].shape[0],
        layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h.")),
        heads=heads or max(width // 64, 1),
        width=width,
        mlp_width=weights["h.0.mlp.c_fc.weight"].shape[1],
    )
    names = list(layout(config.layers))
    theirs = {name for _, name, _ in names}
    if theirs != set(weights):
        odd = sorted(theirs ^ set(weights))[0]
        raise InputError(f"GPT-2 weights: {odd} is {'missing' if odd in theirs else 'not part of the layout'}")
    gpt = GPT(config, attention, seed=seed, backend=backend)
    parameters = dict(gpt.named_parameters())
    with torch.no_grad():
        for ours, name, transposed in names:
            tensor = weights[name].T if transposed else weights[name]
            if tensor.shape != parameters[ours].shape:
                raise InputError(f"GPT-2 weights: {name} of shape {tuple(weights[name].shape)} does not fit")
            parameters[ours].copy_(tensor)
    return gpt


def hugging_face_heads(model: nn.Module) -> int:
    """The heads of a `GPT2LMHeadModel`, once its configuration is known to be one that we compute alike."""
    expected = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (EPSILON,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    }
    config: Any = model.config
    for name, values in expected.items():
        if getattr(config, name) not in values:
            raise InputError(f"GPT-2 configuration: {name} is {getattr(config, name)!r}; it must be {values[0]!r}")
    return int(config.n_head)


def gpt2_state(gpt: GPT) -> dict[str, Tensor]:
    """The weights as `GPT2LMHeadModel.load_state_dict` takes them. Raises InputError where one has no place there."""
    names = list(layout(gpt.config.layers))
    parameters = dict(gpt.named_parameters())
    if gpt.config.mlp != "gelu" or set(parameters) != {ours for ours, _, _ in names}:
        odd = sorted(set(parameters) ^ {ours for ours, _, _ in names}) or [f"mlp: {gpt.config.mlp}"]
        raise InputError(f"not a GPT-2: {odd[0]} has no counterpart in Hugging Face's layout")
    state = {
        f"transformer.{theirs}": (parameters[ours].detach().T.contiguous() if transposed else parameters[ours].detach())
        for ours, theirs, transposed in names
    }
    state["transformer.wte.weight"] = state["transformer.wte.weight"][: gpt.config.vocab_size]  # without `pad_vocab`
    return state | {"lm_head.weight": state["transformer.wte.weight"]}
