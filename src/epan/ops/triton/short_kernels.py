"""Attention on sequences so short that a block of queries has all of its scores in registers: one kernel each way.

Nothing is listed, skipped or read twice; the threshold is searched on scores that are there. Registers hold powers of two:
the keys are a block of BN and a tail of TAIL, which may be none, so that one key more than a power of two does not double
the work. What stands for the tail's numbers where there is none is not used.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .assembler import entry
from .forward import newton, next_level
from .scores import argument, clean, kept, load_rows, row_scale, row_units

__all__ = ["short_backward", "short_forward"]


@triton.jit
def _bad_rows(x):
    """1 for each row of x that has an entry that is not finite."""
    return tl.max(((x - x) != 0).to(tl.int32), 1)


@triton.jit
def _distance(rows, offset, first, BN: tl.constexpr):
    return tl.abs((rows + offset)[:, None] - (first + tl.arange(0, BN))[None, :]).to(tl.float32)


@triton.jit
def _seen(rows, first, k_len, left, right, BN: tl.constexpr):
    keys = (first + tl.arange(0, BN))[None, :]
    return (keys >= (rows - left)[:, None]) & (keys <= (rows + right)[:, None]) & (keys < k_len)


@triton.jit
def _scores(
    q, k, scale, slope, rows, first, k_len, left, right, offset,
    BN: tl.constexpr, EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(scores of the BN keys from ``first``, −∞ where hidden; what β multiplies in them)."""
    raw = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if EUCLIDEAN:
        wide_q = q.to(tl.float32)
        wide_k = k.to(tl.float32)
        raw = raw - tl.sum(wide_q * wide_q, 1)[:, None] * 0.5 - tl.sum(wide_k * wide_k, 1)[None, :] * 0.5
        # Rounding may give a distance below zero.
        raw = tl.minimum(raw, 0.0)
    z = raw * scale[:, None]
    if ALIBI:
        z -= slope * _distance(rows, offset, first, BN)
    return tl.where(_seen(rows, first, k_len, left, right, BN), z, float("-inf")), raw


@triton.jit
def _places(z):
    """Scores as integers in the order of the numbers; −0 equals 0, and what is hidden comes first."""
    bits = z.to(tl.int32, bitcast=True)
    place = tl.where(z == 0, 0, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
    return tl.where(z > float("-inf"), place, -2147483648)


@triton.jit
def _kth(z, z2, k, TAIL: tl.constexpr):
    """A number that as many scores of each row reach as its k-th best does, −∞ if it has no more than k: a bisection on bits.

    It is the k-th best score itself where others tie with that.
    """
    place = _places(z)
    place2 = place
    many = tl.sum((z > float("-inf")).to(tl.int32), 1)
    low = tl.min(tl.where(z > float("-inf"), place, 2147483647), 1)
    high = tl.max(place, 1)
    if TAIL > 0:
        place2 = _places(z2)
        many += tl.sum((z2 > float("-inf")).to(tl.int32), 1)
        low = tl.minimum(low, tl.min(tl.where(z2 > float("-inf"), place2, 2147483647), 1))
        high = tl.maximum(high, tl.max(place2, 1))
    # At least k scores reach low, fewer reach what is above high.
    low = tl.where(many > k, low, -2147483648)
    todo = tl.max((many > k).to(tl.int32), 0)
    while todo > 0:
        # The mean, rounded up, without overflow.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        count = tl.sum((place >= middle[:, None]).to(tl.int32), 1)
        if TAIL > 0:
            count += tl.sum((place2 >= middle[:, None]).to(tl.int32), 1)
        going = (many > k) & (low < high)
        low = tl.where(going & (count >= k), middle, low)
        high = tl.where(going & (count < k), middle - 1, high)
        many = tl.where(going & (count >= k), count, many)
        todo = tl.max(((many > k) & (low < high)).to(tl.int32), 0)
    last = tl.where(low < 0, low ^ 0x7FFFFFFF, low).to(tl.float32, bitcast=True)
    return tl.where(low == -2147483648, float("-inf"), last)


@triton.jit
def _member(z, last, share, reference, SMOOTH: tl.constexpr):
    p = tl.where(z > last[:, None], 1.0, tl.where(z == last[:, None], share[:, None], 0.0))
    p = tl.where(z > float("-inf"), p, 0.0)
    if SMOOTH:
        p *= tl.exp(z - reference[:, None])
    return p


@triton.jit
def _members(z, z2, last, reference, k, SMOOTH: tl.constexpr, TAIL: tl.constexpr):
    """Weights of the k best keys of each row before they are normalised; keys that tie with the k-th share its places."""
    over = tl.sum((z > last[:, None]).to(tl.int32), 1)
    tied = tl.sum(((z == last[:, None]) & (z > float("-inf"))).to(tl.int32), 1)
    if TAIL > 0:
        over += tl.sum((z2 > last[:, None]).to(tl.int32), 1)
        tied += tl.sum(((z2 == last[:, None]) & (z2 > float("-inf"))).to(tl.int32), 1)
    share = tl.minimum(tl.maximum(k - over, 0).to(tl.float32) / tl.maximum(tied, 1).to(tl.float32), 1.0)
    p = _member(z, last, share, reference, SMOOTH)
    p2 = p
    if TAIL > 0:
        p2 = _member(z2, last, share, reference, SMOOTH)
    return p, p2


@triton.jit
def _units(
    q, reference, scale, order, EUCLIDEAN: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr
):  # fmt: skip
    """(factor, level, gain, pivot, blur) of each row: u = level + factor·(z − pivot); see ``row_units``."""
    reach = 1.0 + reference / order
    factor, level, gain = row_units(scale, reach, order, True, RULE, EMPTY, POWER)
    # What rounding may take from the best score: distances are differences of larger numbers.
    blur = 4e-7 * tl.abs(reference)
    if EUCLIDEAN:
        wide = q.to(tl.float32)
        blur += 4e-7 * tl.abs(scale) * tl.sum(wide * wide, 1)
    pivot = reference
    if RULE == 2:
        if EMPTY == 2:
            # All that ties with the nearest key up to rounding lies far above the pivot, and is cut at the level.
            pivot = tl.where(reach > 0, pivot, pivot - blur)
    return factor, level, gain, pivot, blur


@triton.jit
def _weights(z, factor, level, pivot, order, PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr):
    """(φ, φ')."""
    u = argument(z, pivot, factor, level, RULE, False)
    if RULE == 3:
        p = tl.exp(u)
        return p, p
    else:
        base = tl.maximum(u, 0.0)
        return PROFILE(base, order), SLOPE(base, order)


@triton.jit
def _sums(x, x2, level, order, PROFILE: tl.constexpr, SLOPE: tl.constexpr, TAIL: tl.constexpr):
    """(Σφ, Σφ') at a level."""
    u = tl.maximum(x + level[:, None], 0.0)
    f = tl.sum(PROFILE(u, order), 1)
    g = tl.sum(SLOPE(u, order), 1)
    if TAIL > 0:
        u = tl.maximum(x2 + level[:, None], 0.0)
        f += tl.sum(PROFILE(u, order), 1)
        g += tl.sum(SLOPE(u, order), 1)
    return f, g


@triton.jit
def _level(
    z, z2, reference, factor, order, tolerance,
    RM: tl.constexpr, PROFILE: tl.constexpr, SLOPE: tl.constexpr, STEPS: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """The level of each row at which Σφ = 1; the best key alone has φ = 1 at level 1."""
    x = (z - reference[:, None]) * factor[:, None]
    x2 = x
    if TAIL > 0:
        x2 = (z2 - reference[:, None]) * factor[:, None]
    level = tl.full([RM], 1.0, tl.float32)
    for turn in tl.static_range(2):
        f, g = _sums(x, x2, level, order, PROFILE, SLOPE, TAIL)
        level -= newton(f, g, order)
    ceiling = level + 1e-6
    before = level
    unit_before = tl.zeros_like(level)
    power = tl.zeros_like(level) + 3.0
    # A row that has arrived stays, so that no bit of it depends on the other rows of its block.
    every = level > float("-inf")
    going = every
    todo = 1
    steps = 0
    while (todo > 0) & (steps < STEPS):
        f, g = _sums(x, x2, level, order, PROFILE, SLOPE, TAIL)
        level, ceiling, before, unit_before, power, going = next_level(
            f, g, level, ceiling, before, unit_before, power, going, every, order, tolerance
        )
        todo = tl.max(going.to(tl.int32), 0)
        steps += 1
    return level


@triton.jit
def _row_block(
    Q, SCALE, b, h, start, q_len, q_b, q_h, q_l, s_b, s_h, s_l,
    D: tl.constexpr, DP: tl.constexpr, RM: tl.constexpr, EVEN: tl.constexpr, UNIFORM: tl.constexpr,
):  # fmt: skip
    """(rows, which exist, queries and scale with non-finite entries set to zero, which rows had any) of a block."""
    rows = start + tl.arange(0, RM)
    valid = rows < q_len
    scale = row_scale(SCALE, b, h, rows, valid, s_b, s_h, s_l, RM, UNIFORM)
    q = load_rows(Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, start, q_l, q_len, RM, D, DP, EVEN)
    bad = tl.maximum(_bad_rows(q), ((scale - scale) != 0).to(tl.int32))
    return rows, valid, clean(q), clean(scale), bad


@triton.jit
def _alibi_slope(SLOPES, b, h, a_b, a_h, ALIBI: tl.constexpr):
    """(slope of a head, 1 if it was not finite, then it is zero)."""
    slope = 0.0
    bad = 0
    if ALIBI:
        slope = tl.load(SLOPES + b * a_b + h * a_h)
        bad = ((slope - slope) != 0).to(tl.int32)
        slope = tl.where(bad > 0, 0.0, slope)
    return slope, bad


@triton.jit
def _taken(p, v, SEED, head, rows, first, drop, BN: tl.constexpr, DROPOUT: tl.constexpr):
    """(weights as the product takes them, their sum before dropout)."""
    p = p.to(v.dtype).to(tl.float32)
    total = tl.sum(p, 1)
    if DROPOUT:
        p *= kept(SEED, head, rows, first, drop, BN, False)
    return p.to(v.dtype), total


@triton.jit
def _reached(k, v, bad_q, rows, first, k_len, left, right, BN: tl.constexpr):
    """1 where a query is not finite and sees any of these keys, or sees a key or value that is not finite."""
    bad_k = tl.maximum(_bad_rows(k), _bad_rows(v))
    seen = _seen(rows, first, k_len, left, right, BN)
    return tl.max(tl.where(seen, tl.maximum(bad_k[None, :], bad_q[:, None]), 0), 1)


@triton.jit
def _output(
    rows, q, scale, bad_q, slope, K, V, SEED, head, first, second, k_l, v_l,
    k_len, left, right, offset, order, tolerance, drop, near,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, RM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr,
    EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(output, level) of a block of queries in :func:`short_forward`."""
    k = load_rows(K, first, k_l, k_len, BN, D, DP, False)
    v = load_rows(V, first, v_l, k_len, BN, E, EP, False)
    reached = _reached(k, v, bad_q, rows, first, k_len, left, right, BN)
    k = clean(k)
    v = clean(v)
    z, raw = _scores(q, k, scale, slope, rows, first, k_len, left, right, offset, BN, EUCLIDEAN, ALIBI, PRECISION)
    z2 = z
    reference = tl.max(z, 1)
    if TAIL > 0:
        k2 = load_rows(K, second, k_l, k_len, TAIL, D, DP, False)
        v2 = load_rows(V, second, v_l, k_len, TAIL, E, EP, False)
        reached = tl.maximum(reached, _reached(k2, v2, bad_q, rows, second, k_len, left, right, TAIL))
        v2 = clean(v2)
        z2, raw = _scores(
            q, clean(k2), scale, slope, rows, second, k_len, left, right, offset, TAIL, EUCLIDEAN, ALIBI, PRECISION
        )
        reference = tl.maximum(reference, tl.max(z2, 1))
    some = reference > float("-inf")
    reference = tl.where(some, reference, 0.0)
    if RULE == 4:
        level = _kth(z, z2, near, TAIL)
        p, p2 = _members(z, z2, level, reference, near, SMOOTH, TAIL)
        level = tl.maximum(level, -3.0e38)
    else:
        factor, level, gain, pivot, blur = _units(q, reference, scale, order, EUCLIDEAN, RULE, EMPTY, POWER)
        if RULE == 0:
            level = _level(z, z2, reference, factor, order, tolerance, RM, PROFILE, SLOPE, STEPS, TAIL)
        p, r = _weights(z, factor, level, pivot, order, PROFILE, SLOPE, RULE)
        p2 = p
        if TAIL > 0:
            p2, r = _weights(z2, factor, level, pivot, order, PROFILE, SLOPE, RULE)
        if RULE == 2 and not POWER:
            # Not relative to its largest value, so that it might be too small for the dtype.
            total = tl.sum(p, 1)
            if TAIL > 0:
                total += tl.sum(p2, 1)
            total = 1.0 / tl.maximum(total, 1e-30)
            p = p * total[:, None]
            p2 = p2 * total[:, None]
    # The output is divided by the sum of what the product takes, so that what rounding does to all weights cancels out.
    p, total = _taken(p, v, SEED, head, rows, first, drop, BN, DROPOUT)
    acc = tl.dot(p, v, input_precision=PRECISION)
    if TAIL > 0:
        p2, total2 = _taken(p2, v, SEED, head, rows, second, drop, TAIL, DROPOUT)
        acc = tl.dot(p2, v2, acc, input_precision=PRECISION)
        total += total2
    live = some & (total > 0)
    # The best key has weight, unless a score overflowed.
    strange = total != total
    if RULE != 2:
        strange = strange | (some & (total == 0))
    acc = tl.where(live[:, None], acc / tl.where(live, total, 1.0)[:, None], 0.0)
    broken = strange | (reached > 0)
    acc = tl.where(broken[:, None], float("nan"), acc)
    level = tl.where(live & (broken == 0), level, float("-inf"))
    return acc, level


@entry
def short_forward(
    Q, K, V, SCALE, SLOPES, OUT, LEVEL, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, s_b, s_h, s_l, a_b, a_h, o_b, o_h, o_l,
    heads, group, q_len, k_len, blocks, left, right, offset, order, tolerance, drop, near,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, RM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr,
    EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, UNIFORM: tl.constexpr, DROPOUT: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output of RM queries of one head. LEVEL: that of the adaptive rule, or which scores the nearest keys reach; −∞ for a row
    through which no gradient flows.

    RULE 4, the nearest keys: ``near`` is their number, SMOOTH says that their weights are Gaussian.
    """
    head = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    b, h = head // heads, head % heads
    rows, valid, q, scale, bad_q = _row_block(
        Q, SCALE, b, h, block * RM, q_len, q_b, q_h, q_l, s_b, s_h, s_l, D, DP, RM, EVEN, UNIFORM
    )
    slope, bad = _alibi_slope(SLOPES, b, h, a_b, a_h, ALIBI)
    bad_q = tl.maximum(bad_q, bad)
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    # Numbers on the device.
    first = block * 0
    second = first + BN
    if (TAIL > 0) & (tl.minimum(block * RM + RM, q_len) + right > BN):
        acc, level = _output(
            rows, q, scale, bad_q, slope, K, V, SEED, head, first, second, k_l, v_l,
            k_len, left, right, offset, order, tolerance, drop, near, D, DP, E, EP, RM, BN, TAIL,
            PROFILE, SLOPE, RULE, EMPTY, POWER, SMOOTH, EUCLIDEAN, ALIBI, DROPOUT, STEPS, PRECISION,
        )  # fmt: skip
    else:
        # No query of the block sees the tail.
        acc, level = _output(
            rows, q, scale, bad_q, slope, K, V, SEED, head, first, second, k_l, v_l,
            k_len, left, right, offset, order, tolerance, drop, near, D, DP, E, EP, RM, BN, 0,
            PROFILE, SLOPE, RULE, EMPTY, POWER, SMOOTH, EUCLIDEAN, ALIBI, DROPOUT, STEPS, PRECISION,
        )  # fmt: skip
    cols = tl.arange(0, EP)
    ptr = OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h + rows[:, None].to(tl.int64) * o_l + cols[None, :]
    tl.store(ptr, acc.to(OUT.dtype.element_ty), mask=valid[:, None] & (cols < E)[None, :])
    tl.store(LEVEL + head.to(tl.int64) * q_len + rows, level, mask=valid)


@triton.jit
def _parted(ds, D_TYPE: tl.constexpr):
    """(high, low, how often low counts in it, their sum): ds as two numbers of a 16-bit dtype.

    Products with terms that nearly cancel need its digits. What float16 has no digits for, so small, counts a fraction.
    """
    unit = 1.0
    if tl.float16 == D_TYPE:
        unit = 2048.0
    high = ds.to(D_TYPE)
    wide = high.to(tl.float32)
    low = ((ds - wide) * unit).to(D_TYPE)
    return high, low, 1.0 / unit, wide + low.to(tl.float32) * (1.0 / unit)


@triton.jit
def _into_queries(dq, sums, ds, k, PRECISION: tl.constexpr):
    """(dq + ds·k, sums + what ds adds up to as the product takes it)."""
    high, low, unit, taken = _parted(ds, k.dtype)
    dq += tl.dot(low, k, input_precision=PRECISION) * unit
    return tl.dot(high, k, dq, input_precision=PRECISION), sums + tl.sum(taken, 1)


@triton.jit
def _into_keys(dk, total, ds, q, PRECISION: tl.constexpr):
    """(dk + dsᵀ·q, total + what ds adds up to as the product takes it)."""
    high, low, unit, taken = _parted(ds, q.dtype)
    dk += tl.dot(tl.trans(low), q, input_precision=PRECISION) * unit
    return tl.dot(tl.trans(high), q, dk, input_precision=PRECISION), total + tl.sum(taken, 0)


@triton.jit
def _store_rows(base, x, start, limit, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """x (N, DP) into the contiguous rows from ``start``, less those beyond ``limit`` and the padding of the head size."""
    rows = start + tl.arange(0, N)
    cols = tl.arange(0, DP)
    mask = (rows < limit)[:, None] & (cols < D)[None, :]
    tl.store(base + rows[:, None] * D + cols[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _gradients(
    dk, dv, total_k, dk2, dv2, total_k2, k, v, k2, v2, start, first, second, b, h, head, slope,
    Q, GRAD, SCALE, LEVEL, D_Q, D_SCALE, D_SLOPE, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l,
    q_len, k_len, left, right, offset, order, drop, near,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, RM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr,
    EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, UNIFORM: tl.constexpr, DROPOUT: tl.constexpr,
    NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The part of a block of queries in :func:`short_backward`: what it adds to the gradients of keys and values."""
    rows, valid, q, scale, bad_q = _row_block(
        Q, SCALE, b, h, start, q_len, q_b, q_h, q_l, s_b, s_h, s_l, D, DP, RM, EVEN, UNIFORM
    )
    out = head.to(tl.int64) * q_len + rows
    level = tl.load(LEVEL + out, mask=valid, other=float("-inf"))
    dead = level == float("-inf")
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, start, g_l, q_len, RM, E, EP, EVEN)
    grad = tl.where(dead[:, None], 0.0, grad).to(v.dtype)
    z, raw = _scores(q, k, scale, slope, rows, first, k_len, left, right, offset, BN, EUCLIDEAN, ALIBI, PRECISION)
    # Scores of such a row may have overflowed.
    z = tl.where(dead[:, None], float("-inf"), z)
    z2 = z
    reference = tl.max(z, 1)
    if TAIL > 0:
        z2, raw2 = _scores(
            q, k2, scale, slope, rows, second, k_len, left, right, offset, TAIL, EUCLIDEAN, ALIBI, PRECISION
        )
        z2 = tl.where(dead[:, None], float("-inf"), z2)
        reference = tl.maximum(reference, tl.max(z2, 1))
    reference = tl.where(reference > float("-inf"), reference, 0.0)
    gain = tl.zeros_like(reference) + 1.0
    if RULE == 4:
        if EUCLIDEAN:
            # Sums of squares may be rounded otherwise than in the forward pass, and ties are equality.
            level = _kth(z, z2, near, TAIL)
        p, p2 = _members(z, z2, level, reference, near, SMOOTH, TAIL)
        r = p
        r2 = p2
        if not SMOOTH:
            r = tl.zeros_like(p)
            r2 = tl.zeros_like(p2)
    else:
        factor, begin, gain, pivot, blur = _units(q, reference, scale, order, EUCLIDEAN, RULE, EMPTY, POWER)
        if RULE != 0:
            level = begin
        level = tl.where(dead, 0.0, level)
        p, r = _weights(z, factor, level, pivot, order, PROFILE, SLOPE, RULE)
        if TAIL > 0:
            p2, r2 = _weights(z2, factor, level, pivot, order, PROFILE, SLOPE, RULE)
    total = tl.sum(p, 1)
    g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        keep = kept(SEED, head, rows, first, drop, BN, False)
        g *= keep
    delta = tl.sum(r * g, 1) if RULE == 0 else tl.sum(p * g, 1)
    bulk = tl.sum(r, 1)
    if TAIL > 0:
        total += tl.sum(p2, 1)
        g2 = tl.dot(grad, tl.trans(v2), input_precision=PRECISION)
        if DROPOUT:
            keep2 = kept(SEED, head, rows, second, drop, TAIL, False)
            g2 *= keep2
        delta += tl.sum(r2 * g2, 1) if RULE == 0 else tl.sum(p2 * g2, 1)
        bulk += tl.sum(r2, 1)
    share = 1.0 / tl.maximum(total, 1e-30)
    if RULE == 0:
        delta = delta / tl.maximum(bulk, 1e-30)
    else:
        delta *= share
        gain *= share
    if RULE == 1 or RULE == 2:
        # One key with all weight has no gradient but to its value.
        top = tl.maximum(level, 0.0)
        alone = (total <= 1.0000002 * PROFILE(top, order)) & (bulk <= 1.0000002 * SLOPE(top, order))
        gain = tl.where(alone, 0.0, gain)
    p = (p * share[:, None]).to(grad.dtype)
    # The gradient of a row's scores adds up to zero: from a mean of the keys on, products with it lose no digits.
    centre = tl.dot(p, k, input_precision=PRECISION)
    if DROPOUT:
        p = (p * keep).to(grad.dtype)
    dv = tl.dot(tl.trans(p), grad, dv, input_precision=PRECISION)
    ds = r * (g - delta[:, None])
    if RULE != 0:
        ds *= gain[:, None]
    if TAIL > 0:
        p2 = (p2 * share[:, None]).to(grad.dtype)
        centre = tl.dot(p2, k2, centre, input_precision=PRECISION)
        if DROPOUT:
            p2 = (p2 * keep2).to(grad.dtype)
        dv2 = tl.dot(tl.trans(p2), grad, dv2, input_precision=PRECISION)
        ds2 = r2 * (g2 - delta[:, None])
        if RULE != 0:
            ds2 *= gain[:, None]
    if RULE == 1:
        excess = tl.sum(ds, 1)
        best = z >= (reference - blur)[:, None]
        ties = tl.sum(best.to(tl.float32), 1)
        if TAIL > 0:
            excess += tl.sum(ds2, 1)
            best2 = z2 >= (reference - blur)[:, None]
            ties += tl.sum(best2.to(tl.float32), 1)
        excess = excess / tl.maximum(ties, 1.0)
        ds -= tl.where(best, excess[:, None], 0.0)
        if TAIL > 0:
            ds2 -= tl.where(best2, excess[:, None], 0.0)
    if NEED_SLOPE:
        moment = tl.sum(ds * _distance(rows, offset, first, BN), 1)
        if TAIL > 0:
            moment += tl.sum(ds2 * _distance(rows, offset, second, TAIL), 1)
        tl.store(D_SLOPE + out, -moment, mask=valid)
    rest = tl.zeros_like(reference)
    if EUCLIDEAN:
        # Neither distance zero nor its clamp has a gradient.
        rest = tl.sum(tl.where(raw < 0, 0.0, ds), 1)
        ds = tl.where(raw < 0, ds, 0.0)
        # A hidden key may be infinitely far.
        moment = tl.sum(tl.where(ds != 0, ds * raw, 0.0), 1)
        if TAIL > 0:
            rest += tl.sum(tl.where(raw2 < 0, 0.0, ds2), 1)
            ds2 = tl.where(raw2 < 0, ds2, 0.0)
            moment += tl.sum(tl.where(ds2 != 0, ds2 * raw2, 0.0), 1)
        if NEED_SCALE:
            tl.store(D_SCALE + out, moment, mask=valid)
    dq, sums = _into_queries(tl.zeros([RM, DP], tl.float32), tl.zeros_like(reference), ds, k, PRECISION)
    if TAIL > 0:
        dq, sums = _into_queries(dq, sums, ds2, k2, PRECISION)
    if RULE != 2:
        dq -= (sums + rest)[:, None] * centre
        sums = -rest
    if EUCLIDEAN:
        dq -= sums[:, None] * q.to(tl.float32)
    elif NEED_SCALE:
        # Σ dz (q·k) over the keys.
        tl.store(D_SCALE + out, tl.sum(dq * q.to(tl.float32), 1), mask=valid)
    dq *= scale[:, None]
    cols = tl.arange(0, DP)
    ptr = D_Q + out[:, None] * D + cols[None, :]
    tl.store(ptr, dq.to(D_Q.dtype.element_ty), mask=valid[:, None] & (cols < D)[None, :])
    if not UNIFORM:
        ds *= scale[:, None]
    dk, total_k = _into_keys(dk, total_k, ds, q, PRECISION)
    if TAIL > 0:
        if not UNIFORM:
            ds2 *= scale[:, None]
        dk2, total_k2 = _into_keys(dk2, total_k2, ds2, q, PRECISION)
    return dk, dv, total_k, dk2, dv2, total_k2


@entry
def short_backward(
    Q, K, V, GRAD, SCALE, SLOPES, LEVEL, D_Q, D_K, D_V, D_SCALE, D_SLOPE, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, a_b, a_h,
    heads, group, q_len, k_len, all_keys, blocks, left, right, offset, order, drop, near,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, RM: tl.constexpr, BN: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr, SMOOTH: tl.constexpr,
    EUCLIDEAN: tl.constexpr, ALIBI: tl.constexpr, UNIFORM: tl.constexpr, DROPOUT: tl.constexpr,
    NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of one head, block of queries by block.

    With the weights w, r = φ' and G = dO·v: dz = r(G − δ) with δ = ΣrG/Σr under the adaptive rule, dz = r(G − δ)/Z with
    δ = ΣwG under the others, from which the anchored rule takes the row's sum off at the maximum.
    """
    head = tl.program_id(0)
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    # Numbers on the device.
    first = head * 0
    second = first + BN
    k = clean(load_rows(K, first, k_l, k_len, BN, D, DP, False))
    v = clean(load_rows(V, first, v_l, k_len, BN, E, EP, False))
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, EP], tl.float32)
    total_k = tl.zeros([BN], tl.float32)
    k2, v2, dk2, dv2, total_k2 = k, v, dk, dv, total_k
    if TAIL > 0:
        k2 = clean(load_rows(K, second, k_l, k_len, TAIL, D, DP, False))
        v2 = clean(load_rows(V, second, v_l, k_len, TAIL, E, EP, False))
        dk2 = tl.zeros([TAIL, DP], tl.float32)
        dv2 = tl.zeros([TAIL, EP], tl.float32)
        total_k2 = tl.zeros([TAIL], tl.float32)
    slope, bad = _alibi_slope(SLOPES, b, h, a_b, a_h, ALIBI)
    for block in range(blocks):
        start = first + block * RM
        if (TAIL > 0) & (tl.minimum(start + RM, q_len) + right > BN):
            dk, dv, total_k, dk2, dv2, total_k2 = _gradients(
                dk, dv, total_k, dk2, dv2, total_k2, k, v, k2, v2, start, first, second, b, h, head, slope,
                Q, GRAD, SCALE, LEVEL, D_Q, D_SCALE, D_SLOPE, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l,
                q_len, k_len, left, right, offset, order, drop, near, D, DP, E, EP, RM, BN, TAIL, EVEN,
                PROFILE, SLOPE, RULE, EMPTY, POWER, SMOOTH, EUCLIDEAN, ALIBI, UNIFORM, DROPOUT, NEED_SCALE, NEED_SLOPE, PRECISION,
            )  # fmt: skip
        else:
            # No query of the block sees the tail.
            dk, dv, total_k, dk2, dv2, total_k2 = _gradients(
                dk, dv, total_k, dk2, dv2, total_k2, k, v, k2, v2, start, first, second, b, h, head, slope,
                Q, GRAD, SCALE, LEVEL, D_Q, D_SCALE, D_SLOPE, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l,
                q_len, k_len, left, right, offset, order, drop, near, D, DP, E, EP, RM, BN, 0, EVEN,
                PROFILE, SLOPE, RULE, EMPTY, POWER, SMOOTH, EUCLIDEAN, ALIBI, UNIFORM, DROPOUT, NEED_SCALE, NEED_SLOPE, PRECISION,
            )  # fmt: skip
    factor = 1.0
    if UNIFORM:
        factor = tl.load(SCALE + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h)
    D_K += head.to(tl.int64) * all_keys * D
    D_V += head.to(tl.int64) * all_keys * E
    if EUCLIDEAN:
        dk -= total_k[:, None] * k.to(tl.float32)
    _store_rows(D_K, dk * factor, first, k_len, BN, D, DP)
    _store_rows(D_V, dv, first, k_len, BN, E, EP)
    if TAIL > 0:
        if EUCLIDEAN:
            dk2 -= total_k2[:, None] * k2.to(tl.float32)
        _store_rows(D_K, dk2 * factor, second, k_len, TAIL, D, DP)
        _store_rows(D_V, dv2, second, k_len, TAIL, E, EP)
