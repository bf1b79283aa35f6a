"""A `models.GPT` as a decoder, and the run directory around it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from data import tokenizer
from data.bigram_backcopy import NAME as BIGRAM_BACKCOPY
from data.bigram_backcopy import BackcopyStream
from data.corpus import Corpus
from data.options import PrepareOptions
from data.prepare import prepare
from data.windows import Layout, Windows
from errors import InputError
from models import GPT
from models.checkpoints import rebuild
from models.gpt import Block
from models.sharded import REST
from outliers.access.decoder import AttentionFunction, Decoder, Layer, Place, Sizes
from outliers.access.vocabulary import Characters, Ours, Vocabulary


def decoder_of(gpt: GPT, name: str = "GPT", **known: Any) -> Decoder:
    """The view of a network of ours. known: vocabulary, run and step of the `Decoder`."""
    config = gpt.config
    sizes = Sizes(
        layers=config.layers,
        heads=config.heads,
        groups=config.groups,
        head_dim=config.head_dim,
        width=config.width,
        mlp_width=config.hidden,
        context=config.context,
        vocab_size=gpt.vocab_size,
        gated=config.mlp == "swiglu",
        prefix_tokens=gpt.prefix_tokens,
    )
    return Decoder(
        name,
        gpt,
        sizes,
        [_layer(block) for block in gpt.blocks],
        {"norm_final": Place(gpt.norm, "after"), "logits": Place(gpt.head, "after", slice(0, gpt.vocab_size))},
        final_gain=gpt.norm.weight,
        head=gpt.head.weight,
        embedding=gpt.embedding.weight,
        attend=lambda function: _attending(gpt, function),
        **known,
    )


def _layer(block: Block) -> Layer:
    attention, mlp = block.attention, block.mlp
    places = {
        "block_input": Place(block, "before"),
        "norm_attention": Place(block.norm_attention, "after"),
        "out_input": Place(attention.out, "before"),
        "attention_output": Place(attention.out, "after"),
        "norm_mlp": Place(block.norm_mlp, "after"),
        "up": Place(mlp.up, "after", slice(0, mlp.width)),
        "down_input": Place(mlp.down, "before"),
        "mlp_output": Place(mlp.down, "after"),
        "block_output": Place(block, "after"),
    }
    start = 0
    for site, size in zip("qkv", attention.sizes, strict=True):
        places[site] = Place(attention.qkv, "after", slice(start, start + size))
        start += size
    if mlp.gated:
        places["gate"] = Place(mlp.up, "after", slice(mlp.width, 2 * mlp.width))

    def matrices() -> dict[str, Tensor]:
        return {name: matrix.detach() for name, matrix in block.matrices().items()}

    return Layer(places, matrices, {"norm_attention": block.norm_attention.weight, "norm_mlp": block.norm_mlp.weight})


@contextmanager
def _attending(gpt: GPT, function: AttentionFunction) -> Iterator[None]:
    def hook(layer: int) -> Any:
        def call(mechanism: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            q_BHTD, k_BGTD, v_BGTD, hidden_BTC = args[:4]
            parts = mechanism.parts(q_BHTD, k_BGTD, hidden_BTC) if mechanism.measurable() else None
            function(layer, q_BHTD, k_BGTD, v_BGTD, parts)

        return call

    with ExitStack() as stack:
        for layer, block in enumerate(gpt.blocks):
            handle = block.attention.mechanism.register_forward_pre_hook(hook(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def open_ours(path: Path, name: str, dtype: torch.dtype) -> Decoder:
    """A run directory (its last checkpoint), a checkpoint, or a weights-*.safetensors of ours, on the CPU.

    InputError: there is none, it is damaged, or it is no model of `fit`.
    """
    file = path
    if path.is_dir() and not (path / REST).exists():  # a run, not a sharded checkpoint
        file = path / "checkpoints" / "last.ckpt"
        if not (path / "config.yaml").is_file():
            raise InputError(
                f"{name} is not a model: a folder without a run's config.yaml (hf:{name} for Hugging Face's)"
            )
        if not file.exists():
            raise InputError(f"{name} is a run without a checkpoint: checkpoints/last.ckpt is missing")
    elif not path.exists():
        raise InputError(
            f"{name} is not a model: no run directory, checkpoint or weights-*.safetensors is there, and a model of "
            "Hugging Face's is given as hf:NAME or hf:/folder"
        )
    elif path.is_file() and path.suffix not in (".ckpt", ".safetensors"):
        raise InputError(f"{name} is not a model: a file of one ends in .ckpt or .safetensors")
    gpt, step = rebuild(file)
    run = file.absolute().parent.parent
    known: dict[str, Any] = {"step": step}
    if (run / "config.yaml").is_file():
        known |= {"run": run, "vocabulary": _vocabulary(run)}
    return decoder_of(gpt.to(dtype), name, **known)


def _vocabulary(run: Path) -> Vocabulary | None:
    if (run / "tokenizer.json").is_file():
        return Ours(tokenizer.load(run / "tokenizer.json"))
    described = _described(run)
    if described.get("kind") == BIGRAM_BACKCOPY:
        return Characters(run_corpus(run).manifest["task"]["characters"])
    return Ours(tokenizer.Bytes()) if described.get("vocab_size") == tokenizer.Bytes.vocab_size else None


def _described(run: Path) -> dict[str, Any]:
    """What a run has written about its corpus; empty where it has not."""
    try:
        return json.loads((run / "corpus.json").read_text())
    except (OSError, ValueError):
        return {}


def validation_windows(run: Path, length: int) -> Windows | BackcopyStream:
    """A run's validation set in sequences of `length`, BOS where the run put it.

    Attention looks back to the first token of a sequence, also where the run masked documents.
    """
    return run_corpus(run).validation_windows(length, Layout("packed", _data_options(run).get("bos", "document")))


def _data_options(run: Path) -> dict[str, Any]:
    return (yaml.safe_load((run / "config.yaml").read_text()) or {}).get("data", {})


def run_corpus(run: Path) -> Corpus:
    """The corpus that a run was trained on, prepared again where it is gone.

    InputError: its source is gone, or gives another corpus by now.
    """
    group = _data_options(run)
    known = {field.name for field in fields(PrepareOptions)}
    corpus = Corpus(prepare(PrepareOptions(**{key: value for key, value in group.items() if key in known})))
    before = _described(run).get("hash")
    if before not in (None, corpus.hash):
        raise InputError(
            f"{run} was trained on a corpus with the hash {before[:12]}, its source now gives {corpus.hash[:12]}; "
            "give another text"
        )
    return corpus
