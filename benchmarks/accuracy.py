"""How far a method is from the definition, and which tiles carry weight: both on the very inputs that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

import epan
from epan.ops.attention import BACKENDS
from problem import Problem
from workloads import Inputs

__all__ = ["TILE", "density", "errors", "thresholds", "tile_map"]

#: Queries and keys of a tile.
TILE = 128
#: Queries whose results are compared, in each of two heads.
SAMPLED = 64
NAMES = ("out", "dq", "dk", "dv")

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def thresholds(problem: Problem, inputs: Inputs) -> Tensor:
    """(B, H, N) float32: a key has weight exactly if its score exceeds this."""
    backend = "triton" if problem.device.type == "cuda" and "triton" in BACKENDS else "tiled"
    with torch.no_grad():
        _, stats = epan.attention(*inputs[:3], **problem.options(), backend=backend, return_stats=True)
    return stats.threshold.float()


def tile_map(problem: Problem, inputs: Inputs, threshold: Tensor) -> Tensor:
    """(B, H, T, T) boolean: tiles of 128 queries × 128 keys in which any key has weight."""
    B, H, N, _ = problem.shape
    count = -(-N // TILE)
    found = torch.zeros(B, H, count, count, dtype=torch.bool, device=problem.device)
    keys = torch.arange(N, device=problem.device)
    k = inputs.k.float()
    for row in range(count):
        start, stop = row * TILE, min(N, (row + 1) * TILE)
        end = stop if problem.causal else N
        q = inputs.q[:, :, start:stop].float()
        scores = q @ k[:, :, :end].transpose(-2, -1)
        if problem.similarity == "euclidean":
            scores -= q.square().sum(-1, keepdim=True) / 2 + k[:, :, :end].square().sum(-1).unsqueeze(-2) / 2
            scores.clamp_(max=0.0)
        inside = scores * problem.beta > threshold[:, :, start:stop, None]
        if problem.causal:
            inside &= keys[:end] <= keys[start:stop, None]
        padded = torch.nn.functional.pad(inside.any(-2), (0, -end % TILE))
        found[:, :, row, : padded.shape[-1] // TILE] = padded.unflatten(-1, (-1, TILE)).any(-1)
    return found


def density(problem: Problem, tiles: Tensor) -> float:
    """Share of the visible tiles that carry weight."""
    count = tiles.shape[-1]
    visible = count * (count + 1) // 2 if problem.causal else count * count
    return float(tiles.sum()) / (visible * tiles.shape[0] * tiles.shape[1])


def errors(
    problem: Problem, inputs: Inputs, method: Function, gradients: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Relative l2 errors of ``out``, ``dq``, ``dk``, ``dv`` against float64: of the method, and of eager in its dtype.

    The gradient of the output is zero except on 64 sampled queries of the first and the last head, so that the reference
    needs these queries alone, with all keys. ``out`` and ``dq`` are compared on them, ``dk`` and ``dv`` on every key.
    """
    B, H, N, _ = problem.shape
    places = {(0, 0), (B - 1, H - 1)}
    rows = torch.linspace(0, N - 1, min(SAMPLED, N), device=problem.device).round().long()
    grad = torch.zeros_like(inputs.grad)
    for b, h in places:
        grad[b, h, rows] = inputs.grad[b, h, rows]
    leaves = [t.detach().requires_grad_(gradients) for t in inputs[:3]]
    out = method(*leaves)
    found = [out.detach(), *(torch.autograd.grad(out, leaves, grad) if gradients else ())]
    del out
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in NAMES[: len(found)]}
    for b, h in sorted(places):
        exact, eager = (
            _definition(problem, inputs, b, h, rows, grad[b, h, rows], dtype, gradients)
            for dtype in (torch.float64, inputs.v.dtype)
        )
        for index, name in enumerate(sums):
            mine = found[index][b, h].double()
            mine = mine[rows] if name in ("out", "dq") else mine
            for place, other in enumerate((mine, eager[index].double())):
                sums[name][place] += float((other - exact[index]).square().sum())
            sums[name][2] += float(exact[index].square().sum())
    share = {name: [(value / max(total, 1e-300)) ** 0.5 for value in pair] for name, (*pair, total) in sums.items()}
    return {name: pair[0] for name, pair in share.items()}, {name: pair[1] for name, pair in share.items()}


def _definition(
    problem: Problem, inputs: Inputs, b: int, h: int, rows: Tensor, grad: Tensor, dtype: torch.dtype, gradients: bool
) -> list[Tensor]:
    """The eager backend on the queries ``rows`` of one head, in ``dtype``."""
    q, k, v = (t[b, h].to(dtype)[None, None] for t in (inputs.q[:, :, rows], inputs.k, inputs.v))
    leaves = [t.detach().requires_grad_(gradients) for t in (q, k, v)]
    seen = torch.arange(problem.shape.N, device=problem.device) <= rows[:, None] if problem.causal else None
    options = {**replace(problem, causal=False).options(), "attn_mask": seen}
    out = epan.attention(*leaves, **options, backend="eager")
    found = [out, *(torch.autograd.grad(out, leaves, grad.to(dtype)[None, None]) if gradients else ())]
    return [t.detach()[0, 0] for t in found]
