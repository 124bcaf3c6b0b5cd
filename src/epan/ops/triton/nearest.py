"""Nearest attention on tensors: the k best keys of each query, exactly, with memory linear in length.

1. ``nearest_sweep`` takes the row maxima of every visible tile. At least k of them reach a number that it finds by
   counting, which bounds the k-th best score from below; only tiles that reach it are listed.
2. ``nearest_attend`` searches the exact k-th best score by counting on the listed tiles, and writes the output.
3. ``nearest_by_rows`` (Gaussian weights) and ``nearest_by_columns`` work on the tiles with weight alone.

Query, key and value must be finite: non-finite rows are taken out by the caller.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ...kernels import Gaussian
from ...masks import Masking
from ...normalizations import Nearest
from .launch import Arguments, Forward, Problem, added_scores, padded, per_key_head, product_precision, ranges, strides
from .nearest_gradients import nearest_by_columns, nearest_by_rows
from .nearest_kernels import index_tiles, nearest_attend, nearest_sweep

__all__ = ["nearest_backward", "nearest_forward", "nearest_saved_like"]

# Tile density is told in tiles of so many queries and keys, as by the other rules.
_SQUARE = 128
# A fused multiply-add in one kernel and not in another would tell tied keys apart.
_EXACT = {"enable_fp_fusion": False}
TUNED = {
    "sweep": {"TC": 64, "num_warps": 4, "num_stages": 3, **_EXACT},
    "attend": {"num_warps": 8, "num_stages": 2, **_EXACT},
    "by_rows": {"num_warps": 8, "num_stages": 2, **_EXACT},
    "by_columns": {"num_warps": 8, "num_stages": 2, **_EXACT},
    "index": {"RC": 32, "CC": 64, "num_warps": 4},
}
# Bisections of the interval of the maxima, which sharpen the bound and the first guess.
_BOUND_PASSES = 10
# Scratch of the sweep; more blocks than fit are swept in several launches.
SCRATCH_BYTES = 256 << 20


def _tile_shape(q: Tensor, v: Tensor) -> tuple[int, int]:
    """Queries and keys of a tile, by what fits into shared memory.

    All kernels of a call share the shape of the product, so that they see the same bits of a score. Tiles of float32 are
    too small for the products of a warp group, of whose operands in registers assemblers before CUDA 13.3 lose track.
    """
    if q.dtype == torch.float32:
        return 32, 32
    row_bytes = _row_bytes(q, v)
    return (128, 64) if row_bytes <= 256 else (64, 64) if row_bytes <= 512 else (32, 32)


def _row_bytes(q: Tensor, v: Tensor) -> int:
    return padded(max(q.shape[-1], v.shape[-1])) * q.element_size()


def _tuned(name: str, q: Tensor, v: Tensor) -> dict[str, Any]:
    """The launch parameters of a kernel: fewer warps and copies in flight where rows are wide."""
    tuned = dict(TUNED[name])
    row_bytes = _row_bytes(q, v)
    if product_precision(q, v) == "ieee":
        # The numbers of a plain product lie in registers, which are more with more threads.
        tuned["num_warps"] = 8
    elif row_bytes > 512 or q.dtype == torch.float32:
        tuned["num_warps"] = 4
    if row_bytes > 256 or q.dtype == torch.float32:
        tuned["num_stages"] = 1
    return tuned


def _all(args: Arguments) -> dict[str, Any]:
    return {**args.tensors, **args.numbers, **args.flags}


def _lined_up(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _arguments(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Arguments:
    masking = problem.masking
    rows, columns = _tile_shape(q, v)
    q, k = _lined_up(q), _lined_up(k)
    batch, heads, q_len, size = q.shape
    key_heads, k_len = k.shape[1:3]
    lo, hi, position = ranges(masking, q.device)
    added = added_scores(masking, batch, heads, scale)
    q_half = k_half = scale
    if problem.euclidean:
        q_half, k_half = ((t.float().square().sum(-1) / 2).contiguous() for t in (q, k))
    tensors = {
        "Q": q, "K": k, "SCALE": scale, "Q_HALF": q_half, "K_HALF": k_half, "LO": lo, "HI": hi, "POSITION": position,
        **added.tensors,
    }  # fmt: skip
    numbers = {
        **strides("q", q), **strides("k", k), **strides("s", scale), **added.numbers, "heads": heads,
        "group": heads // max(1, key_heads), "q_len": q_len, "k_len": k_len, "tiles": triton.cdiv(k_len, columns),
        "blocks": triton.cdiv(q_len, rows),
    }  # fmt: skip
    flags = {
        "D": size, "DP": padded(size), "BM": rows, "BN": columns, "EVEN": q_len % rows == 0, "EUCLIDEAN": problem.euclidean,
        "PRECISION": product_precision(q, v), **added.flags,
    }  # fmt: skip
    return Arguments(tensors, numbers, flags)


def _value_arguments(problem: Problem, v: Tensor, seed: Tensor) -> dict[str, Any]:
    size, v = v.shape[-1], _lined_up(v)
    return {
        "V": v, **strides("v", v), "E": size, "EP": padded(size), "SEED": seed,
        "drop": problem.dropout_p, "DROPOUT": problem.dropout_p > 0,
    }  # fmt: skip


def _index(flags: Tensor, by_columns: bool) -> tuple[Tensor, Tensor]:
    """(list, counts) of the flagged tiles of each row block, or of each column."""
    heads, blocks, tiles = flags.shape
    majors, minors = (tiles, blocks) if by_columns else (blocks, tiles)
    steps = (1, tiles) if by_columns else (tiles, 1)
    listed = torch.empty((heads, majors, minors), dtype=torch.int32, device=flags.device)
    count = torch.empty((heads, majors, 2), dtype=torch.int32, device=flags.device)
    tuned = TUNED["index"]
    index_tiles[(triton.cdiv(majors, tuned["CC"]) * heads,)](
        flags, listed, count, majors, minors, blocks * tiles, *steps, **tuned
    )
    return listed, count


def _density(args: Arguments, masking: Masking, flags: Tensor, heads: int) -> Tensor:
    """(B, H, Lq): the share of visible tiles of 128 keys in which any query of the query's block of 128 has weight."""
    used = flags > 0
    for dim, size in ((-1, args.flags["BN"]), (-2, args.flags["BM"])):
        each = _SQUARE // size
        used = used.movedim(dim, -1)
        used = torch.nn.functional.pad(used, (0, -used.shape[-1] % each)).unflatten(-1, (-1, each)).any(-1)
        used = used.movedim(-1, dim)
    squares = used.shape[1]
    pad = (0, squares * _SQUARE - masking.q_len)
    lo, hi = (torch.nn.functional.pad(args.tensors[name], pad).view(squares, _SQUARE) for name in ("LO", "HI"))
    last = (hi.amax(-1) + _SQUARE - 1) // _SQUARE
    first = torch.where(hi > lo, lo, masking.k_len).amin(-1) // _SQUARE
    visible = (last - first).clamp(min=0)
    share = torch.where(visible > 0, used.sum(-1) / visible.clamp(min=1), 0.0)
    return share.unflatten(0, (-1, heads)).repeat_interleave(_SQUARE, -1)[..., : masking.q_len].contiguous()


def nearest_forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor, with_stats: bool
) -> Forward:
    """The output, the statistics if wanted, and what :func:`nearest_backward` needs.

    Parameters
    ----------
    q: (B, H, Lq, D), k: (B, Hk, Lk, D), v: (B, Hk, Lk, E); finite, any strides.
    scale: (B, H, Lq) float32.
    seed: () int64, read by the dropout alone.
    """
    assert isinstance(problem.normalization, Nearest)
    batch, heads, q_len, _ = q.shape
    k_len, size = v.shape[2:]
    args = _arguments(problem, q, k, v, scale)
    tiles, blocks, block_rows = args.numbers["tiles"], args.numbers["blocks"], args.flags["BM"]
    device, per_row = q.device, (batch, heads, q_len)
    top, bound, cut, share, divisor = (torch.empty(per_row, device=device) for _ in range(5))
    flags = torch.zeros((batch * heads, blocks, tiles), dtype=torch.int8, device=device)
    out = torch.empty((batch, heads, q_len, size), dtype=v.dtype, device=device)
    told = per_row if with_stats else (0,)
    threshold, partition, density = (torch.empty(told, device=device) for _ in range(3))
    support = torch.empty(told, dtype=torch.long, device=device)
    neighbours = float(max(1, min(problem.normalization.k, k_len)))
    if batch * heads * q_len:
        per_launch = max(1, SCRATCH_BYTES // max(1, tiles * block_rows * 4))
        rows_at_once = min(blocks, per_launch)
        heads_at_once = max(1, min(batch * heads, per_launch // rows_at_once))
        peaks = torch.empty(heads_at_once * rows_at_once * tiles * block_rows, device=device)
        for head in range(0, batch * heads, heads_at_once):
            for block in range(0, blocks, rows_at_once):
                launched = min(rows_at_once, blocks - block)
                nearest_sweep[(launched * min(heads_at_once, batch * heads - head),)](
                    **_all(args), PEAKS=peaks, TOP=top, BOUND=bound, FROM=cut, UPTO=share, FLAGS=flags, head0=head,
                    block0=block, launched=launched, neighbours=neighbours, PASSES=_BOUND_PASSES, **_tuned("sweep", q, v),
                )  # fmt: skip
        listed, count = _index(flags, by_columns=False)
        nearest_attend[(blocks * batch * heads,)](
            **_all(args), **_value_arguments(problem, v, seed), TOP=top, BOUND=bound, FROM=cut, UPTO=share, LIST=listed,
            COUNT=count, FLAGS=flags, OUT=out, CUT=cut, SHARE=share, DIVISOR=divisor, THRESHOLD=threshold,
            SUPPORT=support,
            PARTITION=partition, **strides("o", out), neighbours=neighbours,
            SMOOTH=isinstance(problem.kernel, Gaussian), STATS=with_stats, **_tuned("attend", q, v),
        )  # fmt: skip
        if with_stats:
            density = _density(args, problem.masking, flags, heads)
    stats = (threshold, support, partition, density) if with_stats else ()
    return Forward(out, stats, (top, cut, share, divisor, flags))


def nearest_saved_like(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of ``saved`` of :func:`nearest_forward`: four numbers per row and a byte per tile."""
    batch, heads, q_len, _ = q.shape
    rows, columns = _tile_shape(q, v)
    per_row = ((batch, heads, q_len), torch.float32)
    return [*[per_row] * 4, ((batch * heads, -(-q_len // rows), -(-k.shape[2] // columns)), torch.int8)]


def nearest_backward(
    problem: Problem,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    seed: Tensor,
    saved: tuple[Tensor, ...],
    needs: set[str],
) -> dict[str, Tensor]:
    """The gradients of the names in ``needs``: q, k, v, scale, mask, slopes.

    Shapes are those of the inputs, (B, H, Lq) for scale and slopes, (B, H, Lq, Lk) for the mask. With uniform weights
    only the values have a gradient that is not zero.
    """
    batch, heads, q_len, size = q.shape
    k_len, value_size = v.shape[2:]
    grad = _lined_up(grad)
    args = _arguments(problem, q, k, v, scale)
    top, cut, share, divisor, flags = saved
    smooth = isinstance(problem.kernel, Gaussian)
    device, per_row = q.device, (batch, heads, q_len)
    group = heads // max(1, k.shape[1])
    per_key = torch.float32 if group > 1 else k.dtype
    shapes = {
        "q": ((batch, heads, q_len, size), q.dtype),
        "k": ((batch, heads, k_len, size), per_key),
        "v": ((batch, heads, k_len, value_size), per_key),
        "scale": (per_row, torch.float32),
        "mask": ((batch, heads, q_len, k_len), torch.float32),
        "slopes": (per_row, torch.float32),
    }
    found = {name: torch.zeros(shapes[name][0], dtype=shapes[name][1], device=device) for name in needs}
    blank = torch.empty(0, device=device)
    delta = torch.empty(per_row if smooth else (0,), device=device)
    common = {
        **_all(args), **_value_arguments(problem, v, seed), "GRAD": grad, **strides("g", grad), "TOP": top, "CUT": cut,
        "SHARE": share, "DIVISOR": divisor, "DELTA": delta,
    }  # fmt: skip
    if batch * heads * q_len * k_len:
        if smooth and needs - {"v"}:
            listed, count = _index(flags, by_columns=False)
            nearest_by_rows[(args.numbers["blocks"] * batch * heads,)](
                **common, LIST=listed, COUNT=count, D_Q=found.get("q", blank),
                D_SCALE=found.get("scale", blank), D_SLOPE=found.get("slopes", blank), NEED_Q="q" in needs,
                NEED_SCALE="scale" in needs, NEED_SLOPE="slopes" in needs, **_tuned("by_rows", q, v),
            )  # fmt: skip
        of_scores = needs & {"k", "mask"} if smooth else set()
        if of_scores or "v" in needs:
            listed, count = _index(flags, by_columns=True)
            nearest_by_columns[(args.numbers["tiles"] * batch * heads,)](
                **common, LIST=listed, COUNT=count, D_K=found.get("k", blank), D_V=found.get("v", blank),
                D_BIAS=found.get("mask", blank), SMOOTH=smooth, NEED_K="k" in of_scores, NEED_V="v" in needs,
                NEED_BIAS="mask" in of_scores, **_tuned("by_columns", q, v),
            )  # fmt: skip
    return per_key_head(found, q, k, v)
