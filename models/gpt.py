"""A GPT that reads top to bottom in the order data flows: embedding, blocks, final norm, head.

Shapes: B batch, T tokens, P prefix tokens, C width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errors import InputError
from models.attention import AttentionShape, Mechanism, build, normalise
from models.attention.causal import CausalSelfAttention
from models.config import GPTConfig
from models.initial import Embedding, FirstRows, Initial, Linear, Normal, Orthogonal, fill, seeded
from models.layers import MLP, dropout, norm, rotary_table


class Block(nn.Module):
    """A transformer block: h + attention(norm(h)), then h + mlp(norm(h)).

    With norm_position "sandwich" each branch is normed again before it is added: h + norm(attention(norm(h))), as in
    CogView (2105.13290, "Sandwich-LN") and Gemma 2 (2408.00118).
    """

    def __init__(self, config: GPTConfig, mechanism: Mechanism):
        super().__init__()
        self.norm_attention = norm(config)
        self.attention = CausalSelfAttention(config, mechanism)
        self.norm_mlp = norm(config)
        self.mlp = MLP(config)
        sandwich = config.norm_position == "sandwich"
        self.norm_attention_output = norm(config) if sandwich else nn.Identity()
        self.norm_mlp_output = norm(config) if sandwich else nn.Identity()
        self.dropout = dropout(config.dropout)

    def forward(self, h_BTC: Tensor, rotary: Tensor | None = None, first_key_BT: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        attended_BTC = self.attention(self.norm_attention(h_BTC), rotary, first_key_BT)
        h_BTC = h_BTC + self.dropout(self.norm_attention_output(attended_BTC))
        return h_BTC + self.dropout(self.norm_mlp_output(self.mlp(self.norm_mlp(h_BTC))))

    def packed(self) -> dict[str, dict[str, int]]:
        """The linear layers of a block by name, each with the matrices that its weight stacks and their rows."""
        q, k, v = self.attention.sizes
        up = {"up": self.mlp.width, "gate": self.mlp.width} if self.mlp.gated else {"up": self.mlp.width}
        return {
            "attention.qkv": {"q": q, "k": k, "v": v},
            "attention.out": {"o": self.attention.out.out_features},
            "mlp.up": up,
            "mlp.down": {"down": self.mlp.down.out_features},
        }

    def matrices(self) -> dict[str, Tensor]:
        """The block's weight matrices as views (outputs, inputs): q, k, v, o, up, down, and gate for swiglu."""
        found: dict[str, Tensor] = {}
        for layer, rows in self.packed().items():
            weight = self.get_parameter(f"{layer}.weight")
            found |= zip(rows, weight.split(list(rows.values())), strict=True)
        return found


class GPT(nn.Module):
    """A decoder-only transformer whose attention mechanism is named by `attention` (see `models.attention`).

    seed: of the initial values; each parameter is drawn from (seed, its name); kept, so that they can be made again.
    backend: of `kernels.attend`.
    activation_checkpointing: keep each block's input alone for the backward, which computes the block again (with the
    same dropout masks): memory for about a third more arithmetic.
    Raises InputError where the configuration does not fit together or the attention is unknown.
    """

    rotary: Tensor | None

    def __init__(
        self,
        config: GPTConfig,
        attention: str | dict[str, Any] = "softmax",
        *,
        seed: int = 0,
        backend: str = "auto",
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        config.validate()
        if config.vocab_size is None or config.vocab_rows is None:
            raise InputError("vocab_size is not set; take it from the corpus or give it in the configuration")
        self.config, self.vocab_size, self.seed = config, config.vocab_size, seed
        self.spec = normalise(attention)
        self.activation_checkpointing = activation_checkpointing
        weight = Normal(config.init_std)
        shape = AttentionShape(config.width, config.heads, config.groups, config.head_dim, config.context)

        tokens = FirstRows(weight, config.vocab_size)
        self.embedding = Embedding(config.vocab_rows, config.width, weight=tokens)
        self.positions = None
        if config.positions == "learned":
            self.positions = Embedding(config.context, config.width, weight=weight)
        # 2506.19697, "embedding projection". Orthogonal at first, as in the authors' example code; without its bias, so
        # that both fold into the embeddings and the head.
        self.project_in, self.project_out = (
            Linear(config.width, config.width, bias=False, weight=Orthogonal())
            if config.embedding_projection
            else nn.Identity()
            for _ in range(2)
        )
        self.dropout = dropout(config.dropout)
        blocks = []
        for layer in range(config.layers):
            # A user's mechanism may draw from the global generator; this keeps its values a function of the seed.
            with seeded(seed, f"blocks.{layer}.attention.mechanism"):
                mechanism = build(self.spec, shape, backend)
            blocks.append(Block(config, mechanism))
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(config)
        self.head = Linear(config.width, config.vocab_rows, bias=False, weight=tokens)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

        self.decay_slots = mechanism.decay_slots
        self.prefix_tokens = mechanism.prefix_tokens
        self.initial: dict[str, Initial] = {}
        self.prefix = None
        if self.prefix_tokens:
            self.prefix = nn.Parameter(torch.empty(self.prefix_tokens, config.width))
            self.initial["prefix"] = weight
        rotary = None
        if config.positions == "rotary":
            # The prefix stays at position 0, unrotated, and the first real token is then at position 1.
            first = min(self.prefix_tokens, 1)
            positions_T = torch.cat((torch.zeros(self.prefix_tokens), first + torch.arange(config.context)))
            rotary = rotary_table(positions_T, config.head_dim, config.rotary_base)
        self.register_buffer("rotary", rotary, persistent=False)
        fill(self, seed)

    def forward(self, tokens_BT: Tensor, first_key_BT: Tensor | None = None, *, padded: bool = False) -> Tensor:
        """Token ids (B, T) int64 -> logits (B, T, V). first_key (B, T) int32: the first key that each row sees.

        padded: keep the columns of `pad_vocab`, for a loss that leaves them out without a copy of the logits.
        Raises InputError for a sequence beyond the context, and on the CPU for a token beyond the vocabulary.
        """
        B, T = tokens_BT.shape
        self.check(tokens_BT, first_key_BT)
        h_BTC = self.embedding(tokens_BT)
        if self.positions is not None:
            h_BTC = h_BTC + self.positions.weight[:T]
        h_BTC = self.dropout(self.project_in(h_BTC))
        if self.prefix is not None:
            h_BTC = torch.cat((self.prefix.to(h_BTC.dtype).expand(B, -1, -1), h_BTC), dim=1)
        rotary = self.rotary[:, : h_BTC.shape[1]] if self.rotary is not None else None
        for block in self.blocks:
            if self.activation_checkpointing:
                h_BTC = checkpoint(block, h_BTC, rotary, first_key_BT, use_reentrant=False)
            else:
                h_BTC = block(h_BTC, rotary, first_key_BT)
        h_BTC = self.project_out(self.norm(h_BTC[:, self.prefix_tokens :]))
        logits_BTV = self.head(h_BTC)
        return logits_BTV if padded else logits_BTV[..., : self.vocab_size]

    def check(self, tokens_BT: Tensor, first_key_BT: Tensor | None) -> None:
        """Refuse what would fail later with an unclear message. Off the CPU the tokens' values are not read: that
        would make the host wait for the device."""
        if tokens_BT.shape[1] > self.config.context:
            raise InputError(f"a sequence of {tokens_BT.shape[1]} tokens exceeds the context of {self.config.context}")
        if self.prefix is not None and first_key_BT is not None:
            raise InputError(
                f"{self.spec['name']} cannot be combined with packed documents or windows (first_key): "
                "one interval a row cannot hold its prefix token too"
            )
        if tokens_BT.device.type == "cpu" and not torch.compiler.is_compiling() and tokens_BT.numel():
            low, high = (int(bound) for bound in tokens_BT.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise InputError(f"token {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}")

    def parameter_count(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def hidden_matrices(self) -> dict[str, tuple[nn.Parameter, list[int]]]:
        """By name the weight matrices of the blocks (not a mechanism's) and of the embedding projection, each with the
        rows of the matrices that are stacked in it."""
        found = {}
        if self.config.embedding_projection:
            for name in ("project_in.weight", "project_out.weight"):
                found[name] = (self.get_parameter(name), [self.config.width])
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for layer, rows in block.packed().items():
                name = f"blocks.{index}.{layer}.weight"
                found[name] = (self.get_parameter(name), list(rows.values()))
        return found

    def decay_groups(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Parameters by name (decayed, undecayed): matrices and embeddings decay, one-dimensional parameters do not,
        and neither do a mechanism's parameters and its prefix unless it sets `decay_slots`."""
        decayed: dict[str, nn.Parameter] = {}
        undecayed: dict[str, nn.Parameter] = {}
        for name, parameter in self.named_parameters():
            own = name == "prefix" or ".attention.mechanism." in name
            decays = parameter.ndim >= 2 and (not own or self.decay_slots)
            (decayed if decays else undecayed)[name] = parameter
        return decayed, undecayed
