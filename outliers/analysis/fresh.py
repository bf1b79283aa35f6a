"""The same network before training: the null of every number that training is said to have made."""

import torch

from models import GPT
from outliers.access import Decoder
from outliers.access.hugging_face import decoder_of as of_hugging_face
from outliers.access.ours import decoder_of as of_ours


def fresh(decoder: Decoder, seed: int = 0) -> Decoder:
    """A decoder of the same architecture, dtype and vocabulary with initial weights; the global generator is kept."""
    module = decoder.module
    if isinstance(module, GPT):
        return of_ours(GPT(module.config, module.spec, seed=seed).to(decoder.dtype), f"{decoder.name} at its start")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(module)(module.config)
    return of_hugging_face(model.to(decoder.dtype), f"{decoder.name} at its start")
