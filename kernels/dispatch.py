"""The public entry: checks the arguments, picks the back end and says once which."""

import logging

import torch
from torch import Tensor

from .blockwise import blockwise
from .checks import check
from .flash import refusal
from .parts import Parts, Softmax
from .reference import reference, without_autocast
from .vendor import vendor

BACKENDS = ("auto", "reference", "vendor", "blockwise")


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    parts: Parts | None = None,
    *,
    first_key_BT: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Causal attention of one variant: y (B, H, T, D) in q's dtype, with gradients for q, k, v and every part.

    q (B, H, T, D), k and v (B, G, S, D), H a multiple of G; T <= S queries stand at the last positions. On
    the fast back ends y is laid out as (B, T, H, D), so that joining the heads is a view. Under autocast q, k and v
    are cast as torch's own attention casts them; parts stay as they are.
    first_key_BT: integers, never falling along T: row i sees keys first_key_i … i only (packed documents, windows).
    scale: τ, 1/√D by default. backend: one of BACKENDS. "auto" takes the vendor's flash attention wherever it can
    compute the call, else "blockwise"; it never builds a T×T matrix. "reference" does: it is the specification.
    A row with no visible key gives 0. Raises ValueError where shapes, dtypes or devices do not fit, and where
    a back end asked for by name cannot compute the call.
    """
    return _attend(q_BHTD, k_BGSD, v_BGSD, parts, first_key_BT, scale, backend, False)[0]


def attend_with_lse(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    parts: Parts | None = None,
    *,
    first_key_BT: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`attend`, and L (B, H, T): the natural log of the normaliser, sinks in, gate out, at least float32.

    L is differentiable, alone or together with y. −∞ for a row with no visible key and no sink. Not for sigmoid.
    """
    y, L = _attend(q_BHTD, k_BGSD, v_BGSD, parts, first_key_BT, scale, backend, True)
    if L is None:
        raise ValueError("sigmoid attention has no log-normaliser L: use attend")
    return y, L


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: Parts | None,
    first_key: Tensor | None,
    scale: float | None,
    backend: str,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    parts = Parts() if parts is None else parts
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        q, k, v = (x if x.dtype == torch.float64 else x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    check(q, k, v, parts, first_key)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = _choose(backend, q, k, parts, first_key)
    if chosen == "vendor":
        return vendor(q, k, v, parts, scale=scale, with_lse=with_lse)
    compute = reference if chosen == "reference" else blockwise
    with without_autocast(device):  # float32 rows and parameters must not be rounded
        return compute(q, k, v, parts, first_key_BT=first_key, scale=scale)


def _choose(backend: str, q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    if backend in ("reference", "blockwise"):
        return backend
    reason = _beyond_vendor(q, k, parts, first_key)
    if backend == "vendor":
        if reason is not None:
            raise ValueError(f"the vendor back end cannot compute {reason}; choose from auto, blockwise, reference")
        return backend
    if reason is None:
        _say(f"attention on {q.device.type}: torch's flash attention (vendor)")
        return "vendor"
    _say(f"attention on {q.device.type}: blockwise, because the vendor back end cannot compute {reason}")
    return "blockwise"


def _beyond_vendor(q: Tensor, k: Tensor, parts: Parts, first_key: Tensor | None) -> str | None:
    if not isinstance(parts.score, Softmax):
        return f"{type(parts.score).__name__.lower()} scores (allowed: softmax)"
    if parts.score.softcap is not None:
        return f"a soft-cap of the scores, {parts.score.softcap:g} (allowed: none)"
    if first_key is not None:
        return "a first key for each row (allowed: none)"
    if q.shape[2] != k.shape[2]:
        return "fewer queries than keys (allowed: as many)"
    return refusal(q)


@torch.compiler.assume_constant_result
def _say(line: str) -> None:
    """Log a line once a process; while a compiler traces, it is said at that time and leaves nothing in the graph."""
    if line not in _said:
        _said.add(line)
        logging.getLogger("sinkless").info(line)


_said: set[str] = set()
