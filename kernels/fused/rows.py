"""The row pass of the backward: what the heavy kernels need of each row, and the gradients that are sums over rows.

One program reads a tile of dY and y once. It writes Λ (base 2) and Δ of the fold (../README.md), dO where a gate
cannot be folded, the gradients of sink and gate logits, and for each tile of rows the partial sums of the gradients
of a head's vectors, which the host adds up in a fixed order: no atomics, the same bits every time.

A head's "extra keys" are its slots' keys and, last, the key of the added vector; dσ (B, H, T, extras) is the gradient
of their logits, from which the dQ kernel adds their part of dq.
"""

import triton
import triton.language as tl

from .tiles import (
    CLIPPED,
    CONTEXT_VECTOR,
    ELASTIC,
    ELEMENT_GATE,
    LOG2E,
    NO_VECTOR,
    ROW_GATE,
    SIGMOID,
    SINK_LOGIT,
    SINK_SLOTS,
    SOFTMAX,
    SOFTPICK,
    gate,
    load_rows,
    load_tile,
    load_vector,
    program,
    sigmoid,
    single_key,
    store_tile,
)


@triton.jit
def store_sum(base, weight, tile, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Σ over the tile's rows of weight_i · tile_i: D numbers."""
    column = tl.arange(0, BLOCK_D)
    tl.store(base + column, tl.sum(weight[:, None] * tile, 0), mask=column < D)


@triton.jit
def rows_kernel(
    dY, y, kept, q, lse, dL, first_key, sink, slot_keys, slot_values, vector, vector_key, gate_logits,
    lam, delta, dO, d_sink, d_gate, d_extra, key_sums, value_sums, vector_sums,
    dY_batch, dY_head, dY_row, y_batch, y_head, y_row, q_batch, q_head, q_row,
    sink_batch, sink_head, sink_row, gate_batch, gate_head, gate_row,
    H, T, S, span, scale,
    SCORE: tl.constexpr, SINK: tl.constexpr, SLOTS: tl.constexpr, SLOT_VALUES: tl.constexpr, VECTOR: tl.constexpr,
    GATE: tl.constexpr, KEPT: tl.constexpr, FIRST: tl.constexpr, WITH_DL: tl.constexpr, EXTRAS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Rows start … start + BLOCK_M − 1 of one head. kept, dO and an element gate's d_gate are laid out as y.

    KEPT: `kept` holds what the forward kept: Σ a M P v (family B), else the row before its gate. Outputs per row are
    (B, H, T) float32; key_sums (B, tiles, H, EXTRAS, D), value_sums (B, tiles, H, SLOTS, D), vector_sums
    (B, tiles, H, D).
    """
    tile, tiles, head, b, h = program(T, H, BLOCK_M)
    start = tile * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    inside = row < T
    out = head * T + row

    d_tile = load_tile(dY + b * dY_batch + h * dY_head, start, dY_row, T, D, BLOCK_M, BLOCK_D, True).to(tl.float32)
    y_tile = load_tile(y + b * y_batch + h * y_head, start, y_row, T, D, BLOCK_M, BLOCK_D, True).to(tl.float32)
    dot_y = tl.sum(d_tile * y_tile, 1)

    L = tl.zeros([BLOCK_M], tl.float32)
    if SCORE != SIGMOID:
        L = load_rows(lse + head * T, start, 1, T, BLOCK_M, 0.0, True)
    lam2 = tl.where(float("-inf") < L, L * LOG2E, float("inf"))

    # dot: dO · (the row before its gate); weight: what an added vector's gradient is weighted with.
    dot = dot_y
    weight = tl.where(inside, 1.0, 0.0)
    if GATE == ROW_GATE:
        z = load_rows(gate_logits + b * gate_batch + h * gate_head, start, gate_row, T, BLOCK_M, 0.0, True)
        g, log2_g, one_minus = gate(z, span)
        if KEPT and SCORE == SOFTMAX:
            kept_tile = load_tile(kept + b * y_batch + h * y_head, start, y_row, T, D, BLOCK_M, BLOCK_D, True)
            dot = tl.sum(d_tile * kept_tile.to(tl.float32), 1)
            dot_y = g * dot
        tl.store(d_gate + out, one_minus * dot_y, mask=inside)
        if SCORE == SOFTMAX:
            if not KEPT:
                dot = dot_y / g
            lam2 = lam2 - log2_g
            weight = weight * g
        else:
            d_tile = d_tile * g[:, None]
            store_tile(dO + b * y_batch + h * y_head, start, y_row, T, d_tile, D, BLOCK_M, BLOCK_D)
    elif GATE == ELEMENT_GATE:
        z = load_tile(gate_logits + b * gate_batch + h * gate_head, start, gate_row, T, D, BLOCK_M, BLOCK_D, True)
        g, _, one_minus = gate(z.to(tl.float32), span)
        store_tile(d_gate + b * y_batch + h * y_head, start, y_row, T, one_minus * d_tile * y_tile, D, BLOCK_M, BLOCK_D)
        d_tile = d_tile * g
        store_tile(dO + b * y_batch + h * y_head, start, y_row, T, d_tile, D, BLOCK_M, BLOCK_D)

    q_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if EXTRAS > 0:
        q_tile = load_tile(q + b * q_batch + h * q_head, start, q_row, T, D, BLOCK_M, BLOCK_D, True).to(tl.float32)
    sums = (b * tiles + tile) * H + h

    if VECTOR != NO_VECTOR:
        added = load_vector(vector + h * D, D, BLOCK_D)
        along = tl.sum(d_tile * added[None, :], 1)
        if VECTOR == CONTEXT_VECTOR:
            key = load_vector(vector_key + h * D, D, BLOCK_D)
            w = sigmoid(tl.sum(q_tile * key[None, :], 1) * scale - L)
            dot -= w * w * along
            d_logit = weight * w * (1.0 - w) * along
            weight = weight * w
            tl.store(d_extra + out * EXTRAS + SLOTS, d_logit, mask=inside)
            store_sum(key_sums + (sums * EXTRAS + SLOTS) * D, d_logit * scale, q_tile, D, BLOCK_D)
        else:
            dot -= along
        store_sum(vector_sums + sums * D, weight, d_tile, D, BLOCK_D)

    if SCORE == CLIPPED or SCORE == ELASTIC:
        kept_tile = load_tile(kept + b * y_batch + h * y_head, start, y_row, T, D, BLOCK_M, BLOCK_D, True)
        dot = tl.sum(d_tile * kept_tile.to(tl.float32), 1)
    if SCORE == CLIPPED or SCORE == ELASTIC or SCORE == SOFTPICK:
        dot = tl.where(single_key(start, first_key + b * T, T, S, FIRST, BLOCK_M), 0.0, dot)
    if WITH_DL:
        dot -= load_rows(dL + head * T, start, 1, T, BLOCK_M, 0.0, True)
    if SCORE != SIGMOID:
        tl.store(lam + out, lam2, mask=inside)
        tl.store(delta + out, dot, mask=inside)

    if SINK == SINK_LOGIT:
        s = load_rows(sink + b * sink_batch + h * sink_head, start, sink_row, T, BLOCK_M, 0.0, True)
        tl.store(d_sink + out, -tl.exp2(s * LOG2E - lam2) * dot, mask=inside)
    elif SINK == SINK_SLOTS:
        for r in range(SLOTS):
            slot = load_vector(slot_keys + (h * SLOTS + r) * D, D, BLOCK_D)
            p = tl.exp2(tl.sum(q_tile * slot[None, :], 1) * (scale * LOG2E) - lam2)
            p = tl.where(inside, p, 0.0)
            d_logit = -p * dot
            if SLOT_VALUES:
                value = load_vector(slot_values + (h * SLOTS + r) * D, D, BLOCK_D)
                d_logit += p * tl.sum(d_tile * value[None, :], 1)
                store_sum(value_sums + (sums * SLOTS + r) * D, p, d_tile, D, BLOCK_D)
            tl.store(d_extra + out * EXTRAS + r, d_logit, mask=inside)
            store_sum(key_sums + (sums * EXTRAS + r) * D, d_logit * scale, q_tile, D, BLOCK_D)
