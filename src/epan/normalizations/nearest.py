"""The nearest-neighbour normalization: top-k attention."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..errors import EpanError, UnsupportedError
from ..kernels import Gaussian, Kernel, Uniform
from .base import (
    Normalization,
    Rows,
    Stats,
    drop_minus_infinity,
    row_maximum,
    row_stats,
    weighted_gradient,
    where_allowed,
)

__all__ = ["Nearest"]


@final
@dataclass(frozen=True)
class Nearest(Normalization):
    r"""Nearest-neighbour normalization: weight on the k best keys only, uniform or Gaussian.

    Keys tied with the k-th best share the remaining places, so permuting the keys never changes the output. With fewer
    than k allowed keys all of them take part. With ``kernel="uniform"`` the weights are piecewise constant: queries and
    keys get **zero gradient**, only values learn. With ``kernel="gaussian"`` it is top-k softmax.

    Ties are exact equality of rounded scores. Decoding with a cache multiplies matrices of other shapes, which may round
    otherwise, so keys that tie in one pass over a sequence need not tie there.

    Parameters
    ----------
    k: number of neighbours, at least 1.

    Raises
    ------
    EpanError: if k is not an integer of at least 1.

    Source: k-nearest-neighbour regression (Fix & Hodges 1951); top-k attention, Gupta et al. 2106.06899.
    """

    k: int

    name: ClassVar[str] = "nearest"
    # Membership hangs on exact equality with the k-th score, so the tiled backend rebuilds whole rows.
    is_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        try:
            # Integers of numpy and others are taken too.
            k = None if isinstance(self.k, (bool, Tensor)) else operator.index(self.k)
        except TypeError:
            k = None
        if k is None:
            raise EpanError("k of Nearest must be an integer", found=self.k, allowed="k >= 1")
        object.__setattr__(self, "k", k)
        if self.k < 1:
            raise EpanError("k of Nearest must be at least 1", found=self.k, allowed="k >= 1")
        super().__post_init__()

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        if isinstance(kernel, Uniform) and kernel.radius is not None:
            raise UnsupportedError(
                "normalization=Nearest with Uniform(radius=...)",
                "the k-th neighbour is the radius",
                'pass kernel="uniform" for top-k, or normalization="fixed" for a radius',
            )
        if not isinstance(kernel, (Uniform, Gaussian)):
            raise UnsupportedError(
                f"normalization=Nearest with kernel={kernel.name!r}",
                "top-k is defined here with uniform or Gaussian weights; a compact kernel selects its own neighbours",
                'use kernel="gaussian" (top-k softmax), kernel="uniform", or another normalization',
            )

    def _membership(self, scores: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Share of a place that each key has (0 … 1), the k-th best score, and whether the row has any key."""
        masked = torch.where(allowed, scores.detach(), -math.inf)
        if scores.shape[-1] == 0:
            blank = masked.new_zeros((*masked.shape[:-1], 1))
            return masked, blank, blank > 0
        kth = masked.topk(min(self.k, masked.shape[-1]), dim=-1).values[..., -1:]
        live = allowed.any(-1, keepdim=True)
        above = masked > kth
        tied = allowed & (masked == kth)
        places = (self.k - above.sum(-1, keepdim=True)).clamp(min=0).to(masked.dtype)
        count = tied.sum(-1, keepdim=True).clamp(min=1)
        share = (places / count).clamp(max=1.0)
        member = above.to(masked.dtype) + tied.to(masked.dtype) * share
        bad = torch.isnan(masked).any(-1, keepdim=True)
        return torch.where(bad, math.nan, member), kth, live

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        allowed = drop_minus_infinity(scores, allowed)
        member, kth, live = self._membership(scores, allowed)
        if isinstance(kernel, Gaussian):
            top, _ = row_maximum(scores.detach(), allowed)
            value = member * torch.exp(torch.where(allowed, scores, top) - top)
        else:
            top = torch.zeros_like(kth)
            # Piecewise constant, but a part of the graph: its gradient is zero, not missing.
            value = torch.where(torch.zeros_like(allowed), scores, member)
        value = where_allowed(value, allowed)
        total = value.sum(-1, keepdim=True)
        weights = value / torch.where(live, total, 1.0)
        with torch.no_grad():
            partition = top + total.detach().log() if isinstance(kernel, Gaussian) else total.detach()
            below = torch.nextafter(kth, torch.full_like(kth, -math.inf))
            support = (member > 0).sum(-1, keepdim=True)
        return weights, row_stats(below, support, partition, live)

    def differentiate(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        weights, _ = self.weights(scores, allowed, kernel)
        if isinstance(kernel, Gaussian):
            return weights, weighted_gradient(weights, weights, grad), None
        return weights, torch.zeros_like(weights), None
