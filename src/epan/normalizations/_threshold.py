r"""The threshold of the adaptive normalization, exact to rounding.

With x = z − max z (so x ≤ 0, and 0 occurs) the weights of order n are

    height form (n ≤ 16):   w = [c + x/n]_+^n,                      c = max z/n − τ ∈ [|A|^{−1/n}, 1]
    log form (larger n):    w = exp(n · log1p((x − s)/n)),          s = n(1 − c) ∈ [0, log |A|]

and f = Σw = 1 fixes c or s. c keeps its relative precision when thousands of nearly equal scores make it small, s keeps
it when n is large. f^{1/n} is convex in the unknown (it is an n-norm), so Newton's method on f^{1/n} = 1 started at c = 1
decreases monotonically to the root, on a support that only shrinks; on constant rows it is exact after one step.
Newton on f itself has the same property but needs many more steps when f is large.

Source: Peters et al. 1905.05702, section 3 (the threshold equation); the n-norm form is checked in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import usable_maximum

__all__ = ["solve_level", "sparse_rows"]

# Rows are searched for candidates in pieces of about this many scores, and iterated on in smaller ones, for the caches.
SEARCH_ELEMENTS = 1 << 20
CHUNK_ELEMENTS = 1 << 18
# Scores are compacted to the candidates z > max − n when these are a smaller share than this.
COMPACT_BELOW = 0.2
GROUP = 32
_MAX_STEPS = 60


def level_is_log(order: float | Tensor) -> bool:
    """True if the level is the shift s of the log form, false if it is the height c."""
    return isinstance(order, Tensor) or order > 16.0


def _height_step(x: Tensor, c: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """Σw at height c, and the Newton step of f^{1/n} towards f = 1."""
    base = torch.add(c, x, alpha=1.0 / n).relu_()
    if n == 1.0:
        f = base.sum(-1, keepdim=True)
        return f, (f - 1.0) / base.sign_().sum(-1, keepdim=True)
    if n == 2.0:
        slope = base.sum(-1, keepdim=True)
        f = base.square_().sum(-1, keepdim=True)
        return f, (f - f.sqrt()) / slope
    lower = base * base if n == 3.0 else torch.where(base > 0, base.pow(n - 1.0), base)
    slope = lower.sum(-1, keepdim=True)
    f = lower.mul_(base).sum(-1, keepdim=True)
    return f, (f - f.pow(1.0 - 1.0 / n)) / slope


def _log_step(x: Tensor, s: Tensor, n: float | Tensor) -> tuple[Tensor, Tensor]:
    """Σw at shift s, and the Newton step of f^{1/n} towards f = 1."""
    ratio = ((x - s) / n).clamp_(min=-1.0)
    log = torch.log1p(ratio)
    f = torch.exp(n * log).sum(-1, keepdim=True)
    # At ratio = −1 the exponent of order 1 would be 0·(−inf).
    slope = torch.where(ratio > -1.0, torch.exp((n - 1.0) * log), ratio + 1.0).sum(-1, keepdim=True)
    return f, -n * f * torch.expm1(-torch.log(f) / n) / slope


def _newton(x: Tensor, n: float | Tensor, start: Tensor | None = None, steps: int = _MAX_STEPS) -> Tensor:
    """The level (..., 1) of complete rows x ≤ 0 whose maximum is 0; masked keys are −inf.

    ``start`` must lie on the side of f ≥ 1, where every iterate stays. With fewer ``steps``, or for a subset of the keys
    that holds the maximum, the result is still on that side: a bound of the level.
    """
    log_form = level_is_log(n)
    level = start
    if level is None:
        level = x.new_full((*x.shape[:-1], 1), 0.0 if log_form else 1.0)
    tolerance = 4.0 * torch.finfo(x.dtype).eps
    for _ in range(steps):
        if log_form:
            step = _log_step(x, level, n)[1].nan_to_num_(0.0, 0.0, 0.0)
            level = level + step
            scale = level.clamp(min=1.0)
        else:
            assert not isinstance(n, Tensor)
            step = _height_step(x, level, n)[1].nan_to_num_(0.0, 0.0, 0.0)
            level = level - step
            scale = level
        if not bool((step > tolerance * scale).any()):
            break
    return level


def solve_level(x: Tensor, order: float | Tensor) -> Tensor:
    """The level of each row: c for a float order up to 16, s otherwise.

    Parameters
    ----------
    x: (..., L), scores less the row's maximum, −inf at masked keys; float32 or float64.
    order: n ≥ 1; a tensor broadcasts to (..., 1).
    """
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], 1))
    if isinstance(order, Tensor) or x.device.type != "cpu":
        return _newton(x, order)
    rows = x.reshape(-1, x.shape[-1])
    level = torch.cat([_solve_chunk(chunk, order) for chunk in _pieces(rows, SEARCH_ELEMENTS)])
    return level.reshape(*x.shape[:-1], 1)


def _pieces(rows: Tensor, elements: int) -> tuple[Tensor, ...]:
    return rows.split(max(1, elements // max(1, rows.shape[-1])))


def _solve_chunk(x: Tensor, order: float) -> Tensor:
    candidates = _Candidates.find(x, order)
    if candidates is not None:
        return _newton(candidates.padded, order, candidates.level)
    return torch.cat([_newton(piece, order) for piece in _pieces(x, CHUNK_ELEMENTS)])


@dataclass(frozen=True)
class _Candidates:
    """The scores of each row of a (R, L) tensor that reach above a bound of the threshold, so all of the support.

    Attributes
    ----------
    padded: (R, K) their values less the row's maximum, −inf behind the last.
    index: their flat positions in the tensor; row, column: their places in ``padded``.
    maximum, level: (R, 1); the level is the bound that was used, a start for Newton's method.
    """

    padded: Tensor
    index: Tensor
    row: Tensor
    column: Tensor
    maximum: Tensor
    level: Tensor

    @staticmethod
    def find(z: Tensor, order: float) -> _Candidates | None:
        """None if the candidates are too many for compaction to pay."""
        rows, width = z.shape
        if width < 4 * GROUP or width % GROUP:
            return None
        # One pass finds the maxima of groups of neighbours; only groups that reach above the bound are looked into.
        grouped = z.view(rows, width // GROUP, GROUP)
        peaks = grouped.amax(-1)
        maximum = usable_maximum(peaks)
        # The groups' maxima are a subset of the keys: two steps on them bound the threshold from below.
        level = _newton(peaks - maximum, order, steps=2)
        bound = maximum + (level - order if level_is_log(order) else -order * level)
        # The bound itself is rounded; a key that it cuts off must not matter.
        bound -= 4.0 * torch.finfo(z.dtype).eps * bound.abs()
        first = peaks > bound
        if float(first.float().mean()) > 4 * COMPACT_BELOW:
            sample = z.view(-1)[:: max(1, z.numel() // 4096)]
            line = torch.arange(0, z.numel(), max(1, z.numel() // 4096)).div_(width, rounding_mode="floor")
            if float((sample > bound.view(-1)[line]).float().mean()) > COMPACT_BELOW:
                return None
        group = first.view(-1).nonzero().squeeze(-1)
        group_row = torch.div(group, width // GROUP, rounding_mode="floor")
        values = grouped.view(-1, GROUP).index_select(0, group)
        hit = (values > bound.view(-1)[group_row].unsqueeze(-1)).view(-1).nonzero().squeeze(-1)
        place = torch.div(hit, GROUP, rounding_mode="floor")
        row = group_row[place]
        counts = torch.bincount(row, minlength=rows)
        longest = max(1, int(counts.max()))
        if longest * 2 > width:
            return None
        column = torch.arange(hit.numel()).sub_((counts.cumsum(0) - counts)[row])
        padded = z.new_full((rows, longest), -math.inf)
        padded.view(-1)[row * longest + column] = values.view(-1)[hit]
        index = group[place] * GROUP + hit % GROUP
        return _Candidates(padded.sub_(maximum), index, row, column, maximum, level)


def sparse_rows(
    z: Tensor, order: float, out: Tensor, with_support: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adaptive weights of complete rows, written to ``out``, on a CPU and without gradient.

    Parameters
    ----------
    z: (R, L) scores, −inf where masked; float32 or float64, contiguous, L ≥ 1.
    order: n ≥ 1.
    out: (R, L) of any floating dtype, contiguous; may be ``z`` itself.

    Returns
    -------
    maximum, level, sum before the final division, support size (0 unless ``with_support``); each (R, 1).
    """
    results = []
    for chunk, target in zip(_pieces(z, SEARCH_ELEMENTS), _pieces(out, SEARCH_ELEMENTS), strict=True):
        candidates = _Candidates.find(chunk, order)
        if candidates is None:
            for piece, part in zip(_pieces(chunk, CHUNK_ELEMENTS), _pieces(target, CHUNK_ELEMENTS), strict=True):
                maximum = usable_maximum(piece)
                weights, level, total, support = _weights(piece - maximum, order, None, with_support)
                part.copy_(weights)
                results.append((maximum, level, total, support))
            continue
        weights, level, total, support = _weights(candidates.padded, order, candidates.level, with_support)
        target.zero_()
        target.view(-1)[candidates.index] = weights[candidates.row, candidates.column].to(out.dtype)
        bad = torch.isnan(candidates.maximum)
        if bool(bad.any()):
            target.masked_fill_(bad, math.nan)
            total = total.masked_fill(bad, math.nan)
        results.append((candidates.maximum, level, total, support))
    maximum, level, total, support = (torch.cat(column) for column in zip(*results, strict=True))
    return maximum, level, total, support


def _weights(x: Tensor, n: float, start: Tensor | None, with_support: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights, level, sum before the division, support size) of rows x ≤ 0 that hold every key of their support."""
    level = _newton(x, n, start)
    if level_is_log(n):
        inside = torch.sign((x - level + n).relu_()) if with_support else None
        weights = torch.exp(n * torch.log1p(((x - level) / n).clamp_(min=-1.0)))
    else:
        base = torch.add(level, x, alpha=1.0 / n).relu_()
        inside = torch.sign(base) if with_support else None
        if n == 1.0:
            weights = base
        elif n == 2.0:
            weights = base.square_()
        elif n == 3.0:
            weights = base * base * base
        else:
            weights = base.pow_(n)
    total = weights.sum(-1, keepdim=True)
    weights /= torch.where(total == 0, 1.0, total)
    # A float sum of signs is much quicker than a sum of booleans, and exact up to 2^24 keys.
    support = torch.zeros_like(total) if inside is None else inside.sum(-1, keepdim=True).nan_to_num_(0.0)
    return weights, level, total, support
