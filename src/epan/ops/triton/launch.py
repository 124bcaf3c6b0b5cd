"""The kernels on tensors: shapes, scratch memory and launch parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...kernels import Gaussian, Kernel, RectifiedPolynomial
from ...masks import Masking
from ...normalizations import Adaptive, Anchored, Fixed, Nearest, Normalization
from . import parameters
from .backward import by_columns, by_rows, merge
from .forward import attend, sweep
from .plans import Made, Plan, find, form, keep
from .prepare import prepare
from .scores import ADAPTIVE, ANCHORED, FIXED, NEAREST, SMOOTH
from .screening import screening

__all__ = [
    "Arguments",
    "Forward",
    "Problem",
    "added_scores",
    "backward",
    "bounded",
    "carry_out",
    "device_function",
    "forward",
    "given_tensors",
    "gradients_of",
    "key_of",
    "padded",
    "per_key_head",
    "product_precision",
    "ranges",
    "saved_like",
    "shipped",
    "strides",
]

# Launch parameters by kernel and largest padded head size: of 16-bit inputs, and of float32, whose tiles are small.
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
TUNED_WIDE: dict[str, dict[int, dict[str, Any]]] = {
    "prepare": {256: {"ROWS": 32, "num_warps": 4, "num_stages": 1}},
    # A plain product needs twice the threads: in the registers of fewer, rows of 64 numbers do not fit.
    "sweep": {64: {"num_warps": 8, "num_stages": 1}, 256: {"num_warps": 4, "num_stages": 1}},
    "attend": {
        64: {"HALVES": 1, "SPLIT": 1, "num_warps": 8, "num_stages": 1},
        256: {"HALVES": 1, "SPLIT": 1, "num_warps": 4, "num_stages": 1},
    },
    "by_rows": {
        64: {"HALVES": 1, "SPLIT": 1, "RC": 32, "CC": 32, "num_warps": 8, "num_stages": 1},
        256: {"HALVES": 1, "SPLIT": 1, "RC": 32, "CC": 32, "num_warps": 4, "num_stages": 1},
    },
    "by_columns": {
        64: {"T": True, "HALVES": 1, "SPLIT": 1, "num_warps": 8, "num_stages": 1},
        256: {"T": True, "HALVES": 1, "SPLIT": 1, "num_warps": 4, "num_stages": 1},
    },
    "merge": {256: {"ROWS": 32, "num_warps": 4, "num_stages": 1}},
}


def shipped(name: str, padded_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """The launch parameters that epan brings for a kernel."""
    by_size = (TUNED_WIDE if dtype == torch.float32 else TUNED)[name]
    return next(config for most, config in by_size.items() if padded_size <= most)


def tile_size(q: Tensor) -> int:
    """Queries per block and keys per tile."""
    if q.dtype != torch.float32:
        return 128
    # So small that no product goes through the warp-group instructions, whose operands in registers compilers of CUDA 12
    # are known to get wrong; 16-bit products keep them for their speed.
    return 32


# Largest padded head size of products in plain float32.
MOST_PLAIN = 64
# Error bar of the 8-bit products, in units of the support, above which the scores are computed instead.
COARSEST = 0.2
# The last step of the threshold, relative to Σφ/Σφ', after which a 16-bit output is written, and of float32 and with
# statistics. For order 1, whose weights are the least even at the edge of the support: of a first step, and of one that two
# levels went into.
ROUGH = {torch.bfloat16: 0.15, torch.float16: 0.05}
EXACT, FIRST, FITTED = 1e-6, 0.6, 5 / 3
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
    # The kernels for short sequences serve it.
    short: bool = False

    @property
    def rule(self) -> int:
        if isinstance(self.normalization, Nearest):
            return NEAREST
        if isinstance(self.kernel, Gaussian):
            return SMOOTH
        return {Adaptive: ADAPTIVE, Anchored: ANCHORED, Fixed: FIXED}[type(self.normalization)]

    @property
    def empty(self) -> int:
        policy = getattr(self.normalization, "empty", "nearest")
        return {"zero": 0, "uniform": 1, "nearest": 2}[policy]

    def tolerances(self, dtype: torch.dtype) -> tuple[float, float]:
        """Relative size of the last step of the threshold, if it is the first, and if it is a later one."""
        rough = ROUGH.get(dtype, EXACT)
        mask = self.masking.tensor
        if not self.plain_scale or self.masking.slopes is not None or (mask is not None and mask.is_floating_point()):
            # Their gradients are float32 and are to be as good as that.
            rough = min(rough, ROUGH[torch.float16])
        return (rough * FIRST, rough * FITTED) if self.order < 1.5 else (rough, rough)

    @property
    def order(self) -> float:
        return 1.0 if self.rule in (SMOOTH, NEAREST) else float(self.kernel.support)


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


def product_precision(q: Tensor, v: Tensor) -> str:
    """How matrix products take numbers of float32; those of 16 bits are exact in either."""
    if q.dtype != torch.float32:
        return "tf32"
    # Three TF32 parts leave several times the error of plain float32, which moves keys across a threshold; wider rows have
    # too many numbers for the registers of a plain product.
    return "ieee" if padded(max(q.shape[-1], v.shape[-1])) <= MOST_PLAIN else "tf32x3"


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


def given_tensors(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor) -> dict[str, Tensor]:
    """The tensors that a call comes with, by the names that the kernels give them."""
    masking = problem.masking
    lo = hi = position = scale
    if masking.packing is not None:
        lo, hi, position = ranges(masking, q.device)
    given = {"Q": q, "K": k, "V": v, "SCALE": scale, "SEED": seed, "LO": lo, "HI": hi, "POSITION": position}
    if masking.tensor is None and masking.slopes is None:
        return {**given, "BIAS": scale, "SLOPES": scale}
    return {**given, **added_scores(masking, q.shape[0], q.shape[1], scale).tensors}


def key_of(problem: Problem, tensors: dict[str, Tensor], *settings: Any) -> tuple[Any, ...]:
    """All that decides what a call makes and launches."""
    masking = problem.masking
    return (
        problem.kernel.handle, problem.normalization.handle, problem.euclidean, problem.dropout_p, problem.plain_scale,
        problem.short,
        masking.left, masking.right, masking.offset, masking.tensor is None, masking.slopes is None, masking.packing is None,
        tensors["Q"].get_device(), parameters.edition(), settings, form(*tensors.values()),
    )  # fmt: skip


def carry_out(
    key: tuple[Any, ...],
    given: dict[str, Tensor],
    make: Callable[[], Mapping[str, Made | None]],
    start: Callable[[Plan, dict[str, Tensor]], None],
) -> dict[str, Tensor]:
    """Does what a call of this key does, and gives its tensors by name.

    Parameters
    ----------
    make, start: what the first call of its kind makes, and how it starts its kernels; later ones do the same again.
    """
    plan = find(key)
    new = Plan(make()) if plan is None else plan
    tensors = new.allocate(given, given["SCALE"])
    if "FLAGS" in tensors:
        tensors["DIRTY"] = tensors["FLAGS"][-16:].view(torch.int32)
    if plan is None:
        start(new, tensors)
        keep(key, new)
    else:
        plan.replay(tensors)
    return tensors


def _arguments(problem: Problem, given: dict[str, Tensor]) -> Arguments:
    q, k, v, scale = (given[name] for name in ("Q", "K", "V", "SCALE"))
    side = tile_size(q)
    masking = problem.masking
    batch, heads, q_len, size = q.shape
    key_heads, k_len, value_size = k.shape[1], *v.shape[2:]
    added = added_scores(masking, batch, heads, scale)
    general = added.flags["BIAS_KIND"] == FLOAT_MASK or added.flags["ALIBI"]
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "the last dimension must be contiguous"
    numbers: dict[str, Any] = {
        **strides("q", q), **strides("k", k), **strides("v", v), **strides("s", scale), **added.numbers,
        "heads": heads, "group": heads // key_heads, "q_len": q_len, "k_len": k_len,
        "tiles": triton.cdiv(k_len, side), "blocks": triton.cdiv(q_len, side), "order": problem.order,
        "left": bounded(masking.left), "right": bounded(masking.right), "offset": masking.offset, "drop": problem.dropout_p,
    }  # fmt: skip
    flags = {
        "D": size, "DP": padded(size), "E": value_size, "EP": padded(value_size), "BM": side, "BN": side,
        "EVEN": q_len % side == 0,
        "PROFILE": device_function(problem.kernel.device_profile),
        "SLOPE": device_function(problem.kernel.device_derivative),
        "RULE": problem.rule, "EMPTY": problem.empty, "POWER": isinstance(problem.kernel, RectifiedPolynomial),
        "GENERAL": general, "EUCLIDEAN": problem.euclidean, **added.flags,
        "PACKED": masking.packing is not None, "SIGNED": not problem.plain_scale,
        "UNIFORM": scale.stride(2) == 0, "DROPOUT": problem.dropout_p > 0,
        "LOW": _keeps_rest(problem, q.dtype),
        "PRECISION": product_precision(q, v),
    }  # fmt: skip
    return Arguments(given, numbers, flags)


def bounded(bound: int | None) -> int:
    """A bound of the window that fits 32 bits; no length does not."""
    return _FAR if bound is None else max(-_FAR, min(bound, _FAR))


class Forward(NamedTuple):
    """What the forward pass leaves: output, statistics per query if wanted (threshold, support, partition, tile density),
    and ``saved`` for the backward pass.
    """

    out: Tensor
    stats: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]


_SHOWN = ("THRESHOLD", "SUPPORT", "PARTITION", "DENSITY")
# What the forward pass leaves for the backward pass, in the order of ``saved_like``.
_SAVED = ("REFERENCE", "LEVEL", "DIVISOR", "FLAGS", "LIST", "COUNT", "OUT_LOW", "K_HALF", "REACH")


def _screens(problem: Problem, q: Tensor, mode: str) -> bool:
    """Whether 8-bit products may find the tiles."""
    mask = problem.masking.tensor
    return (
        mode != "never" and problem.rule == ADAPTIVE and not problem.euclidean
        and mask is None and problem.masking.slopes is None and padded(q.shape[-1]) >= 32
    )  # fmt: skip


def _forward_made(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, with_stats: bool, screen: bool
) -> dict[str, Made | None]:
    rows, value_size = tuple(q.shape[:3]), v.shape[-1]
    # Zeros for the flags, and because a list that is read ahead of its end must not hold numbers of tiles that do not exist.
    made: dict[str, Made | None] = {
        name: Made(shape, dtype, name in ("FLAGS", "LIST"))
        for name, (shape, dtype) in zip(_SAVED, saved_like(problem, q, k, v), strict=True)
    }
    made.update(
        BOUND=Made(rows, torch.float32), OUT=Made((*rows, value_size), v.dtype), BAD_Q=Made(rows, torch.int8),
        BAD_K=Made(tuple(k.shape[:3]), torch.int8), Q8=None, K8=None, Q_UNITS=None, K_UNITS=None,
    )  # fmt: skip
    for name, dtype in zip(_SHOWN, (torch.float32, torch.long, torch.float32, torch.float32), strict=True):
        made[name] = Made(rows, dtype) if with_stats else None
    if screen:
        size, side = padded(q.shape[-1]), tile_size(q)
        tiles = triton.cdiv(k.shape[2], side)
        per_head = tuple(k.shape[:2])
        made.update(
            Q8=Made((*rows, size), torch.int8), K8=Made((*per_head, tiles * side, size), torch.int8),
            Q_UNITS=Made((3, *rows), torch.float32), K_UNITS=Made((*per_head, tiles, 4), torch.float32),
        )  # fmt: skip
    return made


def _prepare(plan: Plan, args: Arguments, tensors: dict[str, Tensor], constants: dict[str, Any]) -> None:
    batch, heads = tensors["Q"].shape[:2]
    programs = (args.numbers["blocks"] + args.numbers["tiles"]) * batch * heads
    plan.launch(prepare, programs, args.config("prepare"), tensors, constants)


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor, with_stats: bool
) -> Forward:
    """Attention without gradient; ``scale`` (B, H, Lq) float32."""
    mode = screening()
    given = given_tensors(problem, q, k, v, scale, seed)
    tensors = carry_out(
        key_of(problem, given, "forward", mode, with_stats), given,
        lambda: _forward_made(problem, q, k, v, with_stats, _screens(problem, q, mode)),
        lambda plan, tensors: _start_forward(plan, problem, tensors, mode, with_stats),
    )  # fmt: skip
    stats = tuple(tensors[name] for name in _SHOWN) if with_stats else ()
    return Forward(tensors["OUT"], stats, tuple(tensors[name] for name in _SAVED))


def _start_forward(plan: Plan, problem: Problem, tensors: dict[str, Tensor], mode: str, with_stats: bool) -> None:
    q = tensors["Q"]
    if not q.shape[:3].numel():
        return
    args = _arguments(problem, tensors)
    tolerance, later = (EXACT, EXACT) if with_stats else problem.tolerances(q.dtype)
    constants = {
        **args.numbers, **args.flags, **strides("o", tensors["OUT"]), "SCREEN": _screens(problem, q, mode),
        "STATS": with_stats, "STEPS": STEPS, "coarsest": math.inf if mode == "always" else COARSEST,
        "tolerance": tolerance, "later": later,
    }  # fmt: skip
    _prepare(plan, args, tensors, constants)
    programs = args.numbers["blocks"] * q.shape[0] * q.shape[1]
    plan.launch(sweep, programs, args.config("sweep"), tensors, constants)
    config = args.config("attend")
    plan.launch(attend, programs * config["HALVES"], config, tensors, constants)


def _keeps_rest(problem: Problem, dtype: torch.dtype) -> bool:
    """Whether what rounding took from the output is kept."""
    return dtype != torch.float32 and problem.rule != ADAPTIVE


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
    low = _keeps_rest(problem, q.dtype)
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
    given = given_tensors(problem, q, k, v, scale, seed)
    given.update(zip(_SAVED, saved, strict=True), GRAD=grad, OUT=out)
    tensors = carry_out(
        key_of(problem, given, "backward", frozenset(needs)), given,
        lambda: _backward_made(problem, q, k, v, needs),
        lambda plan, tensors: _start_backward(plan, problem, tensors, needs),
    )  # fmt: skip
    return gradients_of(tensors, needs, q, k, v)


def gradients_of(tensors: Mapping[str, Tensor], needs: set[str], q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The gradients that a call made, by the names in ``needs``."""
    names = {"q": "D_Q", "k": "D_K", "v": "D_V", "scale": "D_SCALE", "mask": "D_BIAS", "slopes": "D_SLOPE"}
    return per_key_head({name: tensors[names[name]] for name in needs}, q, k, v)


def per_key_head(found: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Gradients with those of keys and values, which are per query head, summed up for each key head, in their dtype."""
    group = q.shape[1] // max(1, k.shape[1])
    for name, like in (("k", k), ("v", v)):
        if group > 1 and name in found:
            found[name] = found[name].unflatten(1, (-1, group)).sum(2).to(like.dtype)
    return found


def _most_items(tiles: int) -> int:
    """Parts of columns per head: none has more blocks than are worth a program, and all together are not many more."""
    return tiles + tiles // 2 + 2


def _backward_made(problem: Problem, q: Tensor, k: Tensor, v: Tensor, needs: set[str]) -> dict[str, Made | None]:
    batch, heads, q_len, size = q.shape
    key_heads, k_len, value_size = k.shape[1], *v.shape[2:]
    side = tile_size(q)
    tiles, blocks = triton.cdiv(k_len, side), triton.cdiv(q_len, side)
    rows = (batch, heads, q_len)
    per_key = torch.float32 if heads > key_heads else k.dtype
    # Without queries or keys nothing is launched.
    zero = not (batch * heads * q_len and k_len)
    columns = (batch * heads, tiles)
    by_column = {
        "COLUMN_LIST": Made((*columns, blocks), torch.int32, True),
        "COLUMN_COUNT": Made((*columns, 2), torch.int32),
        "ITEMS": Made((batch * heads, _most_items(tiles), 4), torch.int32),
        "PARTS": Made((*columns, side, padded(size) + padded(value_size)), torch.float32),
    }
    return {
        "COEF": Made((7 if problem.rule in (ANCHORED, FIXED) else 4, *rows), torch.float32),
        "D_Q": Made((*rows, size), q.dtype, zero),
        "D_SCALE": Made(rows, torch.float32, True) if "scale" in needs else None,
        "D_SLOPE": Made(rows, torch.float32, True) if "slopes" in needs else None,
        "D_K": Made((batch, heads, k_len, size), per_key, zero) if "k" in needs else None,
        "D_V": Made((batch, heads, k_len, value_size), per_key, zero) if "v" in needs else None,
        "D_BIAS": Made((*rows, k_len), torch.float32, True) if "mask" in needs else None,
        **(by_column if needs & {"k", "v", "mask"} else dict.fromkeys(by_column)),
    }


def _start_backward(plan: Plan, problem: Problem, tensors: dict[str, Tensor], needs: set[str]) -> None:
    batch, heads, q_len, _ = tensors["Q"].shape
    if not (batch * heads * q_len and tensors["K"].shape[2]):
        return
    args = _arguments(problem, tensors)
    blocks, most = args.numbers["blocks"], _most_items(args.numbers["tiles"])
    columns = bool(needs & {"k", "v", "mask"})
    constants = {
        **args.numbers, **args.flags, **strides("g", tensors["GRAD"]), **strides("o", tensors["OUT"]),
        "all_rows": batch * heads * q_len, "most": most, "COLUMNS": columns,
        "FOLD": not args.flags["UNIFORM"] and "mask" not in needs, "EXACT": bool(needs & {"scale", "slopes", "mask"}),
        "NEED_K": "k" in needs, "NEED_V": "v" in needs, "NEED_BIAS": "mask" in needs,
        "NEED_SCALE": "scale" in needs, "NEED_SLOPE": "slopes" in needs,
    }  # fmt: skip
    config = args.config("by_rows")
    plan.launch(by_rows, (blocks * config["HALVES"] + columns) * batch * heads, config, tensors, constants)
    if columns:
        config = args.config("by_columns")
        if problem.rule == ANCHORED and args.flags["DP"] <= 64:
            # It needs five numbers per row, which the other orientation holds in fewer registers.
            config = {**config, "T": False}
        plan.launch(by_columns, most * config["SPLIT"] * batch * heads, config, tensors, constants)
        if blocks > MOST_UNCUT:
            plan.launch(merge, most * batch * heads, args.config("merge"), tensors, constants)
