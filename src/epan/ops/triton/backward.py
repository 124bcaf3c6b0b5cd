"""The backward pass over the tiles that the forward pass listed: queries by rows, then keys and values by columns."""

from __future__ import annotations

import triton
import triton.language as tl

from .assembler import entry
from .scores import (
    argument,
    block_tiles,
    clean,
    edge_tile,
    kept,
    load_rows,
    over_keys,
    over_rows,
    own_half,
    query_block,
    rounded,
    row_factor,
    row_range,
    row_units,
    tile_scores,
)

__all__ = ["by_columns", "by_rows", "merge"]


@triton.jit
def _columns(FLAGS, LIST, COUNT, ITEMS, head, tiles, blocks, most, RC: tl.constexpr, CC: tl.constexpr):
    """The list of row blocks of each tile of keys, and the work on them cut into items of bounded length.

    LIST: (B·H, tiles, blocks) inner ones from the front, edge ones from the back; COUNT: how many of each. A column much
    longer than the mean is cut, so that one key that every query attends to does not hold up the rest. ITEMS:
    (B·H, most, 4) column, first and last step in it, and −1 or the place of the partial sums; (B·H, tiles) further items
    follow one another. ``most`` ≥ the largest possible number of items, 2·tiles.
    """
    FLAGS += head.to(tl.int64) * blocks * tiles
    LIST += head.to(tl.int64) * blocks * tiles
    COUNT += head.to(tl.int64) * tiles * 2
    total = 0
    for begin in range(0, tiles, CC):
        cols = begin + tl.arange(0, CC)
        there = cols < tiles
        inner = tl.zeros([CC], tl.int32)
        edge = tl.zeros([CC], tl.int32)
        for start in range(0, blocks, RC):
            some = start + tl.arange(0, RC)
            flag = tl.load(
                FLAGS + some[:, None].to(tl.int64) * tiles + cols[None, :],
                mask=(some < blocks)[:, None] & there[None, :],
                other=0,
            ).to(tl.int32)
            ptr = LIST + cols[None, :].to(tl.int64) * blocks
            one = (flag == 1).to(tl.int32)
            place = inner[None, :] + tl.cumsum(one, 0) - 1
            tl.store(ptr + place, (some[:, None] + 0 * place), mask=one > 0)
            two = (flag == 2).to(tl.int32)
            place = blocks - edge[None, :] - tl.cumsum(two, 0)
            tl.store(ptr + place, (some[:, None] + 0 * place), mask=two > 0)
            inner += tl.sum(one, 0)
            edge += tl.sum(two, 0)
        tl.store(COUNT + cols * 2, inner, mask=there)
        tl.store(COUNT + cols * 2 + 1, edge, mask=there)
        total += tl.sum(inner + edge, 0)
    tl.debug_barrier()
    longest = tl.maximum(32, 2 * ((total + tiles - 1) // tiles))
    ITEMS += head.to(tl.int64) * most * 4
    used = 0
    extra = 0
    for begin in range(0, tiles, CC):
        cols = begin + tl.arange(0, CC)
        there = cols < tiles
        size = tl.load(COUNT + cols * 2, mask=there, other=0) + tl.load(COUNT + cols * 2 + 1, mask=there, other=0)
        # Every column has an item, so that the gradient of keys without weight is written too.
        parts = tl.where(there, tl.maximum((size + longest - 1) // longest, 1), 0)
        at = used + tl.cumsum(parts, 0) - parts
        aside = tl.where(parts > 1, parts, 0)
        slot = extra + tl.cumsum(aside, 0) - aside
        for turn in range(tl.max(parts, 0)):
            mine = turn < parts
            ptr = ITEMS + (at + turn) * 4
            tl.store(ptr, cols, mask=mine)
            tl.store(ptr + 1, turn * longest, mask=mine)
            tl.store(ptr + 2, tl.minimum((turn + 1) * longest, size), mask=mine)
            tl.store(ptr + 3, tl.where(parts > 1, slot + turn, -1), mask=mine)
        used += tl.sum(parts, 0)
        extra += tl.sum(aside, 0)
    for begin in range(used, most, CC):
        rest = begin + tl.arange(0, CC)
        tl.store(ITEMS + rest * 4, tl.full([CC], -1, tl.int32), mask=rest < most)


@triton.jit
def _slope(u, level, order, SLOPE: tl.constexpr, RULE: tl.constexpr, T: tl.constexpr):
    """φ'(u), zero without weight."""
    if RULE == 3:
        return tl.where(over_rows(level, T) > float("-inf"), tl.exp(u), 0.0)
    else:
        return SLOPE(tl.maximum(u, 0.0), order)


@triton.jit
def _row_step(
    x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best,
    q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
    q_len, k_len, reference, reach, own, factor, level, gain, order, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, PROFILE: tl.constexpr,
    SLOPE: tl.constexpr, RULE: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, EXACT: tl.constexpr,
    EDGE: tl.constexpr, CLEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of :func:`by_rows`."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    u = argument(z, reference, factor, level, RULE, False)
    r = _slope(u, level, order, SLOPE, RULE, False)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    if CLEAN:
        k = clean(k)
        v = clean(v)
    g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        g *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    g -= delta[:, None]
    if RULE == 1:
        top = z >= (reference - reach)[:, None]
        keys = tile * BN + tl.arange(0, BN)
        best = tl.maximum(best, tl.max(tl.where(top, keys[None, :], -1), 1))
        ties += tl.sum(top.to(tl.float32), 1)
        if NEED_SLOPE:
            zd += tl.sum(tl.where(top, tl.abs(position[:, None] - keys[None, :]).to(tl.float32), 0.0), 1)
        if EUCLIDEAN and GENERAL:
            top = top & (raw <= 0)
            zt += tl.sum(top.to(tl.float32), 1)
        if NEED_SCALE:
            zr += tl.sum(tl.where(top, raw - own[:, None], 0.0), 1)
    if RULE == 1 or RULE == 2:
        if EXACT:
            mean += tl.sum(PROFILE(tl.maximum(u, 0.0), order) * g, 1)
    if RULE != 0 or q.dtype == tl.float32:
        r *= gain[:, None]
    t = r * g
    if EXACT:
        ts += tl.sum(t, 1)
        rs += tl.sum(r, 1)
        if NEED_SLOPE:
            keys = tile * BN + tl.arange(0, BN)
            distance = tl.abs(position[:, None] - keys[None, :]).to(tl.float32)
            xd += tl.sum(t * distance, 1)
            yd += tl.sum(r * distance, 1)
    if EUCLIDEAN and GENERAL:
        # Beyond the clamp at distance zero there is no gradient.
        clamped = raw > 0
        t = tl.where(clamped, 0.0, t)
    if NEED_SCALE:
        # From float32 terms; the product with the keys below has rounded ones.
        full = raw - own[:, None]
        xr += tl.sum(tl.where(t != 0, t * full, 0.0), 1)
        rr = r
        if EUCLIDEAN and GENERAL:
            rr = tl.where(clamped, 0.0, r)
        yr += tl.sum(tl.where(rr != 0, rr * full, 0.0), 1)
    whole = t
    t = rounded(t, k.dtype)
    if RULE == 1:
        # Of equal keys below the best one all that counts is the sum of t, whose terms cancel: it needs more digits.
        if k.dtype != tl.float32:
            x = tl.dot((whole - t).to(k.dtype), k, x, input_precision=PRECISION)
    if RULE == 0 or RULE == 3:
        rb = rounded(r, k.dtype)
        # The sums are those of the terms as the product takes them, so that what keys have in common cancels out.
        ys += tl.sum(rb, 1)
        if EUCLIDEAN and GENERAL:
            rb = tl.where(clamped, 0.0, rb)
            yt += tl.sum(rb, 1)
        y = tl.dot(rb.to(k.dtype), k, y, input_precision=PRECISION)
    terms = t
    if RULE == 1:
        terms = whole
    if EUCLIDEAN and GENERAL:
        xt += tl.sum(terms, 1)
        if RULE == 1:
            xs += tl.sum(r * g, 1)
        elif RULE != 2:
            xs += tl.sum(rounded(r * g, k.dtype), 1)
    elif EUCLIDEAN or RULE != 2:
        xs += tl.sum(terms, 1)
    x = tl.dot(t.to(k.dtype), k, x, input_precision=PRECISION)
    return x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best


@triton.jit
def _tied_step(
    y, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len, reference, reach,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr,
    BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the sum of the keys that tie at the row's maximum."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, False)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, True, False, PRECISION,
    )  # fmt: skip
    top = z >= (reference - reach)[:, None]
    if EUCLIDEAN and GENERAL:
        top = top & (raw <= 0)
    k = clean(k)
    return tl.dot(top.to(k.dtype), k, y, input_precision=PRECISION)


@triton.jit
def _rows(
    part, head, Q, K, V, GRAD, OUT, OUT_LOW, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION, DIRTY,
    REFERENCE, LEVEL, DIVISOR, REACH, LIST, COUNT, COEF, D_Q, D_SCALE, D_SLOPE, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    o_b, o_h, o_l, heads, group, q_len, k_len, tiles, blocks, all_rows, left, right, offset, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, HALVES: tl.constexpr, SPLIT: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    DROPOUT: tl.constexpr, LOW: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, EXACT: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂q, ∂L/∂scale and ∂L/∂slope per row, and what the columns need of each row: COEF (7, B·H·Lq).

    With r = φ', G = dO·v less its mean δ: adaptive dz = r(G − δ), δ = ΣrG/Σr; the others dz = r(G − δ)/Z, δ = dO·O, from
    which the anchored rule takes the row's sum off at the maximum. The adaptive rule starts at dO·O, too, which spares
    it digits of large values. LOW: OUT_LOW holds what rounding took from O.
    """
    block = part // HALVES
    HM: tl.constexpr = BM // HALVES
    BS: tl.constexpr = BN // SPLIT
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    rows = part * HM + tl.arange(0, HM)
    valid = rows < q_len
    first, inner, outer, last = block_tiles(LO, HI, block, left, right, q_len, k_len, BM, BN, PACKED)
    lo, hi = row_range(LO, HI, rows, left, right, q_len, k_len, PACKED)
    q, scale, sign, q_half, position, slope = query_block(
        Q, SCALE, SLOPES, POSITION, b, h, part, rows, q_len, offset, q_b, q_h, q_l, s_b, s_h, s_l,
        a_b, a_h, D, DP, HM, EVEN, GENERAL, EUCLIDEAN, ALIBI, PACKED, SIGNED, UNIFORM, True,
    )  # fmt: skip
    LIST += (head.to(tl.int64) * blocks + block) * tiles
    count = tl.load(COUNT + head * blocks + block)
    edges = (inner - first) + (last - outer)
    out = head.to(tl.int64) * q_len + rows
    reference = tl.load(REFERENCE + out, mask=valid, other=0.0)
    level = tl.load(LEVEL + out, mask=valid, other=float("-inf"))
    reach = reference
    if RULE == 1 or RULE == 2:
        reach = tl.load(REACH + out, mask=valid, other=1.0)
    factor, start_level, gain = row_units(scale, reach, order, GENERAL, RULE, EMPTY, POWER)
    divisor = tl.load(DIVISOR + out, mask=valid, other=1.0)
    if RULE != 0 or q.dtype == tl.float32:
        # A negative divisor marks a row whose one key has all weight; to float32 gradients it says so under every rule.
        gain = tl.where(divisor > 0, gain / divisor, 0.0)
        divisor = tl.abs(divisor)
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, part * HM, g_l, q_len, HM, E, EP, EVEN)
    result = load_rows(OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h, part * HM, o_l, q_len, HM, E, EP, EVEN)
    result = result.to(tl.float32)
    if LOW:
        result += load_rows(OUT_LOW + head.to(tl.int64) * q_len * E, part * HM, E, q_len, HM, E, EP, EVEN).to(
            tl.float32
        )
    delta = tl.sum(grad.to(tl.float32) * result, 1)
    own = own_half(q, sign, EUCLIDEAN, GENERAL)
    if RULE != 2 and not GENERAL:
        # The gradient of a row's scores adds up to zero: from the best score on, products with them lose no digits.
        own = reference
    dead = level == float("-inf")
    delta = tl.where(dead, 0.0, delta)
    # Moments of r(G − δ) and, for the adaptive rule, of r; for the anchored one of the indicator of the maximum.
    x = tl.zeros([HM, DP], tl.float32)
    y = tl.zeros([HM, DP], tl.float32)
    xs, ys = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    xt, yt = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    xr, yr = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    xd, yd = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    # Of float32 terms, with the mean by which dO·O is off.
    ts, rs, mean = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    # Of the keys at the maximum.
    zr, zd = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    zt, ties = tl.zeros([HM], tl.float32), tl.zeros([HM], tl.float32)
    best = tl.full([HM], -1, tl.int32)
    dirty = tl.load(DIRTY) > 0
    if dirty:
        for step in range(edges * SPLIT):
            tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
            x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best = _row_step(
                x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best,
                q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
                q_len, k_len, reference, reach, own, factor, level, gain, order, SEED, drop,
                D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_SCALE, NEED_SLOPE, EXACT, True, True, PRECISION,
            )  # fmt: skip
    else:
        for step in range(edges * SPLIT):
            tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
            x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best = _row_step(
                x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best,
                q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
                q_len, k_len, reference, reach, own, factor, level, gain, order, SEED, drop,
                D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_SCALE, NEED_SLOPE, EXACT, True, False, PRECISION,
            )  # fmt: skip
    for step in range(count * SPLIT):
        tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
        x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best = _row_step(
            x, y, xs, ys, xt, yt, xr, yr, xd, yd, ts, rs, mean, zr, zd, zt, ties, best,
            q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
            q_len, k_len, reference, reach, own, factor, level, gain, order, SEED, drop,
            D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_SCALE, NEED_SLOPE, EXACT, False, BIAS_KIND != 0, PRECISION,
        )  # fmt: skip
    cols = tl.arange(0, DP)
    if RULE == 1:
        ys, yt = ties, zt
        if tl.max(ties, 0) > 1:
            for step in range(edges + count):
                tile = edge_tile(step, first, inner, outer)
                if step >= edges:
                    tile = tl.load(LIST + step - edges)
                for turn in tl.static_range(SPLIT):
                    y = _tied_step(
                        y, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows,
                        tile * SPLIT + turn, q_len, k_len, reference, reach,
                        D, DP, BS, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, PRECISION,
                    )  # fmt: skip
        else:
            ptr = K + best[:, None].to(tl.int64) * k_l + cols[None, :]
            y = tl.load(ptr, mask=(best >= 0)[:, None] & (cols < D)[None, :], other=0.0).to(tl.float32)
            y = clean(y)
            if EUCLIDEAN and GENERAL:
                y *= yt[:, None]
    if EUCLIDEAN and not GENERAL:
        xt, yt = xs, ys
    ratio = tl.where(ys > 0, xs / tl.maximum(ys, 1e-30), 0.0)
    if RULE != 2:
        x -= ratio[:, None] * y
        xt -= ratio * yt
    # The same for what is summed up in float32.
    if RULE == 0 or RULE == 3:
        if EXACT:
            ratio = tl.where(rs > 0, ts / tl.maximum(rs, 1e-30), 0.0)
        delta += ratio
        xr -= ratio * yr
        xd -= ratio * yd
    elif EXACT:
        mean = mean / divisor
        delta += mean
        xr -= mean * yr
        xd -= mean * yd
        if RULE == 1:
            ratio = (ts - mean * rs) / tl.maximum(ys, 1.0)
            xr -= ratio * zr
            xd -= ratio * zd
    # What the columns need of each row beside its reference: u = level + A(z − reference) with φ(u) normalised, and
    # dz = φ'(u) (C g − C δ), with the scale in C where it is not the same for all rows.
    coefficient = gain
    low = level
    share = tl.zeros_like(factor) + 1.0
    if RULE == 3:
        low = level - tl.log(divisor)
        coefficient = share
        if q.dtype == tl.float32:
            coefficient = tl.where(gain > 0, share, 0.0)
    if RULE == 1 or RULE == 2:
        if POWER:
            share = tl.exp2(-tl.log2(divisor) / order)
            # One step of Newton's method on φ(share)·Z = 1, because the two functions are approximate.
            share *= 1.0 + (1.0 - PROFILE(share, order) * divisor) / order
            # gain is already divided by the divisor, of which the derivative has its part.
            coefficient = gain * divisor * share
            low = level * share
    if FOLD:
        coefficient *= scale
    tl.store(COEF + out, tl.where(dead, float("-inf"), low), mask=valid)
    tl.store(COEF + all_rows + out, tl.where(dead, 0.0, delta * coefficient), mask=valid)
    if RULE == 1 or RULE == 2 or not UNIFORM or q.dtype == tl.float32:
        # A huge factor times any score, added to the level of −∞, would be NaN.
        tl.store(COEF + 2 * all_rows + out, tl.where(dead, 1.0, factor * share), mask=valid)
        tl.store(COEF + 3 * all_rows + out, tl.where(dead, 0.0, coefficient), mask=valid)
    if RULE == 1:
        excess = ratio
        if FOLD:
            excess = ratio * scale
        tl.store(COEF + 4 * all_rows + out, reach, mask=valid)
        tl.store(COEF + 5 * all_rows + out, tl.where(dead, 0.0, excess), mask=valid)
    if (RULE == 1 or RULE == 2) and not POWER:
        tl.store(COEF + 6 * all_rows + out, 1.0 / divisor, mask=valid)
    if NEED_SCALE:
        tl.store(D_SCALE + out, tl.where(dead, 0.0, xr * sign), mask=valid)
    if NEED_SLOPE:
        tl.store(D_SLOPE + out, tl.where(dead, 0.0, -xd), mask=valid)
    if EUCLIDEAN:
        x -= (xt * sign)[:, None] * q.to(tl.float32)
    x *= (scale * sign)[:, None]
    x = tl.where(dead[:, None], 0.0, x)
    ptr = D_Q + out[:, None] * D + cols[None, :]
    tl.store(ptr, x.to(D_Q.dtype.element_ty), mask=valid[:, None] & (cols < D)[None, :])


@entry
def by_rows(
    Q, K, V, GRAD, OUT, OUT_LOW, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION, DIRTY,
    REFERENCE, LEVEL, DIVISOR, REACH, LIST, COUNT, COEF, D_Q, D_SCALE, D_SLOPE, SEED, FLAGS, COLUMN_LIST, COLUMN_COUNT, ITEMS,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    o_b, o_h, o_l, heads, group, q_len, k_len, tiles, blocks, most, all_rows, left, right, offset, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, HALVES: tl.constexpr, SPLIT: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    DROPOUT: tl.constexpr, LOW: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, EXACT: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr,
    COLUMNS: tl.constexpr, RC: tl.constexpr, CC: tl.constexpr,
):  # fmt: skip
    """The work on rows, and beside it (COLUMNS) the lists of the columns, which nothing here needs."""
    parts = blocks * HALVES + (1 if COLUMNS else 0)
    head = tl.program_id(0) // parts
    here = tl.program_id(0) % parts
    if COLUMNS and here == 0:
        _columns(FLAGS, COLUMN_LIST, COLUMN_COUNT, ITEMS, head, tiles, blocks, most, RC, CC)
    else:
        part = parts - 1 - here
        _rows(
            part, head, Q, K, V, GRAD, OUT, OUT_LOW, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION, DIRTY, REFERENCE,
            LEVEL, DIVISOR, REACH, LIST, COUNT, COEF, D_Q, D_SCALE, D_SLOPE, SEED, q_b, q_h, q_l, k_b, k_h, k_l,
            v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h, o_b, o_h, o_l, heads, group,
            q_len, k_len, tiles, blocks, all_rows, left, right, offset, order, drop, D, DP, E, EP, BM, BN, EVEN, HALVES, SPLIT,
            PROFILE, SLOPE, RULE, EMPTY, POWER, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, PACKED, SIGNED, UNIFORM, DROPOUT, LOW,
            NEED_SCALE, NEED_SLOPE, EXACT, FOLD, PRECISION,
        )  # fmt: skip


@triton.jit
def _column_step(
    dk, dv, total, k, v, part, tile, b, h, head, Q, GRAD, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, COEF, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
    a_b, a_h, q_len, k_len, all_rows, left, right, offset, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr,
    POWER: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr, DROPOUT: tl.constexpr, NEED_K: tl.constexpr,
    NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr, FOLD: tl.constexpr, T: tl.constexpr, EDGE: tl.constexpr,
    CLEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows of :func:`by_columns`."""
    rows = part * BM + tl.arange(0, BM)
    valid = rows < q_len
    lo, hi = rows, rows
    if EDGE:
        lo, hi = row_range(LO, HI, rows, left, right, q_len, k_len, PACKED)
    q, scale, sign, q_half, position, slope = query_block(
        Q, SCALE, SLOPES, POSITION, b, h, part, rows, q_len, offset, q_b, q_h, q_l, s_b, s_h, s_l,
        a_b, a_h, D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI, PACKED, SIGNED, UNIFORM, CLEAN,
    )  # fmt: skip
    COEF += head.to(tl.int64) * q_len + rows
    level = tl.load(COEF, mask=valid, other=float("-inf"))
    reference = tl.load(REFERENCE + head.to(tl.int64) * q_len + rows, mask=valid, other=0.0)
    if RULE == 1 or RULE == 2 or not UNIFORM or q.dtype == tl.float32:
        factor = tl.load(COEF + 2 * all_rows, mask=valid, other=1.0)
    else:
        factor = row_factor(scale, order, GENERAL, RULE)
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, part * BM, g_l, q_len, BM, E, EP, EVEN)
    if CLEAN:
        q = clean(q)
        grad = tl.where((level == float("-inf"))[:, None], 0.0, grad).to(grad.dtype)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, T, PRECISION,
    )  # fmt: skip
    u = argument(z, reference, factor, level, RULE, T)
    if DROPOUT:
        factor_d = kept(SEED, head, rows, tile * BN, drop, BN, T)
    if NEED_V:
        if RULE == 3:
            p = _slope(u, level, order, SLOPE, RULE, T)
        else:
            p = PROFILE(tl.maximum(u, 0.0), order)
        if (RULE == 1 or RULE == 2) and not POWER:
            p *= over_rows(tl.load(COEF + 6 * all_rows, mask=valid, other=0.0), T)
        if DROPOUT:
            p *= factor_d
        p = p.to(grad.dtype)
        if not T:
            p = tl.trans(p)
        dv = tl.dot(p, grad, dv, input_precision=PRECISION)
    if NEED_K or NEED_BIAS:
        shift = tl.load(COEF + all_rows, mask=valid, other=0.0)
        r = _slope(u, level, order, SLOPE, RULE, T)
        if T:
            g = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        else:
            g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            g *= factor_d
        if RULE == 1 or RULE == 2 or not UNIFORM or q.dtype == tl.float32:
            g *= over_rows(tl.load(COEF + 3 * all_rows, mask=valid, other=0.0), T)
        ds = r * (g - over_rows(shift, T))
        if RULE == 1:
            best = z >= over_rows(reference - tl.load(COEF + 4 * all_rows, mask=valid, other=0.0), T)
            excess = tl.load(COEF + 5 * all_rows, mask=valid, other=0.0)
            ds -= tl.where(best, over_rows(excess, T), 0.0)
        if NEED_BIAS:
            keys = tile * BN + tl.arange(0, BN)
            there = over_rows(valid, T) & over_keys(keys < k_len, T)
            place = over_rows((head.to(tl.int64) * q_len + rows) * k_len, T) + over_keys(keys, T)
            tl.store(D_BIAS + place, ds, mask=there)
        if EUCLIDEAN and GENERAL:
            ds = tl.where(raw > 0, 0.0, ds)
        if NEED_K:
            if not UNIFORM and not FOLD:
                ds *= over_rows(scale, T)
            if EUCLIDEAN:
                turned = ds
                if SIGNED and not GENERAL:
                    turned = ds * over_rows(q_half, T)
                total += tl.sum(turned, 1 if T else 0)
            ds = ds.to(q.dtype)
            if not T:
                ds = tl.trans(ds)
            dk = tl.dot(ds, q, dk, input_precision=PRECISION)
    return dk, dv, total


@entry
def by_columns(
    Q, K, V, GRAD, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION, DIRTY,
    REFERENCE, COLUMN_LIST, COLUMN_COUNT, ITEMS, COEF, D_K, D_V, PARTS, D_BIAS, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, most, all_rows, left, right, offset, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, HALVES: tl.constexpr, SPLIT: tl.constexpr, T: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    DROPOUT: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr, FOLD: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂k, ∂L/∂v (per query head) and the dense ∂L/∂bias of one item of a tile of keys, over its row blocks.

    PARTS: (B·H, tiles, BN, DP + EP) partial sums of the items of columns that are cut.
    """
    head = tl.program_id(0) // (most * SPLIT)
    here = tl.program_id(0) % (most * SPLIT)
    BS: tl.constexpr = BN // SPLIT
    ITEMS += (head.to(tl.int64) * most + here // SPLIT) * 4
    whole = tl.load(ITEMS)
    tile = whole * SPLIT + here % SPLIT
    if whole >= 0:
        begin = tl.load(ITEMS + 1)
        end = tl.load(ITEMS + 2)
        slot = tl.load(ITEMS + 3)
        b, h = head // heads, head % heads
        K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
        V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
        K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
        BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
        COLUMN_LIST += (head.to(tl.int64) * tiles + whole) * blocks
        inner = tl.load(COLUMN_COUNT + (head.to(tl.int64) * tiles + whole) * 2)
        k = load_rows(K, tile * BS, k_l, k_len, BS, D, DP, False)
        v = load_rows(V, tile * BS, v_l, k_len, BS, E, EP, False)
        dk = tl.zeros([BS, DP], tl.float32)
        dv = tl.zeros([BS, EP], tl.float32)
        total = tl.zeros([BS], tl.float32)
        start = tl.maximum(begin, inner)
        stop = tl.minimum(end, inner)
        # Half blocks of rows, so that the tiles fit into registers.
        dirty = tl.load(DIRTY) > 0
        if dirty:
            k = clean(k)
            v = clean(v)
        if dirty:
            for step in range(begin * HALVES, end * HALVES):
                turn = step // HALVES
                turn = tl.where(turn < inner, turn, blocks - 1 - (turn - inner))
                part = tl.load(COLUMN_LIST + turn) * HALVES + step % HALVES
                dk, dv, total = _column_step(
                    dk, dv, total, k, v, part, tile, b, h, head, Q, GRAD, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
                    REFERENCE, COEF, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
                    a_b, a_h, q_len, k_len, all_rows, left, right, offset, order, drop, D, DP, E, EP, BM // HALVES, BS, EVEN, PROFILE, SLOPE, RULE, POWER,
                    GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, PACKED, SIGNED, UNIFORM, DROPOUT, NEED_K, NEED_V, NEED_BIAS, FOLD, T, True, True, PRECISION,
                )  # fmt: skip
        else:
            for step in range(begin * HALVES, stop * HALVES):
                part = tl.load(COLUMN_LIST + step // HALVES) * HALVES + step % HALVES
                dk, dv, total = _column_step(
                    dk, dv, total, k, v, part, tile, b, h, head, Q, GRAD, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
                    REFERENCE, COEF, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
                    a_b, a_h, q_len, k_len, all_rows, left, right, offset, order, drop, D, DP, E, EP, BM // HALVES, BS, EVEN, PROFILE, SLOPE, RULE, POWER,
                    GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, PACKED, SIGNED, UNIFORM, DROPOUT, NEED_K, NEED_V, NEED_BIAS, FOLD, T, False, False, PRECISION,
                )  # fmt: skip
            for step in range(start * HALVES, end * HALVES):
                part = tl.load(COLUMN_LIST + blocks - 1 - (step // HALVES - inner)) * HALVES + step % HALVES
                dk, dv, total = _column_step(
                    dk, dv, total, k, v, part, tile, b, h, head, Q, GRAD, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
                    REFERENCE, COEF, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
                    a_b, a_h, q_len, k_len, all_rows, left, right, offset, order, drop, D, DP, E, EP, BM // HALVES, BS, EVEN, PROFILE, SLOPE, RULE, POWER,
                    GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, PACKED, SIGNED, UNIFORM, DROPOUT, NEED_K, NEED_V, NEED_BIAS, FOLD, T, True, False, PRECISION,
                )  # fmt: skip
        keys = tile * BS + tl.arange(0, BS)
        if NEED_K:
            if EUCLIDEAN:
                dk -= total[:, None] * clean(k.to(tl.float32))
            if UNIFORM:
                unit = tl.load(SCALE + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h)
                if SIGNED and not GENERAL:
                    unit = tl.abs(unit)
                dk *= unit
        if slot < 0:
            place = head.to(tl.int64) * k_len + keys
            _store(D_K, D_V, place, keys < k_len, dk, dv, D, DP, E, EP, NEED_K, NEED_V)
        else:
            place = (head.to(tl.int64) * tiles + slot) * BN + here % SPLIT * BS + tl.arange(0, BS)
            if NEED_K:
                tl.store(PARTS + place[:, None] * (DP + EP) + tl.arange(0, DP)[None, :], dk)
            if NEED_V:
                tl.store(PARTS + place[:, None] * (DP + EP) + DP + tl.arange(0, EP)[None, :], dv)


@triton.jit
def _store(
    D_K, D_V, place, there, dk, dv, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    if NEED_K:
        cols = tl.arange(0, DP)
        ptr = D_K + place[:, None] * D + cols[None, :]
        tl.store(ptr, dk.to(D_K.dtype.element_ty), mask=there[:, None] & (cols < D)[None, :])
    if NEED_V:
        cols = tl.arange(0, EP)
        ptr = D_V + place[:, None] * E + cols[None, :]
        tl.store(ptr, dv.to(D_V.dtype.element_ty), mask=there[:, None] & (cols < E)[None, :])


@entry
def merge(
    ITEMS, PARTS, D_K, D_V, k_len, tiles, most,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, ROWS: tl.constexpr,
    NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    """Adds up the partial sums of columns that are cut, one after the other, so that reruns are equal to the last bit."""
    head = tl.program_id(0) // most
    here = tl.program_id(0) % most
    ITEMS += head.to(tl.int64) * most * 4
    tile = tl.load(ITEMS + here * 4)
    slot = tl.load(ITEMS + here * 4 + 3)
    begin = tl.load(ITEMS + here * 4 + 1)
    if (tile >= 0) & (slot >= 0) & (begin == 0):
        for part in range(BN // ROWS):
            index = part * ROWS + tl.arange(0, ROWS)
            dk = tl.zeros([ROWS, DP], tl.float32)
            dv = tl.zeros([ROWS, EP], tl.float32)
            step = here
            more = tile
            while more == tile:
                place = (head.to(tl.int64) * tiles + slot + step - here) * BN + index
                ptr = PARTS + place[:, None] * (DP + EP)
                if NEED_K:
                    dk += tl.load(ptr + tl.arange(0, DP)[None, :])
                if NEED_V:
                    dv += tl.load(ptr + DP + tl.arange(0, EP)[None, :])
                step += 1
                more = tl.load(ITEMS + step * 4, mask=step < most, other=-1)
            keys = tile * BN + index
            _store(
                D_K, D_V, head.to(tl.int64) * k_len + keys, keys < k_len, dk, dv, D, DP, E, EP, NEED_K, NEED_V
            )  # fmt: skip
