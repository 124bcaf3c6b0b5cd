"""What a normalization is: a rule that makes the kernel values of one query comparable."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._intern import intern, restore
from ..kernels import Kernel

__all__ = ["Normalization", "Rows", "Stats", "map_stats", "softmax_weights", "where_allowed"]


class Stats(NamedTuple):
    """What one query's weights look like; every tensor has the shape of the scores without the key dimension.

    Detached, at least float32, before dropout; a fully masked row has +inf, 0, 0.

    Attributes
    ----------
    threshold: t in score units with w > 0 ⇔ z > t. adaptive: nτ; anchored: max − n; fixed: z_0 − n; Gaussian: −inf;
        nearest: the largest number below the k-th best score.
    support_size: number of keys with w > 0 (for the Gaussian: of keys allowed).
    partition: Σφ at the rule's reference. adaptive: at t + n, where it is 1 up to rounding; anchored: at the maximum;
        fixed: at distance zero, so that 0 marks an empty row; nearest: over the keys chosen; Gaussian: logsumexp.
    tile_density: only from a backend that works in tiles and leaves out those without weight (triton), else None: of the
        128-key tiles visible to the query's block of 128 queries, by window and packing, the share that is worked on,
        which is all in which any query of the block has weight, and few others; 0 where the block sees none.
    """

    threshold: Tensor
    support_size: Tensor
    partition: Tensor
    tile_density: Tensor | None = None


def map_stats(function: Callable[[Tensor], Tensor], stats: Stats) -> Stats:
    """``function`` of every field that is there."""
    return Stats(*(None if field is None else function(field) for field in stats))  # type: ignore[arg-type]


class Rows(NamedTuple):
    """The state of each row that a streaming backend keeps to rebuild the weights; shapes (..., 1).

    Attributes
    ----------
    reference: score that the profile is taken relative to.
    level: a second number, where the rule needs one (the height of the adaptive rule).
    divisor: the weights are profile / divisor.
    """

    reference: Tensor
    level: Tensor
    divisor: Tensor


# Without an equality of its own: a subclass that is no dataclass would inherit one that knows none of its parameters.
@dataclass(frozen=True, eq=False)
class Normalization(ABC):
    r"""A rule that turns the scores z of one query into weights w ≥ 0 with Σw = 1.

    A subclass is one file: a frozen dataclass with ``name``, :meth:`check` and :meth:`weights`, which is the definition.
    The streaming methods have defaults that are correct for any rule; a rule that overrides :meth:`solve`,
    :meth:`apply` and :meth:`differentiate` and sets ``is_local`` lets the tiled backend skip keys without weight.
    """

    name: ClassVar[str]
    # True if, once the state of the rows is known, the weight of a key and its gradient need no key without weight.
    is_local: ClassVar[bool] = False
    handle: int = field(init=False, repr=False, compare=False, default=-1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "handle", intern(self))

    def __setstate__(self, state: dict[str, object]) -> None:
        restore(self, state)

    @abstractmethod
    def check(self, kernel: Kernel, similarity: str | None) -> None:
        """Raise UnsupportedError if this rule cannot take ``kernel`` or ``similarity`` (None: only scores are known)."""

    @abstractmethod
    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        """The definition: weights along the last dimension, differentiable, exactly zero where not ``allowed``.

        Parameters
        ----------
        scores: (..., L) float32 or float64.
        allowed: bool, broadcastable to the scores, or None for all.
        """

    def solve(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, with_stats: bool = True
    ) -> tuple[Tensor, Rows, Stats | None]:
        """Weights, row state and, if wanted, stats of complete rows, without gradient; may overwrite ``scores``."""
        weights, stats = self.weights(scores, allowed, kernel)
        blank = torch.zeros_like(stats.partition).unsqueeze(-1)
        return weights, Rows(blank, blank, blank), stats

    def apply(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows) -> Tensor:
        """The weights again from the state of the rows, for some or (unless ``is_local``) all keys."""
        return self.weights(scores, allowed, kernel)[0]

    def differentiate(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The weights, ∂L/∂scores and, for a tensor order, ∂L/∂order per row (..., 1), from ``grad`` = ∂L/∂weights.

        May overwrite ``scores`` and ``grad``.
        """
        # A transform of torch.func, because recording is switched off inside the operator that calls this.
        order = kernel.order
        if isinstance(order, Tensor):
            rebuild = type(kernel)
            per_row = order.detach().expand(*scores.shape[:-1], 1)
            result, pull = torch.func.vjp(
                lambda z, n: self.weights(z, allowed, rebuild(n))[0],  # type: ignore[call-arg]
                scores,
                per_row,
            )[:2]
            by_score, by_order = pull(grad.to(result.dtype))
            return result, by_score, by_order
        result, pull = torch.func.vjp(lambda z: self.weights(z, allowed, kernel)[0], scores)[:2]
        return result, pull(grad.to(result.dtype))[0], None


def where_allowed(values: Tensor, allowed: Tensor | None, other: float = 0.0) -> Tensor:
    """``values`` where allowed and ``other`` elsewhere: the one place where a masked weight becomes zero."""
    return values if allowed is None else torch.where(allowed, values, other)


def drop_minus_infinity(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """The allowed keys less those whose score is −inf, which is a mask too."""
    finite = scores != -math.inf
    return finite if allowed is None else allowed & finite


def row_maximum(scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """The largest allowed score of each row (0 for a fully masked row) and whether the row has any key; (..., 1)."""
    if scores.shape[-1] == 0:
        top = scores.new_zeros((*scores.shape[:-1], 1))
        return top, torch.zeros_like(top, dtype=torch.bool)
    top = where_allowed(scores, allowed, -math.inf).amax(dim=-1, keepdim=True)
    live = top != -math.inf
    return torch.where(live, top, 0.0), live


def softmax_weights(scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Stats]:
    """Gaussian weights e^z/Σe^z over the allowed keys; fully masked rows are zero, forward and backward."""
    allowed = drop_minus_infinity(scores, allowed)
    live = allowed.any(dim=-1, keepdim=True)
    # A row of −inf only would be NaN, and its gradient too: give it finite scores and zero its weights below.
    masked = torch.where(allowed | ~live, scores, -math.inf)
    masked = torch.where(live, masked, 0.0)
    weights = torch.where(allowed, torch.softmax(masked, dim=-1), 0.0)
    with torch.no_grad():
        lse = torch.where(live.squeeze(-1), masked.detach().logsumexp(dim=-1), 0.0)
        threshold = torch.where(live.squeeze(-1), -math.inf, math.inf).to(lse.dtype)
    return weights, Stats(threshold, allowed.sum(dim=-1), lse)


def row_stats(threshold: Tensor, support: Tensor, partition: Tensor, live: Tensor) -> Stats:
    """Stats from per-row tensors (..., 1), with the values of a fully masked row where not ``live``."""
    with torch.no_grad():
        return Stats(
            torch.where(live, threshold.detach(), math.inf).squeeze(-1),
            torch.where(live, support, 0).squeeze(-1),
            torch.where(live, partition.detach(), 0.0).squeeze(-1),
        )


def mask_in_place(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """``scores`` with −inf at masked keys, overwritten."""
    return scores if allowed is None else scores.masked_fill_(~allowed, -math.inf)


def usable_maximum(z: Tensor) -> Tensor:
    """The maximum of each row (..., 1) of scores masked by −inf: 0 for a fully masked row, NaN for one that holds +inf."""
    if z.shape[-1] == 0:
        return z.new_zeros((*z.shape[:-1], 1))
    maximum = z.amax(-1, keepdim=True)
    return maximum.masked_fill_(maximum == -math.inf, 0.0).masked_fill_(maximum == math.inf, math.nan)


def live_rows(z: Tensor) -> Tensor:
    """Whether each row (..., 1) of scores masked by −inf has any key."""
    if z.shape[-1] == 0:
        return torch.zeros((*z.shape[:-1], 1), dtype=torch.bool, device=z.device)
    return z.amax(-1, keepdim=True) != -math.inf


def softmax_solve(scores: Tensor, allowed: Tensor | None, with_stats: bool) -> tuple[Tensor, Rows, Stats | None]:
    """Gaussian weights of complete rows without gradient."""
    scores = mask_in_place(scores, allowed)
    maximum = usable_maximum(scores)
    weights = torch.exp(scores - maximum)
    total = weights.sum(-1, keepdim=True)
    live = total != 0
    safe = torch.where(live, total, 1.0)
    weights /= safe
    lse = maximum + safe.log()
    stats = None
    if with_stats:
        count = (scores != -math.inf).sum(-1, keepdim=True)
        stats = row_stats(torch.full_like(lse, -math.inf), count, lse, live)
    # Relative to the maximum, because a large logsumexp has no digits left for the difference.
    return weights, Rows(maximum, torch.zeros_like(lse), safe), stats


def softmax_apply(scores: Tensor, allowed: Tensor | None, rows: Rows) -> Tensor:
    return mask_in_place(scores, allowed).sub_(rows.reference).exp_().div_(rows.divisor)


def weighted_gradient(weights: Tensor, slope: Tensor, grad: Tensor) -> Tensor:
    """slope · (grad − Σ w·grad): ∂L/∂scores of any rule of the form φ/Σφ; overwrites ``grad``."""
    mean = torch.einsum("...j,...j->...", weights, grad).unsqueeze(-1)
    return grad.sub_(mean).mul_(slope)
