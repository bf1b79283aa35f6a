"""`python train.py compress MODEL --out DIR`: what quantisation and pruning cost, as a table, figures and a page.

one: a model. several: the finished runs of a comparison, shown by side_by_side, variants_page and variants_figure.
"""

from experiments.compress.command import main

__all__ = ["main"]
