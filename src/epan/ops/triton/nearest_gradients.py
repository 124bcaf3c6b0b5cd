"""The backward pass of the nearest rule over the tiles with weight: queries by rows, keys and values by columns."""

from __future__ import annotations

import triton
import triton.language as tl

from .assembler import entry
from .nearest_kernels import queries, tile_of, weigh
from .scores import kept, load_rows

__all__ = ["nearest_by_columns", "nearest_by_rows"]


@triton.jit
def _gradient(
    z, top, cut, share, divisor, delta, grad, v, head, rows, start, SEED, drop,
    BN: tl.constexpr, SMOOTH: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(w, w·(g − δ)) of a tile: the weights and ∂L/∂z, with g = dO·v."""
    w = weigh(z, top, cut, share, SMOOTH) / divisor[:, None]
    g = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        g *= kept(SEED, head, rows, start, drop, BN, False)
    return w, w * (g - delta[:, None])


@entry
def nearest_by_rows(
    Q, K, V, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    TOP, CUT, SHARE, DIVISOR, LIST, COUNT, DELTA, D_Q, D_SCALE, D_SLOPE, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    NEED_Q: tl.constexpr, NEED_SCALE: tl.constexpr, NEED_SLOPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂q, ∂L/∂scale and ∂L/∂slope of Gaussian weights per row, and δ = Σwg for the columns: ∂z = w(g − δ)."""
    head = tl.program_id(0) // blocks
    block = blocks - 1 - tl.program_id(0) % blocks
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    rows = block * BM + tl.arange(0, BM)
    valid = rows < q_len
    lo = tl.load(LO + rows, mask=valid, other=0)
    hi = tl.load(HI + rows, mask=valid, other=0)
    q, scale, q_half, position, slope = queries(
        Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
        D, DP, BM, EVEN, EUCLIDEAN, ALIBI,
    )  # fmt: skip
    place = head.to(tl.int64) * blocks + block
    LIST += place * tiles
    count = tl.load(COUNT + place * 2)
    edges = tl.load(COUNT + place * 2 + 1)
    out = head.to(tl.int64) * q_len + rows
    top = tl.load(TOP + out, mask=valid, other=0.0)
    cut = tl.load(CUT + out, mask=valid, other=float("inf"))
    share = tl.load(SHARE + out, mask=valid, other=0.0)
    divisor = tl.load(DIVISOR + out, mask=valid, other=1.0)
    grad = load_rows(GRAD + b.to(tl.int64) * g_b + h.to(tl.int64) * g_h, block * BM, g_l, q_len, BM, E, EP, False)
    delta = tl.zeros([BM], tl.float32)
    # The listed tiles hold the range of every row in their masks, so inner and edge ones are worked on alike.
    for step in range(count + edges):
        tile = tl.load(LIST + tl.where(step < count, step, tiles - 1 - (step - count)))
        z, raw, k = tile_of(
            q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
            D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
        )  # fmt: skip
        v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, False)
        w, wg = _gradient(
            z, top, cut, share, divisor, delta * 0.0, grad, v, head, rows, tile * BN, SEED, drop, BN, True, DROPOUT,
            PRECISION
        )  # fmt: skip
        delta += tl.sum(wg, 1)
    x = tl.zeros([BM, DP], tl.float32)
    total = tl.zeros([BM], tl.float32)
    by_scale = tl.zeros([BM], tl.float32)
    by_slope = tl.zeros([BM], tl.float32)
    for step in range(count + edges):
        tile = tl.load(LIST + tl.where(step < count, step, tiles - 1 - (step - count)))
        z, raw, k = tile_of(
            q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
            D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
        )  # fmt: skip
        v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, False)
        w, ds = _gradient(
            z, top, cut, share, divisor, delta, grad, v, head, rows, tile * BN, SEED, drop, BN, True, DROPOUT, PRECISION
        )  # fmt: skip
        if NEED_SLOPE:
            keys = tile * BN + tl.arange(0, BN)
            by_slope -= tl.sum(ds * tl.abs(position[:, None] - keys[None, :]).to(tl.float32), 1)
        if EUCLIDEAN:
            # Beyond the clamp at distance zero there is no gradient.
            ds = tl.where(raw > 0, 0.0, ds)
            total += tl.sum(ds, 1)
        if NEED_SCALE:
            by_scale += tl.sum(tl.where(ds != 0, ds * raw, 0.0), 1)
        if NEED_Q:
            x = tl.dot(ds.to(k.dtype), k, x, input_precision=PRECISION)
    if NEED_Q:
        if EUCLIDEAN:
            x -= total[:, None] * q.to(tl.float32)
        x *= scale[:, None]
        cols = tl.arange(0, DP)
        there = valid[:, None] & (cols < D)[None, :]
        tl.store(D_Q + out[:, None] * D + cols[None, :], x.to(D_Q.dtype.element_ty), mask=there)
    tl.store(DELTA + out, delta, mask=valid)
    if NEED_SCALE:
        tl.store(D_SCALE + out, by_scale, mask=valid)
    if NEED_SLOPE:
        tl.store(D_SLOPE + out, by_slope, mask=valid)


@entry
def nearest_by_columns(
    Q, K, V, GRAD, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    TOP, CUT, SHARE, DIVISOR, LIST, COUNT, DELTA, D_K, D_V, D_BIAS, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, SMOOTH: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr, NEED_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """∂L/∂k, ∂L/∂v (per query head) and the dense ∂L/∂bias of one tile of keys, over the row blocks that use it.

    The scores are computed with the queries as rows, as everywhere, and the weights turned over for the products.
    """
    head = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    GRAD += b.to(tl.int64) * g_b + h.to(tl.int64) * g_h
    place = head.to(tl.int64) * tiles + tile
    LIST += place * blocks
    count = tl.load(COUNT + place * 2)
    edges = tl.load(COUNT + place * 2 + 1)
    keys = tile * BN + tl.arange(0, BN)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, False)
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, EP], tl.float32)
    felt = tl.zeros([BN], tl.float32)
    for step in range(count + edges):
        block = tl.load(LIST + tl.where(step < count, step, blocks - 1 - (step - count)))
        rows = block * BM + tl.arange(0, BM)
        valid = rows < q_len
        lo = tl.load(LO + rows, mask=valid, other=0)
        hi = tl.load(HI + rows, mask=valid, other=0)
        q, scale, q_half, position, slope = queries(
            Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
            D, DP, BM, EVEN, EUCLIDEAN, ALIBI,
        )  # fmt: skip
        z, raw, k = tile_of(
            q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
            D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
        )  # fmt: skip
        out = head.to(tl.int64) * q_len + rows
        top = tl.load(TOP + out, mask=valid, other=0.0)
        cut = tl.load(CUT + out, mask=valid, other=float("inf"))
        share = tl.load(SHARE + out, mask=valid, other=0.0)
        divisor = tl.load(DIVISOR + out, mask=valid, other=1.0)
        grad = load_rows(GRAD, block * BM, g_l, q_len, BM, E, EP, EVEN)
        if NEED_K or NEED_BIAS:
            delta = tl.load(DELTA + out, mask=valid, other=0.0)
            w, ds = _gradient(
                z, top, cut, share, divisor, delta, grad, v, head, rows, tile * BN, SEED, drop, BN, SMOOTH, DROPOUT,
                PRECISION
            )  # fmt: skip
            if NEED_BIAS:
                there = valid[:, None] & (keys < k_len)[None, :]
                tl.store(D_BIAS + out[:, None] * k_len + keys[None, :], ds, mask=there)
            if EUCLIDEAN:
                ds = tl.where(raw > 0, 0.0, ds)
            if NEED_K:
                ds *= scale[:, None]
                if EUCLIDEAN:
                    felt += tl.sum(ds, 0)
                dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision=PRECISION)
        else:
            w = weigh(z, top, cut, share, SMOOTH) / divisor[:, None]
        if NEED_V:
            if DROPOUT:
                w *= kept(SEED, head, rows, tile * BN, drop, BN, False)
            dv = tl.dot(tl.trans(w.to(grad.dtype)), grad, dv, input_precision=PRECISION)
    row = head.to(tl.int64) * k_len + keys
    if NEED_K:
        if EUCLIDEAN:
            k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, False)
            dk -= felt[:, None] * k.to(tl.float32)
        cols = tl.arange(0, DP)
        tl.store(
            D_K + row[:, None] * D + cols[None, :], dk.to(D_K.dtype.element_ty),
            mask=(keys < k_len)[:, None] & (cols < D)[None, :],
        )  # fmt: skip
    if NEED_V:
        cols = tl.arange(0, EP)
        tl.store(
            D_V + row[:, None] * E + cols[None, :], dv.to(D_V.dtype.element_ty),
            mask=(keys < k_len)[:, None] & (cols < E)[None, :],
        )  # fmt: skip
