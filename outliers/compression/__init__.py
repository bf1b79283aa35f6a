"""What compression costs a model: quantisation and pruning by one frozen recipe, after training, without any repair.

    python train.py compress MODEL --out DIR

quantise (the number formats), calibrate (ranges), prune (masks), recipe (the table), apply (a setting on a decoder),
study (all settings). The definitions in words: docs/compression.md.
"""
