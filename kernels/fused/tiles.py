"""What every kernel shares: one tile of scores, and what each score family makes of it.

Scores are in base 2 inside the kernels (s · log2 e), so that exp2 and log2 are single instructions; natural
logarithms stand at every boundary. Formulas: ../README.md; the specification: ../reference.py.

Names: M query rows and N keys of a tile, D head size. `lse` is a row's normaliser in base 2, +inf for a row without
keys, so that its weights are 0.
"""

import triton
import triton.language as tl

SOFTMAX: tl.constexpr = tl.constexpr(0)
SIGMOID: tl.constexpr = tl.constexpr(1)
SOFTPICK: tl.constexpr = tl.constexpr(2)
CLIPPED: tl.constexpr = tl.constexpr(3)
ELASTIC: tl.constexpr = tl.constexpr(4)

NO_SINK: tl.constexpr = tl.constexpr(0)
SINK_LOGIT: tl.constexpr = tl.constexpr(1)
SINK_SLOTS: tl.constexpr = tl.constexpr(2)

NO_GATE: tl.constexpr = tl.constexpr(0)
ROW_GATE: tl.constexpr = tl.constexpr(1)
ELEMENT_GATE: tl.constexpr = tl.constexpr(2)

NO_VECTOR: tl.constexpr = tl.constexpr(0)
FIXED_VECTOR: tl.constexpr = tl.constexpr(1)
CONTEXT_VECTOR: tl.constexpr = tl.constexpr(2)

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST_GATE: tl.constexpr = tl.constexpr(-85.0)  # e^85 is still a float32: a gate logit below it is taken as this


@triton.jit
def program(length, H, BLOCK: tl.constexpr):
    """Which tile of which head this program has: (tile, number of tiles, b · H + h, b, h).

    The grid has one dimension: the others end at 65,535 programs.
    """
    tiles = (length + BLOCK - 1) // BLOCK
    head = tl.program_id(0) // tiles
    return (
        tl.program_id(0) % tiles,
        tiles,
        tl.cast(head, tl.int64),
        tl.cast(head // H, tl.int64),
        tl.cast(head % H, tl.int64),
    )


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a @ b in float32. UPCAST: the interpreter multiplies bfloat16 wrongly, so it is given float32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def load_tile(
    base, start, stride, length, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """Rows start … start + N − 1 of a (length, D) matrix with adjacent columns: (N, BLOCK_D), 0 outside."""
    row = tl.arange(0, N)
    column = tl.arange(0, BLOCK_D)
    pointers = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]
    if MASKED:
        inside = (row < length - start)[:, None]
        if D != BLOCK_D:
            inside = inside & (column < D)[None, :]
        return tl.load(pointers, mask=inside, other=0.0)
    elif D != BLOCK_D:
        return tl.load(pointers, mask=(column < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(base, start, stride, length, tile, D: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The counterpart of `load_tile`, always within (length, D)."""
    row = tl.arange(0, N)
    column = tl.arange(0, BLOCK_D)
    inside = (start + row < length)[:, None] & (column < D)[None, :]
    pointers = base + tl.cast(start, tl.int64) * stride + row[:, None] * stride + column[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def load_vector(base, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """D adjacent numbers as float32, 0 beyond."""
    column = tl.arange(0, BLOCK_D)
    return tl.load(base + column, mask=column < D, other=0.0).to(tl.float32)


@triton.jit
def load_rows(base, start, stride, length, N: tl.constexpr, other, MASKED: tl.constexpr):
    """One number for each of N rows as float32, `other` beyond the length."""
    row = tl.arange(0, N)
    pointers = base + tl.cast(start, tl.int64) * stride + row * stride
    if MASKED:
        return tl.load(pointers, mask=row < length - start, other=other).to(tl.float32)
    else:
        return tl.load(pointers).to(tl.float32)


@triton.jit
def sigmoid(x):
    """The logistic function, without overflow warnings at either end: exp of a large number is inf, 1 / inf is 0."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def base2(products, scale, softcap, SOFTCAP: tl.constexpr):
    """Scores in base 2 of the products q·k, and the derivative of the soft-cap c · tanh(s / c) (1 without one)."""
    if SOFTCAP:
        # tanh |x| = (1 − e^{−2|x|}) / (1 + e^{−2|x|})
        twice = products * (2.0 * LOG2E * scale / softcap)
        tanh = shortfall(twice) / (1.0 + tl.exp2(-tl.abs(twice)))
        tanh = tl.where(twice < 0, -tanh, tanh)
        return tanh * (softcap * LOG2E), 1.0 - tanh * tanh
    else:
        return products * (scale * LOG2E), 1.0


@triton.jit
def key_range(first_key, start_m, T, S, FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first key of each of BLOCK_M rows, and where their keys lie: (first, low, whole, diagonal, end).

    Keys first_key_i … i are visible to row i. All rows see the keys whole … diagonal − 1; of low … whole − 1 and
    diagonal … end − 1 each row sees some; no row sees any other. low, whole and diagonal lie on key tiles.
    """
    position = S - T + start_m
    end = tl.minimum(position + BLOCK_M, S)
    diagonal = (position + 1) // BLOCK_N * BLOCK_N
    if FIRST:
        row = start_m + tl.arange(0, BLOCK_M)
        first = tl.maximum(tl.load(first_key + row, mask=row < T, other=2147483647), 0)
        low = tl.min(first, 0) // BLOCK_N * BLOCK_N
        last = tl.max(tl.where(row < T, first, 0), 0)
        whole = tl.minimum(tl.maximum((last + BLOCK_N - 1) // BLOCK_N * BLOCK_N, low), end)
        return first, low, whole, tl.maximum(diagonal, whole), end
    else:
        return tl.zeros([BLOCK_M], tl.int32), 0, 0, diagonal, end


@triton.jit
def phase_range(PHASE: tl.constexpr, low, whole, diagonal, end):
    """The keys of one phase of the loop: 0 those that all rows see, 1 the diagonal, 2 those that first keys cut."""
    if PHASE == 0:
        return whole, diagonal
    elif PHASE == 1:
        return diagonal, end
    else:
        return low, whole


@triton.jit
def query_range(last_query, start_n, T, S, FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the rows lie that see BLOCK_N keys: (low, whole, high).

    Rows from `whole` on lie behind every key; of low … whole − 1 (the diagonal) each sees some; no row outside
    low … high − 1 sees any. last_query (S): the last row that sees each key, never falling, −1 where none does.
    """
    offset = S - T
    low = tl.maximum(start_n - offset, 0) // BLOCK_M * BLOCK_M
    whole = (tl.maximum(start_n + BLOCK_N - 1 - offset, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    high = T
    if FIRST:
        key = start_n + tl.arange(0, BLOCK_N)
        high = tl.minimum(tl.max(tl.load(last_query + key, mask=key < S, other=-1), 0) + 1, T)
    return low, tl.minimum(whole, high), high


@triton.jit
def visible_keys(start_n, start_m, first_key, T, S, FIRST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(N, M): whether each row of a tile of queries sees each key of a tile of keys."""
    key = start_n + tl.arange(0, BLOCK_N)
    row = start_m + tl.arange(0, BLOCK_M)
    seen = (key[:, None] <= (S - T + row)[None, :]) & (row < T)[None, :]
    if FIRST:
        seen = seen & (key[:, None] >= tl.load(first_key + row, mask=row < T, other=2147483647)[None, :])
    return seen


@triton.jit
def visible(position, first, key):
    """(M, N): whether the row at `position` (M) sees `key` (N)."""
    return (key[None, :] <= position[:, None]) & (key[None, :] >= first[:, None])


@triton.jit
def shortfall(s):
    """1 − 2^−|s|: for small |s| by its series, where the difference would lose its digits."""
    x = tl.abs(s) * LN2
    series = 1.0 - x / 6.0 * (1.0 - x / 7.0)
    series = 1.0 - x / 3.0 * (1.0 - x / 4.0 * (1.0 - x / 5.0 * series))
    return tl.where(x < 0.35, x * (1.0 - x / 2.0 * series), 1.0 - tl.exp2(-tl.abs(s)))


@triton.jit
def log2_sigmoid(x):
    """log2 σ(x): e^{−|x|} never overflows, and the logarithm keeps its precision at both ends."""
    return tl.minimum(x, 0.0) * LOG2E - tl.log2(1.0 + tl.exp2(-tl.abs(x) * LOG2E))


@triton.jit
def gate(logits, span):
    """g = span · σ(z), log2 g and 1 − σ(z), z clamped so that 1 / g stays finite."""
    z = tl.maximum(logits, LOWEST_GATE)
    small = tl.exp2(-tl.abs(z) * LOG2E)
    one_minus = tl.where(z > 0, small, 1.0) / (1.0 + small)
    return span * sigmoid(z), tl.log2(span) + log2_sigmoid(z), one_minus


@triton.jit
def weights(s, lse, number, shift, SCORE: tl.constexpr):
    """The finished weight of each score (base 2), given its row's lse and shift broadcast against it.

    number: the bias of sigmoid, ζ of clipped. Scores of −inf have the weight 0, but for families B and D, which are
    masked by the caller.
    """
    if SCORE == SIGMOID:
        return 1.0 / (1.0 + tl.exp2(-(s + number * LOG2E)))
    elif SCORE == SOFTPICK:
        return tl.where(s > 0, tl.exp2(s - lse) * shortfall(s), 0.0)
    elif SCORE == CLIPPED:
        return tl.minimum(tl.maximum((number - shift) * tl.exp2(s - lse) + shift, 0.0), 1.0)
    elif SCORE == ELASTIC:
        return tl.maximum(tl.exp2(s - lse) + shift, 0.0)
    else:
        return tl.exp2(s - lse)


@triton.jit
def inside_clip(unclipped, number):
    """Where a clipped weight follows P. At ζ <= 1 the upper limit never binds; rounding must not make it bind.

    The forward's Σ a M P v and the backward's M have to agree where P is 1 but for rounding.
    """
    return (unclipped > 0) & (unclipped < tl.where(number > 1.0, 1.0, 2.0))


@triton.jit
def single_key(start_m, first_key, T, S, FIRST: tl.constexpr, BLOCK_M: tl.constexpr):
    """(M): whether a row sees one key alone.

    Its weight does not then depend on the score: of its dS only what dL gives is left, which Δ = −dL and no dP give.
    A clip's limit may lie exactly there, and softpick would multiply what rounding leaves of dP − Δ by 1 / |S|.
    """
    row = start_m + tl.arange(0, BLOCK_M)
    if FIRST:
        return tl.maximum(tl.load(first_key + row, mask=row < T, other=2147483647), 0) == S - T + row
    else:
        return S - T + row == 0


@triton.jit
def weights_and_gradient(s, lse, delta, dP, number, shift, SCORE: tl.constexpr):
    """The weights, dS of the natural score before τ and soft-cap, and the share of dP that reaches `shift`.

    dP_ij = dO_i·v_j. Softmax: P (dP − Δ). Clipped, elastic: P (a M dP − Δ), M where the weight is strictly inside the
    clip. Sigmoid: P (1 − P) dP. Softpick: e^{S−L} (1[S > 0] dP − sign(S) Δ).
    """
    if SCORE == SIGMOID:
        P = weights(s, lse, number, shift, SCORE)
        return P, P * (1.0 - P) * dP, dP
    elif SCORE == SOFTPICK:
        e = tl.exp2(s - lse)
        P = tl.where(s > 0, e * shortfall(s), 0.0)
        return P, e * (tl.where(s > 0, dP - delta, tl.where(s < 0, delta, 0.0))), dP
    elif SCORE == CLIPPED:
        p = tl.exp2(s - lse)
        a = number - shift
        unclipped = a * p + shift
        active = tl.where(inside_clip(unclipped, number), dP, 0.0)
        return tl.minimum(tl.maximum(unclipped, 0.0), 1.0), p * (a * active - delta), active
    elif SCORE == ELASTIC:
        p = tl.exp2(s - lse)
        unclipped = p + shift
        active = tl.where(unclipped > 0, dP, 0.0)
        return tl.maximum(unclipped, 0.0), p * (active - delta), active
    else:
        P = tl.exp2(s - lse)
        return P, P * (dP - delta), dP
