"""What to prepare, and which values are allowed."""

from dataclasses import dataclass

from data import bigram_backcopy, sources, tokenizer
from errors import InputError


@dataclass(frozen=True)
class PrepareOptions:
    """What to prepare; the `data:` group of a configuration.

    Args:
        source: stdlib, bigram_backcopy, a text, .jsonl or .parquet file, a folder of them, hub:NAME or OWNER/NAME.
        tokenizer: bpe (trained on the source), bytes, or the path of a tokenizer.json.
        vocab_size: tokens of a trained BPE, at least 257.
        validation_fraction: share of the text that is held out, above 0 and at most 0.5.
        text_field: the field or column that holds the text of a record.
        subset: a hub dataset's configuration.
        split: a hub dataset's split to read.
        streaming: read a hub dataset without downloading all of it.
        max_documents: stop after so many documents.
        max_tokens: end the training split at exactly so many tokens; text files and tails that are held out stay whole.
        folder: where corpora are kept.
    """

    source: str = "stdlib"
    tokenizer: str = "bpe"
    vocab_size: int = 2048
    validation_fraction: float = 0.05
    text_field: str = "text"
    subset: str | None = None
    split: str = "train"
    streaming: bool = False
    max_documents: int | None = None
    max_tokens: int | None = None
    folder: str = "runs/data"

    def validate(self) -> None:
        """Refuse values out of range; InputError names the value and what is allowed."""
        if not 0 < self.validation_fraction <= 0.5:
            raise InputError(f"data.validation_fraction {self.validation_fraction}: choose above 0 and at most 0.5")
        if self.max_documents is not None and self.max_documents < 2:
            raise InputError(f"data.max_documents {self.max_documents}: choose at least 2, or leave it out")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise InputError(f"data.max_tokens {self.max_tokens}: choose at least 2, or leave it out")
        if self.max_tokens is not None and self.source == bigram_backcopy.NAME:
            raise InputError(f"data.max_tokens {self.max_tokens}: {bigram_backcopy.NAME} is endless; leave it out")
        if self.source != bigram_backcopy.NAME:
            tokenizer.check(self.tokenizer, self.vocab_size)

    def selection(self) -> sources.Selection:
        """The part that concerns the source."""
        return sources.Selection(
            self.validation_fraction, self.text_field, self.subset, self.split, self.streaming, self.max_documents
        )
