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
    "SMOOTH",
    "argument",
    "edge_tile",
    "kept",
    "load_rows",
    "over_keys",
    "over_rows",
    "query_block",
    "row_ranges",
    "row_units",
    "tile_scores",
]

ADAPTIVE, ANCHORED, FIXED, SMOOTH = 0, 1, 2, 3


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
def row_ranges(LO, HI, rows, q_len, BN: tl.constexpr):
    """Key range [lo, hi) of each row, and in tiles: all that any row sees, and those that every row sees in full."""
    valid = rows < q_len
    lo = tl.load(LO + rows, mask=valid, other=0)
    hi = tl.load(HI + rows, mask=valid, other=0)
    some = valid & (hi > lo)
    big = 2147483647
    first = tl.min(tl.where(some, lo, big), 0)
    last = tl.max(tl.where(some, hi, 0), 0)
    first = tl.minimum(first, last) // BN
    last = (last + BN - 1) // BN
    inner = (tl.max(tl.where(valid, lo, 0), 0) + BN - 1) // BN
    outer = tl.min(tl.where(valid, hi, big), 0) // BN
    empty = outer <= inner
    inner = tl.where(empty, last, inner)
    outer = tl.where(empty, last, outer)
    return lo, hi, first, inner, outer, last


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

    −inf where a key is hidden. Without GENERAL the scores are plain products q·k, still to be scaled; otherwise they
    are complete. EDGE: the tile may hold keys outside a row's range. BIAS_KIND: 0 none, 1 boolean mask, 2 added.
    """
    if T:
        raw = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    else:
        raw = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    keys = start + tl.arange(0, BN)
    if EUCLIDEAN:
        half = tl.load(K_HALF + keys, mask=keys < k_len, other=0.0)
        raw = raw - over_rows(q_half, T) - over_keys(half, T)
    z = raw
    if GENERAL:
        z = raw * over_rows(scale, T)
        if EUCLIDEAN:
            # Rounding may give a distance below zero; its clamp has no gradient.
            z = tl.minimum(z, 0.0)
        if ALIBI:
            z -= slope * tl.abs(over_rows(position, T) - over_keys(keys, T)).to(tl.float32)
    if BIAS_KIND != 0:
        there = over_rows(rows < q_len, T) & over_keys(keys < k_len, T)
        ptr = BIAS + over_rows(rows.to(tl.int64) * bias_i, T) + over_keys(keys.to(tl.int64) * bias_j, T)
        if BIAS_KIND == 1:
            z = tl.where(tl.load(ptr, mask=there, other=0) != 0, z, float("-inf"))
        else:
            z += tl.load(ptr, mask=there, other=0.0).to(tl.float32)
    if EDGE:
        z = tl.where(
            (over_keys(keys, T) >= over_rows(lo, T)) & (over_keys(keys, T) < over_rows(hi, T)), z, float("-inf")
        )
    return z, raw


@triton.jit
def row_units(scale, top, order, GENERAL: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr):
    """(factor, level, gain) of each row before its threshold is known; gain multiplies the profile's derivative.

    POWER: the profile is a power of its argument, so that it may be taken relative to its largest value.
    EMPTY: what a row of the fixed rule without a key in reach does: 0 nothing, 1 all keys, 2 the nearest key.
    """
    factor = tl.zeros_like(scale) + 1.0
    if not GENERAL:
        factor = scale
    if RULE != 3:
        factor = factor / order
    # Without a scale every key is as good as the best.
    factor = tl.maximum(factor, 1e-30)
    level = tl.zeros_like(scale) + 1.0
    gain = tl.zeros_like(scale) + 1.0
    if RULE == 3:
        level = tl.zeros_like(scale)
    if RULE == 2:
        reach = 1.0 + top * factor
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
def argument(z, reference, factor, level, T: tl.constexpr):
    return over_rows(level, T) + (z - over_rows(reference, T)) * over_rows(factor, T)


@triton.jit
def kept(SEED, head, rows, start, drop, BN: tl.constexpr, T: tl.constexpr):
    """0 or 1/(1 − drop) per weight: a function of the seed, the head, the query and the key alone."""
    keys = start + tl.arange(0, BN)
    zero = over_rows(rows * 0, T) + over_keys(keys * 0, T)
    c0 = (zero + over_rows(rows, T)).to(tl.uint32)
    c1 = (zero + over_keys(keys, T)).to(tl.uint32)
    c2 = (zero + head).to(tl.uint32)
    bits, other1, other2, other3 = tl.philox(tl.load(SEED), c0, c1, c2, zero.to(tl.uint32))
    chosen = tl.uint_to_uniform_float(bits) >= drop
    return tl.where(chosen, 1.0 / (1.0 - drop), 0.0)


@triton.jit
def query_block(
    Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len,
    q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, EVEN: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr,
):  # fmt: skip
    """(queries, scale, ‖q‖²/2, position, ALiBi slope) of BM rows of one head; blanks for what is not used.

    ``block`` counts in BM rows; EVEN: all of them exist.
    """
    valid = rows < q_len
    scale = tl.load(
        SCALE + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + rows.to(tl.int64) * s_l, mask=valid, other=0.0
    )
    q = load_rows(Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, block * BM, q_l, q_len, BM, D, DP, EVEN)
    half = scale
    if EUCLIDEAN:
        half = tl.load(Q_HALF + (b * heads + h).to(tl.int64) * q_len + rows, mask=valid, other=0.0)
    position = rows
    slope = 0.0
    if ALIBI:
        position = tl.load(POSITION + rows, mask=valid, other=0)
        slope = tl.load(SLOPES + b * a_b + h * a_h)
    return q, scale, half, position, slope
