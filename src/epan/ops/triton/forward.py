"""The forward pass: one dense sweep that finds the tiles with weight, then threshold and output on these tiles alone."""

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
    own_half,
    query_block,
    rounded,
    row_factor,
    row_range,
    row_units,
    tile_scores,
)

__all__ = ["attend", "newton", "next_level", "sweep"]


@triton.jit
def newton(f, g, order):
    """By how much the level of keys with the sums f = Σφ ≥ 1 and g = Σφ' may fall so that f stays at least 1.

    Newton's step on f^{1/n} = 1, which is convex: from above its root it never passes it, and neither that of any larger
    set of keys.
    """
    root = tl.exp2(tl.log2(tl.maximum(f, 1.0)) * (1.0 - 1.0 / order))
    return tl.where(f > 1.0, (f - root) / tl.maximum(g, 1e-30), 0.0)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _note(
    peak, bar, tile, bits, top, cut, f, g, order,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr,
):  # fmt: skip
    """Takes the row maxima of a tile, which lie in peak ± bar, into account: the tile's bit, top, cut and sums.

    All in units of the support above a base: above the cut there may be weight.
    """
    low = peak - bar
    if RULE == 3:
        cut = tl.full(peak.shape, float("-inf"), tl.float32)
    limit = cut
    # Until a row has a key in reach, all keys of the nearest so far, or all at all, may be needed.
    if RULE == 2 and EMPTY == 1:
        limit = tl.where(top > 1e-3, cut, float("-inf"))
    if RULE == 2 and EMPTY == 2:
        limit = tl.minimum(cut, top - 1e-3 - 2e-6 * tl.abs(top))
    bits |= tl.where(peak + bar > limit, 1 << (tile & 31), 0)
    if RULE == 0:
        u = tl.maximum(low, 0.0)
        f += PROFILE(u, order)
        g += SLOPE(u, order)
    top = tl.maximum(top, low)
    if RULE < 2:
        # Keys this far below are without weight; the margin covers rounding.
        cut = tl.maximum(cut, low - 1.001)
    return bits, top, cut, f, g


@triton.jit
def _rebase(top, cut, f, g, base, factor, width, order, RULE: tl.constexpr):
    """The sums of some tiles turned into a bound, from which top, cut and base of the next ones are counted."""
    # The tiles' maxima are keys too, different ones: their own threshold is a bound as well.
    up = newton(f, g, order)
    if RULE == 0:
        # The first base of a row may be no bound at all.
        cut = tl.where(up > 0, tl.maximum(cut, up - 1e-3), cut)
        after = base + up * width
        # What rounding makes of the base counts.
        up = (after - base) * factor
        return top - up, cut - up, tl.zeros_like(f), tl.zeros_like(g), after
    else:
        return top, cut, f, g, base


@triton.jit
def _write_tiles(bits, tile, inner, outer, count, FLAGS, LIST):
    """Flags of the 32 tiles around ``tile`` from the rows' bits, and the list of those with a bit; the new count."""
    word = tl.reduce(bits, 0, _either)
    place = tl.arange(0, 32)
    many = (tile & -32) + place
    there = (many >= inner) & (many < outer)
    over = (word >> place) & 1
    tl.store(FLAGS + many, over.to(tl.int8), mask=there)
    tl.store(LIST + count + tl.cumsum(over, 0) - 1, many, mask=there & (over > 0))
    return count + tl.sum(over, 0)


@entry
def sweep(
    Q, K, Q8, K8, Q_UNITS, K_UNITS, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    REFERENCE, BOUND, FLAGS, LIST, COUNT,
    q_b, q_h, q_l, k_b, k_h, k_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, left, right, offset, order, coarsest,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    SCREEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row maxima over every visible tile, a lower bound of the threshold from them, and the tiles that reach above it.

    FLAGS: (B·H, blocks, tiles) 1 = inner tile with possible weight, 2 = edge tile. LIST, COUNT: the inner ones per block.
    SCREEN: the maxima come from products of 8-bit integers and an error bar each, where no bar of the block exceeds
    ``coarsest`` in units of the support; a tile is dropped by maximum + bar, a bound raised by maximum − bar.
    """
    # The longest first; one axis, because the others of a grid end at 65,535.
    head = tl.program_id(0) // blocks
    block = blocks - 1 - tl.program_id(0) % blocks
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    place = b * (heads // group) + h // group
    K_HALF += place.to(tl.int64) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    rows = block * BM + tl.arange(0, BM)
    valid = rows < q_len
    first, inner, outer, last = block_tiles(LO, HI, block, left, right, q_len, k_len, BM, BN, PACKED)
    lo, hi = row_range(LO, HI, rows, left, right, q_len, k_len, PACKED)
    q, scale, sign, q_half, position, slope = query_block(
        Q, SCALE, SLOPES, POSITION, b, h, block, rows, q_len, offset, q_b, q_h, q_l, s_b, s_h, s_l,
        a_b, a_h, D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI, PACKED, SIGNED, UNIFORM, True,
    )  # fmt: skip
    factor = row_factor(scale, order, GENERAL, 1)
    width = 1.0 / factor
    out = head.to(tl.int64) * q_len + rows
    FLAGS += (head.to(tl.int64) * blocks + block) * tiles
    LIST += (head.to(tl.int64) * blocks + block) * tiles
    top = tl.full([BM], float("-inf"), tl.float32)
    bound = tl.full([BM], float("-inf"), tl.float32)
    if RULE == 2:
        bound = own_half(q, sign, EUCLIDEAN, GENERAL) - width
    # Edge tiles, the diagonal among them, are always worked on; without any, one inner tile gives a first bound.
    edges = (inner - first) + (last - outer)
    for step in range(tl.maximum(edges, tl.minimum(outer - inner, 1))):
        tile = tl.where(step < edges, edge_tile(step, first, inner, outer), outer - 1)
        k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, False)
        z, raw = tile_scores(
            q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
            BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, True, False, PRECISION,
        )  # fmt: skip
        peak = tl.max(z, 1)
        top = tl.maximum(top, peak)
        if RULE == 0:
            some = peak > float("-inf")
            mine = tl.where(some, peak - width, 0.0)
            for turn in tl.static_range(3):
                u = tl.maximum((z - mine[:, None]) * factor[:, None], 0.0)
                mine += newton(tl.sum(PROFILE(u, order), 1), tl.sum(SLOPE(u, order), 1), order) * width
            bound = tl.maximum(bound, tl.where(some, mine, float("-inf")))
        if RULE == 1:
            bound = tl.maximum(bound, peak - width)
        if step < edges:
            tl.store(FLAGS + tile, 2)
    bits = tl.zeros([BM], tl.int32)
    f = tl.zeros([BM], tl.float32)
    g = tl.zeros([BM], tl.float32)
    exact = top
    # From here on in units of the support above this base.
    base = tl.where(bound > float("-inf"), bound, 0.0)
    cut = (bound - base) * factor - 1e-3 - 2e-6 * tl.abs(base) * factor
    top = (top - base) * factor
    count = 0
    coarse = True
    if SCREEN:
        units = (tl.num_programs(0) // blocks).to(tl.int64) * q_len
        unit = tl.load(Q_UNITS + out, mask=valid, other=0.0) * factor
        norm = tl.load(Q_UNITS + units + out, mask=valid, other=0.0) * factor
        rest = tl.load(Q_UNITS + 2 * units + out, mask=valid, other=0.0) * factor
        # Rounding of the products that the bar bounds, and of the bar.
        rest += 1e-5 * (norm + rest)
        K_UNITS += place.to(tl.int64) * tiles * 4
        worst = 0.0
        longest = 0.0
        for start in range(inner, outer, 128):
            many = start + tl.arange(0, 128)
            worst = tl.maximum(worst, tl.max(tl.load(K_UNITS + many * 4 + 1, mask=many < outer, other=0.0), 0))
            longest = tl.maximum(longest, tl.max(tl.load(K_UNITS + many * 4 + 2, mask=many < outer, other=0.0), 0))
        coarse = tl.max(norm * worst + rest * longest, 0) > coarsest
        if not coarse:
            K8 += place.to(tl.int64) * tiles * BN * DP
            q8 = load_rows(Q8 + head.to(tl.int64) * q_len * DP, block * BM, DP, q_len, BM, DP, DP, EVEN)
            for step in range(outer - inner):
                tile = outer - 1 - step
                k_unit = tl.load(K_UNITS + tile * 4)
                k_rest = tl.load(K_UNITS + tile * 4 + 1)
                k_norm = tl.load(K_UNITS + tile * 4 + 2)
                k8 = load_rows(K8, tile * BN, DP, k_len, BN, DP, DP, True)
                peak = tl.max(tl.dot(q8, tl.trans(k8), out_dtype=tl.int32), 1).to(tl.float32)
                bits, top, cut, f, g = _note(
                    peak * (unit * k_unit) - base * factor, norm * k_rest + rest * k_norm, tile, bits, top, cut, f, g,
                    order, PROFILE, SLOPE, RULE, EMPTY,
                )  # fmt: skip
                if ((tile & 31) == 0) | (step == outer - inner - 1):
                    count = _write_tiles(bits, tile, inner, outer, count, FLAGS, LIST)
                    bits = tl.zeros([BM], tl.int32)
                    top, cut, f, g, base = _rebase(top, cut, f, g, base, factor, width, order, RULE)
    if coarse:
        if SCREEN:
            # Read again, so that the queries take no shared memory while 8-bit products are formed.
            q, scale, sign, q_half, position, slope = query_block(
                Q, SCALE, SLOPES, POSITION, b, h, block, rows, q_len, offset, q_b, q_h, q_l, s_b, s_h, s_l,
                a_b, a_h, D, DP, BM, EVEN, GENERAL, EUCLIDEAN, ALIBI, PACKED, SIGNED, UNIFORM, True,
            )  # fmt: skip
        for step in range(outer - inner):
            tile = outer - 1 - step
            k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, True)
            z, raw = tile_scores(
                q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
                BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, False, False, PRECISION,
            )  # fmt: skip
            peak = tl.max(z, 1)
            exact = tl.maximum(exact, peak)
            bits, top, cut, f, g = _note(
                (peak - base) * factor, 0.0, tile, bits, top, cut, f, g, order, PROFILE, SLOPE, RULE, EMPTY
            )  # fmt: skip
            if ((tile & 31) == 0) | (step == outer - inner - 1):
                count = _write_tiles(bits, tile, inner, outer, count, FLAGS, LIST)
                bits = tl.zeros([BM], tl.int32)
                top, cut, f, g, base = _rebase(top, cut, f, g, base, factor, width, order, RULE)
    else:
        exact = tl.maximum(exact, base + top * width)
    tl.store(COUNT + head * blocks + block, count)
    alive = exact > float("-inf")
    tl.store(REFERENCE + out, tl.where(alive, exact, 0.0), mask=valid)
    if RULE == 0:
        bound = tl.maximum(tl.maximum(bound, exact - width), base + (cut + 1e-3) * width)
        tl.store(BOUND + out, tl.where(alive, bound, 0.0), mask=valid)


@triton.jit
def _weights(u, order, PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, STATS: tl.constexpr):
    """(φ, Σφ, Σφ', number of keys with weight where it is asked for); of the Gaussian Σφ, keys with weight, keys in sight."""
    if RULE == 3:
        p = tl.exp(u)
        f = tl.sum(p, 1)
        return p, f, tl.sum((p > 0).to(tl.float32), 1), tl.sum((u > float("-inf")).to(tl.float32), 1)
    else:
        base = tl.maximum(u, 0.0)
        p = PROFILE(base, order)
        f = tl.sum(p, 1)
        size = f
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
    base = tl.maximum(argument(z, reference, factor, level, 0, False), 0.0)
    return f + tl.sum(PROFILE(base, order), 1), g + tl.sum(SLOPE(base, order), 1)


@triton.jit
def _output_step(
    acc, total, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
    head, q_len, k_len, reference, factor, level, order, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr,
    BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, STATS: tl.constexpr, EDGE: tl.constexpr,
    CLEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the output of :func:`attend` and of the sums at its level."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    p, x, y, w = _weights(
        argument(z, reference, factor, level, RULE, False), order, PROFILE, SLOPE, RULE, STATS or q.dtype == tl.float32
    )
    if RULE == 1 or RULE == 2:
        # The output is divided by the sum of what the product takes, so that what rounding does to all weights cancels
        # out: dO·O has to be the mean of dO·v, or an offset that the values share would show in the gradients.
        p = rounded(p, V.dtype.element_ty)
        total += tl.sum(p, 1)
    if DROPOUT:
        p *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    if CLEAN:
        v = clean(v)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, f + x, g + y, size + w


@triton.jit
def _reached(
    BAD_Q, BAD_K, BIAS, b_i, b_j, lo, hi, rows, head, place, first, last, q_len, k_len,
    BM: tl.constexpr, BN: tl.constexpr, BIAS_KIND: tl.constexpr,
):  # fmt: skip
    """1 where a query is not finite and sees any key, or sees a key or value that is not finite."""
    valid = rows < q_len
    own = tl.load(BAD_Q + head.to(tl.int64) * q_len + rows, mask=valid, other=0).to(tl.int32)
    found = tl.zeros([BM], tl.int32)
    for start in range(first * BN, last * BN, 32):
        keys = start + tl.arange(0, 32)
        bad = tl.load(BAD_K + place.to(tl.int64) * k_len + keys, mask=keys < k_len, other=0).to(tl.int32)
        sees = (keys[None, :] >= lo[:, None]) & (keys[None, :] < hi[:, None])
        if BIAS_KIND != 0:
            there = valid[:, None] & (keys < k_len)[None, :]
            ptr = BIAS + rows.to(tl.int64)[:, None] * b_i + keys.to(tl.int64)[None, :] * b_j
            if BIAS_KIND == 1:
                sees = sees & (tl.load(ptr, mask=there, other=0) != 0)
            else:
                sees = sees & (tl.load(ptr, mask=there, other=0.0).to(tl.float32) != float("-inf"))
        found = tl.maximum(found, tl.max(tl.where(sees, tl.maximum(bad[None, :], own[:, None]), 0), 1))
    return found


@triton.jit
def next_level(f, g, level, ceiling, before, unit_before, power, going, valid, order, tolerance):
    """One step towards the level at which Σφ = 1, from the sums f = Σφ and g = Σφ' at the level so far.

    (level, ceiling, before, unit_before, power, going): no level above the ceiling is the root; ``before`` and f/g there
    are those of the step before, and ``power`` what they say of the shape of f; a row that has arrived no longer is going.
    """
    live = valid & (g > 0)
    unit = f / tl.maximum(g, 1e-30)
    # Newton's step never passes the root: a bound.
    sure = newton(f, g, order)
    ceiling = tl.where(live & (f > 1.0), tl.minimum(ceiling, level - sure), ceiling)
    # A step on f^{1/n} falls short of the root and one on ln f mostly passes it: their mean is a good guess.
    log = tl.log2(tl.maximum(f, 1e-30))
    far = log * (unit * (0.6931471805599453 / order))
    guess = tl.where(f > 1.0, 0.5 * (sure + far), far)
    if order < 1.5:
        # There f is bent less evenly: it is taken as a power of (level − start), and two levels tell which one.
        fitted = (level - before) / (unit - unit_before)
        power = tl.where(tl.abs(level - before) > 1e-4 * level, tl.clamp(fitted, 1.0, 40.0), power)
        guess = power * unit * (1.0 - tl.exp2(-log / power))
        far = guess
    # On many equal scores the guess lies beyond the best key. Far beyond the root a step on f, which is convex,
    # leads back to the other side of it.
    ahead = tl.where(far < 0.9 * level, guess, sure)
    back = tl.where(f > 0.25, guess, (f - 1.0) / (order * tl.maximum(g, 1e-30)))
    change = tl.where(f > 1.0, ahead, back)
    after = tl.minimum(tl.maximum(level - change, 1e-3 * level), ceiling)
    # Relative to Σφ/Σφ': on thousands of nearly equal scores an absolute step would say nothing.
    enough = tolerance * unit + 2e-7 * level
    before = level
    unit_before = unit
    moved = live & (tl.abs(after - level) > enough)
    level = tl.where(going, tl.where(live, after, ceiling), level)
    going = going & moved
    return level, ceiling, before, unit_before, power, going


@entry
def attend(
    Q, K, V, SCALE, K_HALF, BIAS, SLOPES, LO, HI, POSITION, BAD_Q, BAD_K, DIRTY,
    REFERENCE, BOUND, LIST, COUNT, OUT, OUT_LOW, LEVEL, DIVISOR, REACH, THRESHOLD, SUPPORT, PARTITION, DENSITY, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h, o_b, o_h, o_l,
    heads, group, q_len, k_len, tiles, blocks, left, right, offset, order, tolerance, later, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, HALVES: tl.constexpr, SPLIT: tl.constexpr,
    PROFILE: tl.constexpr, SLOPE: tl.constexpr, RULE: tl.constexpr, EMPTY: tl.constexpr, POWER: tl.constexpr,
    GENERAL: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, PACKED: tl.constexpr, SIGNED: tl.constexpr, UNIFORM: tl.constexpr,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, LOW: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Threshold and output of (a half of) a block of queries from its edge tiles and its list of inner tiles.

    LOW: OUT_LOW takes what rounding the output to its dtype leaves.
    """
    head = tl.program_id(0) // (blocks * HALVES)
    part = blocks * HALVES - 1 - tl.program_id(0) % (blocks * HALVES)
    block = part // HALVES
    HM: tl.constexpr = BM // HALVES
    BS: tl.constexpr = BN // SPLIT
    b, h = head // heads, head % heads
    place = b * (heads // group) + h // group
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    V += b.to(tl.int64) * v_b + (h // group).to(tl.int64) * v_h
    K_HALF += place.to(tl.int64) * k_len
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
    dirty = tl.load(DIRTY) > 0
    out = head.to(tl.int64) * q_len + rows
    reference = tl.load(REFERENCE + out, mask=valid, other=0.0)
    own = own_half(q, sign, EUCLIDEAN, GENERAL)
    reach = 1.0 + (reference - own) * row_factor(scale, order, GENERAL, RULE)
    factor, level, gain = row_units(scale, reach, order, GENERAL, RULE, EMPTY, POWER)
    # What rounding may take from the best score where it is computed again: distances are differences of larger numbers.
    blur = 4e-7 * (tl.abs(reference) + tl.abs(own))
    if EUCLIDEAN and GENERAL:
        blur += 4e-7 * tl.abs(q_half * scale)
    pivot = reference
    if RULE == 2:
        if EMPTY == 2:
            # All that ties with the nearest key up to rounding lies far above the pivot, and is cut at the level.
            pivot = tl.where(reach > 0, pivot, pivot - blur)
        tl.store(REFERENCE + out, pivot, mask=valid)
        tl.store(REACH + out, reach, mask=valid)
    if RULE == 1:
        tl.store(REACH + out, blur, mask=valid)
    if RULE == 0:
        bound = tl.load(BOUND + out, mask=valid, other=0.0)
        # f ≥ 1 at the bound; what rounding took from it is given back.
        ceiling = (reference - bound) * factor + 1e-6 * (1.0 + tl.abs(reference) * factor)
        level = ceiling
        before = level
        unit_before = tl.zeros_like(level)
        power = tl.zeros_like(level) + 3.0
        # A row that has arrived stays, so that no bit of it depends on the other rows of its block.
        going = valid
        todo = 1
        steps = 0
        while (todo > 0) & (steps < STEPS):
            f = tl.zeros([HM], tl.float32)
            g = tl.zeros([HM], tl.float32)
            for step in range(count * SPLIT):
                tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
                f, g = _sum_step(
                    f, g, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                    reference, factor, level, order,
                    D, DP, BS, PROFILE, SLOPE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, False, PRECISION,
                )  # fmt: skip
            for step in range(edges * SPLIT):
                tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
                f, g = _sum_step(
                    f, g, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                    reference, factor, level, order,
                    D, DP, BS, PROFILE, SLOPE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
                )  # fmt: skip
            rough = tl.where(steps == 0, tolerance, later)
            level, ceiling, before, unit_before, power, going = next_level(
                f, g, level, ceiling, before, unit_before, power, going, valid, order, rough
            )
            todo = tl.max(going.to(tl.int32), 0)
            steps += 1
    acc = tl.zeros([HM, EP], tl.float32)
    f = tl.zeros([HM], tl.float32)
    g = tl.zeros([HM], tl.float32)
    size = tl.zeros([HM], tl.float32)
    total = tl.zeros([HM], tl.float32)
    if dirty:
        for step in range(edges * SPLIT):
            tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
            acc, total, f, g, size = _output_step(
                acc, total, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
                head, q_len, k_len, pivot, factor, level, order, SEED, drop,
                D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, True, True, PRECISION,
            )  # fmt: skip
    else:
        for step in range(edges * SPLIT):
            tile = edge_tile(step // SPLIT, first, inner, outer) * SPLIT + step % SPLIT
            acc, total, f, g, size = _output_step(
                acc, total, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
                head, q_len, k_len, pivot, factor, level, order, SEED, drop,
                D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, True, False, PRECISION,
            )  # fmt: skip
    # Without a mask an inner tile is seen by all rows, so that a key that is not finite takes all of them anyway.
    for step in range(count * SPLIT):
        tile = tl.load(LIST + step // SPLIT) * SPLIT + step % SPLIT
        acc, total, f, g, size = _output_step(
            acc, total, f, g, size, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
            head, q_len, k_len, pivot, factor, level, order, SEED, drop,
            D, DP, E, EP, BS, PROFILE, SLOPE, RULE, GENERAL, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, False, BIAS_KIND != 0, PRECISION,
        )  # fmt: skip
    live = f > 0
    divisor = tl.where(live, f, 1.0)
    if RULE == 1 or RULE == 2:
        acc = acc / tl.where(live, total, 1.0)[:, None]
    else:
        acc = acc / divisor[:, None]
    if RULE == 0:
        # These sums tell how far the level is off; the backward pass takes Σw = 1 for granted.
        level = level - (f - 1.0) / (order * tl.maximum(g, 1e-30))
        divisor = tl.full([HM], 1.0, tl.float32)
    if RULE == 1 or RULE == 2:
        # One key with all weight has no gradient but to its value; a sign says so.
        alone = (f <= 1.0000002 * PROFILE(level, order)) & (g <= 1.0000002 * SLOPE(level, order))
        divisor = tl.where(alone & live, -divisor, divisor)
        if RULE == 2:
            # In the backward pass, too, that key has all weight, however its score is rounded there: it is cut at the level.
            tl.store(REFERENCE + out, tl.where(alone & live, pivot - blur, pivot), mask=valid)
    elif q.dtype == tl.float32:
        # The same, but for 16-bit gradients, in which what rounding leaves of a zero does not show.
        alone = g == 1
        if RULE == 0:
            alone = size == 1
        divisor = tl.where(alone & live, -divisor, divisor)
    # Below every support, so that no gradient flows through the row.
    level = tl.where(live, level, float("-inf"))
    reached = tl.zeros([HM], tl.int32)
    if dirty:
        reached = _reached(
            BAD_Q, BAD_K, BIAS, b_i, b_j, lo, hi, rows, head, place, first, last, q_len, k_len, HM, BN, BIAS_KIND
        )
        level = tl.where(reached > 0, float("-inf"), level)
        acc = tl.where(reached[:, None] > 0, float("nan"), acc)
        acc = tl.where((live | (reached > 0))[:, None], acc, 0.0)
    cols = tl.arange(0, EP)
    ptr = OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h + rows[:, None].to(tl.int64) * o_l + cols[None, :]
    rounded = acc.to(OUT.dtype.element_ty)
    tl.store(ptr, rounded, mask=valid[:, None] & (cols < E)[None, :])
    if LOW:
        low = (acc - rounded.to(tl.float32)).to(OUT.dtype.element_ty)
        tl.store(OUT_LOW + out[:, None] * E + cols[None, :], low, mask=valid[:, None] & (cols < E)[None, :])
    tl.store(LEVEL + out, level, mask=valid)
    tl.store(DIVISOR + out, divisor, mask=valid)
    if STATS:
        unit = tl.zeros_like(scale) + 1.0
        if not GENERAL:
            unit = scale
        best = (reference - own) * unit
        threshold = best - level * order
        partition = tl.abs(divisor)
        if RULE == 2:
            threshold = tl.zeros_like(scale) - order
            if POWER:
                partition = partition * PROFILE(tl.maximum(reach, 0.0), order)
            partition = tl.where(reach > 0, partition, 0.0)
            aside = float("inf")
            if EMPTY == 1:
                aside = float("-inf")
            threshold = tl.where(reach > 0, threshold, aside)
            if EMPTY == 2:
                threshold = tl.where(reach > 0, threshold, best - tl.maximum(tl.abs(best) * 1.2e-7, 1e-45))
        if RULE == 3:
            threshold = tl.full([HM], float("-inf"), tl.float32)
            partition = best + tl.log(partition)
        some = size > 0
        threshold = tl.where(some, threshold, float("inf"))
        partition = tl.where(some, partition, 0.0)
        if dirty:
            threshold = tl.where(reached > 0, float("nan"), threshold)
            partition = tl.where(reached > 0, float("nan"), partition)
        tl.store(THRESHOLD + out, threshold, mask=valid)
        tl.store(SUPPORT + out, size.to(tl.int64), mask=valid)
        tl.store(PARTITION + out, partition, mask=valid)
        share = (edges + count).to(tl.float32) / tl.maximum(last - first, 1).to(tl.float32)
        tl.store(DENSITY + out, tl.zeros_like(scale) + share, mask=valid)
