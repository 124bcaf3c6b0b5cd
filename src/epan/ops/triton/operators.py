"""The fused kernels as one differentiable function: plain when a call just runs, custom operators when it is traced.

Both run the same two functions, :func:`_forward` and :func:`_gradients`. Plain autograd costs a few microseconds a call;
custom operators cost tens, and are what torch.compile, fake tensors and a recorded backward pass can see.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..._intern import lookup
from ..._modes import is_traced
from ...errors import UnsupportedError
from ...kernels import Kernel
from ...masks import Masking, Packing
from ...normalizations import Normalization, Stats
from .launch import Forward, Problem
from .plans import on_device_of
from .schedules import backward, forward, saved_like

__all__ = ["fused"]

_NAMES = ("q", "k", "v", "scale", "mask", "slopes")
# The statistics of a query.
_STATS = (torch.float32, torch.long, torch.float32, torch.float32)
_SHOWN = 1 + len(_STATS)


def fused(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor | None, with_stats: bool
) -> tuple[Tensor, Stats | None]:
    """(out, stats) of q (B, H, Lq, D), k (B, Hk, Lk, D), v (B, Hk, Lk, Dv); no stats unless ``with_stats``.

    Parameters
    ----------
    scale: (B, H, Lq) float32.
    seed: () int64 on the device of q; None without dropout.

    Differentiable once by q, k, v, the scale, a float mask and the slopes.
    """
    masking = problem.masking
    if not is_traced():
        out, *stats = _Fused.apply(q, k, v, scale, masking.tensor, masking.slopes, seed, problem, with_stats)
        return out, Stats(*stats) if with_stats else None
    cu_q, cu_k, *settings = _settings(problem)
    out, *rest = _triton(q, k, v, scale, masking.tensor, masking.slopes, cu_q, cu_k, seed, *settings, with_stats)
    return out, Stats(*(field.detach() for field in rest[: _SHOWN - 1])) if with_stats else None


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous, as the kernels read it; all other strides are left alone."""
    # A copy, because a dimension of size one counts as contiguous whatever its stride.
    return tensor if tensor.stride(-1) == 1 else tensor.clone(memory_format=torch.contiguous_format)


def _forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor | None, with_stats: bool
) -> Forward:
    # Without dropout the seed is not read.
    with on_device_of(q):
        return forward(problem, _rows(q), _rows(k), _rows(v), scale, scale if seed is None else seed, with_stats)


def _gradients(
    problem: Problem,
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    seed: Tensor | None,
    out: Tensor,
    saved: tuple[Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """∂L/∂ of each of the six ``inputs`` (see ``_NAMES``) that is ``wanted``, in its shape and dtype."""
    q, k, v, scale = (cast(Tensor, tensor) for tensor in inputs[:4])
    needs = {name for name, flag in zip(_NAMES, wanted, strict=True) if flag}
    seed = scale if seed is None else seed
    with on_device_of(q):
        found = backward(problem, _rows(grad), _rows(q), _rows(k), _rows(v), scale, seed, out, saved, needs)
    # From rows, and from all pairs, to what was given.
    if "slopes" in found:
        found["slopes"] = found["slopes"].sum(-1)[..., None, None]
    for name in needs & {"mask", "slopes"}:
        like = cast(Tensor, inputs[_NAMES.index(name)])
        found[name] = found[name].sum_to_size(like.shape).to(like.dtype)
    return [found.get(name) for name in _NAMES]


class _Fused(torch.autograd.Function):
    """The kernels without the dispatcher."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor,
        mask: Tensor | None,
        slopes: Tensor | None,
        seed: Tensor | None,
        problem: Problem,
        with_stats: bool,
    ) -> tuple[Tensor, ...]:
        out, stats, saved = _forward(problem, q, k, v, scale, seed, with_stats)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*stats)
        ctx.save_for_backward(q, k, v, scale, mask, slopes, seed, out, *saved)
        ctx.problem = problem
        return out, *stats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, scale, mask, slopes, seed, out, *saved = ctx.saved_tensors
        inputs = (q, k, v, scale, mask, slopes)
        wanted, problem = ctx.needs_input_grad[:6], ctx.problem
        if torch.is_grad_enabled() or is_traced():
            # Recorded, so that a second derivative finds an operator that says why there is none.
            cu_q, cu_k, *settings = _settings(problem)
            flags = [int(flag) for flag in wanted]
            grads = iter(_triton_backward(grad, *inputs, cu_q, cu_k, seed, out, saved, *settings, flags))
            return (*(next(grads) if flag else None for flag in wanted), None, None, None)
        return (*_gradients(problem, grad, inputs, seed, out, tuple(saved), wanted), None, None, None)


def _settings(problem: Problem) -> tuple[Any, ...]:
    """Offsets of packed sequences, and what is no tensor, as the operators take it: the inverse of :func:`_problem_of`."""
    masking, packing = problem.masking, problem.masking.packing
    handles = problem.kernel.handle, problem.normalization.handle
    numbers = [*handles, int(problem.euclidean), int(problem.plain_scale), masking.offset, int(problem.short)]
    cu_q, cu_k = (None, None) if packing is None else (packing.cu_q, packing.cu_k)
    return cu_q, cu_k, numbers, masking.left, masking.right, problem.dropout_p


def _problem_of(
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    q_len: int,
    k_len: int,
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
) -> Problem:
    kernel, rule, euclidean, plain, offset, short = numbers
    packing = None if cu_q is None or cu_k is None else Packing(cu_q, cu_k)
    masking = Masking(q_len, k_len, mask, left, right, slopes, offset, packing)
    return Problem(
        masking,
        cast(Kernel, lookup(kernel)),
        cast(Normalization, lookup(rule)),
        bool(euclidean),
        dropout_p,
        bool(plain),
        bool(short),
    )


@torch.library.custom_op("epan::triton", mutates_args=())
def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    with_stats: bool,
) -> list[Tensor]:
    problem = _problem_of(mask, slopes, cu_q, cu_k, q.shape[2], k.shape[2], numbers, left, right, dropout_p)
    out, stats, saved = _forward(problem, q, k, v, scale, seed, with_stats)
    # An operator returns as many tensors whatever is asked for.
    return [out, *(stats if with_stats else (q.new_empty((0,), dtype=dtype) for dtype in _STATS)), *saved]


@_triton.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> list[Tensor]:
    _, mask, slopes, cu_q, cu_k, _, numbers, left, right, dropout_p, with_stats = rest
    problem = _problem_of(mask, slopes, cu_q, cu_k, q.shape[2], k.shape[2], numbers, left, right, dropout_p)
    per_query = q.shape[:3] if with_stats else (0,)
    shown = [v.new_empty((*q.shape[:3], v.shape[-1])), *(q.new_empty(per_query, dtype=dtype) for dtype in _STATS)]
    return [*shown, *(q.new_empty(shape, dtype=dtype) for shape, dtype in saved_like(problem, q, k, v))]


@torch.library.custom_op("epan::triton_backward", mutates_args=())
def _triton_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    saved: list[Tensor],
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    wanted: list[int],
) -> list[Tensor]:
    problem = _problem_of(mask, slopes, cu_q, cu_k, q.shape[2], k.shape[2], numbers, left, right, dropout_p)
    flags = tuple(bool(flag) for flag in wanted)
    found = _gradients(problem, grad, (q, k, v, scale, mask, slopes), seed, out, tuple(saved), flags)
    return [tensor for tensor in found if tensor is not None]


@_triton_backward.register_fake
def _(grad: Tensor, *rest: Any) -> list[Tensor]:
    likes, wanted = rest[: len(_NAMES)], rest[-1]
    return [like.new_empty(like.shape) for like, flag in zip(likes, wanted, strict=True) if flag and like is not None]


def _setup(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    *tensors, numbers, left, right, dropout_p, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, output[0], *output[_SHOWN:])
    ctx.constants = (numbers, left, right, dropout_p)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    wanted = [int(flag) for flag in ctx.needs_input_grad[:6]]
    tensors, saved = ctx.saved_tensors[:10], ctx.saved_tensors[10:]
    found = iter(
        _triton_backward(grads[0], *tensors, list(saved), *ctx.constants, wanted)
        if any(wanted) and grads[0] is not None
        else ()
    )
    return (*(next(found) if flag and grads[0] is not None else None for flag in wanted), *[None] * 8)


_triton.register_autograd(_differentiate, setup_context=_setup)


def _no_second_derivative(ctx: Any, *_: object) -> None:
    raise UnsupportedError(
        "A second derivative on backend='triton'", "its backward pass is opaque", 'use backend="eager"'
    )


_triton_backward.register_autograd(_no_second_derivative, setup_context=lambda ctx, inputs, output: None)
