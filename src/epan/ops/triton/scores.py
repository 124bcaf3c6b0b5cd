"""What every kernel of this package shares: tiles, the scores of a tile, and the profile's argument.

Notation: r is a score as :func:`tile_scores` returns it, f the factor that makes f·r a score in units of the support,
u = level + f(r − reference) the argument of the profile, which gives weight where u > 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "ADAPTIVE",
    "ANCHORED",
    "FIXED",
    "NEAREST",
    "SMOOTH",
    "argument",
    "block_tiles",
    "clean",
    "edge_tile",
    "kept",
    "load_rows",
    "over_keys",
    "over_rows",
    "own_half",
    "query_block",
    "rounded",
    "row_factor",
    "row_range",
    "row_scale",
    "row_units",
    "tile_scores",
]

ADAPTIVE, ANCHORED, FIXED, SMOOTH, NEAREST = 0, 1, 2, 3, 4


@triton.jit
def over_rows(x, T: tl.constexpr):
    """A value per query, to broadcast over a tile (rows, keys), or (keys, rows) if T."""
    if T:
        return x[None, :]
    else:
        return x[:, None]


@triton.jit
def over_keys(x, T: tl.constexpr):
    """A value per key, to broadcast over a tile (rows, keys), or (keys, rows) if T."""
    if T:
        return x[:, None]
    else:
        return x[None, :]


@triton.jit
def load_rows(base, start, stride, limit, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, FULL: tl.constexpr):
    """(N, DP) rows from ``start``; zero beyond ``limit`` (unless FULL: all N exist) and beyond the head size D."""
    rows = tl.arange(0, N)
    cols = tl.arange(0, DP)
    ptr = base + start.to(tl.int64) * stride + rows[:, None].to(tl.int64) * stride + cols[None, :]
    if FULL:
        if D == DP:
            return tl.load(ptr)
        else:
            return tl.load(ptr, mask=cols[None, :] < D, other=0.0)
    else:
        return tl.load(ptr, mask=(start + rows < limit)[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def block_tiles(
    LO, HI, block, left, right, q_len, k_len, BM: tl.constexpr, BN: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """In tiles of keys: [first, last) that any row of a block sees, and [inner, outer) that every row sees in full.

    Without PACKED row i sees the keys i − left … i + right; with it the ranges are read from LO and HI.
    """
    begin = block * BM
    end = tl.minimum(begin + BM, q_len) - 1
    if PACKED:
        rows = begin + tl.arange(0, BM)
        valid = rows < q_len
        lo = tl.load(LO + rows, mask=valid, other=0)
        hi = tl.load(HI + rows, mask=valid, other=0)
        some = valid & (hi > lo)
        big = 2147483647
        first = tl.min(tl.where(some, lo, big), 0)
        last = tl.max(tl.where(some, hi, 0), 0)
        first = tl.minimum(first, last)
        inner = tl.max(tl.where(valid, lo, 0), 0)
        outer = tl.min(tl.where(valid, hi, big), 0)
    else:
        # Rows that see any key are a range too.
        one = tl.maximum(begin, -right)
        two = tl.minimum(end, k_len - 1 + left)
        none = (one > two) | (left + right < 0)
        first = tl.where(none, 0, tl.maximum(one - left, 0))
        last = tl.where(none, 0, tl.minimum(two + right + 1, k_len))
        inner = tl.maximum(end - left, 0)
        outer = tl.where(none | (one > begin) | (two < end), 0, tl.minimum(begin + right + 1, k_len))
    first = first // BN
    last = (last + BN - 1) // BN
    inner = (inner + BN - 1) // BN
    outer = outer // BN
    empty = outer <= inner
    inner = tl.where(empty, last, inner)
    outer = tl.where(empty, last, outer)
    return first, inner, outer, last


@triton.jit
def row_range(LO, HI, rows, left, right, q_len, k_len, PACKED: tl.constexpr):
    """Keys [lo, hi) that each row sees."""
    if PACKED:
        lo = tl.load(LO + rows, mask=rows < q_len, other=0)
        hi = tl.load(HI + rows, mask=rows < q_len, other=0)
    else:
        lo = tl.maximum(rows - left, 0)
        hi = tl.minimum(rows + right + 1, k_len)
    return lo, hi


@triton.jit
def clean(x):
    """Non-finite entries set to zero: a weight of zero times infinity would be NaN."""
    return tl.where((x - x) == 0, x, tl.zeros_like(x))


@triton.jit
def edge_tile(step, first, inner, outer):
    """The number of the step-th tile of [first, inner) and [outer, …)."""
    tile = first + step
    return tl.where(tile >= inner, tile - inner + outer, tile)


@triton.jit
def tile_scores(
    q, k, scale, q_half, K_HALF, BIAS, bias_i, bias_j, slope, position, lo, hi, rows, start, q_len, k_len,
    BN: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    EDGE: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of a tile (rows, keys), or (keys, rows) if T, and their derivative with respect to the scale.

    −inf where a key is hidden. With GENERAL the scores are complete. Without, they are still to be scaled: q·k, or
    EUCLIDEAN q·k − ‖k‖²/2, which is ‖q‖²/2 too high; ``q_half`` is then the sign of the scale. EDGE: the tile may hold keys outside a row's range. BIAS_KIND: 0 none, 1 boolean mask, 2 added.
    """
    if T:
        raw = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    else:
        raw = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    keys = start + tl.arange(0, BN)
    if EUCLIDEAN:
        half = tl.load(K_HALF + keys, mask=keys < k_len, other=0.0)
        if GENERAL:
            raw = raw - over_rows(q_half, T) - over_keys(half, T)
        else:
            # ‖q‖²/2 is the same for all keys: without it this is one operation.
            raw = raw - over_rows(q_half, T) * over_keys(half, T)
    z = raw
    if GENERAL:
        if EUCLIDEAN:
            # Rounding may give a distance below zero; its clamp has no gradient.
            z = tl.minimum(z, 0.0)
        z = z * over_rows(scale, T)
        if ALIBI:
            z -= slope * tl.abs(over_rows(position, T) - over_keys(keys, T)).to(tl.float32)
    if BIAS_KIND != 0:
        there = over_rows(rows < q_len, T) & over_keys(keys < k_len, T)
        ptr = BIAS + over_rows(rows.to(tl.int64) * bias_i, T) + over_keys(keys.to(tl.int64) * bias_j, T)
        if BIAS_KIND == 1:
            z = tl.where(tl.load(ptr, mask=there, other=0) != 0, z, float("-inf"))
        else:
            added = tl.load(ptr, mask=there, other=0.0).to(tl.float32)
            # A hidden score may be NaN.
            z = tl.where(added == float("-inf"), float("-inf"), z + added)
    if EDGE:
        z = tl.where(
            (over_keys(keys, T) >= over_rows(lo, T)) & (over_keys(keys, T) < over_rows(hi, T)), z, float("-inf")
        )
    return z, raw


@triton.jit
def own_half(q, sign, EUCLIDEAN: tl.constexpr, GENERAL: tl.constexpr):
    """By how much the scores of :func:`tile_scores` are too high: ‖q‖²/2 with the sign of the scale, or 0."""
    if EUCLIDEAN and not GENERAL:
        wide = clean(q.to(tl.float32))
        return tl.sum(wide * wide, 1) * 0.5 * sign
    else:
        return tl.zeros([q.shape[0]], tl.float32)


@triton.jit
def row_factor(scale, order, GENERAL: tl.constexpr, RULE: tl.constexpr):
    """What makes a score one in units of the support."""
    factor = tl.zeros_like(scale) + 1.0
    if not GENERAL:
        factor = scale
    if RULE != 3:
        factor = factor / order
    # Without a scale every key is as good as the best.
    return tl.maximum(factor, 1e-30)


@triton.jit
def row_units(scale, reach, order, GENERAL: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr):
    """(factor, level, gain) of each row before its threshold is known; gain multiplies the profile's derivative.

    ``reach`` (RULE 2): the argument of the profile at the best key, from distance zero.
    POWER: the profile is a power of its argument, so that it may be taken relative to its largest value.
    EMPTY: what a row of the fixed rule without a key in reach does: 0 nothing, 1 all keys, 2 the nearest key.
    """
    factor = row_factor(scale, order, GENERAL, RULE)
    level = tl.zeros_like(scale) + 1.0
    gain = tl.zeros_like(scale) + 1.0
    if RULE == 3:
        level = tl.zeros_like(scale)
    if RULE == 2:
        full = reach > 0
        hollow = 1e30
        if EMPTY == 1:
            hollow = 1e-30
        above = level
        if POWER:
            # Relative to its largest value a power cannot underflow.
            safe = tl.where(full, reach, 1.0)
            gain = tl.where(full, 1.0 / safe, 0.0)
            factor = tl.where(full, factor / safe, hollow)
        else:
            gain = tl.where(full, 1.0, 0.0)
            factor = tl.where(full, factor, hollow)
            above = tl.where(full, reach, 1.0)
        level = above
        if EMPTY == 0:
            level = tl.where(full, above, -1.0)
    return factor, level, gain


@triton.jit
def argument(z, reference, factor, level, RULE: tl.constexpr, T: tl.constexpr):
    """u = level + f(z − reference): in this order, because large scores have no digits left for a sum with the level."""
    u = over_rows(level, T) + (z - over_rows(reference, T)) * over_rows(factor, T)
    if RULE == 2:
        # The factor of a row without a key in reach is huge.
        u = tl.minimum(u, over_rows(level, T))
    return u


@triton.jit
def rounded(t, D_TYPE: tl.constexpr):
    """t as it is after rounding to a 16-bit dtype, still in float32.

    On its bits, because with a conversion there and back the compiler no longer converts two at a time.
    """
    if tl.constexpr(tl.bfloat16 == D_TYPE):
        return ((t.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
    elif tl.constexpr(tl.float16 == D_TYPE):
        return ((t.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    else:
        return t


@triton.jit
def _mixed(x, other):
    """A number whose upper bits depend on every bit of x, and of ``other``: rounds of shift, exclusive or and multiply."""
    x = (x ^ (x >> 16)) * 0x7FEB352D + other
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def kept(SEED, head, rows, start, drop, BN: tl.constexpr, T: tl.constexpr):
    """0 or 1/(1 − drop) per weight: a function of the seed, the head, the query and the key alone.

    A Philox number for each query of each head, mixed with one for each key: a Philox number for each weight would take
    four registers of every thread for each of its weights, and many times as long as the weight.
    """
    zero = rows * 0
    one, two, other1, other2 = tl.philox(
        tl.load(SEED), rows.to(tl.uint32), (zero + head).to(tl.uint32), zero.to(tl.uint32), zero.to(tl.uint32)
    )
    keys = (start + tl.arange(0, BN)).to(tl.uint32)
    bits = _mixed(over_rows(one, T) ^ over_keys(_mixed(keys, 0x9E3779B9), T), over_rows(two, T))
    limit = ((zero + drop) * 4294967296.0).to(tl.uint32)
    chosen = (bits >= over_rows(limit, T)) & (drop < 1.0)
    return tl.where(chosen, 1.0 / tl.maximum(1.0 - drop, 1e-30), 0.0)


@triton.jit
def row_scale(SCALE, b, h, rows, valid, s_b, s_h, s_l, BM: tl.constexpr, UNIFORM: tl.constexpr):
    """The scale of BM rows of one head; UNIFORM: one for all."""
    SCALE += b.to(tl.int64) * s_b + h.to(tl.int64) * s_h
    if UNIFORM:
        return tl.zeros([BM], tl.float32) + tl.load(SCALE)
    else:
        return tl.load(SCALE + rows.to(tl.int64) * s_l, mask=valid, other=0.0)


@triton.jit
def query_block(
    Q, SCALE, SLOPES, POSITION, b, h, part, rows, q_len, offset,
    q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, EVEN: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr,
    UNIFORM: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """(queries, scale, its sign, ‖q‖²/2, position, ALiBi slope) of BM rows of one head; blanks for what is not used.

    ``part`` counts in BM rows; EVEN: all of them exist; UNIFORM: one scale for all. A plain product must grow with the score, so that with a negative
    scale (SIGNED: there may be one) the query changes its sign (TURN) instead.
    """
    valid = rows < q_len
    scale = row_scale(SCALE, b, h, rows, valid, s_b, s_h, s_l, BM, UNIFORM)
    q = load_rows(Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, part * BM, q_l, q_len, BM, D, DP, EVEN)
    sign = 1.0
    if SIGNED and not GENERAL:
        sign = tl.where(scale < 0, -1.0, 1.0)
        scale = tl.abs(scale)
        if TURN:
            q = (q * sign[:, None]).to(q.dtype)
    half = scale
    if EUCLIDEAN:
        if GENERAL:
            wide = clean(q.to(tl.float32))
            half = tl.sum(wide * wide, 1) * 0.5
        else:
            half = tl.zeros([BM], tl.float32) + sign
    position = rows + offset
    slope = 0.0
    if ALIBI:
        if PACKED:
            position = tl.load(POSITION + rows, mask=valid, other=0)
        slope = tl.load(SLOPES + b * a_b + h * a_h)
    return q, scale, sign, half, position, slope
