"""One pass over the inputs before the sweep: what is not finite, norms, and 8-bit copies with the bounds of their error."""

from __future__ import annotations

import triton
import triton.language as tl

from .assembler import entry
from .scores import clean, load_rows

__all__ = ["prepare"]


@triton.jit
def _not_finite(x):
    """1 per row that holds a NaN or an infinity."""
    return tl.max(((x - x) != 0).to(tl.int32), 1)


@triton.jit
def _to_int8(x, unit):
    """x/unit rounded, |x| ≤ 127 unit up to rounding."""
    whole = tl.floor(x * (1.0 / unit) + 0.5)
    return tl.minimum(tl.maximum(whole, -127.0), 127.0)


@triton.jit
def _queries(
    Q, SCALE, BAD_Q, DIRTY, Q8, Q_UNITS, start, head, heads, count, q_b, q_h, q_l, s_b, s_h, s_l, q_len,
    D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, SIGNED: tl.constexpr, SCREEN: tl.constexpr,
):  # fmt: skip
    b, h = head // heads, head % heads
    rows = start + tl.arange(0, ROWS)
    valid = rows < q_len
    x = load_rows(Q + b.to(tl.int64) * q_b + h.to(tl.int64) * q_h, start, q_l, q_len, ROWS, D, DP, False)
    x = x.to(tl.float32)
    special = _not_finite(x)
    out = head.to(tl.int64) * q_len + rows
    tl.store(BAD_Q + out, special.to(tl.int8), mask=valid)
    x = clean(x)
    if SIGNED:
        ptr = SCALE + b.to(tl.int64) * s_b + h.to(tl.int64) * s_h + rows.to(tl.int64) * s_l
        scale = tl.load(ptr, mask=valid, other=0.0)
        special = tl.where(scale < 0, 1, special)
        x = tl.where((scale < 0)[:, None], -x, x)
    if tl.max(special, 0) > 0:
        tl.store(DIRTY, 1)
    if SCREEN:
        unit = tl.max(tl.abs(x), 1) * (1.0 / 127.0)
        unit = tl.where(unit > 0, unit, 1.0)
        whole = _to_int8(x, unit[:, None])
        ptr = Q8 + out[:, None] * DP + tl.arange(0, DP)[None, :]
        tl.store(ptr, whole.to(tl.int8), mask=valid[:, None])
        whole *= unit[:, None]
        x -= whole
        tl.store(Q_UNITS + out, unit, mask=valid)
        tl.store(Q_UNITS + count + out, tl.sqrt(tl.sum(whole * whole, 1)), mask=valid)
        tl.store(Q_UNITS + 2 * count + out, tl.sqrt(tl.sum(x * x, 1)), mask=valid)


@entry
def prepare(
    Q, K, V, SCALE, K_HALF, BAD_Q, BAD_K, DIRTY, Q8, K8, Q_UNITS, K_UNITS,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, s_b, s_h, s_l, heads, group, q_len, k_len, blocks, tiles,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ROWS: tl.constexpr, EUCLIDEAN: tl.constexpr, SIGNED: tl.constexpr, SCREEN: tl.constexpr,
):  # fmt: skip
    """BAD_Q, BAD_K: rows that hold a non-finite entry (of key or value); K_HALF: ‖k‖²/2. DIRTY: set if any row is not
    finite, or a scale is negative, whose queries change their sign.

    SCREEN: q ≈ s·Q8 with a scale per row and k ≈ s·K8 with a scale per tile. Q_UNITS holds s, ‖s Q8‖ and ‖q − s Q8‖ per
    row; K_UNITS s, the largest ‖k − s K8‖ and the largest ‖k‖ per tile.
    """
    head = tl.program_id(0) // (blocks + tiles)
    block = tl.program_id(0) % (blocks + tiles)
    tile = block - blocks
    if tile < 0:
        for part in range(BM // ROWS):
            _queries(
                Q, SCALE, BAD_Q, DIRTY, Q8, Q_UNITS, block * BM + part * ROWS, head, heads,
                (tl.num_programs(0) // (blocks + tiles)).to(tl.int64) * q_len,
                q_b, q_h, q_l, s_b, s_h, s_l, q_len, D, DP, ROWS, SIGNED, SCREEN,
            )  # fmt: skip
    elif head % group == 0:
        b, h = head // heads, head % heads // group
        place = head // group
        K += b.to(tl.int64) * k_b + h.to(tl.int64) * k_h
        V += b.to(tl.int64) * v_b + h.to(tl.int64) * v_h
        largest = 0.0
        longest = 0.0
        for part in range(BN // ROWS):
            start = tile * BN + part * ROWS
            keys = start + tl.arange(0, ROWS)
            x = load_rows(K, start, k_l, k_len, ROWS, D, DP, False).to(tl.float32)
            y = load_rows(V, start, v_l, k_len, ROWS, E, EP, False).to(tl.float32)
            bad = tl.maximum(_not_finite(x), _not_finite(y))
            x = clean(x)
            out = place.to(tl.int64) * k_len + keys
            tl.store(BAD_K + out, bad.to(tl.int8), mask=keys < k_len)
            if tl.max(bad, 0) > 0:
                tl.store(DIRTY, 1)
            square = tl.sum(x * x, 1)
            if EUCLIDEAN:
                tl.store(K_HALF + out, square * 0.5, mask=keys < k_len)
            largest = tl.maximum(largest, tl.max(tl.max(tl.abs(x), 1), 0))
            longest = tl.maximum(longest, tl.max(square, 0))
        if SCREEN:
            unit = largest * (1.0 / 127.0)
            unit = tl.where(unit > 0, unit, 1.0)
            rest = 0.0
            for part in range(BN // ROWS):
                start = tile * BN + part * ROWS
                x = clean(load_rows(K, start, k_l, k_len, ROWS, D, DP, False).to(tl.float32))
                whole = _to_int8(x, unit)
                # Beyond the last key there are zeros, so that whole tiles may be read.
                padded = (place * tiles + tile).to(tl.int64) * BN + part * ROWS + tl.arange(0, ROWS)
                tl.store(K8 + padded[:, None] * DP + tl.arange(0, DP)[None, :], whole.to(tl.int8))
                x -= whole * unit
                rest = tl.maximum(rest, tl.max(tl.sum(x * x, 1), 0))
            ptr = K_UNITS + (place * tiles + tile) * 4
            tl.store(ptr, unit)
            tl.store(ptr + 1, tl.sqrt(rest))
            tl.store(ptr + 2, tl.sqrt(longest))
