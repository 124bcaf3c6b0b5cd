"""The anchored normalization: the kernel is placed at the best key (ReLUmax and its relatives)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..kernels import Gaussian, Kernel, RectifiedPolynomial, Uniform
from .base import (
    Normalization,
    Rows,
    Stats,
    drop_minus_infinity,
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

__all__ = ["Anchored"]


@final
@dataclass(frozen=True)
class Anchored(Normalization):
    r"""Anchored normalization :math:`w_j = \varphi(z_j - \max z)/Z`, with Z the sum over the allowed keys.

    The bandwidth follows the nearest key: :math:`h_i^2 = d_{\min}^2 + 2n/\beta`. Order 1 is ReLUmax, n → ∞ softmax. Adding a
    constant to all scores of a query changes nothing, and no row is empty. The support contains that of the adaptive
    rule at the same β.

    Kernels: all but the uniform one.

    Gradient: :math:`\partial z_j = \varphi'_j/Z\,(g_j - \sum wg)`, less the sum of the row at the maximum, which tied maxima share.

    Source: Santos et al. 2601.22766 (ReLUmax).
    """

    name: ClassVar[str] = "anchored"
    is_local: ClassVar[bool] = True

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        if isinstance(kernel, Uniform):
            raise UnsupportedError(
                "normalization='anchored' with kernel='uniform'",
                "a boxcar around the best key needs a radius in units of score, which no standard method defines",
                "use epan.Nearest(k), or epan.Uniform(radius=h) with normalization='fixed' and similarity='euclidean'",
            )

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        if isinstance(kernel, Gaussian):
            return softmax_weights(scores, allowed)
        dtype = scores.dtype
        if isinstance(kernel.order, Tensor) and scores.device.type != "mps":
            scores = scores.double()
            kernel = type(kernel)(kernel.order.double())  # type: ignore[call-arg]
        allowed = drop_minus_infinity(scores, allowed)
        maximum, live = row_maximum(scores, allowed)
        # Masked keys sit at the maximum, where every profile is smooth, until their weight is set to zero.
        x = torch.where(allowed, scores, maximum) - maximum
        value = where_allowed(kernel.profile(x), allowed)
        partition = value.sum(-1, keepdim=True)
        weights = (value / torch.where(live, partition, 1.0)).to(dtype)
        with torch.no_grad():
            support = (kernel.inside(x) & allowed).sum(-1, keepdim=True)
        stats = row_stats((maximum - kernel.support).to(dtype), support, partition.to(dtype), live)
        return weights, stats

    def solve(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, with_stats: bool = True
    ) -> tuple[Tensor, Rows, Stats | None]:
        if isinstance(kernel, Gaussian):
            return softmax_solve(scores, allowed, with_stats)
        scores = mask_in_place(scores, allowed)
        maximum = usable_maximum(scores)
        x = scores.sub_(maximum)
        weights = kernel.profile(x)
        total = weights.sum(-1, keepdim=True)
        live = total != 0
        divisor = torch.where(live, total, 1.0)
        stats = None
        if with_stats:
            stats = row_stats(maximum - kernel.support, kernel.inside(x).sum(-1, keepdim=True), total, live)
        return weights.div_(divisor), Rows(maximum, torch.zeros_like(maximum), divisor), stats

    def apply(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows) -> Tensor:
        if isinstance(kernel, Gaussian):
            return softmax_apply(scores, allowed, rows)
        return kernel.profile(mask_in_place(scores, allowed).sub_(rows.reference)).div_(rows.divisor)

    def differentiate(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(kernel, Gaussian):
            weights = softmax_apply(scores, allowed, rows)
            return weights, weighted_gradient(weights, weights, grad), None
        scores = mask_in_place(scores, allowed)
        # The maximum is taken again from these scores, whose rounding may differ from that of the saved state.
        x = scores.sub_(usable_maximum(scores))
        weights = kernel.profile(x) / rows.divisor
        by_order = None
        if isinstance(kernel, RectifiedPolynomial) and isinstance(kernel.order, Tensor):
            by_order = kernel.order_derivative(x) / rows.divisor
            mean = (weights * grad).sum(-1, keepdim=True)
            by_order = ((grad - mean) * by_order).sum(-1, keepdim=True)
        result = weighted_gradient(weights, kernel.derivative(x) / rows.divisor, grad)
        tied = x == 0
        count = tied.sum(-1, keepdim=True).clamp_(min=1)
        result -= tied * (result.sum(-1, keepdim=True) / count)
        return weights, result, by_order
