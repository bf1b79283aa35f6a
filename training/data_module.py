"""The corpus as Lightning sees it: training batches from any step on, fixed validation batches, the probe's tokens."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from data.corpus import Corpus
from data.loading import Batch, SliceSampler, TrainDataset, ValidationDataset
from data.options import PrepareOptions
from data.prepare import prepare
from data.windows import PACKED, Layout, Rows
from errors import InputError


class CorpusData(LightningDataModule):
    """Prepares the source where that has not happened yet, then reads its shards.

    A step's global batch is accumulation × ranks × `batch_size` sequences of `context` tokens; with `tokens_per_step`
    the accumulation follows from the number of ranks (`training.split`).

    Args:
        source: stdlib, bigram_backcopy, a text, .jsonl or .parquet file, a folder of them, hub:NAME or OWNER/NAME.
        tokenizer: bpe (trained on the source), bytes, or the path of a tokenizer.json.
        vocab_size: Tokens of a trained BPE.
        validation_fraction: Share of the text that is held out.
        text_field: The field or column that holds the text of a record.
        subset: A hub dataset's configuration.
        split: A hub dataset's split to read.
        streaming: Read a hub dataset without downloading all of it.
        max_documents: Stop after so many documents.
        max_tokens: End the training split at exactly so many tokens.
        folder: Where corpora are kept.
        batch_size: Sequences in a micro-batch, on each rank.
        tokens_per_step: Tokens that one optimizer step sees on all ranks; null: what accumulation and ranks make.
        context: Tokens in a sequence; the network's context.
        seed: Of the order of the data.
        workers: Processes that read batches; 0 reads in the training process. The batches are the same.
        validation_sequences: Size of the validation set, evenly spaced over the held-out text; all of it if not given.
        documents: packed (attention looks back to the start of the sequence) or masked (to the start of the document).
        bos: Where a BOS stands: at the start of each document, of each sequence, or none.
    """

    def __init__(
        self,
        source: str = "stdlib",
        tokenizer: str = "bpe",
        vocab_size: int = 2048,
        validation_fraction: float = 0.05,
        text_field: str = "text",
        subset: str | None = None,
        split: str = "train",
        streaming: bool = False,
        max_documents: int | None = None,
        max_tokens: int | None = None,
        folder: str = "runs/data",
        batch_size: int = 16,
        tokens_per_step: int | None = None,
        context: int = 256,
        seed: int = 0,
        workers: int = 0,
        validation_sequences: int | None = None,
        documents: Literal["packed", "masked"] = "packed",
        bos: Literal["document", "sequence", "none"] = "document",
    ) -> None:
        super().__init__()
        given = locals()
        self.options = PrepareOptions(**{field.name: given[field.name] for field in fields(PrepareOptions)})
        for name, value, least in (("batch_size", batch_size, 1), ("context", context, 1), ("workers", workers, 0)):
            if value < least:
                raise InputError(f"data.{name} is {value}; it is at least {least}")
        if validation_sequences is not None and validation_sequences < 1:
            raise InputError(f"data.validation_sequences is {validation_sequences}; it is at least 1, or null for all")
        if tokens_per_step is not None and tokens_per_step < 1:
            raise InputError(f"data.tokens_per_step is {tokens_per_step}; it is at least 1, or null")
        self.batch_size, self.context, self.seed, self.workers = batch_size, context, seed, workers
        self.tokens_wanted = tokens_per_step
        self.validation_sequences = validation_sequences
        self.layout = Layout(documents, bos)
        self.layout.validate()
        self.corpus: Corpus | None = None
        self.token_bytes: Tensor | None = None

    def prepare_data(self) -> None:
        """Make the corpus, on one rank of each machine, with a progress bar; at once where it is there already."""
        prepare(self.options)

    def open(self) -> None:
        """Open the corpus, unless it is open already; before there is a trainer too."""
        if self.corpus is None:
            self.corpus = Corpus(prepare(self.options, progress=False))

    def setup(self, stage: str) -> None:
        """Open the corpus; beside a training run leave its tokenizer and what it was trained on."""
        self.open()
        if self.corpus.token_bytes is not None:
            # Where the targets are: one copy, in the place of one a validation batch.
            self.token_bytes = torch.from_numpy(self.corpus.token_bytes).to(self.trainer.strategy.root_device)
        self.corpus.check_network(None, self.context, self.layout)
        if stage == "fit" and self.trainer.is_global_zero:
            self._describe(Path(self.trainer.default_root_dir))

    def _describe(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found = {"hash": self.corpus.hash, "kind": self.corpus.kind, "source": self.options.source}
        temporary = folder / f".corpus.json.{os.getpid()}"
        temporary.write_text(json.dumps(found | {"vocab_size": self.corpus.vocab_size}) + "\n")
        os.replace(temporary, folder / "corpus.json")
        if self.corpus.tokenizer_path is not None:
            shutil.copyfile(self.corpus.tokenizer_path, temporary)
            os.replace(temporary, folder / "tokenizer.json")

    # Training batches: a pure function of the step, so no loader has a state.

    @property
    def rows_per_step(self) -> int:
        """Sequences that one optimizer step sees, on all ranks."""
        return self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size

    @property
    def tokens_per_step(self) -> int:
        """Targets that one optimizer step sees, on all ranks."""
        return self.rows_per_step * self.context

    @property
    def _pinned(self) -> bool:
        # Pinned memory lets Lightning copy a batch to the GPU without waiting for it.
        return self.trainer.strategy.root_device.type == "cuda"

    def _slices(self, first_step: int, last_step: int) -> SliceSampler:
        trainer, accumulation = self.trainer, self.trainer.accumulate_grad_batches
        return SliceSampler(
            self.batch_size,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start=first_step * accumulation,
            stop=last_step * accumulation,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's micro-batches, from the step at which the run starts or resumes."""
        return DataLoader(
            TrainDataset(self.corpus, self.context, self.seed, self.layout),
            batch_sampler=Unsized(self._slices(self.trainer.global_step, self.trainer.max_steps)),
            collate_fn=_as_it_is,
            num_workers=self.workers,
            worker_init_fn=_ignore_signals,
            pin_memory=self._pinned,
            # Its own generator: starting a loader draws a number, and dropout's stream must not feel it.
            generator=torch.Generator(),
        )

    def step_batches(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of one optimizer step, once more."""
        dataset = TrainDataset(self.corpus, self.context, self.seed, self.layout)
        return (dataset.__getitems__(samples) for samples in self._slices(step, step + 1))

    # Held-out tokens.

    def val_dataloader(self) -> Any:
        """The validation set for `validate`; in training nothing, because `Evaluation` counts optimizer steps."""
        return [] if self.trainer.state.fn == TrainerFn.FITTING else self.validation_loader()

    def validation_loader(self) -> DataLoader[Batch]:
        """This rank's share of the validation batches, which do not depend on the number of ranks."""
        dataset = ValidationDataset(
            self.corpus,
            self.context,
            self.batch_size,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            limit=self.validation_sequences,
            layout=self.layout,
        )
        return DataLoader(dataset, batch_size=None, pin_memory=self._pinned, generator=torch.Generator())

    def probe_tokens(self, sequences: int) -> Tensor:
        """At most (sequences, context) int64 held-out tokens, evenly spaced; the same at every call, on every rank."""
        return torch.from_numpy(self._probe_rows(sequences).tokens)

    def probe_first_key(self, sequences: int) -> Tensor | None:
        """For each of the probe's tokens the first one that it sees, int32; None where documents are not masked."""
        first_keys = self._probe_rows(sequences).first_keys
        return None if first_keys is None else torch.from_numpy(first_keys)

    def _probe_rows(self, sequences: int) -> Rows:
        windows = self.corpus.validation_windows(self.context, self.layout)
        count = min(sequences, windows.count)
        tokens, first_keys = windows.rows(np.arange(count) * windows.count // count)
        whole = (tokens >= 0).all(axis=1)
        rows, places = (whole, slice(self.context)) if whole.any() else (slice(1), (tokens[0] >= 0)[: self.context])
        return Rows(
            np.ascontiguousarray(tokens[rows, : self.context][:, places]),
            None if first_keys is None else np.ascontiguousarray(first_keys[rows][:, places]),
        )

    def random_tokens(self, sequences: int) -> Tensor:
        """Uniform int64 tokens, as many as the probe's and in the same shape: its null."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.corpus.vocab_size, self.probe_tokens(sequences).shape, generator=generator)

    def sentence(self) -> tuple[Tensor, list[str], Tensor | None]:
        """One held-out sentence (T,) of at most 48 tokens for the 3-D plot, a text for each, and its first keys."""
        tokens_T, first_key = self.probe_tokens(1)[0, :48], self.probe_first_key(1)
        return tokens_T, self.corpus.pieces(tokens_T.tolist()), None if first_key is None else first_key[0, :48]

    # Resume.

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one."""
        shared = {"corpus": self.corpus.hash, "context": self.context, "seed": self.seed}
        shared |= {"documents": self.layout.documents, "bos": self.layout.bos}
        return shared | {"rows_per_step": self.rows_per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """InputError where a resumed run would see other tokens than the one that it continues."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        titles = {
            "corpus": "a corpus with the hash",
            "context": "data.context",
            "seed": "the seed",
            "documents": "data.documents",
            "bos": "data.bos",
            "rows_per_step": "a global batch (batch_size × accumulation × ranks) of",
        }
        for name, here in self.state_dict().items():
            there = state_dict.get(name, getattr(PACKED, name, None))  # from before there was a layout to choose
            if there != here:
                raise InputError(f"the checkpoint was trained with {titles[name]} {there}, this run has {here}")


class Unsized(Sampler[list[int]]):
    """A sampler without a length.

    A resumed loader holds the remaining batches alone, but Lightning compares its length with the count of all batches
    since step 0, and would end the run early.
    """

    def __init__(self, sampler: SliceSampler) -> None:
        self._sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._sampler)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the step that the parent finishes before it saves may need more batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
