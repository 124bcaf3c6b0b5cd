"""The fixed normalization: one radius for every query (normalised ReLU and its relatives)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..errors import EpanError, UnsupportedError, unknown_name
from ..kernels import Gaussian, Kernel, RectifiedPolynomial, Uniform
from .base import (
    Normalization,
    Rows,
    Stats,
    drop_minus_infinity,
    live_rows,
    mask_in_place,
    row_maximum,
    row_stats,
    softmax_apply,
    softmax_solve,
    softmax_weights,
    usable_maximum,
    weighted_gradient,
    where_allowed,
)

__all__ = ["Fixed"]

_POLICIES = ("zero", "uniform", "nearest")


@final
@dataclass(frozen=True)
class Fixed(Normalization):
    r"""Fixed normalization :math:`w_j = \varphi(-\beta d_j^2/2)/Z`: the Nadaraya–Watson estimator of one bandwidth.

    The radius is :math:`h = \sqrt{2n/\beta}` for every query. Order 1 is normalised ReLU, n → ∞ softmax. The scores are
    relative to distance zero, so adding a constant to them changes the weights, and a row may be **empty**: no allowed
    key within the radius.

    Parameters
    ----------
    empty: what an empty row does. ``"nearest"`` (default): weight on the nearest key, ties shared, the limit of the
        anchored rule; ``"uniform"``: equal weight on all allowed keys; ``"zero"``: no weight, output zero. The weights of
        an empty row are constants: no gradient to queries and keys. Ties are exact equality of rounded scores, and
        decoding with a cache may round otherwise than one pass does.

    Kernels: all; the uniform one needs a radius.

    Gradient: :math:`\partial z_j = \varphi'_j/Z\,(g_j - \sum wg)`.

    Source: Nadaraya 1964; Watson 1964; Santos et al. 2601.22766 (NormReLU).
    """

    empty: str = "nearest"

    name: ClassVar[str] = "fixed"
    is_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.empty not in _POLICIES:
            raise unknown_name("policy for empty rows", self.empty, _POLICIES)
        super().__post_init__()

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        if similarity == "dot":
            raise UnsupportedError(
                "normalization='fixed' with similarity='dot'",
                "a fixed bandwidth needs distances, and a dot product is none",
                'pass similarity="euclidean"',
            )
        if isinstance(kernel, Uniform) and kernel.radius is None:
            raise EpanError(
                "kernel='uniform' has no radius here", fix="pass kernel=epan.Uniform(radius=h), or epan.Nearest(k)"
            )

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        if isinstance(kernel, Gaussian):
            return softmax_weights(scores, allowed)
        dtype = scores.dtype
        if isinstance(kernel.order, Tensor) and scores.device.type != "mps":
            scores = scores.double()
            kernel = type(kernel)(kernel.order.double())  # type: ignore[call-arg]
        allowed = drop_minus_infinity(scores, allowed)
        top, live = row_maximum(scores.detach(), allowed)
        full = _within_reach(kernel, top, live)
        # Relative to its largest value a profile cannot underflow; the ratio does not depend on it.
        pivot = torch.where(full, top, 0.0)
        value = where_allowed(
            kernel.relative_profile(torch.where(allowed & full, scores, pivot), pivot), allowed & full
        )
        partition = value.sum(-1, keepdim=True)
        weights = value / torch.where(full, partition, 1.0)
        support = (kernel.inside(scores) & allowed & full).sum(-1, keepdim=True)
        threshold = _open_threshold(kernel, top)
        hollow = live & ~full
        if self.empty == "nearest":
            chosen = allowed & (scores == top) & hollow
            threshold = torch.where(hollow, _just_below(top), threshold)
        elif self.empty == "uniform":
            chosen = allowed & hollow
            threshold = torch.where(hollow, -math.inf, threshold)
        else:
            chosen = torch.zeros_like(allowed & hollow)
            threshold = torch.where(hollow, math.inf, threshold)
        count = chosen.sum(-1, keepdim=True)
        weights = (weights + chosen.to(weights.dtype) / count.clamp(min=1)).to(dtype)
        with torch.no_grad():
            partition = torch.where(full, partition.detach() * kernel.profile(pivot), 0.0)
        stats = row_stats(threshold.to(dtype), support + count, partition.to(dtype), live)
        return weights, stats

    def solve(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, with_stats: bool = True
    ) -> tuple[Tensor, Rows, Stats | None]:
        if isinstance(kernel, Gaussian):
            return softmax_solve(scores, allowed, with_stats)
        scores = mask_in_place(scores, allowed)
        top, live = usable_maximum(scores), live_rows(scores)
        full = _within_reach(kernel, top, live)
        if with_stats or not bool((full | ~live).all()):
            weights, stats = self.weights(scores, None, kernel)
        else:
            weights, stats = kernel.relative_profile(scores, torch.where(full, top, 0.0)), None
            weights /= torch.where(live, weights.sum(-1, keepdim=True), 1.0)
        # The level says what kind of row it is: 1 within reach, 0 empty, −1 fully masked.
        level = torch.where(full, 1.0, torch.where(live, 0.0, -1.0)).to(scores.dtype)
        # A weight of the nearest key is 1/Σφ relative to the top, and 1/count in an empty row.
        peak = weights.amax(-1, keepdim=True) if weights.shape[-1] else torch.zeros_like(top)
        divisor = torch.where(peak > 0, 1.0 / peak, torch.where(torch.isnan(peak), peak, 1.0))
        return weights, Rows(top, level, divisor), stats

    def apply(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows) -> Tensor:
        if isinstance(kernel, Gaussian):
            return softmax_apply(scores, allowed, rows)
        scores = mask_in_place(scores, allowed)
        full = rows.level > 0.5
        if bool(full.all()):
            return kernel.relative_profile(scores, rows.reference).div_(rows.divisor)
        pivot = torch.where(full, rows.reference, 0.0)
        value = kernel.relative_profile(torch.where(full, scores, -math.inf), pivot)
        if self.empty == "nearest":
            # Where scores were computed in another order of summation the nearest key is still the row's best.
            other = (scores == usable_maximum(scores)).to(value.dtype)
        else:
            other = (scores != -math.inf).to(value.dtype) * (1.0 if self.empty == "uniform" else 0.0)
        return torch.where(rows.level == 0, other, value).div_(rows.divisor)

    def differentiate(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(kernel, Gaussian):
            weights = softmax_apply(scores, allowed, rows)
            return weights, weighted_gradient(weights, weights, grad), None
        scores = mask_in_place(scores, allowed)
        weights = self.apply(scores, None, kernel, rows)
        full = rows.level > 0.5
        pivot = torch.where(full, rows.reference, 0.0)
        x = scores if bool(full.all()) else torch.where(full, scores, -math.inf)
        grad_order = None
        if isinstance(kernel, RectifiedPolynomial) and isinstance(kernel.order, Tensor):
            mean = (weights * grad).sum(-1, keepdim=True)
            # Relative, because the profile itself may underflow.
            by_order = weights * kernel.log_order_derivative(x)
            grad_order = ((grad - mean) * by_order).sum(-1, keepdim=True)
        slope = kernel.relative_derivative(x, pivot).div_(rows.divisor)
        return weights, weighted_gradient(weights, slope, grad), grad_order


def _within_reach(kernel: Kernel, top: Tensor, live: Tensor) -> Tensor:
    """True for rows with a key inside the support; a NaN counts as inside, so that it shows."""
    return live & (kernel.inside(top) | torch.isnan(top))


def _just_below(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, -math.inf))


def _open_threshold(kernel: Kernel, like: Tensor) -> Tensor:
    """−support, or the number just below it if the boundary belongs to the support."""
    edge = torch.zeros_like(like) - kernel.support
    return _just_below(edge) if kernel.is_closed else edge
