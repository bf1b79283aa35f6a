"""The heavy kernels of the backward: dK and dV of a tile of keys, dQ of a tile of rows. No atomics.

Both recompute the scores from q, k and the rows' Λ (base 2), and need nothing else of a variant: sinks, gates and
added vectors are in Λ and Δ (rows.py), or in dO. With grouped heads each query head writes dK and dV of its own, which
the host adds up: a loop over the heads of a group costs more registers than there are.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head size.
"""

import triton
import triton.language as tl

from .tiles import (
    CLIPPED,
    CONTEXT_VECTOR,
    ELASTIC,
    SOFTPICK,
    base2,
    key_range,
    load_rows,
    load_tile,
    load_vector,
    matmul,
    phase_range,
    program,
    query_range,
    single_key,
    store_tile,
    visible,
    visible_keys,
    weights_and_gradient,
)


@triton.jit
def key_tiles(
    dk, dv, k, v, q_base, dO_base, q_row, dO_row, lam, delta, shift, first_key, shift_row,
    start_n, low, high, T, S, number, softcap, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, FIRST: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dk (before scale) and dv of the keys start_n … gain from the query rows low … high − 1. Tiles are (N, M)."""
    for start_m in range(low, high, BLOCK_M):
        q = load_tile(q_base, start_m, q_row, T, D, BLOCK_M, BLOCK_D, MASKED)
        dO = load_tile(dO_base, start_m, dO_row, T, D, BLOCK_M, BLOCK_D, MASKED)
        # A row beyond the end has Λ = +inf and dO = 0: no weight and no gradient.
        row_lam = load_rows(lam, start_m, 1, T, BLOCK_M, float("inf"), MASKED)
        row_delta = load_rows(delta, start_m, 1, T, BLOCK_M, 0.0, MASKED)
        row_shift = row_delta
        if SCORE == CLIPPED or SCORE == ELASTIC:
            row_shift = load_rows(shift, start_m, shift_row, T, BLOCK_M, 0.0, MASKED)
        s = matmul(k, tl.trans(q), tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PRECISION, UPCAST)
        s, slope = base2(s, scale, softcap, SOFTCAP)
        dP = matmul(v, tl.trans(dO), tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PRECISION, UPCAST)
        if MASKED and SCORE == SOFTPICK:
            dP = tl.where(single_key(start_m, first_key, T, S, FIRST, BLOCK_M)[None, :], 0.0, dP)
        w, dS, _ = weights_and_gradient(s, row_lam[None, :], row_delta[None, :], dP, number, row_shift[None, :], SCORE)
        if SOFTCAP:
            dS = dS * slope
        if MASKED:
            seen = visible_keys(start_n, start_m, first_key, T, S, FIRST, BLOCK_M, BLOCK_N)
            w = tl.where(seen, w, 0.0)
            dS = tl.where(seen, dS, 0.0)
            if SCORE == CLIPPED or SCORE == ELASTIC:
                alone = single_key(start_m, first_key, T, S, FIRST, BLOCK_M)
                dS = tl.where(seen & alone[None, :], -tl.exp2(s - row_lam[None, :]) * row_delta[None, :], dS)
        dv = matmul(w.to(dO.dtype), dO, dv, PRECISION, UPCAST)
        dk = matmul(dS.to(q.dtype), q, dk, PRECISION, UPCAST)
    return dk, dv


@triton.jit
def dkdv_kernel(
    q, k, v, dO, dk, dv, lam, delta, shift, first_key, last_query,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, dO_batch, dO_head, dO_row,
    dk_batch, dk_head, dk_row, shift_batch, shift_head, shift_row,
    H, GROUP, T, S, number, softcap, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, FIRST: tl.constexpr, EVEN: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What one query head adds to dK and dV (both laid out by dk's strides) of BLOCK_N keys.

    last_query (B, S): the last row that sees each key, −1 where none does; read with FIRST only. EVEN: BLOCK_M
    divides T.
    """
    tile, _tiles, head, b, h = program(S, H, BLOCK_N)
    start_n = tile * BLOCK_N
    k_tile = load_tile(k + b * k_batch + (h // GROUP) * k_head, start_n, k_row, S, D, BLOCK_N, BLOCK_D, True)
    v_tile = load_tile(v + b * v_batch + (h // GROUP) * v_head, start_n, v_row, S, D, BLOCK_N, BLOCK_D, True)

    low, whole, high = query_range(last_query + b * S, start_n, T, S, FIRST, BLOCK_M, BLOCK_N)
    rows = head * T
    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    # Two copies of the loop at the most: a third takes the registers that the sums need.
    for phase in tl.static_range(2):
        if phase == 0:
            phase_low, phase_high = low, whole
        else:
            phase_low, phase_high = whole, high
        dk_tile, dv_tile = key_tiles(
            dk_tile, dv_tile, k_tile, v_tile, q + b * q_batch + h * q_head, dO + b * dO_batch + h * dO_head,
            q_row, dO_row, lam + rows, delta + rows, shift + b * shift_batch + h * shift_head, first_key + b * T,
            shift_row, start_n, phase_low, phase_high, T, S, number, softcap, scale,
            SCORE, SOFTCAP, FIRST, phase == 0 or FIRST or not EVEN, D, BLOCK_D, BLOCK_M, BLOCK_N, PRECISION, UPCAST,
        )  # fmt: skip
    store_tile(dk + b * dk_batch + h * dk_head, start_n, dk_row, S, dk_tile * scale, D, BLOCK_N, BLOCK_D)
    store_tile(dv + b * dk_batch + h * dk_head, start_n, dk_row, S, dv_tile, D, BLOCK_N, BLOCK_D)


@triton.jit
def query_tiles(
    dq, d_shift, q, dO, row_lam, row_delta, row_shift, position, first, k_base, v_base, k_row, v_row,
    low, high, S, number, softcap, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dq (before scale) of a tile of rows gains from the keys low … high − 1. Tiles are (M, N)."""
    for start in range(low, high, BLOCK_N):
        k = load_tile(k_base, start, k_row, S, D, BLOCK_N, BLOCK_D, MASKED)
        v = load_tile(v_base, start, v_row, S, D, BLOCK_N, BLOCK_D, MASKED)
        s = matmul(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32), PRECISION, UPCAST)
        s, slope = base2(s, scale, softcap, SOFTCAP)
        dP = matmul(dO, tl.trans(v), tl.zeros([q.shape[0], BLOCK_N], tl.float32), PRECISION, UPCAST)
        if MASKED and SCORE == SOFTPICK:
            dP = tl.where((position == first)[:, None], 0.0, dP)  # as `single_key`
        _, dS, active = weights_and_gradient(
            s, row_lam[:, None], row_delta[:, None], dP, number, row_shift[:, None], SCORE
        )
        if SOFTCAP:
            dS = dS * slope
        if MASKED:
            seen = visible(position, first, start + tl.arange(0, BLOCK_N))
            dS = tl.where(seen, dS, 0.0)
            active = tl.where(seen, active, 0.0)
            if SCORE == CLIPPED or SCORE == ELASTIC:
                alone = position == first  # as `single_key`
                dS = tl.where(seen & alone[:, None], -tl.exp2(s - row_lam[:, None]) * row_delta[:, None], dS)
        if SCORE == ELASTIC:
            d_shift += tl.sum(active, 1)
        dq = matmul(dS.to(k.dtype), k, dq, PRECISION, UPCAST)
    return dq, d_shift


@triton.jit
def dq_kernel(
    q, k, v, dO, dq, lam, delta, shift, d_shift, first_key, slot_keys, vector_key, d_extra,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, dO_batch, dO_head, dO_row,
    dq_batch, dq_head, dq_row, shift_batch, shift_head, shift_row,
    H, GROUP, T, S, number, softcap, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, FIRST: tl.constexpr, SLOTS: tl.constexpr, VECTOR: tl.constexpr,
    EXTRAS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dQ of BLOCK_M rows of one head, the part of slots and of an added vector's key in it; elastic's d_shift too."""
    tile, tiles, head, b, h = program(T, H, BLOCK_M)
    start_m = (tiles - 1 - tile) * BLOCK_M
    row = start_m + tl.arange(0, BLOCK_M)
    position = S - T + row
    rows = head * T
    q_tile = load_tile(q + b * q_batch + h * q_head, start_m, q_row, T, D, BLOCK_M, BLOCK_D, True)
    dO_tile = load_tile(dO + b * dO_batch + h * dO_head, start_m, dO_row, T, D, BLOCK_M, BLOCK_D, True)
    row_lam = load_rows(lam + rows, start_m, 1, T, BLOCK_M, float("inf"), True)
    row_delta = load_rows(delta + rows, start_m, 1, T, BLOCK_M, 0.0, True)
    row_shift = row_delta
    if SCORE == CLIPPED or SCORE == ELASTIC:
        row_shift = load_rows(shift + b * shift_batch + h * shift_head, start_m, shift_row, T, BLOCK_M, 0.0, True)

    first, low, whole, diagonal, end = key_range(first_key + b * T, start_m, T, S, FIRST, BLOCK_M, BLOCK_N)

    dq_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    shift_sum = tl.zeros([BLOCK_M], tl.float32)
    for phase in tl.static_range(3 if FIRST else 2):
        phase_low, phase_high = phase_range(phase, low, whole, diagonal, end)
        dq_tile, shift_sum = query_tiles(
            dq_tile, shift_sum, q_tile, dO_tile, row_lam, row_delta, row_shift, position, first,
            k + b * k_batch + (h // GROUP) * k_head, v + b * v_batch + (h // GROUP) * v_head, k_row, v_row,
            phase_low, phase_high, S, number, softcap, scale,
            SCORE, SOFTCAP, phase != 0, D, BLOCK_D, BLOCK_N, PRECISION, UPCAST,
        )  # fmt: skip

    for r in range(SLOTS):
        slot = load_vector(slot_keys + (h * SLOTS + r) * D, D, BLOCK_D)
        d_logit = tl.load(d_extra + (rows + row) * EXTRAS + r, mask=row < T, other=0.0)
        dq_tile += d_logit[:, None] * slot[None, :]
    if VECTOR == CONTEXT_VECTOR:
        d_logit = tl.load(d_extra + (rows + row) * EXTRAS + SLOTS, mask=row < T, other=0.0)
        dq_tile += d_logit[:, None] * load_vector(vector_key + h * D, D, BLOCK_D)[None, :]
    if SCORE == ELASTIC:
        tl.store(d_shift + rows + row, shift_sum, mask=row < T)
    store_tile(dq + b * dq_batch + h * dq_head, start_m, dq_row, T, dq_tile * scale, D, BLOCK_M, BLOCK_D)
