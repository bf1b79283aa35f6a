"""Small models that are ordinary but for one thing, put there by hand."""

from collections.abc import Callable
from typing import Any

import torch

from data.tokenizer import Bytes
from models import GPT, GPTConfig
from outliers.access import Decoder
from outliers.access.ours import decoder_of
from outliers.access.vocabulary import Ours

LAYERS, HEADS, WIDTH, CONTEXT = 3, 4, 64, 96
CHANNEL, LAYER, HEAD, COLUMN, ROW = 5, 1, 2, 17, 9


def decoder(plant: Callable[[GPT], None] = lambda gpt: None, attention: Any = "softmax", **changes: Any) -> Decoder:
    """A random network with a byte tokenizer, after `plant` has changed it."""
    sizes = {"vocab_size": Bytes.vocab_size, "context": CONTEXT, "layers": LAYERS, "heads": HEADS, "width": WIDTH}
    gpt = GPT(GPTConfig(**(sizes | changes)), attention, seed=3)
    with torch.no_grad():
        plant(gpt)
    return decoder_of(gpt, "planted", vocabulary=Ours(Bytes()))


def massive(gpt: GPT) -> None:
    """BOS carries a huge value in one channel, from the embedding through the whole residual stream."""
    gpt.embedding.weight[Bytes.end_of_text, CHANNEL] = 3000.0


def sink(gpt: GPT) -> None:
    """One head sends every query to the first key: position 0 stands out in a channel that only its keys read."""
    gpt.positions.weight[0, CHANNEL] = 1.0
    first = HEAD * gpt.config.head_dim
    attention = gpt.blocks[LAYER].attention
    attention.qkv.bias[first] = 10.0
    attention.qkv.weight[WIDTH + first, CHANNEL] = 1.0


def fat_column(gpt: GPT) -> None:
    """One entry of a down projection."""
    gpt.blocks[LAYER].mlp.down.weight[ROW, COLUMN] = 1.0


def dead_gate(gpt: GPT) -> None:
    """One head's gate is closed for every token."""
    gpt.blocks[LAYER].attention.mechanism.scale.bias[HEAD] = -40.0


def used_massive(gpt: GPT) -> None:
    """The embedding's huge value reaches the last norm, and the head reads it: it decides the first prediction."""
    massive(gpt)
    gpt.head.weight[:, CHANNEL] = 0.0
    gpt.head.weight[ord("T"), CHANNEL] = 3.0  # the built-in text begins with it


def carried_massive(gpt: GPT) -> None:
    """The same value, that every norm multiplies by 0: the residual stream carries it, nothing reads it."""
    massive(gpt)
    for block in gpt.blocks:
        block.norm_attention.weight[CHANNEL] = block.norm_mlp.weight[CHANNEL] = 0.0
    gpt.norm.weight[CHANNEL] = 0.0


def trigger(gpt: GPT) -> None:
    """One gain of one norm, and the column of W_q that reads it, are large."""
    gpt.blocks[LAYER].norm_attention.weight[CHANNEL] = 30.0
    gpt.blocks[LAYER].attention.qkv.weight[:WIDTH, CHANNEL] *= 20.0
