"""What an analysis needs of a tokenizer, for ours and for Hugging Face's."""

from collections.abc import Sequence
from typing import Any, Protocol

from data.tokenizer import Tokenizer
from errors import InputError


class Vocabulary(Protocol):
    """bos: the token that begins a sequence; None where the tokenizer has none."""

    bos: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids, no special token added."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """A readable text for each token alone."""
        ...


class Ours:
    """The tokenizer of a corpus, whose documents begin with <|endoftext|>."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.end_of_text

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return [int(token) for token in self._tokenizer.encode([text])[0]]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; <|endoftext|> is left out."""
        return self._tokenizer.decode(tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token's own text."""
        return self._tokenizer.pieces(tokens)


class Characters:
    """The Bigram-Backcopy task's: BOS is 0, the characters follow."""

    bos: int | None = 0

    def __init__(self, characters: str):
        self.characters = characters

    def encode(self, text: str) -> list[int]:
        """Token ids. InputError names a character that the task does not have."""
        for character in text:
            if character not in self.characters:
                raise InputError(f"the character {character!r} is not one of the task's {len(self.characters)}")
        return [1 + self.characters.index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        """The characters; BOS is left out."""
        return "".join(self.characters[token - 1] for token in tokens if token)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each character."""
        return [self.characters[token - 1] if token else "<BOS>" for token in tokens]


class HuggingFace:
    """A tokenizer of `transformers`."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, special tokens in."""
        return self._tokenizer.decode(list(tokens))

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token decoded alone."""
        return [self._tokenizer.decode([token]) for token in tokens]
