"""Text in, batches out: sources, tokenizers, token shards, and an order that is a pure function of the seed.

`prepare` (prepare.py) is the only step that reads a source and the only one that touches the dataset libraries. What it
writes, a folder of raw shards beside a manifest, is all that training reads:

    sources.py -> text.py (tokenizer.py, journal.py) -> shards.py + manifest.py      prepare.py, once
    corpus.py  -> order.py -> loading.py                                             every run

`bigram_backcopy.py` is a second, endless kind of corpus: its folder holds a transition table instead of shards.
"""
