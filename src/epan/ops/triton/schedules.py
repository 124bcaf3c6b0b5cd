"""Which launcher serves a call: short sequences have kernels of their own, and the nearest rule, for finite numbers only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...masks import Masking
from ...normalizations import Nearest
from . import launch
from .launch import Forward, Problem, ranges
from .short_sequences import short_backward_pass, short_forward_pass, short_saved_like

__all__ = ["backward", "forward", "saved_like"]

Likes = list[tuple[tuple[int, ...], torch.dtype]]


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, seed: Tensor, with_stats: bool
) -> Forward:
    """The output, the statistics if wanted, and what the backward pass needs beside the output."""
    if problem.short:
        return short_forward_pass(problem, q, k, v, scale, seed)
    if not isinstance(problem.normalization, Nearest):
        return launch.forward(problem, q, k, v, scale, seed, with_stats)
    from .nearest import nearest_forward

    q, k, v, bad_q, bad_k = _contain(q, k, v)
    out, stats, saved = nearest_forward(problem, q, k, v, scale, seed, with_stats)
    reached = _reached(problem.masking, bad_q, bad_k)
    out.masked_fill_(reached.unsqueeze(-1), math.nan)
    if with_stats:
        threshold, _, partition, _ = stats
        threshold.masked_fill_(reached, math.nan)
        partition.masked_fill_(reached, math.nan)
    return Forward(out, stats, (*saved, reached))


def saved_like(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Likes:
    """Shapes and dtypes of the last part of :func:`forward`, a function of the shapes of its inputs."""
    if problem.short:
        return short_saved_like(q)
    if not isinstance(problem.normalization, Nearest):
        return launch.saved_like(problem, q, k, v)
    from .nearest import nearest_saved_like

    return [*nearest_saved_like(problem, q, k, v), (tuple(q.shape[:3]), torch.bool)]


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
    """The gradients of the names in ``needs``: of q, k, v, and in float32 of scale, slopes (B, H, Lq) and all pairs."""
    if problem.short:
        return short_backward_pass(problem, grad, q, k, v, scale, seed, saved, needs)
    if not isinstance(problem.normalization, Nearest):
        return launch.backward(problem, grad, q, k, v, scale, seed, out, saved, needs)
    from .nearest import nearest_backward

    *state, reached = saved
    q, k, v, _, _ = _contain(q, k, v)
    # No gradient flows through a row that is NaN.
    grad = grad.masked_fill(reached.unsqueeze(-1), 0.0)
    return nearest_backward(problem, grad, q, k, v, scale, seed, tuple(state), needs)


def _contain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows with a non-finite entry set to zero, and where they were."""
    good_q, good_k, good_v = (torch.isfinite(t).all(-1, keepdim=True) for t in (q, k, v))
    good = good_k & good_v
    q, k, v = torch.where(good_q, q, 0.0), torch.where(good, k, 0.0), torch.where(good, v, 0.0)
    return q, k, v, ~good_q.squeeze(-1), ~good.squeeze(-1)


def _reached(masking: Masking, bad_q: Tensor, bad_k: Tensor) -> Tensor:
    """Queries that are non-finite and see any key, or may see a non-finite key or value."""
    bad_k = bad_k.repeat_interleave(bad_q.shape[1] // max(1, bad_k.shape[1]), 1)
    lo, hi = (bound.long() for bound in ranges(masking, bad_q.device)[:2])
    if masking.tensor is None:
        # Non-finite keys before each key, so that a range of keys is a difference.
        before = torch.nn.functional.pad(bad_k.long().cumsum(-1), (1, 0))
        return (before[..., hi] > before[..., lo]) | (bad_q & (hi > lo))
    keys = torch.arange(masking.k_len, device=bad_q.device)
    allowed = (keys >= lo[:, None]) & (keys < hi[:, None])
    mask = masking.tensor
    allowed = allowed & (mask if mask.dtype == torch.bool else mask != -math.inf)
    return (allowed & bad_k.unsqueeze(-2)).any(-1) | (bad_q & allowed.any(-1))
