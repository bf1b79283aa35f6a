"""A prepared corpus, opened for training: reads the manifest, the shards and small arrays, and nothing else.

Opening always checks the manifest's own hash and every file's size. Checksums are computed once: a stamp beside the
manifest records the sizes and modification times for which they were right, and another time means checking again.
`verify()` computes them unconditionally.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import manifest as manifests
from data import tokenizer
from data.bigram_backcopy import NAME as BIGRAM_BACKCOPY
from data.bigram_backcopy import TABLE, VOCAB_SIZE, Backcopy, BackcopyStream
from data.order import Order
from data.shards import Shard, TokenSplit, checksum, write_durably
from data.windows import PACKED, Layout, Rows, Windows
from errors import InputError


class Corpus:
    """A corpus folder. Attributes:

    folder, manifest, hash      where, what, and the corpus hash that stands beside every number
    kind                        "text" or "bigram_backcopy" (endless; `train` and `validation` are None)
    vocab_size                  tokens the network must have at least
    token_bytes (vocab,)        bytes of text a token, int64; None where bits per byte is not defined
    tokenizer_path              tokenizer.json, or None (bytes, bigram_backcopy)
    train, validation           TokenSplit
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = manifests.read(self.folder)
        self.hash: str = self.manifest["hash"]
        self.kind: str = self.manifest["kind"]
        self._files = manifests.listed_files(self.manifest)
        self._check_sizes()
        if _stamp(self.folder, self._files) != _read_stamp(self.folder):
            self.verify()
        self.train: TokenSplit | None = None
        self.validation: TokenSplit | None = None
        self.token_bytes: npt.NDArray[np.int64] | None = None
        self.tokenizer_path: Path | None = None
        names = {file.file for file in self._files}
        if self.kind == BIGRAM_BACKCOPY:
            self.vocab_size = VOCAB_SIZE
            self.task = Backcopy(np.load(self.folder / TABLE), self.manifest["task"]["characters"])
            return
        self.vocab_size = self.manifest["tokenizer"]["vocab_size"]
        dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self.train, self.validation = (
            TokenSplit(self.folder, manifests.shards(self.manifest, split), dtype) for split in ("train", "validation")
        )
        if "token_bytes.npy" in names:
            self.token_bytes = np.load(self.folder / "token_bytes.npy")
        if "tokenizer.json" in names:
            self.tokenizer_path = self.folder / "tokenizer.json"

    def _check_sizes(self) -> None:
        for file in self._files:
            path = self.folder / file.file
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise InputError(f"{path} is missing; {manifests.advice(self.folder)}") from None
            if size != file.size:
                raise InputError(f"{path} has {size} bytes instead of {file.size}; {manifests.advice(self.folder)}")

    def verify(self) -> None:
        """Compute every checksum; InputError names the first file that differs."""
        for file in self._files:
            path = self.folder / file.file
            if checksum(path) != file.sha256:
                raise InputError(f"{path} is corrupt (its checksum differs); {manifests.advice(self.folder)}")
        try:
            write_stamp(self.folder, self.manifest)
        except OSError:  # a corpus on a read-only disk is checked at every opening instead
            return

    def check_network(self, vocab_size: int | None, context: int, layout: Layout = PACKED) -> None:
        """Refuse a network that does not fit: too small a vocabulary, or a context longer than the corpus.

        `vocab_size` None means that the network takes the corpus's own.
        """
        if vocab_size is not None and vocab_size < self.vocab_size:
            raise InputError(
                f"model.network.vocab_size {vocab_size} is smaller than the tokenizer's vocabulary of {self.vocab_size}"
            )
        if context < 1:
            raise InputError(f"model.network.context {context}: choose at least 1")
        if self.kind != BIGRAM_BACKCOPY and (targets := self._windows("train", context, layout).targets) < context:
            raise InputError(
                f"corpus {self.folder} has {targets + 1} training tokens, fewer than one sequence of context "
                f"{context} ({context + 1} tokens); use more text or a smaller model.network.context"
            )

    def _windows(self, name: str, context: int, layout: Layout) -> Windows:
        split = self.train if name == "train" else self.validation
        assert split is not None
        starts = None
        if layout.bos != "document":
            starts = TokenSplit(self.folder, manifests.shards(self.manifest, name, "starts"), np.dtype("<i8"))
        return Windows(split, starts, self.manifest["tokenizer"]["end_of_text"], context, layout)

    def training_stream(self, context: int, seed: int, layout: Layout = PACKED) -> "TextStream | BackcopyStream":
        """Training samples: `rows(samples (n,))` -> Rows, a pure function of (seed, samples)."""
        self.check_network(None, context, layout)
        if self.kind == BIGRAM_BACKCOPY:
            return BackcopyStream(self.task, context, seed, layout.bos)
        return TextStream(self._windows("train", context, layout), seed)

    def validation_windows(self, context: int, layout: Layout = PACKED) -> "Windows | BackcopyStream":
        """The validation sequences: `count` of them cover each target once, `rows(numbers (n,))` -> Rows."""
        if self.kind == BIGRAM_BACKCOPY:
            return BackcopyStream(self.task, context, None, layout.bos)
        return self._windows("validation", context, layout)

    @cached_property
    def tokenizer(self) -> tokenizer.Tokenizer | None:
        """The tokenizer, for decoding (needs the `tokenizers` library unless it is bytes); None for bigram_backcopy."""
        if self.kind == BIGRAM_BACKCOPY:
            return None
        return tokenizer.load(self.tokenizer_path) if self.tokenizer_path else tokenizer.Bytes()

    def pieces(self, tokens: list[int]) -> list[str]:
        """A readable text for each token."""
        if self.tokenizer is None:
            return ["<BOS>" if t == 0 else self.manifest["task"]["characters"][t - 1] for t in tokens]
        return self.tokenizer.pieces(tokens)


class TextStream:
    """Windows of context + 1 tokens at multiples of `context`, in the seed's order, epoch after epoch.

    The last target of a window is the first input of the next one, so an epoch shows every target once (but for the
    tail that fills no window). `size` is the number of windows in an epoch.
    """

    def __init__(self, windows: Windows, seed: int):
        self.windows = windows
        self.size = windows.targets // windows.context
        self.order = Order(self.size, seed)

    def rows(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Samples (n,), of context + 1 tokens each."""
        return self.windows.rows(self.order(samples))


def _stamp(folder: Path, files: list[Shard]) -> dict[str, Any]:
    states = {file.file: (folder / file.file).stat() for file in files}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / manifests.STAMP).read_bytes())
    except (OSError, ValueError):  # absent or damaged: the checksums are computed
        return None


def write_stamp(folder: Path, manifest: dict[str, Any]) -> None:
    """Record that the checksums of the files as they are now have been found right."""
    write_durably(folder / manifests.STAMP, json.dumps(_stamp(folder, manifests.listed_files(manifest))).encode())
