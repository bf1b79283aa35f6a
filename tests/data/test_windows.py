"""Where a BOS stands and how far attention may look, token by token, against lists written out by hand."""

import numpy as np
import pytest
import torch

from data.loading import TrainDataset, ValidationDataset
from data.windows import Layout
from errors import InputError

CONTEXT = 24
LAYOUTS = [Layout(documents, bos) for documents in ("packed", "masked") for bos in ("document", "sequence", "none")]


@pytest.fixture(scope="module")
def corpus(make, tmp_path_factory, text_of):
    """Documents of 0 to 80 bytes: several in a sequence, one over several sequences, two at one place."""
    import json

    path = tmp_path_factory.mktemp("short") / "short.jsonl"
    texts = [text_of(30 * (i % 3), seed=i)[: 7 * (i % 13)] for i in range(120)]
    assert "" in texts
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return make(path, path.parent, tokenizer="bytes", validation_fraction=0.25)


def documents(split, mark):
    tokens = split.read(0, len(split))
    return [part[1:].tolist() for part in np.split(tokens, np.flatnonzero(tokens == mark)[1:])]


def expected(split, mark, layout):
    """Every sequence as (tokens, first keys), from the documents one after another."""
    stream = []  # (token, whether a document begins with it)
    for document in documents(split, mark):
        shown = [mark, *document] if layout.bos == "document" else document
        stream += [(token, place == 0) for place, token in enumerate(shown)]
    lead = [(mark, True)] if layout.bos == "sequence" else []
    sequences = []
    for start in range(0, len(stream) - 1 + len(lead), CONTEXT):
        shown = lead + stream[start : start + CONTEXT + 1 - len(lead)]
        first_keys, first = [], 0
        for place in range(CONTEXT):
            # The BOS of a sequence belongs to the document that comes first in it.
            if len(lead) < place < len(shown) and shown[place][1]:
                first = place
            first_keys.append(first)
        sequences.append(([token for token, _ in shown] + [-100] * (CONTEXT + 1 - len(shown)), first_keys))
    return sequences


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.documents}-{layout.bos}")
def test_every_sequence_token_by_token(corpus, layout):
    mark = corpus.tokenizer.end_of_text
    train = expected(corpus.train, mark, layout)
    stream = TrainDataset(corpus, CONTEXT, seed=3, layout=layout)
    size = stream.stream.size
    assert len(train) - size in (0, 1)  # the tail that fills no sequence
    batch = stream.__getitems__(range(size))
    found = torch.cat([batch["inputs"], batch["targets"][:, -1:]], 1).tolist()
    windows = stream.stream.order(np.arange(size)).tolist()
    assert found == [train[window][0] for window in windows]
    if layout.documents == "masked":
        assert batch["first_key"].tolist() == [train[window][1] for window in windows]
    assert ("first_key" in batch) == (layout.documents == "masked")

    validation = expected(corpus.validation, mark, layout)
    batches = list(
        map(ValidationDataset(corpus, CONTEXT, 5, layout=layout).__getitem__, range(-(-len(validation) // 5)))
    )
    targets = torch.cat([batch["targets"] for batch in batches])
    inputs = torch.cat([batch["inputs"] for batch in batches])
    assert (targets[len(validation) :] == -100).all()
    for row, (tokens, first_keys) in enumerate(validation):
        assert targets[row].tolist() == tokens[1:]
        assert inputs[row].tolist() == [max(token, 0) for token in tokens[:-1]]
        if layout.documents == "masked":
            assert batches[row // 5]["first_key"][row % 5].tolist() == first_keys
            assert batches[row // 5]["first_key"].dtype == torch.int32


@pytest.mark.parametrize("bos", ["document", "sequence", "none"])
def test_which_tokens_are_targets_and_their_bytes(corpus, bos):
    """Each text token is a target once, but for the very first one without a BOS before it; so bytes add up."""
    dataset = ValidationDataset(corpus, CONTEXT, 4, layout=Layout(bos=bos))
    targets = torch.cat([dataset[i]["targets"].flatten() for i in range(len(dataset))]).numpy()
    targets = targets[targets != -100]
    mark, tokens = corpus.tokenizer.end_of_text, corpus.validation.read(0, len(corpus.validation))
    assert (targets == mark).sum() == {"document": (tokens == mark).sum() - 1, "sequence": 0, "none": 0}[bos]
    text = tokens[tokens != mark]
    assert np.array_equal(targets[targets != mark], text[1:] if bos == "none" else text)
    assert corpus.token_bytes[targets].sum() == len(text) - (bos == "none")


def test_masked_keys_are_monotone_and_keep_their_numbers_in_any_order(corpus):
    dataset = TrainDataset(corpus, CONTEXT, 0, Layout("masked"))
    batch = dataset.__getitems__([5, 123, 9])
    assert (batch["first_key"].diff(dim=1) >= 0).all()
    assert torch.equal(batch["first_key"][1], dataset[123]["first_key"])
    assert batch["first_key"].max() > 0


def test_bigram_backcopy_without_its_bos(backcopy_corpus):
    packed, masked = (TrainDataset(backcopy_corpus, 16, 0, Layout(name)) for name in ("packed", "masked"))
    assert masked[3].keys() == {"inputs", "targets"}  # each sequence is one document
    without = TrainDataset(backcopy_corpus, 16, 0, Layout(bos="none")).__getitems__([3, 2000])
    whole = packed.__getitems__([3, 2000])
    assert torch.equal(without["inputs"][:, :-1], whole["inputs"][:, 1:])
    assert (without["inputs"] > 0).all()
    held_out = ValidationDataset(backcopy_corpus, 16, 8, layout=Layout(bos="none"))
    assert torch.equal(held_out[1]["inputs"][:, :-1], ValidationDataset(backcopy_corpus, 16, 8)[1]["inputs"][:, 1:])


def test_refused(corpus):
    with pytest.raises(InputError, match=r"data.documents is 'maskd'; .* did you mean masked"):
        Layout("maskd").validate()
    with pytest.raises(InputError, match=r"data.bos is 'start'; it is one of document, sequence, none"):
        Layout(bos="start").validate()
    marks = corpus.manifest["splits"]["train"]["documents"]
    longest = len(corpus.train) - marks - 1
    corpus.check_network(None, longest, Layout(bos="none"))
    corpus.check_network(None, longest + 1, Layout(bos="sequence"))
    with pytest.raises(InputError, match="fewer than one sequence"):
        corpus.check_network(None, longest + 1, Layout(bos="none"))
