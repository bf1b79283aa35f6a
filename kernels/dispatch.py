"""The public entry: checks the arguments, and hands them to the back end that backends.py picks."""

import torch
from torch import Tensor

from .backends import choose
from .blockwise import blockwise
from .checks import check
from .parts import Parts
from .reference import reference, without_autocast
from .vendor import vendor


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
    scale: τ > 0, 1/√D by default. backend: one of BACKENDS. "auto" takes the first of backends.py that can compute the
    call; it never builds a T×T matrix. "reference" does: it is the specification.
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
    check(q, k, v, parts, first_key, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = choose(backend, q, k, parts, first_key)
    if chosen == "vendor":
        return vendor(q, k, v, parts, scale=scale, with_lse=with_lse)
    if chosen == "triton":
        from .fused import fused  # imports triton, which is not everywhere

        with without_autocast(device):
            return fused(q, k, v, parts, first_key_BT=first_key, scale=scale, with_lse=with_lse)
    compute = reference if chosen == "reference" else blockwise
    with without_autocast(device):  # float32 rows and parameters must not be rounded
        return compute(q, k, v, parts, first_key_BT=first_key, scale=scale)
