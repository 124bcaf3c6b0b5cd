r"""The leaky average k_T = x_T + e^{−λ_T} k_{T−1} as a scan on the GPU, with or without a unit norm on top.

One program follows one head of one sequence, chunk by chunk: within a chunk of a few rows a triangular matrix of decays
acts, and the average after its last row is carried on in float32. Where heads and sequences are too few to fill a GPU, a sequence is cut into segments: a
first launch finds how each ends, a second starts each from the ends before it. Nothing is divided by a decay and nothing
is added atomically. Backward, the averages are made again from the carries of the chunks (one row in each chunk), so that
gradients do not suffer from the rounding of a 16-bit output:

.. math:: G_T = g_T + e^{-\lambda_{T+1}} G_{T+1}, \quad \partial x_T = G_T, \quad
          \partial\lambda_T = -\sum_d G_T\, e^{-\lambda_T} k_{T-1}
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UnsupportedError
from .assembler import entry
from .plans import on_device_of

__all__ = ["LARGEST_UNIT", "leaky_average"]

#: Largest head size that can be normalised in the same pass: a program must hold whole rows.
LARGEST_UNIT = 256
# Programs that fill a GPU, and the chunks below which a segment of its own does not pay.
PROGRAMS, LEAST_CHUNKS, MOST_SEGMENTS = 512, 8, 64
# Elements of a chunk, its most rows (whose decays are a square), and the most columns of a program that need not see whole rows.
CHUNK_ELEMENTS, MOST_ROWS, COLUMNS = 1024, 32, 64
# The least side of a matrix product.
LEAST_SIDE = 16
# A warp for so many elements: sums within one need no other.
WARP_ELEMENTS, MOST_WARPS = 1024, 8


@triton.jit
def _decays(rate, row, C: tl.constexpr, CONSTANT: tl.constexpr):
    """(C, C): what is left at a row of each earlier row of its chunk, e^{−Σλ}; zero on and above the diagonal."""
    earlier = row[:, None] > row[None, :]
    if CONSTANT:
        lag = tl.where(earlier, row[:, None] - row[None, :], 0).to(tl.float32)
        between = lag * tl.max(rate, 0)
    else:
        # Sums of the rates between two rows, not differences of running totals: no cancellation after large rates.
        between = tl.cumsum(tl.where(earlier, rate[:, None], 0.0), 0)
    return tl.where(earlier, tl.exp(-between), 0.0)


@triton.jit
def _mix(decays, x, BACK: tl.constexpr):
    """decays·x, or its transpose times x if BACK; what is not finite touches only the rows it reaches, as 0·NaN is NaN."""
    good = tl.abs(x) < float("inf")
    clean = tl.where(good, x, 0.0)
    if BACK:
        y = tl.dot(tl.trans(decays), clean, input_precision="tf32x3")
    else:
        y = tl.dot(decays, clean, input_precision="tf32x3")
    bad = tl.where(good, 0.0, 1.0)
    if tl.max(tl.max(bad, 1), 0) > 0:
        y = tl.where(tl.cumsum(bad, 0, reverse=BACK) > 0, float("nan"), y)
    return y


@triton.jit
def _inverse_norm(k):
    """1/‖k‖ of each row; 0 where a row is too short to have a direction."""
    square = tl.sum(k * k, 1)
    long = square > 1e-24
    return tl.where(long, tl.rsqrt(tl.where(long, square, 1.0)), 0.0)


@triton.jit
def _start(
    INITIAL, ENDS, TOTALS, pair, number, segments, size, columns,
    GIVEN: tl.constexpr, FLIP: tl.constexpr, SP: tl.constexpr,
):  # fmt: skip
    """The average before segment ``number`` (FLIP: counted from the last one), from the ends of those before it."""
    inside = columns < size
    carry = tl.zeros_like(columns).to(tl.float32)
    whole = 0.0
    if SP > 1:
        index = tl.arange(0, SP)
        place = index
        following = index + 1
        if FLIP:
            place = segments - 1 - place
            following = segments - 1 - following
        place = pair * segments + place
        following = pair * segments + following
        # Sums of the rates between two segments, not differences of running totals: no cancellation.
        between = tl.load(TOTALS + following, mask=index + 1 < number, other=0.0)
        weight = tl.exp(-tl.cumsum(between, 0, reverse=True))
        there = (index < number)[:, None] & inside[None, :]
        ends = tl.load(ENDS + place[:, None] * size + columns[None, :], mask=there, other=0.0)
        carry = tl.sum(tl.where(there, ends * weight[:, None], 0.0), 0)
        whole = tl.sum(tl.load(TOTALS + place, mask=index < number, other=0.0), 0)
    if GIVEN:
        carry += tl.exp(-whole) * tl.load(INITIAL + pair * size + columns, mask=inside, other=0.0)
    return carry


@entry
def average(
    X, RATE, STATE, ENDS, TOTALS, OUT, CARRIES, LAST,
    x_b, x_h, x_t, r_b, r_h, r_t, heads, length, size, chunks, per_segment, segments,
    C: tl.constexpr, BD: tl.constexpr, SP: tl.constexpr, GIVEN: tl.constexpr, UNIT: tl.constexpr, CONSTANT: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """The averages of one segment; PARTIAL: only its end from nothing, and the sum of its rates.

    OUT: (B, H, T, D). CARRIES: (B, H, chunks, D), the average before each chunk. LAST: (B, H, D), that after the last.
    """
    pair = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    columns = tl.program_id(2) * BD + tl.arange(0, BD)
    inside = columns < size
    X += pair // heads * x_b + pair % heads * x_h
    RATE += pair // heads * r_b + pair % heads * r_h
    row = tl.arange(0, C)
    carry = tl.zeros([BD], tl.float32)
    total = 0.0
    if not PARTIAL:
        carry = _start(STATE, ENDS, TOTALS, pair, segment, segments, size, columns, GIVEN, False, SP)
    constant = tl.load(RATE + row * 0).to(tl.float32)
    decays = _decays(constant, row, C, True)
    for chunk in range(segment * per_segment, tl.minimum((segment + 1) * per_segment, chunks)):
        t = chunk * C + row.to(tl.int64)
        there = (t < length)[:, None] & inside[None, :]
        # Rows beyond the last have the rate zero and so leave the average as it is.
        rate = tl.load(RATE + t * r_t, mask=t < length, other=0.0).to(tl.float32)
        rate_next = tl.load(RATE + (t + 1) * r_t, mask=(t + 1 < length) & (row + 1 < C), other=0.0).to(tl.float32)
        x = tl.load(X + t[:, None] * x_t + columns[None, :], mask=there, other=0.0).to(tl.float32)
        if not PARTIAL:
            tl.store(CARRIES + (pair * chunks + chunk) * size + columns, carry, mask=inside)
            if not CONSTANT:
                decays = _decays(rate, row, C, False)
            result = x + _mix(decays, x, False) + tl.exp(-tl.cumsum(rate, 0))[:, None] * carry[None, :]
            if UNIT:
                result = result * _inverse_norm(result)[:, None]
            tl.store(OUT + (pair * length + t[:, None]) * size + columns[None, :], result, mask=there)
        leaves = tl.exp(-tl.cumsum(rate_next, 0, reverse=True))
        spent = tl.sum(rate, 0)
        carry = tl.exp(-spent) * carry + tl.sum(leaves[:, None] * x, 0)
        total += spent
    if PARTIAL:
        tl.store(ENDS + (pair * segments + segment) * size + columns, carry, mask=inside)
        tl.store(TOTALS + pair * segments + segment, total)
    else:
        tl.store(LAST + pair * size + columns, carry, mask=inside & (segment == segments - 1))


@entry
def average_backward(
    X, RATE, GRAD, GRAD_LAST, CARRIES, ENDS, TOTALS, D_X, D_RATE, D_STATE,
    x_b, x_h, x_t, r_b, r_h, r_t, g_b, g_h, g_t, o_b, o_h, o_t, o_d,
    heads, pairs, length, size, chunks, per_segment, segments,
    C: tl.constexpr, BD: tl.constexpr, SP: tl.constexpr, GIVEN: tl.constexpr, UNIT: tl.constexpr, CONSTANT: tl.constexpr,
    PARTIAL: tl.constexpr,
):  # fmt: skip
    """The gradients of one segment, from its last chunk to its first; PARTIAL: only what it hands to the one before."""
    pair = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    columns = tl.program_id(2) * BD + tl.arange(0, BD)
    inside = columns < size
    X += pair // heads * x_b + pair % heads * x_h
    RATE += pair // heads * r_b + pair % heads * r_h
    GRAD += pair // heads * g_b + pair % heads * g_h
    D_X += pair // heads * o_b + pair % heads * o_h
    D_RATE += (tl.program_id(2) * pairs + pair) * length
    row = tl.arange(0, C)
    carry = tl.zeros([BD], tl.float32)
    total = 0.0
    if not PARTIAL:
        number = segments - 1 - segment
        carry = _start(GRAD_LAST, ENDS, TOTALS, pair, number, segments, size, columns, GIVEN, True, SP)
    begin = segment * per_segment
    stop = tl.minimum(begin + per_segment, chunks)
    constant = tl.load(RATE + row * 0).to(tl.float32)
    decays = _decays(constant, row, C, True)
    for back in range(stop - begin):
        chunk = stop - 1 - back
        t = chunk * C + row.to(tl.int64)
        there = (t < length)[:, None] & inside[None, :]
        rate = tl.load(RATE + t * r_t, mask=t < length, other=0.0).to(tl.float32)
        rate_next = tl.load(RATE + (t + 1) * r_t, mask=t + 1 < length, other=0.0).to(tl.float32)
        g = tl.load(GRAD + t[:, None] * g_t + columns[None, :], mask=there, other=0.0).to(tl.float32)
        # What the rows before leave of themselves, e^{−λ_T} k_{T−1}.
        left = g
        if not CONSTANT:
            decays = _decays(rate, row, C, False)
        if UNIT or not PARTIAL:
            before = tl.load(CARRIES + (pair * chunks + chunk) * size + columns, mask=inside, other=0.0)
            x = tl.load(X + t[:, None] * x_t + columns[None, :], mask=there, other=0.0).to(tl.float32)
            left = _mix(decays, x, False) + tl.exp(-tl.cumsum(rate, 0))[:, None] * before[None, :]
            if UNIT:
                k = x + left
                factor = _inverse_norm(k)[:, None]
                unit = k * factor
                g = tl.where(there, factor * (g - unit * tl.sum(unit * g, 1)[:, None]), 0.0)
        passes = tl.exp(-tl.cumsum(rate_next, 0, reverse=True))
        if not PARTIAL:
            d_x = g + _mix(decays, g, True) + passes[:, None] * carry[None, :]
            tl.store(D_X + t[:, None] * o_t + columns[None, :].to(tl.int64) * o_d, d_x, mask=there)
            tl.store(D_RATE + t, -tl.sum(d_x * left, 1), mask=t < length)
        arrives = tl.exp(-tl.cumsum(tl.where(row > 0, rate, 0.0), 0))
        spent = tl.sum(rate_next, 0)
        carry = tl.exp(-spent) * carry + tl.sum(arrives[:, None] * g, 0)
        total += spent
    if PARTIAL:
        tl.store(ENDS + (pair * segments + segment) * size + columns, carry, mask=inside)
        tl.store(TOTALS + pair * segments + segment, total)
    else:
        first = tl.exp(-tl.load(RATE).to(tl.float32))
        tl.store(D_STATE + pair * size + columns, first * carry, mask=inside & (segment == 0))


class _Plan:
    """How a problem is cut into programs."""

    def __init__(self, x: Tensor, rate: Tensor, unit: bool) -> None:
        batch, heads, self.length, self.size = x.shape
        self.pairs = batch * heads
        self.columns = program_columns(self.size, unit)
        self.slices = triton.cdiv(self.size, self.columns)
        self.rows = chunk_rows(self.size, unit)
        self.chunks = triton.cdiv(self.length, self.rows)
        warps = min(MOST_WARPS, max(1, self.rows * self.columns // WARP_ELEMENTS))
        self.launch = {"num_warps": warps, "num_stages": 2}
        wanted = min(MOST_SEGMENTS, triton.cdiv(PROGRAMS, self.pairs * self.slices))
        self.per_segment = max(LEAST_CHUNKS, triton.cdiv(self.chunks, wanted))
        self.segments = triton.cdiv(self.chunks, self.per_segment)
        self.grid = (self.pairs, self.segments, self.slices)
        self.flags = {
            "C": self.rows, "BD": self.columns, "SP": triton.next_power_of_2(self.segments), "UNIT": unit,
            "CONSTANT": rate.dim() == 1,
        }  # fmt: skip
        self.numbers = {
            "heads": heads, "length": self.length, "size": self.size, "chunks": self.chunks,
            "per_segment": self.per_segment, "segments": self.segments, **_strides("x", x),
        }  # fmt: skip
        step = rate.stride() if rate.dim() == 3 else (0, rate.stride(0), 0)
        self.numbers.update(r_b=step[0], r_h=step[1], r_t=step[2])

    def scratch(self, x: Tensor) -> dict[str, Tensor]:
        """Ends and sums of the rates of the segments."""
        shape = (self.pairs, self.segments)
        return {
            "ENDS": torch.empty((*shape, self.size), dtype=torch.float32, device=x.device),
            "TOTALS": torch.empty(shape, dtype=torch.float32, device=x.device),
        }


def program_columns(size: int, unit: bool) -> int:
    """Columns of a program: all if rows are to be normalised."""
    columns = max(LEAST_SIDE, triton.next_power_of_2(max(1, size)))
    return columns if unit else min(columns, COLUMNS)


def chunk_rows(size: int, unit: bool) -> int:
    """Rows of a chunk; the number of carries follows from it."""
    return max(LEAST_SIDE, min(MOST_ROWS, CHUNK_ELEMENTS // program_columns(size, unit)))


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    return dict(zip((f"{name}_b", f"{name}_h", f"{name}_t"), tensor.stride(), strict=False))


def _row_major(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@torch.library.custom_op("epan::leaky_average", mutates_args=())
def _average(x: Tensor, rate: Tensor, state: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    out, last, carries = _average_fake(x, rate, state, unit)
    if x.numel() == 0:
        return out, last.zero_() if state is None else last.copy_(state), carries
    x = _row_major(x)
    plan = _Plan(x, rate, unit)
    given = None if state is None else state.float().contiguous()
    tensors = {
        "X": x, "RATE": rate, "STATE": last if given is None else given, "OUT": out, "CARRIES": carries, "LAST": last,
        **plan.scratch(x),
    }  # fmt: skip
    with on_device_of(x):
        for partial in (True, False) if plan.segments > 1 else (False,):
            average[plan.grid](
                **tensors, **plan.numbers, **plan.flags, GIVEN=given is not None, PARTIAL=partial, **plan.launch
            )
    return out, last, carries


@_average.register_fake
def _average_fake(x: Tensor, rate: Tensor, state: Tensor | None, unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, length, size = x.shape
    rows = chunk_rows(size, unit)
    last = x.new_empty((batch, heads, size), dtype=torch.float32)
    carries = x.new_empty((batch, heads, (length + rows - 1) // rows, size), dtype=torch.float32)
    return x.new_empty(x.shape), last, carries


@torch.library.custom_op("epan::leaky_average_backward", mutates_args=())
def _average_backward(
    grad: Tensor, grad_last: Tensor | None, x: Tensor, rate: Tensor, carries: Tensor, unit: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_x, d_rate, d_state = _average_backward_fake(grad, grad_last, x, rate, carries, unit)
    if x.numel() == 0:
        return d_x, d_rate.zero_(), d_state.zero_() if grad_last is None else d_state.copy_(grad_last)
    x, grad = _row_major(x), _row_major(grad)
    plan = _Plan(x, rate, unit)
    given = None if grad_last is None else grad_last.float().contiguous()
    per_step = torch.empty((plan.slices, *x.shape[:3]), dtype=torch.float32, device=x.device)
    tensors = {
        "X": x, "RATE": rate, "GRAD": grad, "GRAD_LAST": d_state if given is None else given, "CARRIES": carries,
        "D_X": d_x, "D_RATE": per_step, "D_STATE": d_state, **plan.scratch(x),
    }  # fmt: skip
    numbers = {**plan.numbers, **_strides("g", grad), **_strides("o", d_x), "o_d": d_x.stride(-1), "pairs": plan.pairs}
    with on_device_of(x):
        for partial in (True, False) if plan.segments > 1 else (False,):
            average_backward[plan.grid](
                **tensors, **numbers, **plan.flags, GIVEN=given is not None, PARTIAL=partial, **plan.launch
            )
    summed = per_step.sum(0) if rate.dim() == 3 else per_step.sum((0, 1, 3))
    return d_x, d_rate.copy_(summed), d_state


@_average_backward.register_fake
def _average_backward_fake(
    grad: Tensor, grad_last: Tensor | None, x: Tensor, rate: Tensor, carries: Tensor, unit: bool
) -> tuple[Tensor, Tensor, Tensor]:
    state = x.new_empty((x.shape[0], x.shape[1], x.shape[3]), dtype=torch.float32)
    # In the layout of x, so that the gradient goes through the split into heads without a copy.
    return torch.empty_like(x), rate.new_empty(rate.shape), state


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, bool], output: tuple[Tensor, ...]) -> None:
    x, rate, state, unit = inputs
    ctx.save_for_backward(x, rate, state, output[2])
    ctx.unit = unit
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    x, rate, state, carries = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(x)
    if torch.is_grad_enabled() and x.numel():
        d_x, d_rate, d_state = _in_averages(x, rate, state, grad, grad_last, ctx.unit)
    else:
        d_x, d_rate, d_state = _average_backward(grad, grad_last, x, rate, carries, ctx.unit)
    return d_x, d_rate, None if state is None else d_state.to(state.dtype), None


def _in_averages(
    x: Tensor, rate: Tensor, state: Tensor | None, grad: Tensor, grad_last: Tensor | None, unit: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in terms of leaky averages, for derivatives of higher order (``create_graph=True``)."""
    full, rates = x.float(), rate.float()
    k = _average(full, rates, state, False)[0]
    first = torch.zeros_like(k[:, :, 0]) if state is None else state.float()
    if rate.dim() == 1:
        rates = rates[None, :, None].expand(x.shape[:3])
    left = torch.exp(-rates)[..., None] * torch.cat([first[:, :, None], k[:, :, :-1]], 2)
    g = grad.float()
    if unit:
        square = (k * k).sum(-1, keepdim=True)
        long = square > 1e-24
        factor = torch.where(long, torch.rsqrt(torch.where(long, square, 1.0)), 0.0)
        direction = k * factor
        g = factor * (g - direction * (direction * g).sum(-1, keepdim=True))
    # Backward in time, the rate between a step and the next belongs to the next; the first step has none before it.
    ahead = torch.cat([torch.zeros_like(rates[..., :1]), rates.flip(2)[..., :-1]], 2)
    d_x = _average(g.flip(2), ahead, grad_last, False)[0].flip(2)
    d_rate = -(d_x * left).sum(-1)
    d_state = torch.exp(-rates[:, :, 0])[..., None] * d_x[:, :, 0]
    return d_x.to(x.dtype), (d_rate if rate.dim() == 3 else d_rate.sum((0, 2))).to(rate.dtype), d_state


_average.register_autograd(_gradients, setup_context=_setup)


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    r"""(averages, state after the last step) by one pass over x; averages are unit vectors with ``unit``.

    Parameters
    ----------
    x: (B, H, T, D), float32, float16 or bfloat16, averaged in float32.
    rate: λ ≥ 0, (H,) or (B, H, T), of a dtype as x. state: (B, H, D), the average before the first step, or None.
    unit: divide each average by its norm (zero where that is at most 1e−12), for D up to :data:`LARGEST_UNIT`.

    Returns
    -------
    (B, H, T, D) in the dtype of x, contiguous, and (B, H, D) in float32. Differentiable to any order, beyond the first
    through averages of their own; opaque to functorch transforms and forward-mode differentiation.

    Raises
    ------
    UnsupportedError: for float64 and for rows too long to be normalised.

    Source: Zhang et al. 2405.06394 (constant rate), 2507.03285 (rate per step).
    """
    for tensor in (x, rate) if state is None else (x, rate, state):
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UnsupportedError(
                f"{tensor.dtype} in the leaky average on the GPU",
                "it is computed in float32",
                "use epan.nn.leaky_average, which takes plain torch for it",
            )
    if unit and x.shape[-1] > LARGEST_UNIT:
        raise UnsupportedError(
            f"a unit norm over {x.shape[-1]} columns in one pass",
            f"a program holds rows of up to {LARGEST_UNIT}",
            "normalise the averages afterwards",
        )
    out, last, _ = _average(x, rate, state, unit)
    return out, last
