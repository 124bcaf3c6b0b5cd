"""The adaptive normalization: α-entmax as a kernel whose bandwidth adapts to the query."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from .._modes import is_plain
from ..errors import UnsupportedError
from ..kernels import Gaussian, Kernel, RectifiedPolynomial
from ._threshold import level_is_log, solve_level, sparse_rows
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

__all__ = ["Adaptive"]


@final
@dataclass(frozen=True)
class Adaptive(Normalization):
    r"""Adaptive normalization :math:`w_j = [z_j/n - \tau]_+^n` with τ such that :math:`\sum_j w_j = 1`.

    The bandwidth follows the query: :math:`h_i^2 = 2(1 - n\tau/\beta)` for unit-norm dot scores, :math:`-2n\tau/\beta` for
    euclidean ones. Order 1 is sparsemax, 2 is 1.5-entmax, 3 is 4/3-entmax, n → ∞ is softmax. Adding a constant to all
    scores of a query changes nothing, and no row is empty.

    Kernels: the rectified polynomials of any order, also a tensor, and the Gaussian.

    Gradient: with u = w^{1−1/n} on the support, :math:`\partial z_j = u_j(g_j - \sum ug/\sum u)`.

    Source: Peters et al. 1905.05702; Martins & Astudillo 1602.02068; Santos et al. 2601.22766, proposition 1.
    """

    name: ClassVar[str] = "adaptive"
    is_local: ClassVar[bool] = True

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        if not (isinstance(kernel, RectifiedPolynomial) or isinstance(kernel, Gaussian)):
            raise UnsupportedError(
                f"normalization='adaptive' with kernel={kernel.name!r}",
                "its threshold equation is defined for rectified polynomials and the Gaussian only",
                'use normalization="anchored" or "fixed" (cosine), epan.Nearest(k) (uniform), or a polynomial kernel',
            )

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        if not isinstance(kernel, RectifiedPolynomial):
            return softmax_weights(scores, allowed)
        order = kernel.order
        if not isinstance(order, Tensor) and scores.device.type == "cpu" and is_plain(scores):
            weights = torch.zeros_like(scores, memory_format=torch.contiguous_format)
            _, stats = self._rows(where_allowed(scores, allowed, -math.inf), order, weights, True)
            assert stats is not None
            return weights, stats
        dtype = scores.dtype
        if isinstance(order, Tensor) and scores.device.type != "mps":
            scores, order = scores.double(), order.double()
            kernel = type(kernel)(order)  # type: ignore[call-arg]
        allowed = drop_minus_infinity(scores, allowed)
        # Translation invariance makes the maximum a constant of the row.
        maximum, live = row_maximum(scores.detach(), allowed)
        x = torch.where(allowed, scores, maximum) - maximum
        level = _opaque_level(where_allowed(x.detach(), allowed, -math.inf), order)
        # Two Newton steps in plain torch make the level differentiable twice; one would lose the second derivative.
        for _ in range(2):
            value, slope = _value_and_slope(x, allowed, level, kernel)
            total, slope = value.sum(-1, keepdim=True), slope.sum(-1, keepdim=True)
            slope = torch.where(slope == 0, 1.0, slope)
            level = level + (total - 1.0) / slope if level_is_log(order) else level - (total - 1.0) / (order * slope)
        value, _ = _value_and_slope(x, allowed, level, kernel)
        total = value.sum(-1, keepdim=True)
        weights = (value / torch.where(total == 0, 1.0, total)).to(dtype)
        with torch.no_grad():
            height = 1.0 - level / order if level_is_log(order) else level
            threshold = maximum - order * height
            support = (allowed & (x > threshold - maximum)).sum(-1, keepdim=True)
        stats = row_stats(threshold.to(dtype), support, total.to(dtype), live)
        return weights, stats

    def solve(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, with_stats: bool = True
    ) -> tuple[Tensor, Rows, Stats | None]:
        if not isinstance(kernel, RectifiedPolynomial):
            return softmax_solve(scores, allowed, with_stats)
        order = kernel.order
        scores = mask_in_place(scores, allowed)
        if not isinstance(order, Tensor) and scores.device.type == "cpu":
            scores = scores.contiguous()
            rows, stats = self._rows(scores, order, scores, with_stats)
            return scores, rows, stats
        maximum = usable_maximum(scores)
        x = scores - maximum
        if isinstance(order, Tensor) and scores.device.type != "mps":
            level = solve_level(x.double(), order.double()).to(scores.dtype)
        else:
            level = solve_level(x, order)
        weights, _ = _value_and_slope(x, None, level, kernel)
        total = weights.sum(-1, keepdim=True)
        live = total != 0
        divisor = torch.where(live, total, 1.0)
        stats = None
        if with_stats:
            height = 1.0 - level / order if level_is_log(order) else level
            stats = row_stats(maximum - order * height, (weights > 0).sum(-1, keepdim=True), total, live)
        return weights / divisor, Rows(maximum, level, divisor), stats

    def _rows(self, scores: Tensor, order: float, out: Tensor, with_stats: bool) -> tuple[Rows, Stats | None]:
        """Weights of masked scores (−inf) into ``out``, the scores themselves or zeros, by the compacting solver."""
        shape = (*scores.shape[:-1], 1)
        if scores.numel() == 0:
            blank = scores.new_zeros(shape)
            return Rows(blank, blank, blank + 1), row_stats(blank, blank.long(), blank, blank > 0)
        flat = scores.contiguous().view(-1, scores.shape[-1])
        target = out.view(-1, scores.shape[-1])
        maximum, level, total, support = (
            t.view(shape) for t in sparse_rows(flat, order, target, with_stats, out is not scores)
        )
        live = total != 0
        stats = None
        if with_stats:
            threshold = maximum + level - order if level_is_log(order) else maximum - order * level
            stats = row_stats(threshold, support.long(), total, live)
        return Rows(maximum, level, torch.where(live, total, 1.0)), stats

    def apply(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows) -> Tensor:
        if not isinstance(kernel, RectifiedPolynomial):
            return softmax_apply(scores, allowed, rows)
        x = mask_in_place(scores, allowed).sub_(rows.reference)
        return _value_and_slope(x, None, rows.level, kernel)[0] / rows.divisor

    def differentiate(
        self, scores: Tensor, allowed: Tensor | None, kernel: Kernel, rows: Rows, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if not isinstance(kernel, RectifiedPolynomial):
            weights = softmax_apply(scores, allowed, rows)
            return weights, weighted_gradient(weights, weights, grad), None
        x = mask_in_place(scores, allowed).sub_(rows.reference)
        value, slope = _value_and_slope(x, None, rows.level, kernel)
        weights = value / rows.divisor
        total = slope.sum(-1, keepdim=True)
        mean = torch.einsum("...j,...j->...", slope, grad).unsqueeze(-1) / torch.where(total == 0, 1.0, total)
        grad = grad.sub_(mean)
        grad_order = None
        if isinstance(kernel.order, Tensor):
            grad_order = (grad * kernel.order_derivative(x - rows.level)).sum(-1, keepdim=True)
        return weights, grad.mul_(slope), grad_order


def _value_and_slope(
    x: Tensor, allowed: Tensor | None, level: Tensor, kernel: RectifiedPolynomial
) -> tuple[Tensor, Tensor]:
    """φ and φ' of the keys at a level of the rows: height or shift, whichever the order takes."""
    if level_is_log(kernel.order):
        shifted = where_allowed(x - level, allowed, -math.inf)
        return kernel.profile(shifted), kernel.derivative(shifted)
    base = where_allowed(torch.relu(level + x / kernel.order), allowed)
    return kernel.power(base), kernel.power_derivative(base)


@torch.library.custom_op("epan::adaptive_level", mutates_args=())
def _level_op(x: Tensor, order: Tensor | None, constant: float) -> Tensor:
    """Opaque to tracing: the level is a constant here, the caller's Newton steps make it differentiable."""
    return solve_level(x, constant if order is None else order)


@_level_op.register_fake
def _(x: Tensor, order: Tensor | None, constant: float) -> Tensor:
    return x.new_empty((*x.shape[:-1], 1))


def _level_vmap(
    info: object, in_dims: tuple[int | None, ...], x: Tensor, order: Tensor | None, constant: float
) -> tuple[Tensor, int]:
    size = info.batch_size  # type: ignore[attr-defined]
    x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(size, *x.shape)
    if order is not None:
        if in_dims[1] is not None:
            order = order.movedim(in_dims[1], 0)
            order = order.reshape(order.shape[0], *[1] * (x.dim() - order.dim()), *order.shape[1:])
    return _level_op(x, order, constant), 0


_level_op.register_vmap(_level_vmap)


def _opaque_level(x: Tensor, order: float | Tensor) -> Tensor:
    if isinstance(order, Tensor):
        return _level_op(x, order.detach(), 0.0)
    return _level_op(x, None, order)
