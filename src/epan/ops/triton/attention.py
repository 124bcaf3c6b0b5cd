"""Attention through the fused kernels, with gradients, in the form in which a backend is called."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ...kernels import Kernel
from ...masks import Masking
from ...normalizations import Normalization, Stats
from .launch import Problem, backward, forward, ranges

__all__ = ["triton_attention"]


def triton_attention(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSE: Tensor,
    masking: Masking,
    scale: float | Tensor,
    kernel: Kernel,
    normalization: Normalization,
    *,
    euclidean: bool,
    dropout_p: float,
    with_stats: bool = True,
) -> tuple[Tensor, Stats]:
    """Attention as in the eager backend; the stats are blank unless ``with_stats``. First derivatives only.

    Memory beyond inputs and outputs: four numbers per query, five bytes per tile of 128 × 128 scores, and a scratch of
    bounded size.
    """
    if q_BHLD.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UnsupportedError(
            f"{q_BHLD.dtype} on the fused GPU kernels", "they compute in float32", 'use backend="eager"'
        )
    plain = not isinstance(scale, Tensor) and scale >= 0
    problem = Problem(masking, kernel, normalization, euclidean, dropout_p, plain)
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=q_BHLD.device)
    seed = torch.zeros((), dtype=torch.long, device=q_BHLD.device)
    if dropout_p > 0:
        # One draw from the global generator per call, so that torch.manual_seed decides the dropout.
        seed = torch.randint(1 << 62, (), dtype=torch.long, device="cpu").to(q_BHLD.device)
    rows = scale.float().expand(*q_BHLD.shape[:3], 1).squeeze(-1)
    out, threshold, support, partition = _Attention.apply(
        q_BHLD, k_BHSD, v_BHSE, rows, masking.tensor, masking.slopes, seed, problem, with_stats
    )
    return out, Stats(threshold, support, partition)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor,
        mask: Tensor | None,
        slopes: Tensor | None,
        seed: Tensor,
        problem: Problem,
        with_stats: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtypes = q.dtype, k.dtype, v.dtype
        q, k, v, bad_q, bad_k = _contain(q, k, v)
        out, reference, level, divisor, threshold, support, partition, flags, listed, count = forward(
            problem, q, k, v, scale, seed, with_stats
        )
        reached = _reached(problem.masking, bad_q, bad_k)
        out = torch.where(reached.unsqueeze(-1), math.nan, out)
        # Below every support, so that no gradient flows through the row.
        level = torch.where(reached, -math.inf, level)
        if with_stats:
            threshold = torch.where(reached, math.nan, threshold)
            partition = torch.where(reached, math.nan, partition)
        ctx.save_for_backward(q, k, v, scale, seed, out, reference, level, divisor, flags, listed, count, reached)
        ctx.problem, ctx.mask, ctx.slopes, ctx.dtypes = problem, mask, slopes, dtypes
        ctx.mark_non_differentiable(threshold, support, partition)
        return out, threshold, support, partition

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, scale, seed, out, reference, level, divisor, flags, listed, count, reached = ctx.saved_tensors
        names = ("q", "k", "v", "scale", "mask", "slopes")
        needs = {name for name, flag in zip(names, ctx.needs_input_grad, strict=False) if flag}
        grad = torch.where(reached.unsqueeze(-1), 0.0, grad).contiguous()
        out = torch.where(reached.unsqueeze(-1), 0.0, out)
        found = backward(
            ctx.problem, grad, q, k, v, scale, seed, out, (reference, level, divisor), (flags, listed, count), needs
        )
        likes = dict(zip(names, (q, k, v, scale, ctx.mask, ctx.slopes), strict=True))
        if "slopes" in found:
            found["slopes"] = found["slopes"].sum(-1)[..., None, None]
        result = [
            found[name].sum_to_size(likes[name].shape).to(likes[name].dtype) if name in found else None
            for name in names
        ]
        return (*result, None, None, None)


def _contain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows with a non-finite entry set to zero, and where they were; the last dimension contiguous."""
    good_q, good_k, good_v = (torch.isfinite(t).all(-1, keepdim=True) for t in (q, k, v))
    good = good_k & good_v
    q, k, v = torch.where(good_q, q, 0.0), torch.where(good, k, 0.0), torch.where(good, v, 0.0)
    return q.contiguous(), k.contiguous(), v.contiguous(), ~good_q.squeeze(-1), ~good.squeeze(-1)


def _reached(masking: Masking, bad_q: Tensor, bad_k: Tensor) -> Tensor:
    """Queries that are non-finite and see any key, or may see a non-finite key or value."""
    lo, hi, _ = ranges(masking, bad_q.device)
    lo, hi = lo.long(), hi.long()
    if masking.tensor is None:
        # Non-finite keys before each key, so that a range of keys is a difference.
        before = torch.nn.functional.pad(bad_k.long().cumsum(-1), (1, 0))
        return (before[..., hi] > before[..., lo]) | (bad_q & (hi > lo))
    keys = torch.arange(masking.k_len, device=bad_q.device)
    allowed = (keys >= lo[:, None]) & (keys < hi[:, None])
    mask = masking.tensor
    allowed = allowed & (mask if mask.dtype == torch.bool else mask != -math.inf)
    return (allowed & bad_k.unsqueeze(-2)).any(-1) | (bad_q & allowed.any(-1))
