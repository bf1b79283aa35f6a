"""The statistics that belong to keys: the mass that each key receives, from q, k and the rows' normalisers."""

import triton
import triton.language as tl

from .tiles import CLIPPED, ELASTIC, base2, load_rows, load_tile, matmul, program, query_range, visible_keys, weights


@triton.jit
def columns_kernel(
    q, k, lam, gates, early, shift, first_key, last_query, received, gated, received_early,
    q_batch, q_head, q_row, k_batch, k_head, k_row, shift_batch, shift_head, shift_row,
    H, GROUP, T, EARLY, number, softcap, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, FIRST: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Σ_i A_ij, Σ_i g_i A_ij and, over the first EARLY rows, Σ_i c_i A_ij of BLOCK_N keys of one query head.

    T queries and keys. lam: lse in base 2, +inf for an empty row. gates g, early c and the three outputs: (B, H, T)
    float32, adjacent.
    """
    tile, _tiles, head, b, h = program(T, H, BLOCK_N)
    start_n = tile * BLOCK_N
    rows = head * T
    k_tile = load_tile(k + b * k_batch + (h // GROUP) * k_head, start_n, k_row, T, D, BLOCK_N, BLOCK_D, True)
    low, _whole, high = query_range(last_query + b * T, start_n, T, T, FIRST, BLOCK_M, BLOCK_N)
    mass = tl.zeros([BLOCK_N], tl.float32)
    gated_mass = mass
    early_mass = mass
    for start_m in range(low, high, BLOCK_M):
        q_tile = load_tile(q + b * q_batch + h * q_head, start_m, q_row, T, D, BLOCK_M, BLOCK_D, True)
        products = matmul(k_tile, tl.trans(q_tile), tl.zeros([BLOCK_N, BLOCK_M], tl.float32), PRECISION, UPCAST)
        s, _slope = base2(products, scale, softcap, SOFTCAP)
        row_lam = load_rows(lam + rows, start_m, 1, T, BLOCK_M, float("inf"), True)
        row_shift = row_lam
        if SCORE == CLIPPED or SCORE == ELASTIC:
            row_shift = load_rows(shift + b * shift_batch + h * shift_head, start_m, shift_row, T, BLOCK_M, 0.0, True)
        w = weights(s, row_lam[None, :], number, row_shift[None, :], SCORE)
        w = tl.where(visible_keys(start_n, start_m, first_key + b * T, T, T, FIRST, BLOCK_M, BLOCK_N), w, 0.0)
        mass += tl.sum(w, 1)
        gated_mass += tl.sum(w * load_rows(gates + rows, start_m, 1, T, BLOCK_M, 0.0, True)[None, :], 1)
        if start_m < EARLY:
            early_mass += tl.sum(w * load_rows(early + rows, start_m, 1, EARLY, BLOCK_M, 0.0, True)[None, :], 1)
    key = start_n + tl.arange(0, BLOCK_N)
    tl.store(received + rows + key, mass, mask=key < T)
    tl.store(gated + rows + key, gated_mass, mask=key < T)
    tl.store(received_early + rows + key, early_mass, mask=key < T)
