r"""Weights and their gradients from scores, in float64, as the formulas stand on paper.

Bisection finds the threshold of the adaptive rule for any order; sorting finds it for order 1. Every function takes
scores (..., L) and a boolean ``allowed`` of the same shape.

Source: Santos et al. 2601.22766; Martins & Astudillo 1602.02068; Peters et al. 1905.05702.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import Kernel
from ...normalizations import Normalization

__all__ = ["RowAnswer", "order_gradient", "score_gradient", "sparsemax_by_sorting", "weights"]

_ORDERS = {"epanechnikov": 1.0, "biweight": 2.0, "triweight": 3.0}


@dataclass(frozen=True)
class RowAnswer:
    """What the formulas say about rows of scores.

    Attributes
    ----------
    weights: (..., L).
    threshold, partition: (...), as ``epan.Stats`` defines them.
    support: (...) number of keys above the threshold.
    empty: (...) rows of the fixed rule with keys, but none within reach.
    """

    weights: Tensor
    threshold: Tensor
    partition: Tensor
    support: Tensor
    empty: Tensor


def order_of(kernel: Kernel) -> Tensor | None:
    """n of a rectified polynomial as a float64 tensor, inf for the Gaussian, None for other kernels."""
    if kernel.name == "gaussian":
        return torch.tensor(math.inf, dtype=torch.float64)
    order = _ORDERS.get(kernel.name, kernel.order)
    return None if order is None else torch.as_tensor(order).detach().double()


def profile(kernel: Kernel, x: Tensor) -> Tensor:
    """φ(x); kernels from outside the package are asked themselves."""
    order = order_of(kernel)
    if kernel.name == "gaussian":
        return torch.exp(x)
    if order is not None:
        base = (1.0 + x / order).clamp(min=0.0)
        # For large n the power of a rounded base would lose digits.
        accurate = torch.exp(order * torch.log1p((x / order).clamp(min=-1.0)))
        return torch.where(base > 0, torch.where(order > 16, accurate, base**order), 0.0)
    if kernel.name == "cosine":
        angle = torch.sqrt((-2.0 * x).clamp(min=0.0))
        return torch.where(angle < math.pi / 2, torch.cos(angle), 0.0)
    if kernel.name == "uniform":
        return (x >= -kernel.support).double()
    return kernel.profile(x)


def derivative(kernel: Kernel, x: Tensor) -> Tensor:
    """φ'(x)."""
    order = order_of(kernel)
    if kernel.name == "gaussian":
        return torch.exp(x)
    if order is not None:
        base = 1.0 + x / order
        accurate = torch.exp((order - 1.0) * torch.log1p((x / order).clamp(min=-1.0 + 1e-16)))
        return torch.where(base > 0, torch.where(order > 16, accurate, base.clamp(min=0.0) ** (order - 1.0)), 0.0)
    if kernel.name == "cosine":
        angle = torch.sqrt((-2.0 * x).clamp(min=0.0))
        value = torch.where(angle > 0, torch.sin(angle) / torch.where(angle > 0, angle, 1.0), 1.0)
        return torch.where((angle < math.pi / 2) & (x <= 0), value, 0.0)
    if kernel.name == "uniform":
        return torch.zeros_like(x)
    return kernel.derivative(x)


def order_derivative(kernel: Kernel, x: Tensor) -> Tensor:
    """∂φ_n(x)/∂n = φ_n(x) · (ln(1 + x/n) − (x/n)/(1 + x/n)) on the support, 0 off it."""
    n = order_of(kernel)
    assert n is not None
    base = 1.0 + x / n
    inside = base > 0
    safe = torch.where(inside, base, 1.0)
    return torch.where(inside, safe**n * (torch.log(safe) - (x / n) / safe), 0.0)


def height(scores: Tensor, allowed: Tensor, order: Tensor) -> Tensor:
    r"""c = max z/n − τ of :math:`\sum_A [z_j/n - \tau]_+^n = 1` by bisection, (..., 1); rows without keys get 1.

    In c the equation reads Σ [c + (z − max z)/n]_+^n = 1 with |A|^{−1/n} ≤ c ≤ 1, and its left side grows with c.
    """
    x = _below_maximum(scores, allowed)
    count = allowed.sum(-1, keepdim=True).clamp(min=1).double()
    low, high = count ** (-1.0 / order), torch.ones_like(count)
    if bool((order > 16).any()):
        return 1.0 - _shift(x, order.expand(low.shape)) / order
    for _ in range(70):
        middle = (low + high) / 2
        too_much = ((middle + x / order).clamp(min=0.0) ** order).sum(-1, keepdim=True) > 1.0
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return (low + high) / 2


def _shift(x: Tensor, order: Tensor) -> Tensor:
    """s = n(1 − c) of the same equation, which keeps its digits for large n: Σ (1 + (x − s)/n)_+^n = 1."""
    low, high = torch.zeros_like(order), order.clone()
    for _ in range(90):
        middle = (low + high) / 2
        too_much = _tall(x - middle, order).sum(-1, keepdim=True) > 1.0
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (low + high) / 2


def _tall(x: Tensor, order: Tensor) -> Tensor:
    return torch.exp(order * torch.log1p((x / order).clamp(min=-1.0)))


def _below_maximum(scores: Tensor, allowed: Tensor) -> Tensor:
    return torch.where(allowed, scores - _maximum(scores, allowed), -math.inf)


def _maximum(scores: Tensor, allowed: Tensor) -> Tensor:
    if scores.shape[-1] == 0:
        return scores.new_zeros((*scores.shape[:-1], 1))
    top = torch.where(allowed, scores, -math.inf).amax(-1, keepdim=True)
    return torch.where(allowed.any(-1, keepdim=True), top, 0.0)


def sparsemax_by_sorting(scores: Tensor, allowed: Tensor) -> Tensor:
    """τ of order 1 by sorting: the largest k with 1 + k·z_(k) > Σ_{j≤k} z_(j) gives τ = (Σ_{j≤k} z_(j) − 1)/k."""
    x = _below_maximum(scores, allowed)
    ranked = x.sort(dim=-1, descending=True).values
    usable = ranked > -2.0
    total = torch.where(usable, ranked, 0.0).cumsum(-1)
    k = torch.arange(1, x.shape[-1] + 1, dtype=torch.float64)
    size = (usable & (1.0 + k * ranked > total)).sum(-1, keepdim=True).clamp(min=1)
    return (total.gather(-1, size - 1) - 1.0) / size + _maximum(scores, allowed)


def weights(scores: Tensor, allowed: Tensor, kernel: Kernel, normalization: Normalization) -> RowAnswer:
    """Weights of every built-in rule; ``kernel`` is already at the scale of the scores."""
    scores = scores.double()
    allowed = allowed & (scores != -math.inf)
    live = allowed.any(-1)
    top = _maximum(scores, allowed)
    x = torch.where(allowed, scores - top, -1.0)
    blank = torch.zeros_like(live)
    if kernel.name == "gaussian" and normalization.name != "nearest":
        value = torch.where(allowed, torch.exp(x), 0.0)
        threshold = torch.full_like(top, -math.inf)
        partition = top + torch.log(value.sum(-1, keepdim=True))
    elif normalization.name == "adaptive":
        order = order_of(kernel)
        assert order is not None
        c = height(scores, allowed, order)
        if bool((order > 16).any()):
            value = torch.where(allowed, _tall(x - (1.0 - c) * order, order * torch.ones_like(c)), 0.0)
        else:
            value = torch.where(allowed, (c + x / order).clamp(min=0.0) ** order, 0.0)
        threshold, partition = top - order * c, torch.ones_like(top)
    elif normalization.name == "anchored":
        value = torch.where(allowed, profile(kernel, x), 0.0)
        threshold, partition = top - kernel.support, value.sum(-1, keepdim=True)
    elif normalization.name == "fixed":
        value = torch.where(allowed, profile(kernel, scores), 0.0)
        partition = value.sum(-1, keepdim=True)
        threshold = torch.zeros_like(top) - kernel.support
        if kernel.is_closed:
            threshold = torch.nextafter(threshold, torch.full_like(threshold, -math.inf))
        blank = live & (partition == 0).squeeze(-1)
        value, threshold = _fill_empty(value, threshold, scores, allowed, top, blank, str(normalization.empty))  # type: ignore[attr-defined]
    elif normalization.name == "nearest":
        value, threshold, partition = _nearest(x, top, scores, allowed, kernel, int(normalization.k))  # type: ignore[attr-defined]
    else:
        raise AssertionError(f"no formula is known for the normalization {normalization.name!r}")
    total = value.sum(-1, keepdim=True)
    result = value / torch.where(total == 0, 1.0, total)
    support = (allowed & (scores > threshold)).sum(-1)
    return RowAnswer(
        result,
        torch.where(live, threshold.squeeze(-1), math.inf),
        torch.where(live, partition.squeeze(-1), 0.0),
        support,
        blank,
    )


def _fill_empty(
    value: Tensor, threshold: Tensor, scores: Tensor, allowed: Tensor, top: Tensor, empty: Tensor, policy: str
) -> tuple[Tensor, Tensor]:
    rows = empty.unsqueeze(-1)
    if policy == "nearest":
        below = torch.nextafter(top, torch.full_like(top, -math.inf))
        return torch.where(rows, (allowed & (scores == top)).double(), value), torch.where(rows, below, threshold)
    if policy == "uniform":
        return torch.where(rows, allowed.double(), value), torch.where(rows, -math.inf, threshold)
    return value, torch.where(rows, math.inf, threshold)


def _nearest(
    x: Tensor, top: Tensor, scores: Tensor, allowed: Tensor, kernel: Kernel, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys above the k-th best count whole, keys tied with it share the places that are left."""
    if scores.shape[-1] == 0:
        return torch.zeros_like(scores), torch.zeros_like(top), torch.zeros_like(top)
    ranked = torch.where(allowed, scores, -math.inf).sort(dim=-1, descending=True).values
    kth = ranked[..., min(k, scores.shape[-1]) - 1].unsqueeze(-1)
    above, tied = allowed & (scores > kth), allowed & (scores == kth)
    places = (k - above.sum(-1, keepdim=True)).double()
    share = (places / tied.sum(-1, keepdim=True).clamp(min=1)).clamp(max=1.0)
    value = above.double() + tied.double() * share
    if kernel.name == "gaussian":
        value = value * torch.where(allowed, torch.exp(x), 0.0)
    partition = value.sum(-1, keepdim=True)
    if kernel.name == "gaussian":
        partition = top + torch.log(partition)
    return value, torch.nextafter(kth, torch.full_like(kth, -math.inf)), partition


def score_gradient(
    scores: Tensor, allowed: Tensor, kernel: Kernel, normalization: Normalization, grad: Tensor
) -> Tensor:
    """∂L/∂z from ``grad`` = ∂L/∂w, by the formula of each rule."""
    scores, grad = scores.double(), grad.double()
    allowed = allowed & (scores != -math.inf)
    answer = weights(scores, allowed, kernel, normalization)
    w, top = answer.weights, _maximum(scores, allowed)
    x = torch.where(allowed, scores - top, -1.0)
    mean = (w * grad).sum(-1, keepdim=True)
    if kernel.name == "gaussian":
        return w * (grad - mean)
    if normalization.name == "adaptive":
        order = order_of(kernel)
        assert order is not None
        # u = p^{1−1/n} on the support, the indicator at n = 1.
        u = torch.where(w > 0, torch.where(w > 0, w, 1.0) ** (1.0 - 1.0 / order), 0.0)
        total = u.sum(-1, keepdim=True)
        return u * (grad - (u * grad).sum(-1, keepdim=True) / torch.where(total == 0, 1.0, total))
    if normalization.name == "nearest":
        return torch.zeros_like(w)
    reference = x if normalization.name == "anchored" else torch.where(allowed, scores, 0.0)
    partition = torch.where(allowed, profile(kernel, reference), 0.0).sum(-1, keepdim=True)
    slope = torch.where(allowed, derivative(kernel, reference), 0.0) / torch.where(partition == 0, 1.0, partition)
    result = torch.where(answer.empty.unsqueeze(-1), 0.0, slope * (grad - mean))
    if normalization.name == "anchored":
        best = (allowed & (scores == top)).double()
        result = result - best * (result.sum(-1, keepdim=True) / best.sum(-1, keepdim=True).clamp(min=1.0))
    return result


def order_gradient(
    scores: Tensor, allowed: Tensor, kernel: Kernel, normalization: Normalization, grad: Tensor
) -> Tensor:
    """∂L/∂n per row (..., 1), off the boundary of the support."""
    scores, grad = scores.double(), grad.double()
    allowed = allowed & (scores != -math.inf)
    answer = weights(scores, allowed, kernel, normalization)
    n = order_of(kernel)
    assert n is not None
    w, top = answer.weights, _maximum(scores, allowed)
    x = torch.where(allowed, scores - top, -1.0)
    if normalization.name == "adaptive":
        # Differentiate w = b^n, b = c + x/n, and Σ dw = 0 for dc/dn.
        c = (top - answer.threshold.unsqueeze(-1)) / n
        inside = allowed & (c + x / n > 0)
        b = torch.where(inside, c + x / n, 1.0)
        own = torch.where(inside, w * torch.log(b) - b ** (n - 1.0) * x / n, 0.0)
        slope = torch.where(inside, n * b ** (n - 1.0), 0.0)
        total = slope.sum(-1, keepdim=True)
        return (grad * (own - slope * own.sum(-1, keepdim=True) / torch.where(total == 0, 1.0, total))).sum(
            -1, keepdim=True
        )
    reference = x if normalization.name == "anchored" else torch.where(allowed, scores, 0.0)
    partition = torch.where(allowed, profile(kernel, reference), 0.0).sum(-1, keepdim=True)
    change = torch.where(allowed, order_derivative(kernel, reference), 0.0) / torch.where(
        partition == 0, 1.0, partition
    )
    change = torch.where(answer.empty.unsqueeze(-1), 0.0, change)
    return ((grad - (w * grad).sum(-1, keepdim=True)) * change).sum(-1, keepdim=True)
