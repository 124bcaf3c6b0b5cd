"""Kernels of the nearest rule: which tiles may hold one of the k best keys, the exact k-th best score, and the output.

A key is chosen by comparing its score with the k-th best one, so every kernel computes the scores by the same product
of the same shape, and is compiled without fused multiply-add (``nearest.py``): each pass sees the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .assembler import entry
from .scores import block_tiles, edge_tile, kept, load_rows, row_range, tile_scores

__all__ = ["index_tiles", "nearest_attend", "nearest_sweep", "queries", "tile_of", "weigh"]


@triton.jit
def _image(x):
    """The integer of a float32 whose order is that of the floats; −0 is just below 0."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(image):
    """The float32 of an image."""
    return (image ^ ((image >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def queries(
    Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, EVEN: tl.constexpr, EUCLIDEAN: tl.constexpr,
    ALIBI: tl.constexpr,
):  # fmt: skip
    """(queries, scale, ‖q‖²/2, position, ALiBi slope) of a block of rows; blanks for what is not used."""
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


@triton.jit
def tile_of(
    q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr,
    ALIBI: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(complete scores, their derivative with respect to the scale, keys) of a tile, the same bits in every kernel."""
    k = load_rows(K, tile * BN, k_l, k_len, BN, D, DP, not EDGE)
    z, raw = tile_scores(
        q, k, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile * BN, q_len, k_len,
        BN, True, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, False, PRECISION,
    )  # fmt: skip
    return z, raw, k


@triton.jit
def _chosen(z, cut, share):
    """The share of a place that each key has: 1 above the cut, ``share`` at the cut."""
    return tl.where(z > cut[:, None], 1.0, tl.where(z == cut[:, None], share[:, None], 0.0))


@triton.jit
def weigh(z, top, cut, share, SMOOTH: tl.constexpr):
    """Weights of a tile, not yet divided by their sum."""
    p = _chosen(z, cut, share)
    if SMOOTH:
        # Below the cut the exponential is not looked at, so −inf − (−inf) of a dead row does no harm.
        p = tl.where(p > 0, p * tl.exp(z - top[:, None]), 0.0)
    return p


@triton.jit
def _halve(low, high, middle, reached):
    """The half of an interval that holds what is looked for."""
    return tl.where(reached, middle, low), tl.where(reached, high, middle)


@triton.jit
def _peak(z, place, top, lowest, number, least):
    """Stores the row maxima of a tile, and takes them into account: the largest and least one, their number, the least z."""
    peak = tl.max(z, 1)
    some = peak > float("-inf")
    tl.store(place, peak)
    return (
        tl.maximum(top, peak),
        tl.minimum(lowest, tl.where(some, peak, float("inf"))),
        number + some.to(tl.float32),
        tl.minimum(least, tl.min(tl.where(z > float("-inf"), z, float("inf")), 1)),
    )


@entry
def nearest_sweep(
    Q, K, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION, PEAKS, TOP, BOUND, FROM, UPTO, FLAGS,
    q_b, q_h, q_l, k_b, k_h, k_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h,
    heads, group, q_len, k_len, tiles, blocks, head0, block0, launched, neighbours,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr, TC: tl.constexpr,
    PASSES: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The best score of each row, a lower bound of the k-th best one, and the tiles that reach it.

    The maxima of k tiles are k keys, so what k maxima reach is a bound. FROM, UPTO: a guess at both sides of the k-th
    best score. PEAKS: scratch (head, block, tile, row). FLAGS: 1 = inner tile that reaches the bound in some row, 2 = edge
    tile.
    """
    # The longest first; one axis, because the others of a grid end at 65,535.
    part = tl.program_id(0) // launched
    here = launched - 1 - tl.program_id(0) % launched
    block = here + block0
    head = part + head0
    b, h = head // heads, head % heads
    K += b.to(tl.int64) * k_b + (h // group).to(tl.int64) * k_h
    K_HALF += (b.to(tl.int64) * (heads // group) + h // group) * k_len
    BIAS += b.to(tl.int64) * b_b + h.to(tl.int64) * b_h
    index = tl.arange(0, BM)
    rows = block * BM + index
    valid = rows < q_len
    # The ranges come with every call, so that no bound of a window is needed beside them.
    first, inner, outer, last = block_tiles(LO, HI, block, 0, 0, q_len, k_len, BM, BN, True)
    lo, hi = row_range(LO, HI, rows, 0, 0, q_len, k_len, True)
    q, scale, q_half, position, slope = queries(
        Q, SCALE, Q_HALF, SLOPES, POSITION, b, h, heads, block, rows, q_len, q_b, q_h, q_l, s_b, s_h, s_l, a_b, a_h,
        D, DP, BM, EVEN, EUCLIDEAN, ALIBI,
    )  # fmt: skip
    PEAKS += (part.to(tl.int64) * launched + here) * tiles * BM
    top = tl.full([BM], float("-inf"), tl.float32)
    least = tl.full([BM], float("inf"), tl.float32)
    lowest = tl.full([BM], float("inf"), tl.float32)
    number = tl.zeros([BM], tl.float32)
    for step in range((inner - first) + (last - outer)):
        tile = edge_tile(step, first, inner, outer)
        z, raw, k = tile_of(
            q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
            D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
        )  # fmt: skip
        top, lowest, number, least = _peak(z, PEAKS + tile.to(tl.int64) * BM + index, top, lowest, number, least)
    for step in range(outer - inner):
        tile = inner + step
        z, raw, k = tile_of(
            q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
            D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, False, PRECISION,
        )  # fmt: skip
        top, lowest, number, least = _peak(z, PEAKS + tile.to(tl.int64) * BM + index, top, lowest, number, least)
    tl.debug_barrier()
    enough = number >= neighbours
    # Of scores in random order a tile holds k/T of the k best ones, and so none of them in e^(−k/T) of the tiles.
    typical = number * (1.0 - tl.exp(-neighbours / tl.maximum(number, 1.0)))
    slack = 0.5 + 0.7 * tl.sqrt(typical)
    lowest = tl.minimum(lowest, top)
    bound, above = lowest, top
    low, low_end = lowest, top
    high, high_end = lowest, top
    low_target = tl.minimum(typical + slack, number)
    high_target = tl.maximum(typical - slack, 1.0)
    for turn in tl.static_range(PASSES):
        n1, n2, n3 = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
        p1, p2, p3 = 0.5 * (bound + above), 0.5 * (low + low_end), 0.5 * (high + high_end)
        for start in range(first, last, TC):
            many = start + tl.arange(0, TC)
            place = PEAKS + many[:, None].to(tl.int64) * BM + index[None, :]
            e = tl.load(place, mask=(many < last)[:, None], other=float("-inf"))
            n1 += tl.sum((e >= p1[None, :]).to(tl.float32), 0)
            n2 += tl.sum((e >= p2[None, :]).to(tl.float32), 0)
            n3 += tl.sum((e >= p3[None, :]).to(tl.float32), 0)
        bound, above = _halve(bound, above, p1, n1 >= neighbours)
        low, low_end = _halve(low, low_end, p2, n2 >= low_target)
        high, high_end = _halve(high, high_end, p3, n3 >= high_target)
    bound = tl.where(enough, bound, least)
    alive = valid & (top > float("-inf"))
    limit = tl.where(alive, bound, float("inf"))
    FLAGS += (head.to(tl.int64) * blocks + block) * tiles
    for start in range(first, last, TC):
        many = start + tl.arange(0, TC)
        place = PEAKS + many[:, None].to(tl.int64) * BM + index[None, :]
        e = tl.load(place, mask=(many < last)[:, None], other=float("-inf"))
        reach = tl.max(((e >= limit[None, :]) & alive[None, :]).to(tl.int32), 1)
        full = (many >= inner) & (many < outer)
        tl.store(FLAGS + many, (reach * tl.where(full, 1, 2)).to(tl.int8), mask=many < last)
    out = head.to(tl.int64) * q_len + rows
    tl.store(TOP + out, top, mask=valid)
    tl.store(BOUND + out, tl.where(alive, bound, float("inf")), mask=valid)
    # A row whose maxima do not make a bound has to count from its least score.
    tl.store(FROM + out, tl.where(enough, low, float("-inf")), mask=valid)
    tl.store(UPTO + out, high_end, mask=valid)


@entry
def index_tiles(
    FLAGS, LIST, COUNT, majors, minors, head_stride, major_stride, minor_stride, RC: tl.constexpr, CC: tl.constexpr
):  # fmt: skip
    """The flagged tiles of each row block, or of each column, by strides: inner ones from the front, edge ones from
    the back.

    LIST: (B·H, majors, minors); COUNT: (B·H, majors, 2).
    """
    each = tl.cdiv(majors, CC)
    head = tl.program_id(0) // each
    major = tl.program_id(0) % each * CC + tl.arange(0, CC)
    there = major < majors
    FLAGS += head.to(tl.int64) * head_stride
    LIST += head.to(tl.int64) * majors * minors + major[None, :].to(tl.int64) * minors
    inner = tl.zeros([CC], tl.int32)
    edge = tl.zeros([CC], tl.int32)
    for start in range(0, minors, RC):
        minor = start + tl.arange(0, RC)
        place = FLAGS + minor[:, None].to(tl.int64) * minor_stride + major[None, :].to(tl.int64) * major_stride
        flag = tl.load(place, mask=(minor < minors)[:, None] & there[None, :], other=0).to(tl.int32)
        one = (flag == 1).to(tl.int32)
        place = inner[None, :] + tl.cumsum(one, 0) - 1
        tl.store(LIST + place, minor[:, None] + 0 * place, mask=one > 0)
        two = (flag == 2).to(tl.int32)
        place = minors - edge[None, :] - tl.cumsum(two, 0)
        tl.store(LIST + place, minor[:, None] + 0 * place, mask=two > 0)
        inner += tl.sum(one, 0)
        edge += tl.sum(two, 0)
    out = COUNT + (head.to(tl.int64) * majors + major) * 2
    tl.store(out, inner, mask=there)
    tl.store(out + 1, edge, mask=there)


@triton.jit
def _count_step(
    n1, n2, m1, m2, p1, p2, q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile,
    q_len, k_len,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr,
    ALIBI: tl.constexpr, EDGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a search pass: keys at or above each pivot, the least of those above p1, the largest below p2."""
    z, raw, k = tile_of(
        q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
        D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, PRECISION,
    )  # fmt: skip
    over1 = z >= p1[:, None]
    over2 = z >= p2[:, None]
    n1 += tl.sum(over1.to(tl.float32), 1)
    n2 += tl.sum(over2.to(tl.float32), 1)
    m1 = tl.minimum(m1, tl.min(tl.where(over1, z, float("inf")), 1))
    m2 = tl.maximum(m2, tl.max(tl.where(over2, float("-inf"), z), 1))
    return n1, n2, m1, m2


@triton.jit
def _pivots(turn, low, high, c_low, c_high, neighbours):
    """Two images in (low, high) around a guess of the k-th best score, from the counts at both ends.

    In turn: the logarithm of the count is taken as linear; both ends are tested for being the k-th best score, which
    also
    moves them past outliers and to scores that exist; thirds of the interval, or of the images when that has gone on
    for
    long, so that it shrinks whatever the scores are.
    """
    x, y = _number(low), _number(high)
    a, b = tl.log(tl.maximum(c_low, 1.0)), tl.log(tl.maximum(c_high, 0.5))
    spread = 0.5 + 0.7 * tl.sqrt(tl.maximum(tl.minimum(c_low - neighbours, neighbours - c_high), 0.0))
    unit = (y - x) / tl.maximum(a - b, 1e-6)
    g1 = x + unit * (a - tl.log(neighbours + spread))
    g2 = x + unit * (a - tl.log(tl.maximum(neighbours - spread, 0.5)))
    thirds = (turn % 3 == 2) & (turn > 2)
    # Between the scores at the ends there is at most one more.
    ends = ((turn % 3 == 0) | (c_low - c_high < 3.5)) & (turn > 0)
    g1 = tl.where(thirds, x + (y - x) * (1 / 3), g1)
    g2 = tl.where(thirds, x + (y - x) * (2 / 3), g2)
    p1, p2 = _image(g1), _image(g2)
    third = ((high.to(tl.int64) - low.to(tl.int64)) // 3).to(tl.int32)
    late = turn >= 12
    p1 = tl.where(late, low + third, p1)
    p2 = tl.where(late, high - third, p2)
    p1 = tl.where(ends, low + 1, p1)
    p2 = tl.where(ends, high - 1, p2)
    return p1, p2


@triton.jit
def _output_step(
    acc, total, size, kth, top, cut, share, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position,
    lo, hi,
    rows, valid, tile, head, q_len, k_len, SEED, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BN: tl.constexpr, SMOOTH: tl.constexpr,
    EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr, STATS: tl.constexpr,
    EDGE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the output, and whether any query has weight there."""
    z, raw, k = tile_of(
        q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
        D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, EDGE, PRECISION,
    )  # fmt: skip
    p = weigh(z, top, cut, share, SMOOTH)
    total += tl.sum(p, 1)
    member = (z > cut[:, None]) | ((z == cut[:, None]) & (share > 0)[:, None])
    inside = tl.sum(member.to(tl.int32), 1)
    if STATS:
        size += inside
        kth = tl.minimum(kth, tl.min(tl.where(member, z, float("inf")), 1))
    used = tl.max(tl.where(valid, inside, 0), 0) > 0
    if DROPOUT:
        p *= kept(SEED, head, rows, tile * BN, drop, BN, False)
    v = load_rows(V, tile * BN, v_l, k_len, BN, E, EP, not EDGE)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, size, kth, used


@entry
def nearest_attend(
    Q, K, V, SCALE, Q_HALF, K_HALF, BIAS, SLOPES, LO, HI, POSITION,
    TOP, BOUND, FROM, UPTO, LIST, COUNT, FLAGS, OUT, CUT, SHARE, DIVISOR, THRESHOLD, SUPPORT, PARTITION, SEED,
    q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, s_b, s_h, s_l, b_b, b_h, b_i, b_j, a_b, a_h, o_b, o_h, o_l,
    heads, group, q_len, k_len, tiles, blocks, neighbours, drop,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    EVEN: tl.constexpr, SMOOTH: tl.constexpr, EUCLIDEAN: tl.constexpr, BIAS_KIND: tl.constexpr, ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr, STATS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The exact k-th best score of each row by counting on the listed tiles, and the output; unflags tiles without
    weight.

    Invariant of the search: at least k keys reach ``low``, fewer than k reach ``high`` (both images). It ends when
    exactly
    k reach ``low``, or when there is one number between them, which is then the k-th best score.
    """
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
    FLAGS += place * tiles
    count = tl.load(COUNT + place * 2)
    edges = tl.load(COUNT + place * 2 + 1)
    out = head.to(tl.int64) * q_len + rows
    top = tl.load(TOP + out, mask=valid, other=float("-inf"))
    low = _image(tl.load(BOUND + out, mask=valid, other=0.0))
    high = _image(top) + 1
    guess1 = _image(tl.load(FROM + out, mask=valid, other=0.0))
    guess2 = _image(tl.load(UPTO + out, mask=valid, other=0.0))
    # The keys at the bound are not counted yet, but there are at least k of them, or it is the least score of the row.
    c_low = tl.zeros([BM], tl.float32) + 2.0 * neighbours
    counted = tl.zeros([BM], tl.int32) > 0
    c_high = tl.zeros([BM], tl.float32)
    cut = tl.full([BM], float("inf"), tl.float32)
    share = tl.zeros([BM], tl.float32)
    searching = valid & (top > float("-inf"))
    todo = tl.max(searching.to(tl.int32), 0)
    turn = 0
    while (todo > 0) & (turn < 64):
        i1, i2 = _pivots(turn, low, high, c_low, c_high, neighbours)
        i1 = tl.where(turn == 0, guess1, i1)
        i2 = tl.where(turn == 0, guess2, i2)
        i1 = tl.minimum(tl.maximum(i1, low + 1), high - 1)
        at_low = ((turn == 0) & (guess1 < low)) | (high - 1 <= low)
        i1 = tl.where(at_low, low, i1)
        i2 = tl.minimum(tl.maximum(i2, i1), high - 1)
        p1, p2 = _number(i1), _number(i2)
        n1, n2 = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
        m1, m2 = tl.full([BM], float("inf"), tl.float32), tl.full([BM], float("-inf"), tl.float32)
        for step in range(edges):
            tile = tl.load(LIST + tiles - 1 - step)
            n1, n2, m1, m2 = _count_step(
                n1, n2, m1, m2, p1, p2,
                q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, True, PRECISION,
            )  # fmt: skip
        for step in range(count):
            tile = tl.load(LIST + step)
            n1, n2, m1, m2 = _count_step(
                n1, n2, m1, m2, p1, p2,
                q, K, k_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope, position, lo, hi, rows, tile, q_len, k_len,
                D, DP, BN, EUCLIDEAN, BIAS_KIND, ALIBI, False, PRECISION,
            )  # fmt: skip
        up1, up2 = n1 >= neighbours, n2 >= neighbours
        # Fewer than k keys reach the least score of the row: all of them are chosen.
        scarce = searching & at_low & ~up1
        cut = tl.where(scarce, float("-inf"), cut)
        searching = searching & ~scarce
        # Ends are moved to scores that exist, so that ties and gaps close the interval.
        low = tl.where(searching, tl.where(up2, i2, tl.where(up1, tl.maximum(_image(m1), i1), low)), low)
        c_low = tl.where(searching, tl.where(up2, n2, tl.where(up1, n1, c_low)), c_low)
        counted = counted | up1
        high = tl.where(searching, tl.where(up2, high, tl.where(up1, tl.minimum(_image(m2) + 1, i2), i1)), high)
        c_high = tl.where(searching, tl.where(up2, c_high, tl.where(up1, n2, n1)), c_high)
        exact = c_low == neighbours
        found = searching & counted & (exact | (high - 1 <= low))
        cut = tl.where(found, _number(low), cut)
        part = (neighbours - c_high) / tl.maximum(c_low - c_high, 1.0)
        share = tl.where(found, tl.where(exact, 1.0, part), share)
        searching = searching & ~found
        todo = tl.max(searching.to(tl.int32), 0)
        turn += 1
    acc = tl.zeros([BM, EP], tl.float32)
    total = tl.zeros([BM], tl.float32)
    size = tl.zeros([BM], tl.int32)
    kth = tl.full([BM], float("inf"), tl.float32)
    for step in range(edges):
        tile = tl.load(LIST + tiles - 1 - step)
        acc, total, size, kth, used = _output_step(
            acc, total, size, kth, top, cut, share, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope,
            position,
            lo, hi, rows, valid, tile, head, q_len, k_len, SEED, drop,
            D, DP, E, EP, BN, SMOOTH, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, True, PRECISION,
        )  # fmt: skip
        tl.store(FLAGS + tile, tl.where(used, 2, 0).to(tl.int8))
    for step in range(count):
        tile = tl.load(LIST + step)
        acc, total, size, kth, used = _output_step(
            acc, total, size, kth, top, cut, share, q, K, V, k_l, v_l, scale, q_half, K_HALF, BIAS, b_i, b_j, slope,
            position,
            lo, hi, rows, valid, tile, head, q_len, k_len, SEED, drop,
            D, DP, E, EP, BN, SMOOTH, EUCLIDEAN, BIAS_KIND, ALIBI, DROPOUT, STATS, False, PRECISION,
        )  # fmt: skip
        tl.store(FLAGS + tile, tl.where(used, 1, 0).to(tl.int8))
    live = total > 0
    if not SMOOTH:
        # As many places as keys were chosen for, less the rounding of shared ones.
        total = tl.floor(total + 0.5)
    divisor = tl.where(live, total, 1.0)
    acc = acc / divisor[:, None]
    cols = tl.arange(0, EP)
    ptr = OUT + b.to(tl.int64) * o_b + h.to(tl.int64) * o_h + rows[:, None].to(tl.int64) * o_l + cols[None, :]
    tl.store(ptr, acc.to(OUT.dtype.element_ty), mask=valid[:, None] & (cols < E)[None, :])
    tl.store(CUT + out, cut, mask=valid)
    tl.store(SHARE + out, share, mask=valid)
    tl.store(DIVISOR + out, divisor, mask=valid)
    if STATS:
        # The largest number below the k-th best score; below either zero that is the largest negative one.
        image = _image(kth)
        below = _number(tl.where(kth == 0.0, -2, image - 1))
        below = tl.where(cut == float("-inf"), float("-inf"), below)
        partition = divisor
        if SMOOTH:
            partition = top + tl.log(divisor)
        tl.store(THRESHOLD + out, tl.where(live, below, float("inf")), mask=valid)
        tl.store(SUPPORT + out, size.to(tl.int64), mask=valid)
        tl.store(PARTITION + out, tl.where(live, partition, 0.0), mask=valid)
