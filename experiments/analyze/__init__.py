"""`python train.py analyze MODEL --out DIR`: both papers' analyses of one model, as numbers, figures and a page."""

from experiments.analyze.command import main

__all__ = ["main"]
