"""The network's sizes and switches, and the check that they fit together."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from errors import InputError


@dataclass(frozen=True)
class GPTConfig:
    """A GPT's shape. The defaults are the demo size; `models.presets` holds others.

    vocab_size: number of tokens; None until the corpus is known. context: longest sequence, in tokens.
    pad_vocab: the embedding and the head get rows of 0 up to a multiple of this; no token has them and no probability.
    kv_heads: key/value heads shared by groups of query heads; None means `heads`.
    mlp_width: None means 4 × width, for swiglu 8/3 × width rounded up to a multiple of 64.
    norm: rmsnorm_single has one gain for all channels. norm_position: pre, or sandwich: each branch's output is normed
    too before it is added. embedding_projection: a matrix after the embeddings and one before the head.
    qk_norm: RMSNorm over each head's queries and keys, before rotary positions.
    bias: biases in linear layers and LayerNorm. dropout: of the embedding and of each residual branch; there is no
    attention dropout. init_std: standard deviation of the initial weights (GPT-2).
    """

    vocab_size: int | None = None
    context: int = 256
    layers: int = 4
    heads: int = 4
    width: int = 128
    kv_heads: int | None = None
    positions: Literal["learned", "rotary", "none"] = "learned"
    rotary_base: float = 10000.0
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_single"] = "layernorm"
    norm_position: Literal["pre", "sandwich"] = "pre"
    embedding_projection: bool = False
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_width: int | None = None
    qk_norm: bool = False
    tie_embeddings: bool = True
    bias: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    pad_vocab: int = 1

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.heads

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """Channels inside the MLP."""
        if self.mlp_width is not None:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // (3 * 64)) * 64

    @property
    def vocab_rows(self) -> int | None:
        """Rows of the embedding and the head, the padding included."""
        return None if self.vocab_size is None else -(-self.vocab_size // self.pad_vocab) * self.pad_vocab

    def validate(self) -> None:
        """Raise InputError, naming the value, unless the sizes fit together."""
        for name in ("vocab_size", "context", "layers", "heads", "width", "kv_heads", "mlp_width", "pad_vocab"):
            value = getattr(self, name)
            if value is None and name in ("vocab_size", "kv_heads", "mlp_width"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
        for name, hint in get_type_hints(type(self)).items():
            choices = get_args(hint)
            value = getattr(self, name)
            if isinstance(choices[0] if choices else None, str) and value not in choices:
                raise InputError(f"{name} is {value!r}{suggestion(value, choices)}; choose from {', '.join(choices)}")
        if self.width % self.heads:
            raise InputError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.heads % self.groups:
            raise InputError(f"{self.heads} heads are not divisible by {self.groups} kv_heads")
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(
                f"rotary positions need an even head size; width {self.width} / {self.heads} heads is {self.head_dim}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        for name in ("init_std", "rotary_base"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive and finite")


def suggestion(value: object, choices: Iterable[str]) -> str:
    """`, did you mean X?` where a choice looks like the value, otherwise nothing; put after the bad value."""
    near = difflib.get_close_matches(str(value), list(choices), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
