"""The anchored normalization: the kernel is placed at the best key (ReLUmax and its relatives)."""

from __future__ import annotations

import math
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
    centred_gradient,
    drop_minus_infinity,
    row_maximum,
    row_stats,
    softmax_weights,
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

    def solve(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Rows, Stats]:
        weights, stats = self.weights(scores, allowed, kernel)
        live = (stats.support_size > 0).unsqueeze(-1)
        divisor = torch.where(live, stats.partition.unsqueeze(-1), 1.0)
        if isinstance(kernel, Gaussian):
            return weights, Rows(divisor, torch.zeros_like(divisor), torch.ones_like(divisor)), stats
        maximum, _ = row_maximum(scores, allowed)
        return weights, Rows(maximum, torch.zeros_like(maximum), divisor), stats

    def apply(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows) -> Tensor:
        return where_allowed(kernel.profile(scores - rows.reference), allowed).div_(rows.divisor)

    def gradient(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, weights: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        mean = (weights * grad).sum(-1, keepdim=True)
        if isinstance(kernel, Gaussian):
            return centred_gradient(weights, grad, mean), None
        # The maximum is taken again from these scores, whose rounding may differ from that of the saved state.
        maximum, _ = row_maximum(scores, allowed)
        x = scores - maximum
        slope = where_allowed(kernel.derivative(x), allowed) / rows.divisor
        result = centred_gradient(slope, grad, mean)
        tied = where_allowed((x == 0).to(result.dtype), allowed)
        count = tied.sum(-1, keepdim=True).clamp_(min=1.0)
        result -= tied * (result.sum(-1, keepdim=True) / count)
        grad_order = None
        if isinstance(kernel, RectifiedPolynomial) and isinstance(kernel.order, Tensor):
            by_order = where_allowed(kernel.order_derivative(x), allowed) / rows.divisor
            grad_order = ((grad - mean) * by_order).sum(-1, keepdim=True)
        return result, grad_order
