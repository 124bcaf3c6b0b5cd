"""The kernels on tensors: shapes, scratch memory and launch parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UnsupportedError
from ...kernels import Gaussian, Kernel, RectifiedPolynomial
from ...masks import Masking
from ...normalizations import Adaptive, Anchored, Fixed, Normalization
from .backward import by_columns, by_rows, columns
from .forward import attend, sweep
from .scores import ADAPTIVE, ANCHORED, FIXED, SMOOTH

__all__ = ["Problem", "backward", "forward", "ranges"]

BM, BN = 128, 128
TUNED = {
    "sweep": {"TC": 64, "PASSES": 1, "num_warps": 4, "num_stages": 3},
    "attend": {"SPLIT": 1, "num_warps": 8, "num_stages": 2},
    "by_rows": {"SPLIT": 2, "num_warps": 8, "num_stages": 2},
    "by_columns": {"HALVES": 2, "num_warps": 8, "num_stages": 3},
}
# Scratch of the sweep; more blocks than fit are swept in several launches.
SCRATCH_BYTES = 256 << 20
_NO_BIAS, _BOOL_MASK, _FLOAT_MASK = 0, 1, 2


def _unsupported(what: str, reason: str) -> UnsupportedError:
    return UnsupportedError(f"{what} on the fused GPU kernels", reason, 'use backend="tiled"')


@functools.cache
def device_function(function: Callable[..., Any]) -> Any:
    """A plain function of ``tl`` terms from a kernel's file as a device function."""
    bare = FunctionType(function.__code__, {"tl": tl, "__name__": function.__module__}, function.__name__)
    bare.__module__ = function.__module__
    bare.__qualname__ = function.__qualname__
    return triton.jit(bare)


@dataclass(frozen=True)
class Problem:
    """Everything about a call that is no tensor the caller differentiates."""

    masking: Masking
    kernel: Kernel
    normalization: Normalization
    euclidean: bool
    dropout_p: float
    # The scale is the same non-negative number everywhere.
    plain_scale: bool = False

    def __post_init__(self) -> None:
        rule, kernel = self.normalization, self.kernel
        if type(rule) not in (Adaptive, Anchored, Fixed):
            raise _unsupported(f"normalization={rule.name!r}", "it has no schedule there")
        if isinstance(kernel.order, Tensor):
            raise _unsupported("a learnt order", "its derivative has no schedule there")
        if kernel.device_profile is None or kernel.device_derivative is None:
            raise _unsupported(f"kernel={kernel.name!r}", "its file brings no device functions")

    @property
    def rule(self) -> int:
        if isinstance(self.kernel, Gaussian):
            return SMOOTH
        return {Adaptive: ADAPTIVE, Anchored: ANCHORED, Fixed: FIXED}[type(self.normalization)]

    @property
    def empty(self) -> int:
        policy = getattr(self.normalization, "empty", "nearest")
        return {"zero": 0, "uniform": 1, "nearest": 2}[policy]

    @property
    def order(self) -> float:
        return 1.0 if self.rule == SMOOTH else float(self.kernel.support)


@dataclass(frozen=True)
class _Arguments:
    """What all kernels are given about inputs and masks."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    flags: dict[str, Any]


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def ranges(masking: Masking, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Key range [lo, hi) of each query and its place among the keys for ALiBi; int32, (Lq,)."""
    i = torch.arange(masking.q_len, device=device)
    if masking.packing is None:
        lo, hi, origin = torch.zeros_like(i), torch.full_like(i, masking.k_len), i
    else:
        q_segment, q_position, _, _ = masking.packing.segments(masking.q_len, masking.k_len)
        starts = masking.packing.cu_k.long()
        segment = q_segment.clamp(min=0)
        start, stop = starts[segment], starts[segment + 1]
        outside = q_segment < 0
        lo, hi = torch.where(outside, 0, start), torch.where(outside, 0, stop)
        origin = start + q_position
    if masking.left is not None:
        lo = torch.maximum(lo, origin - masking.left)
    if masking.right is not None:
        hi = torch.minimum(hi, origin + masking.right + 1)
    hi = torch.maximum(hi, lo)
    # A range beyond the last key is empty, and says so in few tiles.
    empty = hi <= lo
    lo, hi = torch.where(empty, 0, lo), torch.where(empty, 0, hi)
    return lo.int(), hi.int(), (origin + masking.offset).int()


def _arguments(problem: Problem, q: Tensor, k: Tensor, scale: Tensor) -> _Arguments:
    masking = problem.masking
    batch, heads, q_len, size = q.shape
    key_heads, k_len = k.shape[1:3]
    lo, hi, position = ranges(masking, q.device)
    mask, slopes = masking.tensor, masking.slopes
    kind = _NO_BIAS if mask is None else _BOOL_MASK if mask.dtype == torch.bool else _FLOAT_MASK
    # The sign of a tensor's entries is not known here, and a negative one turns the order of plain products.
    general = problem.euclidean or kind == _FLOAT_MASK or slopes is not None or not problem.plain_scale
    blank = scale
    q_half = k_half = blank
    if problem.euclidean:
        q_half = (q.float().square().sum(-1) / 2).contiguous()
        k_half = (k.float().square().sum(-1) / 2).contiguous()
    bias: Tensor = blank
    bias_strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        bias = mask.expand(batch, heads, q_len, k_len)
        bias_strides = bias.stride()
        bias = bias.view(torch.uint8) if kind == _BOOL_MASK else bias
    slope_strides = (0, 0)
    if slopes is not None:
        slopes = slopes.float().reshape(-1, heads).contiguous()
        slope_strides = (0 if slopes.shape[0] == 1 else heads, 1)
    assert q.stride(-1) == k.stride(-1) == 1, "the last dimension must be contiguous"
    tensors = {
        "Q": q, "K": k, "SCALE": scale, "Q_HALF": q_half, "K_HALF": k_half, "BIAS": bias,
        "SLOPES": blank if slopes is None else slopes, "LO": lo, "HI": hi, "POSITION": position,
    }  # fmt: skip
    numbers: dict[str, Any] = {}
    for name, strides in (("q", q.stride()), ("k", k.stride()), ("s", scale.stride())):
        numbers.update({f"{name}_b": strides[0], f"{name}_h": strides[1], f"{name}_l": strides[2]})
    for axis, stride in zip("bhij", bias_strides, strict=True):
        numbers[f"b_{axis}"] = stride
    numbers.update(a_b=slope_strides[0], a_h=slope_strides[1])
    numbers.update(
        heads=heads, group=heads // key_heads, q_len=q_len, k_len=k_len,
        tiles=triton.cdiv(k_len, BN), blocks=triton.cdiv(q_len, BM), order=problem.order,
    )  # fmt: skip
    profile, slope = problem.kernel.device_profile, problem.kernel.device_derivative
    flags = {
        "D": size, "DP": _padded(size), "BM": BM, "BN": BN, "EVEN": q_len % BM == 0,
        "SLOPE": device_function(slope), "PROFILE": device_function(profile),
        "RULE": problem.rule, "EMPTY": problem.empty, "POWER": isinstance(problem.kernel, RectifiedPolynomial), "GENERAL": general, "EUCLIDEAN": problem.euclidean,
        "BIAS_KIND": kind, "ALIBI": slopes is not None,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    return _Arguments(tensors, numbers, flags)


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor, with_stats: bool
) -> tuple[Tensor, ...]:
    """(out, reference, level, divisor, threshold, support, partition, flags, list, count)."""
    batch, heads, q_len, _ = q.shape
    size = v.shape[-1]
    args = _arguments(problem, q, k, scale)
    tiles, blocks = args.numbers["tiles"], args.numbers["blocks"]
    device, per_row = q.device, (batch, heads, q_len)
    reference, bound, level, divisor = (torch.empty(per_row, device=device) for _ in range(4))
    flags = torch.zeros((batch * heads, blocks, tiles), dtype=torch.int8, device=device)
    listed = torch.empty((batch * heads, blocks, tiles), dtype=torch.int32, device=device)
    count = torch.zeros((batch * heads, blocks), dtype=torch.int32, device=device)
    out = torch.empty((batch, heads, q_len, size), dtype=v.dtype, device=device)
    stats = (
        torch.empty(per_row if with_stats else (0,), device=device),
        torch.empty(per_row if with_stats else (0,), dtype=torch.long, device=device),
        torch.empty(per_row if with_stats else (0,), device=device),
    )
    common = {**args.tensors, **args.numbers, **args.flags}
    if batch * heads * q_len:
        block_bytes = max(1, tiles * BM * 2)
        per_launch = max(1, SCRATCH_BYTES // block_bytes)
        rows_at_once = min(blocks, per_launch)
        heads_at_once = max(1, min(batch * heads, per_launch // rows_at_once))
        peaks = torch.empty(heads_at_once * rows_at_once * tiles * BM, dtype=torch.float16, device=device)
        for head in range(0, batch * heads, heads_at_once):
            for block in range(0, blocks, rows_at_once):
                grid = (min(rows_at_once, blocks - block), min(heads_at_once, batch * heads - head))
                sweep[grid](
                    **common, PEAKS=peaks, REFERENCE=reference, BOUND=bound, FLAGS=flags, LIST=listed, COUNT=count,
                    head0=head, block0=block, launched=grid[0], **TUNED["sweep"],
                )  # fmt: skip
        exact = 1e-6 if q.dtype == torch.float32 or with_stats else 0.05
        attend[(blocks, batch * heads)](
            **common, V=v, REFERENCE=reference, BOUND=bound, LIST=listed, COUNT=count, OUT=out, LEVEL=level,
            DIVISOR=divisor, THRESHOLD=stats[0], SUPPORT=stats[1], PARTITION=stats[2], SEED=seed,
            **_strides("v", v), **_strides("o", out), tolerance=exact, drop=problem.dropout_p,
            E=size, EP=_padded(size),
            DROPOUT=problem.dropout_p > 0, STATS=with_stats, STEPS=40, **TUNED["attend"],
        )  # fmt: skip
    return (out, reference, level, divisor, *stats, flags, listed, count)


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    b, h, length, _ = tensor.stride()
    return {f"{name}_b": b, f"{name}_h": h, f"{name}_l": length}


def backward(
    problem: Problem,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    seed: Tensor,
    out: Tensor,
    rows: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor, Tensor],
    needs: set[str],
) -> dict[str, Tensor]:
    """The gradients of the names in ``needs``: q, k, v, scale, mask, slopes; full shapes in float32 or the input's dtype."""
    batch, heads, q_len, size = q.shape
    k_len, value_size = v.shape[2:]
    args = _arguments(problem, q, k, scale)
    tiles, blocks = args.numbers["tiles"], args.numbers["blocks"]
    device, per_row = q.device, (batch, heads, q_len)
    reference, level, divisor = rows
    flags, listed, count = lists
    common = {
        **args.tensors,
        **args.numbers,
        **args.flags,
        "V": v,
        "GRAD": grad,
        "REFERENCE": reference,
        "LEVEL": level,
    }
    common.update(DIVISOR=divisor, SEED=seed, drop=problem.dropout_p, DROPOUT=problem.dropout_p > 0)
    common.update(E=value_size, EP=_padded(value_size), **_strides("v", v), **_strides("g", grad))
    delta = torch.empty(per_row, device=device)
    excess = torch.empty(per_row, device=device)
    d_q = torch.empty((batch, heads, q_len, size), dtype=q.dtype, device=device)
    d_scale = torch.zeros(per_row if "scale" in needs else (0,), device=device)
    d_slope = torch.zeros(per_row if "slopes" in needs else (0,), device=device)
    group = heads // k.shape[1]
    per_key = torch.float32 if group > 1 else k.dtype
    d_k = torch.zeros((batch, heads, k_len, size) if "k" in needs else (0,), dtype=per_key, device=device)
    d_v = torch.zeros((batch, heads, k_len, value_size) if "v" in needs else (0,), dtype=per_key, device=device)
    dense = (batch, heads, q_len, k_len)
    d_bias = torch.zeros(dense if "mask" in needs else (0,), device=device)
    if batch * heads * q_len and k_len:
        by_rows[(blocks, batch * heads)](
            **common, OUT=out, **_strides("o", out), LIST=listed, COUNT=count, DELTA=delta, EXCESS=excess, D_Q=d_q,
            D_SCALE=d_scale, D_SLOPE=d_slope, NEED_SCALE="scale" in needs, NEED_SLOPE="slopes" in needs,
            **TUNED["by_rows"],
        )  # fmt: skip
        if needs & {"k", "v", "mask"}:
            by_column = torch.empty((batch * heads, tiles, blocks), dtype=torch.int32, device=device)
            sizes = torch.empty((batch * heads, tiles, 2), dtype=torch.int32, device=device)
            columns[(triton.cdiv(tiles, 64), batch * heads)](
                flags, by_column, sizes, tiles, blocks, RC=32, CC=64, num_warps=4
            )
            by_columns[(tiles, batch * heads)](
                **common, LIST=by_column, COUNT=sizes, DELTA=delta, EXCESS=excess, D_K=d_k, D_V=d_v, D_BIAS=d_bias,
                NEED_K="k" in needs, NEED_V="v" in needs, NEED_BIAS="mask" in needs, **TUNED["by_columns"],
            )  # fmt: skip
    else:
        d_q.zero_()
    found = {"q": d_q, "k": d_k, "v": d_v, "scale": d_scale, "mask": d_bias, "slopes": d_slope}
    for name in ("k", "v"):
        if group > 1 and name in needs:
            whole = found[name]
            found[name] = whole.unflatten(1, (-1, group)).sum(2)
    return {name: found[name] for name in needs}
