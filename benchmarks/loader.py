"""What batches cost: to read them, beside what the demo model consumes, and to train on documents that are masked.

    python -m benchmarks.loader [--rounds 5]

The loader is the run's own (shards, the order of the seed, batches through a DataLoader in the training process), on
one core; its corpus is the standard library in bytes. The model is the small GPT in training steps of the same batch.
Both are medians, in turns, in one process, on one thread. The bar is 20 times the model's speed.

The second table is a training step of that model, 4,096 tokens: without first keys, with those of documents of 64
tokens, and with those of documents as long as the sequence, which leave nothing out.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader

from benchmarks.models import batches, small, step_of
from benchmarks.timing import clock_argument, machine, table, take_turns
from data.corpus import Corpus
from data.loading import Batch, SliceSampler, TrainDataset
from data.options import PrepareOptions
from data.prepare import prepare
from data.windows import BOS, DOCUMENTS, Layout
from models import GPT

BATCH = 16
STEPS = 50  # batches that are read for one training step
CONTEXTS = (256, 1024)


def reading(corpus: Corpus, context: int, layout: Layout) -> Callable[[], object]:
    """Reads the next `STEPS` batches at every call."""
    dataset = TrainDataset(corpus, context, 0, layout)
    loader = DataLoader(dataset, batch_sampler=SliceSampler(BATCH, stop=1 << 40), collate_fn=lambda batch: batch)
    stream: Iterator[Batch] = iter(loader)

    def read() -> None:
        for _ in range(STEPS):
            next(stream)

    return read


def masked_step(context: int, length: int) -> Callable[[], object]:
    """A training step of `BATCH` * 256 tokens in documents of `length` tokens that do not see each other."""
    config = small(context)
    model, batch = GPT(config, "softmax"), BATCH * 256 // context
    first_key = (torch.arange(context, dtype=torch.int32) // length * length).expand(batch, context).contiguous()
    return step_of(model, batches(config, batch), forward=lambda tokens: model(tokens, first_key))


def packed_step(context: int) -> Callable[[], object]:
    """The same without first keys."""
    config = small(context)
    return step_of(GPT(config, "softmax"), batches(config, BATCH * 256 // context))


def main(argv: list[str] | None = None) -> None:
    """Print two tables: reading, by the choice of documents and BOS; training, packed and masked."""
    parser = argparse.ArgumentParser(prog="benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    clock_argument(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    config = small()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(prepare(PrepareOptions(tokenizer="bytes", folder=folder), progress=False))
        candidates = {"training": packed_step(config.context)}
        for documents in DOCUMENTS:
            for bos in BOS:
                candidates[f"{documents}, bos {bos}"] = reading(corpus, config.context, Layout(documents, bos))
        timings = take_turns(candidates, rounds=options.rounds, clock=options.clock)
    tokens = BATCH * config.context
    rows = []
    for name, timing in timings.items():
        times = 1 if name == "training" else STEPS
        ratio = timing.speed_ratio(timings["training"]) * times
        rows.append([name, f"{times * tokens / timing.median:,.0f}", f"{ratio:,.0f}"])
    title = f"\nreading batches of {BATCH} sequences of {config.context}; {machine()}"
    print(table(title, ["", "tokens/s", "times the model's"], rows), flush=True)

    rows = []
    for context in CONTEXTS:
        steps = {"packed": packed_step(context)}
        for length in (64, context):
            steps[f"masked, documents of {length}"] = masked_step(context, length)
        timings = take_turns(steps, rounds=options.rounds, clock=options.clock)
        for name, timing in timings.items():
            ratio = timing.speed_ratio(timings["packed"])
            rows.append([f"{context}, {name}", f"{BATCH * 256 / timing.median:,.0f}", f"{ratio:.2f}"])
    print(table(f"\ntraining, by context; {machine()}", ["", "tokens/s", "speed / packed"], rows), flush=True)


if __name__ == "__main__":
    main()
