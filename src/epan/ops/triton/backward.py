"""The backward pass over the tiles that the forward pass listed: queries by rows, then keys and values by columns."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import (
    argument,
    edge_tile,
    kept,
    load_rows,
    over_rows,
    query_block,
    row_ranges,
    row_units,
    tile_scores,
)

__all__ = ["by_columns", "by_rows", "columns"]


@triton.jit
def columns(FLAGS, LIST, COUNT, tiles, blocks, RC: tl.constexpr, CC: tl.constexpr):
    """The list of row blocks of each tile of keys: inner ones from the front, edge ones from the back."""
    head = tl.program_id(1)
    cols = tl.program_id(0) * CC + tl.arange(0, CC)
    there = cols < tiles
    FLAGS += head.to(tl.int64) * blocks * tiles
    LIST += head.to(tl.int64) * blocks * tiles
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
    out = (head * tiles + cols) * 2
    tl.store(COUNT + out, inner, mask=there)
    tl.store(COUNT + out + 1, edge, mask=there)


@triton.jit
def _slope(u, order, SLOPE: tl.constexpr, RULE: tl.constexpr):
    """φ'(u), zero without weight."""
    if RULE == 3:
        return tl.exp(u)
    else:
        return SLOPE(tl.maximum(u, 0.0), order)


@triton.jit
def _row_mean(
    mean, q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
    q_len, k_len, reference, factor, level, divisor, order, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    PROFILE: tl.constexpr, RULE: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of Σw(G − δ), by which the output's rounding puts δ = dO·O off."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    u = argument(z, reference, factor, level, False)
    if RULE == 3:
        p = tl.exp(u)
    else:
        p = PROFILE(tl.maximum(u, 0.0), order)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        g *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    return mean + tl.sum(p * (g - delta[:, None]), 1) / divisor


@triton.jit
def _row_step(
    x, y, xs, ys, xt, yt, xr, yr, xd, yd,
    q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
    q_len, k_len, reference, factor, level, gain, order, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    SLOPE: tl.constexpr, RULE: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr,
    ALIBI: tl.constexpr, DROPOUT: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of :func:`by_rows`."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    r = _slope(argument(z, reference, factor, level, False), order, SLOPE, RULE)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        g *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    t = r * (g - delta[:, None])
    other = r
    if RULE == 1:
        other = (z >= (reference - 4e-7 * tl.abs(reference))[:, None]).to(tl.float32)
    if RULE != 0:
        t *= gain[:, None]
    xs += tl.sum(t, 1)
    if RULE < 2:
        ys += tl.sum(other, 1)
    if NEED_SLOPE:
        keys = tile * BN + tl.arange(0, BN)
        distance = tl.abs(position[:, None] - keys[None, :]).to(tl.float32)
        xd += tl.sum(t * distance, 1)
        if RULE < 2:
            yd += tl.sum(other * distance, 1)
    if EUCLIDEAN:
        # Beyond the clamp at distance zero there is no gradient.
        clamped = raw > 0
        t = tl.where(clamped, 0.0, t)
        other = tl.where(clamped, 0.0, other)
        xt += tl.sum(t, 1)
        yt += tl.sum(other, 1)
    if NEED_SCALE:
        # From float32 terms; the product with the keys below has rounded ones.
        xr += tl.sum(tl.where(t != 0, t * raw, 0.0), 1)
        yr += tl.sum(tl.where(other != 0, other * raw, 0.0), 1)
    x = tl.dot(t.to(k.dtype), k, x, input_precision=PRECISION)
    if RULE < 2:
        y = tl.dot(other.to(k.dtype), k, y, input_precision=PRECISION)
    return x, y, xs, ys, xt, yt, xr, yr, xd, yd


@triton.jit
def by_rows(
    Q, K, V, GRAD, OUT, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, LEVEL, DIVISOR, LIST, COUNT, DELTA, EXCESS, D_Q, D_SCALE, D_SLOPE, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    o_b, o_h, o_l, heads, group, q_len, k_len, tiles, blocks, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂q, ∂L/∂scale and ∂L/∂slope per row, and what the columns need: DELTA, and EXCESS (anchored).

    With r = φ', G = dO·v less its mean dO·O: adaptive dz = r(G − ΣrG/Σr), the others dz = r(G)/Z, from which the anchored
    rule takes the row's sum off at the maximum.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    rows = block * BM + tl.arange(0, BM)
    valid = rows < q_len
    lo, hi, first, inner, outer, last = row_ranges(LO, HI, rows, q_len, BN)
    q, scale, q_half, position, slope = query_block(
        Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
        D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI,
    )  # fmt: skip
    LIST += (head.to(tl.int64) * blocks + block) * tiles
    count = tl.load(COUNT + head * blocks + block)
    edges = (inner - first) + (last - outer)
    out = head.to(tl.int64) * q_len + rows
    reference = tl.load(REFERENCE + out, mask=valid, other=0.0)
    level = tl.load(LEVEL + out, mask=valid, other=-1.0)
    divisor = tl.load(DIVISOR + out, mask=valid, other=1.0)
    factor, start_level, gain = row_units(scale, reference, order, GENERAL, RULE, EMPTY, POWER)
    gain = gain / divisor
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, block * BM, g_l, q_len, BM, E, EP, False)
    result = load_rows(OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h, block * BM, o_l, q_len, BM, E, EP, False)
    delta = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    if RULE != 0:
        # The adaptive rule finds its δ on the way; the others need it before they can sum up.
        mean = tl.zeros([BM], tl.float32)
        for step in range(edges * SPLIT):
            tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
            mean = _row_mean(
                mean, q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows,
                tile, head, q_len, k_len, reference, factor, level, divisor, order, SEED, drop,
                D, DP, E, EP, BN // SPLIT, PROFILE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, True, PRECISION,
            )  # fmt: skip
        for step in range(count * SPLIT):
            tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
            mean = _row_mean(
                mean, q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows,
                tile, head, q_len, k_len, reference, factor, level, divisor, order, SEED, drop,
                D, DP, E, EP, BN // SPLIT, PROFILE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, False, PRECISION,
            )  # fmt: skip
        delta += mean
    # Moments of r(G − δ) and, for the adaptive rule, of r; for the anchored one of the indicator of the maximum.
    x = tl.zeros([BM, DP], tl.float32)
    y = tl.zeros([BM, DP], tl.float32)
    xs, ys = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    xt, yt = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    xr, yr = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    xd, yd = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    for step in range(edges * SPLIT):
        tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
        x, y, xs, ys, xt, yt, xr, yr, xd, yd = _row_step(
            x, y, xs, ys, xt, yt, xr, yr, xd, yd,
            q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
            q_len, k_len, reference, factor, level, gain, order, SEED, drop,
            D, DP, E, EP, BN // SPLIT, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_SCALE, NEED_SLOPE, True, PRECISION,
        )  # fmt: skip
    for step in range(count * SPLIT):
        tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
        x, y, xs, ys, xt, yt, xr, yr, xd, yd = _row_step(
            x, y, xs, ys, xt, yt, xr, yr, xd, yd,
            q, K, V, k_l, v_l, grad, delta, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, head,
            q_len, k_len, reference, factor, level, gain, order, SEED, drop,
            D, DP, E, EP, BN // SPLIT, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_SCALE, NEED_SLOPE, False, PRECISION,
        )  # fmt: skip
    ratio = tl.zeros([BM], tl.float32)
    if RULE < 2:
        ratio = tl.where(ys > 0, xs / tl.maximum(ys, 1e-30), 0.0)
        x -= ratio[:, None] * y
        xt -= ratio * yt
        xr -= ratio * yr
        xd -= ratio * yd
    if RULE == 0:
        delta += ratio
    tl.store(DELTA + out, delta, mask=valid)
    if RULE == 1:
        tl.store(EXCESS + out, ratio, mask=valid)
    if NEED_SCALE:
        tl.store(D_SCALE + out, xr, mask=valid)
    if NEED_SLOPE:
        tl.store(D_SLOPE + out, -xd, mask=valid)
    if EUCLIDEAN:
        x -= xt[:, None] * q.to(tl.float32)
    x *= scale[:, None]
    cols = tl.arange(0, DP)
    ptr = D_Q + out[:, None] * D + cols[None, :]
    tl.store(ptr, x.to(D_Q.dtype.element_ty), mask=valid[:, None] & (cols < D)[None, :])


@triton.jit
def _column_step(
    dk, dv, total, k, v, part, tile, b, h, head, heads, Q, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, LEVEL, DIVISOR, DELTA, EXCESS, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
    a_b, a_h, q_len, k_len, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr,
    POWER: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr, EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows of :func:`by_columns`."""
    rows = part * BM + tl.arange(0, BM)
    valid = rows < q_len
    lo, hi = rows, rows
    if EDGE:
        lo = tl.load(LO + rows, mask=valid, other=0)
        hi = tl.load(HI + rows, mask=valid, other=0)
    q, scale, q_half, position, slope = query_block(
        Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, part, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
        D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI,
    )  # fmt: skip
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, True, PRECISION,
    )  # fmt: skip
    out = head.to(tl.int64) * q_len + rows
    reference = tl.load(REFERENCE + out, mask=valid, other=0.0)
    level = tl.load(LEVEL + out, mask=valid, other=-1.0)
    divisor = tl.load(DIVISOR + out, mask=valid, other=1.0)
    factor, start_level, gain = row_units(scale, reference, order, GENERAL, RULE, EMPTY, POWER)
    u = argument(z, reference, factor, level, True)
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, part * BM, g_l, q_len, BM, E, EP, EVEN)
    if DROPOUT:
        factor_d = kept(SEED, head, rows, tile * BN, drop, BN, True)
    if NEED_V:
        if RULE == 3:
            p = tl.exp(u)
        else:
            p = PROFILE(tl.maximum(u, 0.0), order)
        if RULE != 0:
            p *= over_rows(1.0 / divisor, True)
        if DROPOUT:
            p *= factor_d
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
    if NEED_K or NEED_BIAS:
        delta = tl.load(DELTA + out, mask=valid, other=0.0)
        r = _slope(u, order, SLOPE, RULE)
        g = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        if DROPOUT:
            g *= factor_d
        ds = r * (g - over_rows(delta, True))
        if RULE != 0:
            ds *= over_rows(gain / divisor, True)
        if RULE == 1:
            excess = tl.load(EXCESS + out, mask=valid, other=0.0)
            best = z >= over_rows(reference - 4e-7 * tl.abs(reference), True)
            ds -= tl.where(best, over_rows(excess, True), 0.0)
        if NEED_BIAS:
            keys = tile * BN + tl.arange(0, BN)
            there = over_rows(valid, True) & (keys < k_len)[:, None]
            place = out[None, :] * k_len + keys[:, None]
            tl.store(D_BIAS + place, ds, mask=there)
        if EUCLIDEAN:
            ds = tl.where(raw > 0, 0.0, ds)
        if NEED_K:
            ds *= over_rows(scale, True)
            if EUCLIDEAN:
                total += tl.sum(ds, 1)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv, total


@triton.jit
def by_columns(
    Q, K, V, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, LEVEL, DIVISOR, LIST, COUNT, DELTA, EXCESS, D_K, D_V, D_BIAS, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, order, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, HALVES: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂k, ∂L/∂v (per query head) and the dense ∂L/∂bias of one tile of keys, over the row blocks that use it."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    LIST += (head.to(tl.int64) * tiles + tile) * blocks
    inner = tl.load(COUNT + (head * tiles + tile) * 2)
    edge = tl.load(COUNT + (head * tiles + tile) * 2 + 1)
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, False)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, False)
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, EP], tl.float32)
    total = tl.zeros([BN], tl.float32)
    # Half blocks of rows, so that the tiles fit into registers.
    for step in range(inner * HALVES):
        part = tl.load(LIST + step // HALVES) * HALVES + step % HALVES
        dk, dv, total = _column_step(
            dk, dv, total, k, v, part, tile, b, h, head, heads, Q, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
            REFERENCE, LEVEL, DIVISOR, DELTA, EXCESS, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
            a_b, a_h, q_len, k_len, order, drop, D, DP, E, EP, BM // HALVES, BN, EVEN, PROFILE, SLOPE, RULE, EMPTY, POWER,
            GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_K, NEED_V, NEED_BIAS, False, PRECISION,
        )  # fmt: skip
    for step in range(edge * HALVES):
        part = tl.load(LIST + blocks - 1 - step // HALVES) * HALVES + step % HALVES
        dk, dv, total = _column_step(
            dk, dv, total, k, v, part, tile, b, h, head, heads, Q, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
            REFERENCE, LEVEL, DIVISOR, DELTA, EXCESS, D_BIAS, SEED, q_b, q_h, q_l, g_b, g_h, g_l, s_b, s_h, s_l, b_i, b_j,
            a_b, a_h, q_len, k_len, order, drop, D, DP, E, EP, BM // HALVES, BN, EVEN, PROFILE, SLOPE, RULE, EMPTY, POWER,
            GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, NEED_K, NEED_V, NEED_BIAS, True, PRECISION,
        )  # fmt: skip
    keys = tile * BN + tl.arange(0, BN)
    place = head.to(tl.int64) * k_len + keys
    if NEED_K:
        if EUCLIDEAN:
            dk -= total[:, None] * k.to(tl.float32)
        cols = tl.arange(0, DP)
        tl.store(
            D_K + place[:, None] * D + cols[None, :], dk.to(D_K.dtype.element_ty),
            mask=(keys < k_len)[:, None] & (cols < D)[None, :],
        )  # fmt: skip
    if NEED_V:
        cols = tl.arange(0, EP)
        tl.store(
            D_V + place[:, None] * E + cols[None, :], dv.to(D_V.dtype.element_ty),
            mask=(keys < k_len)[:, None] & (cols < E)[None, :],
        )  # fmt: skip
