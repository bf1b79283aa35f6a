"""Text to token ids and back: a byte-level BPE trained on the corpus, a saved tokenizer.json, or plain bytes.

Every document begins with `<|endoftext|>`, so the first token of a document has a predecessor and its end can be
predicted. `token_bytes` says how many bytes of UTF-8 each token stands for (0 for special tokens), which turns nats a
token into bits a byte: a number that does not depend on the tokenizer. It is exact for bytes and for byte-level BPE and
None otherwise.

The `tokenizers` library is imported inside functions, because training reads token shards alone.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from errors import InputError

END_OF_TEXT = "<|endoftext|>"
NAMES = ("bpe", "bytes")
SMALLEST_BPE = 257  # 256 bytes and <|endoftext|>


class Tokenizer(Protocol):
    """What prepare and the reports need of a tokenizer."""

    vocab_size: int
    end_of_text: int
    token_bytes: npt.NDArray[np.int64] | None  # (vocab_size,)

    def encode(self, texts: Sequence[str]) -> list[list[int] | npt.NDArray[Any]]:
        """The tokens of each text, without any special token."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; <|endoftext|> is left out."""
        ...

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """A readable text for each token alone, for labels in a figure."""
        ...

    def dumps(self) -> str | None:
        """The content of tokenizer.json, or None where there is none."""
        ...


class Bytes:
    """One token a byte of UTF-8: ids 0 to 255, and 256 for <|endoftext|>."""

    vocab_size = 257
    end_of_text = 256

    def __init__(self) -> None:
        self.token_bytes = np.array([1] * 256 + [0], np.int64)

    def encode(self, texts: Sequence[str]) -> list[list[int] | npt.NDArray[Any]]:
        """The UTF-8 bytes of each text."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of bytes; what is no valid UTF-8 (a window cut inside a character) becomes a replacement mark."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each byte as a character where it is ASCII, else as hex."""
        return [END_OF_TEXT if t == 256 else chr(t) if t < 128 else f"\\x{t:02x}" for t in tokens]

    def dumps(self) -> None:
        """Bytes need no file."""
        return None


class Library:
    """A tokenizer of the `tokenizers` library, trained here or loaded."""

    def __init__(self, tokenizer: Any):
        self.library = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # "<|endoftext|>" inside a text is text: documents are marked by id
        if tokenizer.token_to_id(END_OF_TEXT) is None:
            tokenizer.add_special_tokens([END_OF_TEXT])
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.token_bytes = _byte_counts(json.loads(tokenizer.to_str()), self.vocab_size)

    def encode(self, texts: Sequence[str]) -> list[list[int] | npt.NDArray[Any]]:
        """The tokens of each text, on all cores."""
        return [e.ids for e in self.library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; special tokens are left out."""
        return self.library.decode(list(tokens), skip_special_tokens=True)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token decoded alone."""
        return [self.library.decode([token], skip_special_tokens=False) for token in tokens]

    def dumps(self) -> str:
        """The content of tokenizer.json."""
        return self.library.to_str()


def train_bpe(texts: Iterable[str], vocab_size: int, bars: bool = False) -> Library:
    """Train a byte-level BPE of `vocab_size` tokens (GPT-2's word pattern, no normalisation: nothing is lost).

    bars: show the library's progress bars, which are for a terminal.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=bars,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Library(tokenizer)


def load(path: Path) -> Library:
    """Load a tokenizer.json. InputError names the file when it is missing or is no tokenizer."""
    from tokenizers import Tokenizer

    try:
        content = path.read_text(encoding="utf-8")
        json.loads(content)
    except OSError as error:
        raise InputError(f"tokenizer {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"tokenizer {path} is not JSON: {error}") from error
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception; nothing else happens inside this call
        raise InputError(f"tokenizer {path} is no tokenizer.json of the tokenizers library: {error}") from error
    return Library(tokenizer)


def check(name: str, vocab_size: int) -> None:
    """Refuse a tokenizer's name or size before any work is done."""
    if name == "bpe" and vocab_size < SMALLEST_BPE:
        needed = f"at least {SMALLEST_BPE} (256 bytes and {END_OF_TEXT})"
        raise InputError(f"data.vocab_size {vocab_size}: a byte-level BPE needs {needed}")
    if name in NAMES:
        return
    if Path(name).suffix == ".json" or Path(name).exists():
        if not Path(name).is_file():
            raise InputError(f"tokenizer {name}: no such file")
        return
    near = difflib.get_close_matches(name, NAMES, 1)
    raise InputError(
        f"unknown tokenizer '{name}'"
        + (f" (did you mean '{near[0]}'?)" if near else "")
        + f"; choose {', '.join(NAMES)} or the path of a tokenizer.json"
    )


def digest(tokenizer: Tokenizer) -> str:
    """SHA-256 that identifies a tokenizer's behaviour."""
    return hashlib.sha256((tokenizer.dumps() or "bytes").encode()).hexdigest()


def sample(texts: Iterable[str], limit: int, used: dict[str, int]) -> Iterator[str]:
    """Texts until `limit` bytes are reached; `used` receives the number of texts and bytes that were given out."""
    used.update(documents=0, bytes=0)
    for text in texts:
        if used["bytes"] >= limit:
            return
        used["documents"] += 1
        used["bytes"] += len(text.encode())
        yield text


def _byte_counts(description: dict[str, Any], vocab_size: int) -> npt.NDArray[np.int64] | None:
    """Bytes a token for a byte-level tokenizer: its tokens are written with one printable character a byte."""
    if "ByteLevel" not in _types(description.get("decoder")) or description.get("normalizer") is not None:
        return None
    vocabulary = description["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return None
    counts = np.zeros(vocab_size, np.int64)
    for token, number in vocabulary.items():
        counts[number] = len(token)
    for added in description.get("added_tokens", ()):
        counts[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return counts


def _types(part: Any) -> set[str]:
    """The type names of a component of tokenizer.json and of the components inside it."""
    if isinstance(part, dict):
        return {str(part.get("type"))}.union(*(_types(value) for value in part.values()))
    return set().union(*(_types(value) for value in part)) if isinstance(part, list) else set()
