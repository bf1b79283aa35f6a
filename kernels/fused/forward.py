"""The forward kernel of the whole family: one program for a tile of query rows of one head.

The loop over key tiles is shared by every variant; sinks, the added vector and the gate come after it, when the row's
(o, L) is known. Clipped and elastic softmax go over the keys twice: their weights need the finished softmax.
With VALUES off and STATISTICS on, the same loop measures a layer instead of attending (statistics.py).

Keys first_key_i … i are visible to row i, so a tile of rows meets: tiles that the first keys cut, tiles that all its
rows see, and tiles on the diagonal. Only the middle ones go without a mask; what no row sees is never loaded.

Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head size, n slots. Query i stands at
position S − T + i.
"""

import triton
import triton.language as tl

from .tiles import (
    CLIPPED,
    CONTEXT_VECTOR,
    ELASTIC,
    ELEMENT_GATE,
    LN2,
    LOG2E,
    NO_VECTOR,
    ROW_GATE,
    SIGMOID,
    SINK_LOGIT,
    SINK_SLOTS,
    SOFTMAX,
    SOFTPICK,
    base2,
    gate,
    inside_clip,
    key_range,
    load_rows,
    load_tile,
    load_vector,
    log2_sigmoid,
    matmul,
    phase_range,
    program,
    shortfall,
    sigmoid,
    store_tile,
    visible,
    weights,
)


@triton.jit
def attend_tiles(
    acc, active, m, norm, largest, total, dots, squares, zeros, s_first,
    q, k_base, v_base, k_stride, v_stride, position, first, shift, number, softcap, scale, low, high, S,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, VALUES: tl.constexpr, ACTIVE: tl.constexpr, STATISTICS: tl.constexpr,
    MASKED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Go over the keys low … high − 1, tile by tile, and return the running quantities of the rows.

    acc: Σ w v, (M, D). active: Σ M P v (family B). m, norm: pivot and sum, base 2; for family B m is the finished lse.
    largest: the largest natural score before the soft-cap. total, dots, squares: Σ w, Σ w log2 w, Σ w², where sigmoid's
    w, as softmax's, are relative to the row's largest: the squares of small weights would be 0. zeros: visible keys of
    weight exactly 0. s_first: the natural score of the first key, before the soft-cap.
    """
    for start in range(low, high, BLOCK_N):
        k = load_tile(k_base, start, k_stride, S, D, BLOCK_N, BLOCK_D, MASKED)
        s = matmul(q, tl.trans(k), tl.zeros([q.shape[0], BLOCK_N], tl.float32), PRECISION, UPCAST)
        key = start + tl.arange(0, BLOCK_N)
        seen = visible(position, first, key)
        if STATISTICS:
            natural = s * scale
            if MASKED:
                natural = tl.where(seen, natural, float("-inf"))
            largest = tl.maximum(largest, tl.max(natural, 1))
            s_first += tl.sum(tl.where(key[None, :] == first[:, None], natural, 0.0), 1)
        if STATISTICS and SCORE == SIGMOID:
            s = log2_sigmoid(natural + number)
        else:
            s, _ = base2(s, scale, softcap, SOFTCAP)
        if MASKED:
            s = tl.where(seen, s, float("-inf"))

        if SCORE == SOFTMAX or (STATISTICS and SCORE == SIGMOID):
            m_new = tl.maximum(m, tl.max(s, 1))
            pivot = m_new
            if MASKED:
                pivot = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row that has seen no key yet
            w = tl.exp2(s - pivot[:, None])
            fall = m - pivot
            alpha = tl.exp2(fall)
            norm = norm * alpha + tl.sum(w, 1)
            m = m_new
        elif SCORE == SOFTPICK:
            m_new = tl.maximum(m, tl.max(s, 1))  # m starts at 0, so that e^{−m} cannot overflow
            e = tl.exp2(tl.maximum(s, 0.0) - m_new[:, None]) * shortfall(s)  # |e^s − 1|
            if MASKED:
                e = tl.where(seen, e, 0.0)
            fall = m - m_new
            alpha = tl.exp2(fall)
            norm = norm * alpha + tl.sum(e, 1)
            m = m_new
            w = tl.where(s > 0, e, 0.0)
        else:
            w = weights(s, m[:, None], number, shift[:, None], SCORE)
            if MASKED:
                w = tl.where(seen, w, 0.0)
            alpha = tl.full([q.shape[0]], 1.0, tl.float32)

        if STATISTICS:
            if SCORE == SOFTMAX or SCORE == SIGMOID or SCORE == SOFTPICK:
                dots = alpha * dots + tl.where(total > 0, alpha * fall * total, 0.0)
                total = alpha * total
                squares = alpha * alpha * squares
            total += tl.sum(w, 1)
            dots += tl.sum(tl.where(w > 0, w * tl.log2(w), 0.0), 1)
            squares += tl.sum(w * w, 1)
            if SCORE == SOFTPICK:
                zeros += tl.sum(tl.where(seen & (s <= 0), 1.0, 0.0), 1)
            elif SCORE == CLIPPED or SCORE == ELASTIC:
                zeros += tl.sum(tl.where(seen & (w == 0), 1.0, 0.0), 1)

        if VALUES:
            v = load_tile(v_base, start, v_stride, S, D, BLOCK_N, BLOCK_D, MASKED)
            if SCORE == SOFTMAX or SCORE == SOFTPICK:
                acc = acc * alpha[:, None]
            acc = matmul(w.to(v.dtype), v, acc, PRECISION, UPCAST)
            if ACTIVE:
                p = tl.exp2(s - m[:, None])
                if SCORE == CLIPPED:
                    slope = number - shift[:, None]
                    p = tl.where(inside_clip(slope * p + shift[:, None], number), slope * p, 0.0)
                else:
                    p = tl.where(w > 0, p, 0.0)
                active = matmul(p.to(v.dtype), v, active, PRECISION, UPCAST)
    return acc, active, m, norm, largest, total, dots, squares, zeros, s_first


@triton.jit
def forward_kernel(
    q, k, v, y, kept, lse, statistics,
    first_key, sink, slot_keys, slot_values, vector, vector_key, gate_logits, shift,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, y_batch, y_head, y_row,
    sink_batch, sink_head, sink_row, gate_batch, gate_head, gate_row, shift_batch, shift_head, shift_row,
    H, GROUP, T, S, ROWS, number, softcap, span, scale,
    SCORE: tl.constexpr, SOFTCAP: tl.constexpr, SINK: tl.constexpr, SLOTS: tl.constexpr, SLOT_VALUES: tl.constexpr,
    VECTOR: tl.constexpr, GATE: tl.constexpr, FIRST: tl.constexpr, KEEP: tl.constexpr, VALUES: tl.constexpr,
    STATISTICS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """y and lse of BLOCK_M rows of one head.

    lse (B, H, T): natural, −inf for an empty row; not written for sigmoid. kept (as y), with KEEP: what the backward
    needs and y cannot give: Σ a M P v of family B, or the row before its gate (half precision loses y / g).
    statistics (7, B, H, T), ROWS = B · H · T: largest score, entropy, effective support, zeros, weight of the first
    key, 1 if no key weighs more than the first, Σ of the weights (of softmax relative to the pivot).
    """
    # The longest rows start first: a grid runs in order, and the last tiles to start should be the short ones.
    tile, tiles, head, b, h = program(T, H, BLOCK_M)
    start_m = (tiles - 1 - tile) * BLOCK_M
    row = start_m + tl.arange(0, BLOCK_M)
    position = S - T + row
    q_tile = load_tile(q + b * q_batch + h * q_head, start_m, q_row, T, D, BLOCK_M, BLOCK_D, True)
    k_base = k + b * k_batch + (h // GROUP) * k_head
    v_base = v + b * v_batch + (h // GROUP) * v_head

    first, low, whole, diagonal, end = key_range(first_key + b * T, start_m, T, S, FIRST, BLOCK_M, BLOCK_N)

    shift_rows = tl.zeros([BLOCK_M], tl.float32)
    if SCORE == CLIPPED or SCORE == ELASTIC:
        shift_rows = load_rows(shift + b * shift_batch + h * shift_head, start_m, shift_row, T, BLOCK_M, 0.0, True)
    zero = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    active = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    norm = zero
    largest = zero + float("-inf")
    total = zero
    dots = zero
    squares = zero
    zeros = zero
    s_first = zero
    if SCORE == SOFTPICK:
        m = zero
    else:
        m = zero + float("-inf")

    if SCORE == CLIPPED or SCORE == ELASTIC:
        # First pass: the softmax's normaliser alone.
        for phase in tl.static_range(3 if FIRST else 2):
            phase_low, phase_high = phase_range(phase, low, whole, diagonal, end)
            _, _, m, norm, _, _, _, _, _, _ = attend_tiles(
                zero, zero, m, norm, zero, zero, zero, zero, zero, zero,
                q_tile, k_base, v_base, k_row, v_row, position, first, shift_rows, number, softcap, scale,
                phase_low, phase_high, S,
                SOFTMAX, SOFTCAP, False, False, False, phase != 0, D, BLOCK_D, BLOCK_N, PRECISION, UPCAST,
            )  # fmt: skip
        m = tl.where(norm > 0, m + tl.log2(norm), float("inf"))

    for phase in tl.static_range(3 if FIRST else 2):
        phase_low, phase_high = phase_range(phase, low, whole, diagonal, end)
        acc, active, m, norm, largest, total, dots, squares, zeros, s_first = attend_tiles(
            acc, active, m, norm, largest, total, dots, squares, zeros, s_first,
            q_tile, k_base, v_base, k_row, v_row, position, first, shift_rows, number, softcap, scale,
            phase_low, phase_high, S,
            SCORE, SOFTCAP, VALUES, KEEP and (SCORE == CLIPPED or SCORE == ELASTIC), STATISTICS, phase != 0,
            D, BLOCK_D, BLOCK_N, PRECISION, UPCAST,
        )  # fmt: skip

    # Explicit sinks enter the normaliser, by a pivot that cannot overflow.
    if SINK == SINK_LOGIT:
        s = load_rows(sink + b * sink_batch + h * sink_head, start_m, sink_row, T, BLOCK_M, 0.0, True) * LOG2E
        m_new = tl.maximum(m, s)
        pivot = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - pivot)
        norm = norm * alpha + tl.exp2(s - pivot)
        acc = acc * alpha[:, None]
        m = m_new
    elif SINK == SINK_SLOTS:
        for r in range(SLOTS):
            slot = load_vector(slot_keys + (h * SLOTS + r) * D, D, BLOCK_D)
            s = tl.sum(q_tile.to(tl.float32) * slot[None, :], 1) * (scale * LOG2E)
            m_new = tl.maximum(m, s)
            alpha = tl.exp2(m - m_new)
            p = tl.exp2(s - m_new)
            norm = norm * alpha + p
            acc = acc * alpha[:, None]
            if SLOT_VALUES:
                acc += p[:, None] * load_vector(slot_values + (h * SLOTS + r) * D, D, BLOCK_D)[None, :]
            m = m_new

    if SCORE == SOFTMAX or SCORE == SOFTPICK:
        lse2 = tl.where(norm > 0, m + tl.log2(norm), float("-inf"))
        acc = acc / tl.where(norm > 0, norm, 1.0)[:, None]
    else:
        lse2 = tl.where(m == float("inf"), float("-inf"), m)
    row_base = head * T
    if SCORE != SIGMOID:
        tl.store(lse + row_base + row, lse2 * LN2, mask=row < T)

    if STATISTICS:
        count = tl.where(largest > float("-inf"), tl.minimum(position - tl.maximum(first, 0) + 1, S), 0).to(tl.float32)
        safe = tl.where(total > 0, total, 1.0)
        lse_rows = tl.where(lse2 == float("-inf"), float("inf"), lse2)
        s, _ = base2(s_first, 1.0, softcap, SOFTCAP)
        w_first = tl.where(count > 0, weights(s, lse_rows, number, shift_rows, SCORE), 0.0)
        out = statistics + row_base + row
        tl.store(out, largest, mask=row < T)
        tl.store(out + ROWS, tl.where(total > 0, (tl.log2(safe) - dots / safe) * LN2, 0.0), mask=row < T)
        tl.store(
            out + 2 * ROWS, tl.where(total > 0, total * total / tl.where(squares > 0, squares, 1.0), 0.0), mask=row < T
        )
        tl.store(out + 3 * ROWS, zeros / tl.maximum(count, 1.0), mask=row < T)
        tl.store(out + 4 * ROWS, w_first, mask=row < T)
        most = (s_first >= largest) & (count > 0)
        if SCORE == SOFTPICK or SCORE == CLIPPED or SCORE == ELASTIC:
            most = most & (w_first > 0)
        tl.store(out + 5 * ROWS, tl.where(most, 1.0, 0.0), mask=row < T)
        if SCORE == SOFTPICK:
            total = total / tl.where(norm > 0, norm, 1.0)
        elif SCORE == SIGMOID:
            total = total * tl.exp2(m)
        tl.store(out + 6 * ROWS, total, mask=row < T)

    if VALUES:
        if VECTOR != NO_VECTOR:
            added = load_vector(vector + h * D, D, BLOCK_D)
            if VECTOR == CONTEXT_VECTOR:
                along = tl.sum(q_tile.to(tl.float32) * load_vector(vector_key + h * D, D, BLOCK_D)[None, :], 1) * scale
                acc += sigmoid(along - lse2 * LN2)[:, None] * added[None, :]
            else:
                acc += added[None, :]
        if KEEP:
            if SCORE == CLIPPED or SCORE == ELASTIC:
                kept_tile = active
            else:
                kept_tile = acc
            store_tile(kept + b * y_batch + h * y_head, start_m, y_row, T, kept_tile, D, BLOCK_M, BLOCK_D)
        if GATE == ROW_GATE:
            z = load_rows(gate_logits + b * gate_batch + h * gate_head, start_m, gate_row, T, BLOCK_M, 0.0, True)
            g, _, _ = gate(z, span)
            acc = acc * g[:, None]
        elif GATE == ELEMENT_GATE:
            z = load_tile(gate_logits + b * gate_batch + h * gate_head, start_m, gate_row, T, D, BLOCK_M, BLOCK_D, True)
            g, _, _ = gate(z.to(tl.float32), span)
            acc = acc * g
        store_tile(y + b * y_batch + h * y_head, start_m, y_row, T, acc, D, BLOCK_M, BLOCK_D)
