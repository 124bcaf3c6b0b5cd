r"""The threshold of the adaptive normalization, exact to rounding.

With x = z − max z (so x ≤ 0, and 0 occurs) the weights of order n are

    height form (n ≤ 16):   w = [c + x/n]_+^n,                      c = max z/n − τ ∈ [|A|^{−1/n}, 1]
    log form (larger n):    w = exp(n · log1p((x − s)/n)),          s = n(1 − c) ∈ [0, log |A|]

and f = Σw = 1 fixes c or s. c keeps its relative precision when thousands of nearly equal scores make it small, s keeps
it when n is large. f^{1/n} is convex in the unknown (it is an n-norm), so Newton's method on f^{1/n} = 1 started at c = 1
decreases monotonically to the root, on a support that only shrinks; on constant rows it is exact after one step.
Newton on f itself has the same property but needs many more steps when f is large.

Convexity also bounds the steps: with h = f^{1/n}, (h − 1)·h' falls to a quarter with each, from at most L^{2/n} in a row of L
keys (h and h' are at most L^{1/n} and h' is at least 1). That many are taken where nobody may look at the results in between.

Source: Peters et al. 1905.05702, section 3 (the threshold equation); the n-norm form is checked in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._vectors import WIDTH, alike, row_sum
from .base import usable_maximum

__all__ = ["solve_level", "sparse_rows"]

# Rows are searched for candidates in pieces of about this many scores (few, because each starts many small operations),
# and iterated on in smaller ones, for the caches.
SEARCH_ELEMENTS = 1 << 22
CHUNK_ELEMENTS = 1 << 18
# A row is compacted to its candidates if at most this share of its groups of neighbours holds any.
COMPACT_BELOW = 0.6
GROUP = 32
_MAX_STEPS = 60


def level_is_log(order: float | Tensor) -> bool:
    """True if the level is the shift s of the log form, false if it is the height c."""
    return isinstance(order, Tensor) or order > 16.0


def _height_step(x: Tensor, c: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """Σw at height c, and the Newton step of f^{1/n} towards f = 1; ``x`` is already divided by n."""
    base = (c + x).relu_()
    if n == 1.0:
        f = row_sum(base)
        return f, (f - 1.0) / row_sum(base.sign_())
    if n == 2.0:
        slope = row_sum(base)
        f = row_sum(base.square_())
        return f, (f - f.sqrt()) / slope
    lower = base * base if n == 3.0 else torch.where(base > 0, alike(lambda b: b.pow(n - 1.0), base), base)
    slope = row_sum(lower)
    f = row_sum(lower.mul_(base))
    return f, (f - alike(lambda g: g.pow(1.0 - 1.0 / n), f)) / slope


def _log_step(x: Tensor, s: Tensor, n: float | Tensor) -> tuple[Tensor, Tensor]:
    """Σw at shift s, and the Newton step of f^{1/n} towards f = 1."""
    ratio = ((x - s) / n).clamp_(min=-1.0)
    log = alike(torch.log1p, ratio)
    f = row_sum(alike(torch.exp, n * log))
    # At ratio = −1 the exponent of order 1 would be 0·(−inf).
    slope = row_sum(torch.where(ratio > -1.0, alike(torch.exp, (n - 1.0) * log), ratio + 1.0))
    return f, -n * f * alike(torch.expm1, -alike(torch.log, f) / n) / slope


def _unit(x: Tensor, n: float | Tensor) -> Tensor:
    """x/n in place for the height form; a product with 1/n could give a key at the very end of its reach a weight."""
    return x if level_is_log(n) or n == 1.0 else x.div_(n)


def _newton(x: Tensor, n: float | Tensor, start: Tensor | None = None, steps: int = _MAX_STEPS) -> Tensor:
    """The level (..., 1) of complete rows x ≤ 0 whose maximum is 0; masked keys are −inf; x as :func:`_unit` gives it.

    ``start`` must lie on the side of f ≥ 1, where every iterate stays. With fewer ``steps``, or for a subset of the keys
    that holds the maximum, the result is still on that side: a bound of the level.
    """
    log_form = level_is_log(n)
    level = start
    if level is None:
        level = x.new_full((*x.shape[:-1], 1), 0.0 if log_form else 1.0)
    tolerance = 4.0 * torch.finfo(x.dtype).eps
    moving: Tensor | None = None
    blind = _is_recorded(x)
    for _ in range(min(steps, sufficient_steps(x.shape[-1], n, x.dtype)) if blind else steps):
        advance = _log_step if log_form else _height_step
        step = advance(x, level, n)[1].nan_to_num_(0.0, 0.0, 0.0)  # type: ignore[arg-type]
        # A row that has arrived stays, so that its bits do not depend on its neighbours.
        if moving is not None:
            step = torch.where(moving, step, 0.0)
        level = level + step if log_form else level - step
        moving = step > tolerance * (level.clamp(min=1.0) if log_form else level)
        if not blind and not bool(moving.any()):
            break
    return level


def _is_recorded(x: Tensor) -> bool:
    """Whether a CUDA graph is being recorded, so that the host cannot see whether all rows have arrived."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def sufficient_steps(width: int, n: float | Tensor, dtype: torch.dtype) -> int:
    """Newton steps after which every row of ``width`` keys has arrived at its level, to rounding.

    A step in c is at most (h − 1)·h', and has to be below 4ε of the level, which is at least L^{−1/n}; in s it is n times that.
    """
    eps = torch.finfo(dtype).eps
    if isinstance(n, Tensor):
        # Of orders that are on the device nobody knows how large they are; from order 1 on, larger ones need fewer steps.
        return _MAX_STEPS
    factor = max(1.0, n) if level_is_log(n) else 1.0
    needed = (3.0 / n * math.log2(max(width, 1)) + math.log2(factor / (4.0 * eps))) / 2.0
    return min(_MAX_STEPS, math.ceil(needed) + 1)


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
        return _newton(_unit(x.clone(), order), order)
    rows = x.reshape(-1, x.shape[-1])
    level = torch.cat([_solve_chunk(chunk, order) for chunk in _pieces(rows, SEARCH_ELEMENTS)])
    return level.reshape(*x.shape[:-1], 1)


def _pieces(rows: Tensor, elements: int) -> tuple[Tensor, ...]:
    """A (R, L) tensor, or a list of R things, in pieces of about so many elements."""
    width = rows.shape[-1] if rows.dim() > 1 else 1
    return rows.split(max(1, elements // max(1, width))) if rows.shape[0] else ()


def _solve_chunk(x: Tensor, order: float) -> Tensor:
    level = x.new_empty((x.shape[0], 1))
    candidates, dense = _Candidates.find(x, order)
    if candidates is not None:
        level[candidates.rows] = _newton(candidates.padded, order, candidates.level)
    for rows in dense:
        level[rows] = _newton(_unit(x[rows], order), order)
    return level


@dataclass(frozen=True)
class _Candidates:
    """The scores of each row of a (R, L) tensor that reach above a bound of the threshold, so all of the support.

    Attributes
    ----------
    rows: (S,) which rows of the tensor these are.
    padded: (S, K) their values less the row's maximum, as :func:`_unit` gives them; −inf behind the last.
    index: flat positions in the tensor; row, column: the places in ``padded``.
    maximum, level: (S, 1); the level is the bound that was used, a start for Newton's method.
    """

    rows: Tensor
    padded: Tensor
    index: Tensor
    row: Tensor
    column: Tensor
    maximum: Tensor
    level: Tensor

    @staticmethod
    def find(z: Tensor, order: float) -> tuple[_Candidates | None, tuple[Tensor, ...]]:
        """The candidates of the rows with few of them, and the numbers of the other rows, in pieces.

        Every decision is made row by row, and K is padded to whole vectors, so that no bit of a row's result depends on
        another row: what a later query sees must not change an earlier one, not even by rounding.
        """
        total, width = z.shape
        if width < 4 * GROUP or width % GROUP:
            return None, _pieces(torch.arange(total, device=z.device), max(1, CHUNK_ELEMENTS // width))
        # One pass finds the maxima of groups of neighbours; only groups that reach above the bound are looked into.
        groups = width // GROUP
        peaks = z.view(total, groups, GROUP).amax(-1)
        maximum = usable_maximum(peaks)
        # The groups' maxima are a subset of the keys: two steps on them bound the threshold from below.
        level = _newton(_unit(peaks - maximum, order), order, steps=2)
        bound = maximum + (level - order if level_is_log(order) else -order * level)
        # The bound itself is rounded; a key that it cuts off must not matter.
        bound -= 4.0 * torch.finfo(z.dtype).eps * bound.abs()
        first = peaks > bound
        sparse = first.to(z.dtype).sum(-1) <= COMPACT_BELOW * groups
        rows = sparse.nonzero().squeeze(-1)
        dense = _pieces((~sparse).nonzero().squeeze(-1), max(1, CHUNK_ELEMENTS // width))
        if rows.numel() == 0:
            return None, dense
        if rows.numel() < total:
            first, maximum, level, bound = first[rows], maximum[rows], level[rows], bound[rows]
        group = first.view(-1).nonzero().squeeze(-1)
        row = torch.div(group, groups, rounding_mode="floor")
        group += (rows[row] - row) * groups
        values = z.view(-1, GROUP).index_select(0, group)
        hit = (values > bound.view(-1)[row].unsqueeze(-1)).view(-1).nonzero().squeeze(-1)
        place = torch.div(hit, GROUP, rounding_mode="floor")
        row = row[place]
        counts = torch.bincount(row, minlength=rows.numel())
        longest = -(-max(1, int(counts.max())) // WIDTH) * WIDTH
        column = torch.arange(hit.numel(), device=z.device).sub_((counts.cumsum(0) - counts)[row])
        padded = z.new_full((rows.numel(), longest), -math.inf)
        padded.view(-1)[row * longest + column] = values.view(-1)[hit]
        index = group[place] * GROUP + hit % GROUP
        return _Candidates(rows, _unit(padded.sub_(maximum), order), index, row, column, maximum, level), dense


def sparse_rows(
    z: Tensor, order: float, out: Tensor, with_support: bool = True, out_is_zero: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adaptive weights of complete rows, written to ``out``, on a CPU and without gradient.

    Parameters
    ----------
    z: (R, L) scores, −inf where masked; float32 or float64, contiguous, L ≥ 1.
    order: n ≥ 1.
    out: (R, L) of any floating dtype, contiguous; may be ``z`` itself. ``out_is_zero`` spares clearing it.

    Returns
    -------
    maximum, level, sum before the final division, support size (0 unless ``with_support``); each (R, 1).
    """
    results = z.new_empty((4, z.shape[0], 1))
    start = 0
    for chunk, target in zip(_pieces(z, SEARCH_ELEMENTS), _pieces(out, SEARCH_ELEMENTS), strict=True):
        candidates, dense = _Candidates.find(chunk, order)
        result = results[:, start : start + chunk.shape[0]]
        start += chunk.shape[0]
        if candidates is not None:
            weights, *row = _weights(candidates.padded, order, candidates.level, with_support)
            result[:, candidates.rows] = torch.stack((candidates.maximum, *row))
            values = weights[candidates.row, candidates.column].to(out.dtype)
        for rows in dense:
            # A slice where it serves, because picking rows copies them.
            part = slice(int(rows[0]), int(rows[-1]) + 1) if int(rows[-1] - rows[0]) + 1 == rows.numel() else rows
            piece = chunk[part]
            maximum = usable_maximum(piece)
            weights, *row = _weights(_unit(piece - maximum, order), order, None, with_support)
            target[part] = weights.to(out.dtype)
            result[:, part] = torch.stack((maximum, *row))
        if candidates is not None:
            if not out_is_zero and candidates.rows.numel() == chunk.shape[0]:
                target.zero_()
            elif not out_is_zero:
                target[candidates.rows] = 0.0
            target.view(-1)[candidates.index] = values
            bad = candidates.rows[torch.isnan(candidates.maximum).squeeze(-1)]
            if bad.numel():
                target[bad] = math.nan
                result[2, bad] = math.nan
    maximum, level, total, support = results
    return maximum, level, total, support


def _weights(x: Tensor, n: float, start: Tensor | None, with_support: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weights, level, sum before the division, support size) of rows that hold every key of their support.

    ``x`` as :func:`_newton` takes it.
    """
    level = _newton(x, n, start)
    if level_is_log(n):
        inside = torch.sign((x - level + n).relu_()) if with_support else None
        weights = alike(torch.exp, n * alike(torch.log1p, ((x - level) / n).clamp_(min=-1.0)))
    else:
        base = (level + x).relu_()
        inside = torch.sign(base) if with_support else None
        if n == 1.0:
            weights = base
        elif n == 2.0:
            weights = base.square_()
        elif n == 3.0:
            weights = base * base * base
        else:
            weights = alike(lambda b: b.pow(n), base)
    total = row_sum(weights)
    weights /= torch.where(total == 0, 1.0, total)
    # A float sum of signs is much quicker than a sum of booleans, and exact up to 2^24 keys.
    support = torch.zeros_like(total) if inside is None else row_sum(inside).nan_to_num_(0.0)
    return weights, level, total, support
