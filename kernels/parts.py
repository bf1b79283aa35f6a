"""What an attention variant adds to softmax attention, as plain data.

A mechanism describes itself with `Parts`; every back end and the statistics read the same description, so a variant
is written once. All tensors may require gradients; every back end returns gradients for all of them.

Shapes: B batch, H query heads, G key/value heads (H % G == 0), T length, D head size, n slots.
Per head S_ij = q_i·k_j · τ, L_i = logsumexp_j S_ij (sinks inside where there are any), natural logarithms.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Softmax:
    """P_ij = exp(S_ij − L_i): the family A of exp-normalised scores.

    softcap: c > 0 puts c · tanh(S_ij / c) in the place of S_ij for real keys, not for sinks (2408.00118, section 2).
    """

    softcap: float | None = None


@dataclass(frozen=True)
class Sigmoid:
    """P_ij = σ(S_ij + bias), not normalised (2409.04431, section 2). It takes no sinks: no row sums to one."""

    bias: float


@dataclass(frozen=True)
class Softpick:
    """P_ij = relu(e^{S_ij} − 1) / Σ_k |e^{S_ik} − 1| over the visible keys (2504.20966). It takes no sinks.

    L_i = ln Σ_k |e^{S_ik} − 1|; a row whose sum is 0 gives 0.
    """


@dataclass(frozen=True)
class Clipped:
    """P_ij = clip((ζ − γ_i) p_ij + γ_i, 0, 1), p the softmax (2306.12929, section 4.1). It takes no sinks.

    gamma: γ ≤ 0 of every row; with `per_row` γ_i = gamma / n_i, n_i the number of keys that row i sees. zeta: ζ ≥ 1.
    L_i is the softmax's.
    """

    gamma: float
    zeta: float = 1.0
    per_row: bool = False


@dataclass(frozen=True)
class Elastic:
    """P_ij = relu(p_ij + τ_h / n_i), p the softmax, n_i the number of keys that row i sees (2601.00919). No sinks.

    offset: τ (H,). L_i is the softmax's.
    """

    offset: Tensor


Score = Softmax | Sigmoid | Softpick | Clipped | Elastic


@dataclass(frozen=True)
class SinkLogits:
    """A value-less slot with a logit of its own: L_i = log(e^{s} + Σ_j e^{S_ij}).

    logits: (H,) one per head, or (B, H, T) one per query.
    """

    logits: Tensor


@dataclass(frozen=True)
class SinkSlots:
    """n learned slots that take part in the softmax: σ_ir = τ q_i·k'_r; y_i gains Σ_r exp(σ_ir − L_i) v'_r.

    keys: (H, n, D), never rotated. values: (H, n, D), or None for slots that carry no value.
    """

    keys: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class RowGate:
    """y_i ← span · σ(z_i) · y_i, one logit per query and head. logits: (B, H, T)."""

    logits: Tensor
    span: float = 1.0


@dataclass(frozen=True)
class ElementGate:
    """y_i ← span · σ(z_i) ⊙ y_i, one logit per channel. logits: (B, H, T, D)."""

    logits: Tensor
    span: float = 1.0


@dataclass(frozen=True)
class AddedVector:
    """y_i ← o_i + w_i v', with w_i = 1, or w_i = σ(τ q_i·k' − L_i) where a key is given.

    vector: v' (H, D). key: k' (H, D) or None. 2502.06415, variants (b) without and (c) with a key.
    """

    vector: Tensor
    key: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """One attention variant: scores, then sinks inside the normaliser, then the added vector, then the gate."""

    # A lambda, because torch.compile cannot trace a class as default factory.
    score: Score = field(default_factory=lambda: Softmax())
    sinks: SinkLogits | SinkSlots | None = None
    gate: RowGate | ElementGate | None = None
    added: AddedVector | None = None
