"""The same network before training: the null of every number that training is said to have made."""

import torch

from models import GPT
from outliers.access import Decoder
from outliers.access.hugging_face import decoder_of as of_hugging_face
from outliers.access.ours import decoder_of as of_ours

SEED = 0  # of Hugging Face's models, which do not tell theirs


def fresh(decoder: Decoder) -> Decoder:
    """A decoder of the same architecture and dtype with initial weights; the global generator is kept.

    A network of ours gets those that it was trained from, another those of its own initialisation.
    """
    module = decoder.module
    if isinstance(module, GPT):
        gpt = GPT(module.config, module.spec, seed=module.seed)
        return of_ours(gpt.to(decoder.dtype), f"{decoder.name} at its start")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = type(module)(module.config)
    return of_hugging_face(model.to(decoder.dtype), f"{decoder.name} at its start")
