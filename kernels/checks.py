"""What `attend` and `statistics` accept, checked before any arithmetic: each refusal is one line that names the value.

The checks read shapes, dtypes and devices only: they cost no synchronisation and disappear under torch.compile.
"""

import math
from typing import Any, get_args

import torch
from torch import Tensor

from .parts import (
    AddedVector,
    Clipped,
    Elastic,
    ElementGate,
    Parts,
    RowGate,
    Score,
    Sigmoid,
    SinkLogits,
    SinkSlots,
    Softmax,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KINDS: dict[str, tuple[type, ...]] = {
    "score": get_args(Score),
    "sinks": (SinkLogits, SinkSlots, type(None)),
    "gate": (RowGate, ElementGate, type(None)),
    "added": (AddedVector, type(None)),
}


def check(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor | None,
    parts: Parts,
    first_key_BT: Tensor | None,
    scale: float | None,
) -> None:
    """Raise ValueError unless the tensors fit each other and the variant; v may be absent (statistics)."""
    if scale is not None and not 0 < scale < math.inf:  # the vendor's operators give NaN for a negative one
        raise ValueError(f"scale must be positive and finite, not {scale}")
    for name, x in (("q", q_BHTD), ("k", k_BGSD), ("v", v_BGSD)):
        if x is None:
            continue
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions (batch, heads, length, head size), not {tuple(x.shape)}")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(map(str, DTYPES))}, not {x.dtype}")
        if x.dtype != q_BHTD.dtype:
            raise ValueError(f"q, k and v must share one dtype: q {q_BHTD.dtype}, {name} {x.dtype}")
        if x.device != q_BHTD.device:
            raise ValueError(f"q, k and v must be on one device: q on {q_BHTD.device}, {name} on {x.device}")
    B, H, T, D = q_BHTD.shape
    G, S = k_BGSD.shape[1], k_BGSD.shape[2]
    if k_BGSD.shape[0] != B or k_BGSD.shape[3] != D:
        raise ValueError(f"k must be (batch {B}, heads, length, head size {D}) as q is, not {tuple(k_BGSD.shape)}")
    if v_BGSD is not None and v_BGSD.shape != k_BGSD.shape:
        raise ValueError(f"v must have k's shape {tuple(k_BGSD.shape)}, not {tuple(v_BGSD.shape)}")
    if min(B, H, G, T, D) < 1:
        raise ValueError(f"no dimension may be empty: q {tuple(q_BHTD.shape)}, k {tuple(k_BGSD.shape)}")
    if H % G:
        raise ValueError(f"query heads must be a multiple of key/value heads, not {H} and {G}")
    if S < T:
        raise ValueError(f"there must be at least as many keys as queries, not {S} keys and {T} queries")
    if first_key_BT is not None:
        if first_key_BT.shape != (B, T):
            raise ValueError(f"first_key_BT must have shape {(B, T)}, not {tuple(first_key_BT.shape)}")
        if first_key_BT.is_floating_point() or first_key_BT.is_complex() or first_key_BT.dtype == torch.bool:
            raise ValueError(f"first_key_BT must hold integers, not {first_key_BT.dtype}")
    _check_parts(parts, B, H, T, D)
    for name, x in [*tensors(parts), ("first_key_BT", first_key_BT)]:
        if x is not None and x.device != q_BHTD.device:
            raise ValueError(f"{name} is on {x.device}, but q is on {q_BHTD.device}")


def _check_parts(parts: Parts, B: int, H: int, T: int, D: int) -> None:
    _kind("parts", parts, (Parts,))
    score, sinks, gate, added = parts.score, parts.sinks, parts.gate, parts.added
    for part, kinds in KINDS.items():
        _kind(part, getattr(parts, part), kinds)
    if not isinstance(score, Softmax):
        family = type(score).__name__.lower()
        if sinks is not None:
            raise ValueError(f"{family} scores take no sinks: only softmax scores do")
        if added is not None and added.key is not None:
            raise ValueError(f"{family} scores take no added vector with a key: only softmax scores do")
    if isinstance(score, Softmax) and score.softcap is not None and not 0 < score.softcap < math.inf:
        raise ValueError(f"score.softcap must be positive and finite, not {score.softcap}")
    if isinstance(score, Sigmoid) and not math.isfinite(score.bias):
        raise ValueError(f"score.bias must be finite, not {score.bias}")
    if isinstance(score, Clipped):
        if not -math.inf < score.gamma <= 0:
            raise ValueError(f"score.gamma must be finite and at most 0, not {score.gamma}")
        if not 1 <= score.zeta < math.inf:
            raise ValueError(f"score.zeta must be finite and at least 1, not {score.zeta}")
    if isinstance(score, Elastic):
        _shape("score.offset", score.offset, [(H,)])
    if isinstance(sinks, SinkLogits):
        _shape("sinks.logits", sinks.logits, [(H,), (B, H, T)])
    if isinstance(sinks, SinkSlots):
        n = sinks.keys.shape[1] if sinks.keys.dim() == 3 else 1
        _shape("sinks.keys", sinks.keys, [(H, max(n, 1), D)])
        if sinks.values is not None:
            _shape("sinks.values", sinks.values, [(H, n, D)])
    if isinstance(gate, RowGate):
        _shape("gate.logits of a RowGate", gate.logits, [(B, H, T)])
    if isinstance(gate, ElementGate):
        _shape("gate.logits of an ElementGate", gate.logits, [(B, H, T, D)])
    if gate is not None and not 0 < gate.span < math.inf:
        raise ValueError(f"gate.span must be positive and finite, not {gate.span}")
    if added is not None:
        _shape("added.vector", added.vector, [(H, D)])
        if added.key is not None:
            _shape("added.key", added.key, [(H, D)])


def _kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """A tensor in a part's place would otherwise be passed over: what is no part changes no score."""
    if not isinstance(value, kinds):
        allowed = ", ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ValueError(f"{name} must be one of {allowed}, not {found}")


def _shape(name: str, x: Tensor, allowed: list[tuple[int, ...]]) -> None:
    if tuple(x.shape) not in allowed:
        raise ValueError(f"{name} must have shape {' or '.join(map(str, allowed))}, not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {x.dtype}")


def tensors(parts: Parts) -> list[tuple[str, Tensor | None]]:
    """The learned tensors of a variant with their names; None for those that it has not."""
    sinks, gate, added = parts.sinks, parts.gate, parts.added
    return [
        ("score.offset", parts.score.offset if isinstance(parts.score, Elastic) else None),
        ("sinks.logits", sinks.logits if isinstance(sinks, SinkLogits) else None),
        ("sinks.keys", sinks.keys if isinstance(sinks, SinkSlots) else None),
        ("sinks.values", sinks.values if isinstance(sinks, SinkSlots) else None),
        ("added.vector", None if added is None else added.vector),
        ("added.key", None if added is None else added.key),
        ("gate.logits", None if gate is None else gate.logits),
    ]
