"""`python train.py compress MODEL --out DIR`: what quantisation and pruning cost, as a table, figures and a page."""

from experiments.compress.command import main

__all__ = ["main"]
