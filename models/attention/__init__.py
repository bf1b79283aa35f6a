"""Attention mechanisms: one file each, named as in docs/variants.md, and the way from a name to a class.

A mechanism is the part of attention that differs between variants. `CausalSelfAttention` (causal.py) owns what they
share. A class of your own derives from `Mechanism` and is used by its import path.
"""

from models.attention.base import Above, AtLeast, AttentionShape, Mechanism
from models.attention.catalogue import Card, card
from models.attention.registry import build, examples, find, label, names, normalise

__all__ = [
    "Above",
    "AtLeast",
    "AttentionShape",
    "Card",
    "Mechanism",
    "build",
    "card",
    "examples",
    "find",
    "label",
    "names",
    "normalise",
]
