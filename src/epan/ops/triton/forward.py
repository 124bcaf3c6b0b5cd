"""The forward pass: one dense sweep that finds the tiles with weight, then threshold and output on these tiles alone."""

from __future__ import annotations

import triton
import triton.language as tl

from .scores import argument, edge_tile, kept, load_rows, query_block, row_ranges, row_units, tile_scores

__all__ = ["attend", "sweep"]


@triton.jit
def _newton(f, g, order):
    """By how much the level of keys with the sums f = Σφ ≥ 1 and g = Σφ' may fall so that f stays at least 1.

    Newton's step on f^{1/n} = 1, which is convex: from above its root it never passes it, and neither that of any larger
    set of keys.
    """
    root = tl.exp2(tl.log2(tl.maximum(f, 1.0)) * (1.0 - 1.0 / order))
    return tl.where(f > 1.0, (f - root) / tl.maximum(g, 1e-30), 0.0)


@triton.jit
def sweep(
    Q, K, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    PEAKS, REFERENCE, BOUND, FLAGS, LIST, COUNT,
    q_b, q_h, q_l, k_b, k_h, k_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, head0, block0, launched, order,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, TC: tl.constexpr, PASSES: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Row maxima over every visible tile, a lower bound of the threshold from them, and the tiles that reach above it.

    PEAKS: scratch (head, block, tile, row) float16: the maxima in units of the support above a first bound, rounded up.
    FLAGS: (B·H, blocks, tiles) 1 = inner tile with possible weight, 2 = edge tile. LIST, COUNT: the inner ones per block.
    """
    here = tl.num_programs(0) - 1 - tl.program_id(0)
    block = here + block0
    head = tl.program_id(1) + head0
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    index = tl.arange(0, BM)
    rows = block * BM + index
    valid = rows < q_len
    lo, hi, first, inner, outer, last = row_ranges(LO, HI, rows, q_len, BN)
    q, scale, q_half, position, slope = query_block(
        Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
        D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI,
    )  # fmt: skip
    factor, level_unused, gain_unused = row_units(scale, scale, order, GENERAL, 1, EMPTY, POWER)
    width = 1.0 / factor
    FLAGS += (head.to(tl.int64) * blocks + block) * tiles
    LIST += (head.to(tl.int64) * blocks + block) * tiles
    top = tl.full([BM], float("-inf"), tl.float32)
    bound = tl.full([BM], float("-inf"), tl.float32)
    # Edge tiles, the diagonal among them, are always worked on; so is one inner tile, for a first bound.
    edges = (inner - first) + (last - outer)
    for step in range(edges + tl.where(outer > inner, 1, 0)):
        tile = tl.where(step < edges, edge_tile(step, first, inner, outer), outer - 1)
        k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, False)
        z, raw = tile_scores(
            q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
            BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, True, False, PRECISION,
        )  # fmt: skip
        peak = tl.max(z, 1)
        top = tl.maximum(top, peak)
        if RULE == 0:
            mine = peak - width
            for turn in tl.static_range(3):
                # A row without keys in this tile has −inf − (−inf).
                u = tl.maximum(tl.where(z > float("-inf"), (z - mine[:, None]) * factor[:, None], 0.0), 0.0)
                f = tl.sum(PROFILE(u, order), 1)
                g = tl.sum(SLOPE(u, order), 1)
                mine += _newton(f, g, order) * width
            bound = tl.maximum(bound, mine)
        if step < edges:
            tl.store(FLAGS + tile, 2)
    if RULE == 1:
        bound = top - width
    if RULE == 2:
        bound = -width
    base = tl.where(bound > float("-inf"), bound, 0.0)
    PEAKS += (tl.program_id(1).to(tl.int64) * launched + here) * tiles * BM
    for step in range(outer - inner):
        tile = inner + step
        k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, True)
        z, raw = tile_scores(
            q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
            BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, False, False, PRECISION,
        )  # fmt: skip
        peak = tl.max(z, 1)
        top = tl.maximum(top, peak)
        excess = (peak - base) * factor
        excess = tl.minimum(tl.maximum(excess + tl.abs(excess) * 0.001, -2.0), 60000.0)
        tl.store(PEAKS + tile * BM + index, excess.to(tl.float16))
    tl.debug_barrier()
    alive = top > float("-inf")
    if RULE == 0 or RULE == 1:
        bound = tl.maximum(bound, top - width)
    if RULE == 2:
        hollow = 1.0 + top * factor <= 0
        if EMPTY == 2:
            bound = tl.where(hollow, top - 1e-3 * width, bound)
        if EMPTY == 1:
            bound = tl.where(hollow, float("-inf"), bound)
    cut = tl.where(alive, (bound - base) * factor, 0.0)
    if RULE == 3:
        cut = tl.full([BM], float("-inf"), tl.float32)
    if RULE == 0:
        # The tiles' maxima are keys too, different ones: their own threshold is a bound as well.
        for turn in tl.static_range(PASSES):
            f = tl.zeros([BM], tl.float32)
            g = tl.zeros([BM], tl.float32)
            for start in range(inner, outer, TC):
                many = start + tl.arange(0, TC)
                e = tl.load(PEAKS + many[:, None] * BM + index[None, :], mask=(many < outer)[:, None], other=-2.0)
                e = e.to(tl.float32)
                # Rounded up above, by as much it may be too high.
                u = tl.maximum(tl.where(e > -2.0, e - tl.abs(e) * 0.003 - cut[None, :], 0.0), 0.0)
                f += tl.sum(PROFILE(u, order), 0)
                g += tl.sum(SLOPE(u, order), 0)
            cut += _newton(f, g, order)
        bound = tl.maximum(bound, base + cut * width)
    # The bound itself is rounded; a key that it cuts off must not matter.
    limit = tl.where(valid & alive, cut - 1e-3 - 1e-6 * tl.abs(base) * factor, 70000.0)
    count = 0
    for start in range(inner, outer, TC):
        many = start + tl.arange(0, TC)
        e = tl.load(PEAKS + many[:, None] * BM + index[None, :], mask=(many < outer)[:, None], other=-2.0).to(
            tl.float32
        )
        over = tl.max(((e > limit[None, :]) | (e >= 59000.0)).to(tl.int32), 1)
        over = tl.where(many < outer, over, 0)
        tl.store(FLAGS + many, over.to(tl.int8), mask=many < outer)
        place = count + tl.cumsum(over, 0) - 1
        tl.store(LIST + place, many, mask=over > 0)
        count += tl.sum(over, 0)
    tl.store(COUNT + head * blocks + block, count)
    out = head.to(tl.int64) * q_len + rows
    tl.store(REFERENCE + out, tl.where(alive, top, 0.0), mask=valid)
    tl.store(BOUND + out, tl.where(alive, bound, 0.0), mask=valid)


@triton.jit
def _sums(u, order, PROFILE: tl.constexpr, SLOPE: tl.constexpr):
    """Σφ and Σφ' per row."""
    base = tl.maximum(u, 0.0)
    return tl.sum(PROFILE(base, order), 1), tl.sum(SLOPE(base, order), 1)


@triton.jit
def _weights(u, order, PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, STATS: tl.constexpr):
    """(φ, Σφ, Σφ' where the rule needs it, number of keys with weight where it is asked for)."""
    if RULE == 3:
        p = tl.exp(u)
        f = tl.sum(p, 1)
        return p, f, f, tl.sum((u > float("-inf")).to(tl.float32), 1)
    else:
        base = tl.maximum(u, 0.0)
        p = PROFILE(base, order)
        f = tl.sum(p, 1)
        g, size = f, f
        if RULE == 0:
            g = tl.sum(SLOPE(base, order), 1)
        if STATS:
            size = tl.sum((u > 0).to(tl.float32), 1)
        return p, f, g, size


@triton.jit
def _sum_step(
    f, g, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
    reference, factor, level, order,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PROFILE: tl.constexpr, SLOPE: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of Σφ and Σφ' of :func:`attend`."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    x, y = _sums(argument(z, reference, factor, level, False), order, PROFILE, SLOPE)
    return f + x, g + y


@triton.jit
def _output_step(
    acc, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
    head, q_len, k_len, reference, factor, level, order, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr,
    BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, STATS: tl.constexpr, EDGE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the output of :func:`attend` and of the sums at its level."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    p, x, y, w = _weights(argument(z, reference, factor, level, False), order, PROFILE, SLOPE, RULE, STATS)
    if DROPOUT:
        p *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, f + x, g + y, size + w


@triton.jit
def attend(
    Q, K, V, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, BOUND, LIST, COUNT, OUT, LEVEL, DIVISOR, THRESHOLD, SUPPORT, PARTITION, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h, o_b, o_h, o_l,
    heads, group, q_len, k_len, tiles, blocks, order, tolerance, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Threshold and output of a block of queries from its edge tiles and its list of inner tiles."""
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
    factor, level, gain = row_units(scale, reference, order, GENERAL, RULE, EMPTY, POWER)
    BS: tl.constexpr = BN // SPLIT
    if RULE == 0:
        bound = tl.load(BOUND + out, mask=valid, other=0.0)
        # f ≥ 1 at the bound; what rounding took from it is given back.
        level = tl.minimum((reference - bound) * factor + 1e-6 * (1.0 + tl.abs(reference) * factor), 1.0)
        todo = 1
        steps = 0
        while (todo > 0) & (steps < STEPS):
            f = tl.zeros([BM], tl.float32)
            g = tl.zeros([BM], tl.float32)
            for step in range(edges * SPLIT):
                tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
                f, g = _sum_step(
                    f, g, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                    reference, factor, level, order,
                    D, DP, BS, PROFILE, SLOPE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
                )  # fmt: skip
            for step in range(count * SPLIT):
                tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
                f, g = _sum_step(
                    f, g, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                    reference, factor, level, order,
                    D, DP, BS, PROFILE, SLOPE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, False, PRECISION,
                )  # fmt: skip
            live = valid & (g > 0)
            # A step on f^{1/n} from above the root stays above it, and one on f lands above it from either side.
            step_f = (f - 1.0) / (order * tl.maximum(g, 1e-30))
            newton = tl.where(f > 1.0, _newton(f, g, order), step_f)
            # Relative to Σφ/Σφ': on thousands of nearly equal scores an absolute step would say nothing.
            enough = tolerance * f / tl.maximum(g, 1e-30) + 2e-7 * level
            moved = live & (tl.abs(newton) > enough)
            level = tl.where(live, level - newton, level)
            todo = tl.max(moved.to(tl.int32), 0)
            steps += 1
    acc = tl.zeros([BM, EP], tl.float32)
    f = tl.zeros([BM], tl.float32)
    g = tl.zeros([BM], tl.float32)
    size = tl.zeros([BM], tl.float32)
    for step in range(edges * SPLIT):
        tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
        acc, f, g, size = _output_step(
            acc, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
            head, q_len, k_len, reference, factor, level, order, SEED, drop,
            D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, True, PRECISION,
        )  # fmt: skip
    for step in range(count * SPLIT):
        tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
        acc, f, g, size = _output_step(
            acc, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
            head, q_len, k_len, reference, factor, level, order, SEED, drop,
            D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, False, PRECISION,
        )  # fmt: skip
    live = f > 0
    divisor = tl.where(live, f, 1.0)
    acc = acc / divisor[:, None]
    cols = tl.arange(0, EP)
    ptr = OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h + rows[:, None].to(tl.int64) * o_l + cols[None, :]
    tl.store(ptr, acc.to(OUT.dtype.element_ty), mask=valid[:, None] & (cols < E)[None, :])
    if RULE == 0:
        # These sums tell how far the level is off; the backward pass takes Σw = 1 for granted.
        level = tl.where(live, level - (f - 1.0) / (order * tl.maximum(g, 1e-30)), level)
        divisor = tl.full([BM], 1.0, tl.float32)
    tl.store(LEVEL + out, level, mask=valid)
    tl.store(DIVISOR + out, divisor, mask=valid)
    if STATS:
        unit = tl.zeros_like(scale) + 1.0
        if not GENERAL:
            unit = scale
        threshold = reference * unit - level * order
        partition = divisor
        if RULE == 2:
            reach = 1.0 + reference * (1.0 / order)
            threshold = tl.zeros_like(scale) - order
            if POWER:
                partition = partition * PROFILE(tl.maximum(reach, 0.0), order)
            partition = tl.where(reach > 0, partition, 0.0)
            aside = float("inf")
            if EMPTY == 1:
                aside = float("-inf")
            threshold = tl.where(reach > 0, threshold, aside)
            if EMPTY == 2:
                threshold = tl.where(reach > 0, threshold, reference - tl.maximum(tl.abs(reference) * 1.2e-7, 1e-45))
        if RULE == 3:
            threshold = tl.full([BM], float("-inf"), tl.float32)
            partition = reference * unit + tl.log(divisor)
        some = size > 0
        tl.store(THRESHOLD + out, tl.where(some, threshold, float("inf")), mask=valid)
        tl.store(SUPPORT + out, size.to(tl.int64), mask=valid)
        tl.store(PARTITION + out, tl.where(some, partition, 0.0), mask=valid)
