"""The kernels on tensors: shapes, scratch memory and launch parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels import Gaussian, Kernel, RectifiedPolynomial
from ...masks import Masking
from ...normalizations import Adaptive, Anchored, Fixed, Normalization
from . import parameters
from .backward import by_columns, by_rows, merge
from .forward import attend, sweep
from .prepare import prepare
from .scores import ADAPTIVE, ANCHORED, FIXED, SMOOTH
from .screening import screening

__all__ = [
    "Arguments",
    "Forward",
    "Problem",
    "added_scores",
    "backward",
    "device_function",
    "forward",
    "padded",
    "ranges",
    "saved_like",
    "shipped",
    "strides",
]

# Launch parameters: of 16-bit inputs by kernel and largest padded head size, and of float32, whose tiles are small.
TUNED: dict[str, dict[int, dict[str, Any]]] = {
    "prepare": {
        64: {"ROWS": 32, "num_warps": 4, "num_stages": 1},
        128: {"ROWS": 64, "num_warps": 8, "num_stages": 1},
        256: {"ROWS": 16, "num_warps": 4, "num_stages": 1},
    },
    "sweep": {
        64: {"num_warps": 4, "num_stages": 3},
        128: {"num_warps": 8, "num_stages": 2, "maxnreg": 128},
        256: {"num_warps": 8, "num_stages": 2},
    },
    "attend": {
        64: {"HALVES": 1, "SPLIT": 1, "num_warps": 8, "num_stages": 2, "maxnreg": 128},
        128: {"HALVES": 1, "SPLIT": 2, "num_warps": 8, "num_stages": 2, "maxnreg": 128},
        256: {"HALVES": 2, "SPLIT": 2, "num_warps": 8, "num_stages": 1},
    },
    "by_rows": {
        64: {"HALVES": 2, "SPLIT": 2, "RC": 32, "CC": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
        128: {"HALVES": 1, "SPLIT": 2, "RC": 32, "CC": 32, "num_warps": 8, "num_stages": 2},
        256: {"HALVES": 2, "SPLIT": 4, "RC": 32, "CC": 32, "num_warps": 8, "num_stages": 1},
    },
    "by_columns": {
        64: {"T": True, "HALVES": 2, "SPLIT": 2, "num_warps": 4, "num_stages": 2},
        128: {"T": True, "HALVES": 4, "SPLIT": 2, "num_warps": 4, "num_stages": 2},
        256: {"T": True, "HALVES": 4, "SPLIT": 4, "num_warps": 8, "num_stages": 1},
    },
    "merge": {256: {"ROWS": 32, "num_warps": 4, "num_stages": 1}},
}
TUNED_WIDE: dict[str, dict[str, Any]] = {
    "prepare": {"ROWS": 32, "num_warps": 4, "num_stages": 1},
    "sweep": {"num_warps": 4, "num_stages": 1},
    "attend": {"HALVES": 1, "SPLIT": 1, "num_warps": 4, "num_stages": 1},
    "by_rows": {"HALVES": 1, "SPLIT": 1, "RC": 32, "CC": 32, "num_warps": 4, "num_stages": 1},
    "by_columns": {"T": True, "HALVES": 1, "SPLIT": 1, "num_warps": 4, "num_stages": 1},
    "merge": {"ROWS": 32, "num_warps": 4, "num_stages": 1},
}


def shipped(name: str, padded_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """The launch parameters that epan brings for a kernel."""
    if dtype == torch.float32:
        return TUNED_WIDE[name]
    return next(config for most, config in TUNED[name].items() if padded_size <= most)


def tile_size(q: Tensor) -> int:
    """Queries per block and keys per tile."""
    if q.dtype != torch.float32:
        return 128
    # So small that no product goes through the warp-group instructions, whose operands in registers compilers of CUDA 12
    # are known to get wrong; 16-bit products keep them for their speed.
    return 32


# Error bar of the 8-bit products, in units of the support, above which the scores are computed instead.
COARSEST = 0.2
# The last step of the threshold, relative to Σφ/Σφ', after which a 16-bit output is written: a quarter of its square
# remains, and of float32 and with statistics.
ROUGH = {torch.bfloat16: 0.15, torch.float16: 0.05}
EXACT = 1e-6
# Evaluations of the threshold at most.
STEPS = 40
# Columns of up to so many row blocks are never cut.
MOST_UNCUT = 32
# Two of them add up within 32 bits.
_FAR = 1 << 29
NO_BIAS, BOOL_MASK, FLOAT_MASK = 0, 1, 2


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
    # No scale is negative.
    plain_scale: bool = False

    @property
    def rule(self) -> int:
        if isinstance(self.kernel, Gaussian):
            return SMOOTH
        return {Adaptive: ADAPTIVE, Anchored: ANCHORED, Fixed: FIXED}[type(self.normalization)]

    @property
    def empty(self) -> int:
        policy = getattr(self.normalization, "empty", "nearest")
        return {"zero": 0, "uniform": 1, "nearest": 2}[policy]

    def tolerance(self, dtype: torch.dtype) -> float:
        """Relative size of the last step of the threshold."""
        # The weights of order 1 are the least even at the edge of the support.
        rough = ROUGH.get(dtype, EXACT)
        mask = self.masking.tensor
        if not self.plain_scale or self.masking.slopes is not None or (mask is not None and mask.is_floating_point()):
            # Their gradients are float32 and are to be as good as that.
            rough = min(rough, ROUGH[torch.float16])
        return rough * (0.6 if self.order < 1.5 else 1.0)

    @property
    def order(self) -> float:
        return 1.0 if self.rule == SMOOTH else float(self.kernel.support)


@dataclass(frozen=True)
class Arguments:
    """What all kernels are given about inputs and masks."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    flags: dict[str, Any]

    def config(self, name: str) -> dict[str, Any]:
        """Launch parameters: those measured on this GPU, if any."""
        size, padded_size, dtype = self.flags["D"], self.flags["DP"], self.tensors["Q"].dtype
        return parameters.chosen(name, size, padded_size, dtype) or shipped(name, padded_size, dtype)


def padded(size: int) -> int:
    """The head size as the kernels have it."""
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


def added_scores(masking: Masking, batch: int, heads: int, blank: Tensor) -> Arguments:
    """What the kernels are given about mask tensor and ALiBi slopes; ``blank`` stands for what is not there."""
    mask, slopes = masking.tensor, masking.slopes
    kind = NO_BIAS if mask is None else BOOL_MASK if mask.dtype == torch.bool else FLOAT_MASK
    bias: Tensor = blank
    bias_strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        bias = mask.expand(batch, heads, masking.q_len, masking.k_len)
        bias_strides = bias.stride()
        bias = bias.view(torch.uint8) if kind == BOOL_MASK else bias
    numbers = dict(zip(("b_b", "b_h", "b_i", "b_j"), bias_strides, strict=True), a_b=0, a_h=0)
    if slopes is not None:
        slopes = slopes.float().reshape(-1, heads).contiguous()
        numbers.update(a_b=0 if slopes.shape[0] == 1 else heads, a_h=1)
    tensors = {"BIAS": bias, "SLOPES": blank if slopes is None else slopes}
    return Arguments(tensors, numbers, {"BIAS_KIND": kind, "ALIBI": slopes is not None})


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The strides of batch, heads and rows, as the kernels name them."""
    b, h, length, *_ = tensor.stride()
    return {f"{name}_b": b, f"{name}_h": h, f"{name}_l": length}


def _arguments(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Arguments:
    side = tile_size(q)
    masking = problem.masking
    batch, heads, q_len, size = q.shape
    key_heads, k_len = k.shape[1:3]
    blank = scale
    lo = hi = position = blank
    if masking.packing is not None:
        lo, hi, position = ranges(masking, q.device)
    added = added_scores(masking, batch, heads, blank)
    general = added.flags["BIAS_KIND"] == FLOAT_MASK or added.flags["ALIBI"]
    assert q.stride(-1) == k.stride(-1) == 1, "the last dimension must be contiguous"
    tensors = {"Q": q, "K": k, "SCALE": scale, "LO": lo, "HI": hi, "POSITION": position, **added.tensors}
    numbers: dict[str, Any] = {**strides("q", q), **strides("k", k), **strides("s", scale), **added.numbers}
    numbers.update(
        heads=heads, group=heads // key_heads, q_len=q_len, k_len=k_len,
        tiles=triton.cdiv(k_len, side), blocks=triton.cdiv(q_len, side), order=problem.order,
        left=_bound(masking.left), right=_bound(masking.right), offset=masking.offset,
    )  # fmt: skip
    flags = {
        "D": size, "DP": padded(size), "BM": side, "BN": side, "EVEN": q_len % side == 0,
        "PROFILE": device_function(problem.kernel.device_profile),
        "SLOPE": device_function(problem.kernel.device_derivative),
        "RULE": problem.rule, "EMPTY": problem.empty, "POWER": isinstance(problem.kernel, RectifiedPolynomial),
        "GENERAL": general, "EUCLIDEAN": problem.euclidean, **added.flags,
        "PACKED": masking.packing is not None, "SIGNED": not problem.plain_scale,
        "UNIFORM": scale.stride(2) == 0,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip
    return Arguments(tensors, numbers, flags)


def _bound(bound: int | None) -> int:
    """A bound of the window that fits 32 bits; no length does not."""
    return _FAR if bound is None else max(-_FAR, min(bound, _FAR))


def _launch(kernel: Any, programs: int, config: dict[str, Any], *sources: dict[str, Any], **named: Any) -> None:
    """Starts ``kernel`` with what it takes of the sources."""
    values = dict(named)
    for source in sources:
        values.update(source)
    kernel[(programs,)](**{key: values[key] for key in kernel.arg_names if key in values}, **config)


class Forward(NamedTuple):
    """What the forward pass leaves: output, statistics per query, and ``saved`` for the backward pass."""

    out: Tensor
    threshold: Tensor
    support: Tensor
    partition: Tensor
    density: Tensor
    saved: tuple[Tensor, ...]


def _prepare(args: Arguments, v: Tensor, k_half: Tensor, screen: bool, dirty: Tensor) -> dict[str, Tensor]:
    q, k = args.tensors["Q"], args.tensors["K"]
    batch, key_heads, k_len, _ = k.shape
    size, tiles, blocks = args.flags["DP"], args.numbers["tiles"], args.numbers["blocks"]
    device, blank = q.device, args.tensors["SCALE"]
    found = {
        "BAD_Q": torch.empty(q.shape[:3], dtype=torch.int8, device=device),
        "BAD_K": torch.empty(k.shape[:3], dtype=torch.int8, device=device),
        "DIRTY": dirty, "K_HALF": k_half, "Q8": blank, "K8": blank, "Q_UNITS": blank, "K_UNITS": blank,
    }  # fmt: skip
    if screen:
        found["Q8"] = torch.empty((*q.shape[:3], size), dtype=torch.int8, device=device)
        found["K8"] = torch.empty((batch, key_heads, tiles * args.flags["BN"], size), dtype=torch.int8, device=device)
        found["Q_UNITS"] = torch.empty((3, *q.shape[:3]), dtype=torch.float32, device=device)
        found["K_UNITS"] = torch.empty((batch, key_heads, tiles, 4), dtype=torch.float32, device=device)
    _launch(
        prepare, (blocks + tiles) * q.shape[0] * q.shape[1], args.config("prepare"), args.tensors, args.numbers, args.flags,
        found, V=v, **strides("v", v), E=v.shape[-1], EP=padded(v.shape[-1]), SCREEN=screen,
    )  # fmt: skip
    return found


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor, with_stats: bool
) -> Forward:
    """Attention without gradient; ``scale`` (B, H, Lq) float32; the statistics are empty unless asked for."""
    batch, heads, q_len, _ = q.shape
    size = v.shape[-1]
    args = _arguments(problem, q, k, v, scale)
    blocks = args.numbers["blocks"]
    device, per_row = q.device, (batch, heads, q_len)
    # Zeros for the flags, and because a list that is read ahead of its end must not hold numbers of tiles that do not exist.
    saved = tuple(
        torch.zeros(shape, dtype=dtype, device=device)
        if dtype in (torch.int8, torch.int32)
        else torch.empty(shape, dtype=dtype, device=device)
        for shape, dtype in saved_like(problem, q, k, v)
    )
    reference, level, divisor, flags, listed, count, low, k_half, reach = saved
    bound = torch.empty(per_row, dtype=torch.float32, device=device)
    out = torch.empty((batch, heads, q_len, size), dtype=v.dtype, device=device)
    shape = per_row if with_stats else (0,)
    threshold, partition, density = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(3))
    support = torch.empty(shape, dtype=torch.long, device=device)
    if batch * heads * q_len:
        dirty = flags[-16:].view(torch.int32)
        mode = screening()
        screen = (
            mode != "never" and problem.rule == ADAPTIVE and not problem.euclidean
            and not args.flags["GENERAL"] and args.flags["BIAS_KIND"] == NO_BIAS and args.flags["DP"] >= 32
        )  # fmt: skip
        found = _prepare(args, v, k_half, screen, dirty)
        common = (args.tensors, args.numbers, args.flags, found)
        _launch(
            sweep, blocks * batch * heads, args.config("sweep"), *common, REFERENCE=reference, BOUND=bound,
            FLAGS=flags, LIST=listed, COUNT=count, SCREEN=screen,
            coarsest=math.inf if mode == "always" else COARSEST,
        )  # fmt: skip
        config = args.config("attend")
        _launch(
            attend, blocks * config["HALVES"] * batch * heads, config, *common, V=v, REFERENCE=reference,
            BOUND=bound, LIST=listed, COUNT=count, OUT=out, OUT_LOW=low, LEVEL=level, REACH=reach, DIVISOR=divisor,
            THRESHOLD=threshold, SUPPORT=support, PARTITION=partition, DENSITY=density, SEED=seed,
            **strides("v", v), **strides("o", out),
            tolerance=EXACT if with_stats else problem.tolerance(q.dtype), drop=problem.dropout_p,
            E=size, EP=padded(size), DROPOUT=problem.dropout_p > 0, STATS=with_stats, LOW=low.numel() > 0, STEPS=STEPS,
        )  # fmt: skip
    return Forward(out, threshold, support, partition, density, saved)


def saved_like(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of ``saved``: reference, level, divisor, flags, list, count, what rounding took from the output,
    ‖k‖²/2, and the profile's argument at the best key (fixed) or how far below its score a key ties with it (anchored).
    """
    batch, heads, q_len, _ = q.shape
    k_len = k.shape[2]
    side = tile_size(q)
    tiles, blocks = -(-k_len // side), -(-q_len // side)
    rows = (batch, heads, q_len)
    # The last 16 bytes say whether any input needs care.
    flags = -(-batch * heads * blocks * tiles // 16) * 16 + 16
    low = q.dtype != torch.float32 and problem.rule != ADAPTIVE
    return [
        (rows, torch.float32), (rows, torch.float32), (rows, torch.float32), ((flags,), torch.int8),
        ((batch * heads, blocks, tiles), torch.int32), ((batch * heads, blocks), torch.int32),
        ((*rows, v.shape[-1]) if low else (0,), v.dtype),
        ((batch, k.shape[1], k_len) if problem.euclidean else (0,), torch.float32),
        (rows if problem.rule in (FIXED, ANCHORED) else (0,), torch.float32),
    ]  # fmt: skip


def backward(
    problem: Problem,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    seed: Tensor,
    out: Tensor,
    saved: tuple[Tensor, ...],
    needs: set[str],
) -> dict[str, Tensor]:
    """The gradients of the names in ``needs``: q, k, v in their dtype; scale, slopes (B, H, Lq) and mask in float32."""
    batch, heads, q_len, size = q.shape
    key_heads, k_len, value_size = k.shape[1], *v.shape[2:]
    args = _arguments(problem, q, k, v, scale)
    tiles, blocks, width = args.numbers["tiles"], args.numbers["blocks"], args.flags["DP"]
    device, per_row = q.device, (batch, heads, q_len)
    reference, level, divisor, flags, listed, count, low, k_half, reach = saved
    kinds = 7 if problem.rule in (ANCHORED, FIXED) else 4
    coef = torch.empty((kinds, *per_row), dtype=torch.float32, device=device)
    d_q = torch.empty((batch, heads, q_len, size), dtype=q.dtype, device=device)
    d_scale = torch.zeros(per_row if "scale" in needs else (0,), dtype=torch.float32, device=device)
    d_slope = torch.zeros(per_row if "slopes" in needs else (0,), dtype=torch.float32, device=device)
    group = heads // key_heads
    per_key = torch.float32 if group > 1 else k.dtype
    d_k = torch.empty((batch, heads, k_len, size) if "k" in needs else (0,), dtype=per_key, device=device)
    d_v = torch.empty((batch, heads, k_len, value_size) if "v" in needs else (0,), dtype=per_key, device=device)
    dense = (batch, heads, q_len, k_len)
    d_bias = torch.zeros(dense if "mask" in needs else (0,), dtype=torch.float32, device=device)
    if batch * heads * q_len and k_len:
        common = (
            args.tensors, args.numbers, args.flags,
            {
                "V": v, "GRAD": grad, "REFERENCE": reference, "LEVEL": level, "DIVISOR": divisor, "REACH": reach, "SEED": seed,
                "K_HALF": k_half, "DIRTY": flags[-16:].view(torch.int32),
                "COEF": coef, "all_rows": batch * heads * q_len,
                "FOLD": not args.flags["UNIFORM"] and "mask" not in needs, "drop": problem.dropout_p, "DROPOUT": problem.dropout_p > 0,
                "E": value_size, "EP": padded(value_size), **strides("v", v), **strides("g", grad),
            },
        )  # fmt: skip
        most = tiles + tiles // 2 + 2
        config, columns = args.config("by_rows"), bool(needs & {"k", "v", "mask"})
        shape = (batch * heads, tiles) if columns else (0, 0)
        by_column = torch.zeros((*shape, blocks), dtype=torch.int32, device=device)
        sizes = torch.empty((*shape, 2), dtype=torch.int32, device=device)
        items = torch.empty((shape[0], most, 4), dtype=torch.int32, device=device)
        _launch(
            by_rows, (blocks * config["HALVES"] + columns) * batch * heads, config, *common, OUT=out, OUT_LOW=low,
            **strides("o", out), LIST=listed, COUNT=count, D_Q=d_q, D_SCALE=d_scale, D_SLOPE=d_slope,
            LOW=low.numel() > 0, NEED_SCALE="scale" in needs, NEED_SLOPE="slopes" in needs,
            EXACT=bool(needs & {"scale", "slopes", "mask"}), FLAGS=flags,
            COLUMN_LIST=by_column, COLUMN_COUNT=sizes, ITEMS=items, most=most, COLUMNS=columns,
        )  # fmt: skip
        if columns:
            parts = torch.empty(
                (*shape, args.flags["BN"], width + padded(value_size)), dtype=torch.float32, device=device
            )
            mine = {
                "LIST": by_column, "COUNT": sizes, "ITEMS": items, "PARTS": parts, "most": most,
                "D_K": d_k, "D_V": d_v, "D_BIAS": d_bias,
                "NEED_K": "k" in needs, "NEED_V": "v" in needs, "NEED_BIAS": "mask" in needs,
            }  # fmt: skip
            config = args.config("by_columns")
            if problem.rule == ANCHORED and args.flags["DP"] <= 64:
                # It needs five numbers per row, which the other orientation holds in fewer registers.
                config = {**config, "T": False}
            _launch(by_columns, most * config["SPLIT"] * batch * heads, config, *common, mine)
            if blocks > MOST_UNCUT:
                _launch(merge, most * batch * heads, args.config("merge"), *common, mine)
    else:
        for gradient in (d_q, d_k, d_v):
            gradient.zero_()
    found = {"q": d_q, "k": d_k, "v": d_v, "scale": d_scale, "mask": d_bias, "slopes": d_slope}
    for name, like in (("k", k), ("v", v)):
        if group > 1 and name in needs:
            found[name] = found[name].unflatten(1, (-1, group)).sum(2).to(like.dtype)
    return {name: found[name] for name in needs}
