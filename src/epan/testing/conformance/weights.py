"""``attention_weights``: rows of scores to rows of weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import Kernel, Polynomial
from ...kernels import get as get_kernel
from ...normalizations import Normalization
from ...normalizations import get as get_normalization
from .. import oracles, tolerance
from ..inputs import make_scores

__all__ = [
    "WeightsCase",
    "approaches_softmax",
    "stays_within_reach",
    "weights_agree_with_formula",
    "weights_are_a_distribution",
    "weights_contain_nonfinite",
    "weights_follow_the_scores",
    "weights_gradient_agrees_with_formula",
    "weights_ignore_the_order",
]

#: Anything with the signature of ``epan.attention_weights``.
Weights = Callable[..., Tensor]


@dataclass(frozen=True)
class WeightsCase:
    """Rows of scores and what is to be made of them.

    Attributes
    ----------
    scores: one of ``inputs.SCORES``.
    mask: "none", "bool", "float" (added, a third −inf), "row" (first row forbidden).
    """

    kernel: str | Kernel = "biweight"
    normalization: str | Normalization = "adaptive"
    scores: str = "normal"
    rows: int = 6
    length: int = 17
    dtype: torch.dtype = torch.float64
    mask: str = "none"
    seed: int = 0

    def __str__(self) -> str:
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={str(value).removeprefix('torch.').replace(' ', '')}")
        return "-".join(words) or "default"

    def build(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """(scores, mask of the call or None, allowed, scores in float64 with the mask added)."""
        z = make_scores(self.scores, self.rows, self.length, self.dtype, self.seed)
        if self.rule.name == "fixed":
            # Fixed scores are −βd²/2: never above zero.
            z = torch.where(torch.isfinite(z), -z.abs(), z)
        generator = torch.Generator().manual_seed(self.seed + 100)
        keep = torch.rand(z.shape, generator=generator) < 0.7
        mask: Tensor | None = None
        total, allowed = z.double(), z != -math.inf
        if self.mask == "bool":
            mask, allowed = keep, allowed & keep
        elif self.mask == "row":
            mask = (torch.arange(self.rows) > 0).view(-1, 1)
            allowed = allowed & mask
        elif self.mask == "float":
            added = -torch.rand(z.shape, generator=generator, dtype=torch.float64)
            mask = torch.where(keep, added, -math.inf).to(self.dtype)
            allowed = allowed & keep
            total = total + torch.where(keep, mask.double(), 0.0)
        return z, mask, allowed, torch.where(allowed, total, 0.0)

    @property
    def rule(self) -> Normalization:
        return get_normalization(self.normalization)

    def call(self, weights: Weights, z: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """What ``weights`` makes of scores and mask."""
        return weights(z, kernel=self.kernel, normalization=self.normalization, mask=mask, **options)


def _formula(case: WeightsCase, z: Tensor, allowed: Tensor) -> tuple[oracles.RowAnswer, list[oracles.RowAnswer]]:
    """The formula's rows, and those of scores moved by rounding in the working precision, equal ones together."""
    kernel = get_kernel(case.kernel)
    eps = tolerance.NOISE * torch.finfo(tolerance.working_dtype(case.dtype)).eps
    distinct, which = z.unique(return_inverse=True)
    moved = []
    for seed in (1, 2):
        noise = torch.rand(distinct.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
        noise = noise[which]
        # The scores are given, so only their difference from the maximum is rounded (and their sum with the mask).
        size = (z - z.amax(-1, keepdim=True)).abs() if case.mask != "float" and case.rule.name != "fixed" else z.abs()
        # Heights and sums are numbers of the order of 1, and rounded as such.
        moved.append(oracles.weights(z + eps * (1.0 + size) * noise, allowed, kernel, case.rule))
    return oracles.weights(z, allowed, kernel, case.rule), moved


def weights_agree_with_formula(weights: Weights, case: WeightsCase) -> None:
    """The weights equal the formula, and are exactly zero where it is zero away from the boundary of the support.

    With and without a gradient recorded. Scores and mask are left as they were.
    """
    z, mask, allowed, total = case.build()
    before = [None if tensor is None else tensor.clone() for tensor in (z, mask)]
    answer, moved = _formula(case, total, allowed)
    width = tolerance.band(answer.weights, [other.weights for other in moved], case.dtype)
    margin = tolerance.boundary(total, case.dtype)
    below = allowed & (total < answer.threshold.unsqueeze(-1) - margin)
    positive = answer.weights > torch.finfo(case.dtype).tiny
    above = allowed & (total > answer.threshold.unsqueeze(-1) + margin) & positive
    for leaf, label in ((z, "weights"), (z.clone().requires_grad_(), "recorded weights")):
        w = case.call(weights, leaf, mask).detach()
        assert w.dtype == case.dtype, f"{label} of {w.dtype} for scores of {case.dtype}"
        tolerance.assert_within(w, answer.weights, band=width, label=label)
        assert bool((w[below] == 0).all()), f"{label}: a key below the threshold has weight"
        assert bool((w[above] > 0).all()), f"{label}: a key above the threshold has no weight"
    for name, tensor, copy in zip(("scores", "mask"), (z, mask), before, strict=True):
        if tensor is not None and copy is not None:
            tolerance.assert_equal_bits(tensor, copy, f"{name} after the call")


def weights_gradient_agrees_with_formula(weights: Weights, case: WeightsCase) -> None:
    """∂L/∂z equals the formula of the rule; where scores may be shifted its rows sum to zero."""
    z, mask, allowed, total = case.build()
    kernel = get_kernel(case.kernel)
    generator = torch.Generator().manual_seed(9)
    grad = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(case.dtype)
    leaf = z.clone().requires_grad_()
    w = case.call(weights, leaf, mask)
    # Weights that are piecewise constant need not be part of the graph.
    actual = torch.autograd.grad(w, leaf, grad)[0] if w.requires_grad else torch.zeros_like(leaf)
    reference = oracles.score_gradient(total, allowed, kernel, case.rule, grad)
    eps = tolerance.NOISE * torch.finfo(tolerance.working_dtype(case.dtype)).eps
    moved = []
    for seed in (1, 2):
        noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
        other = total + eps * (1.0 + total.abs()) * noise
        moved.append(oracles.score_gradient(other, allowed, kernel, case.rule, grad.double() * (1 + eps * noise)))
    width = tolerance.band(reference, moved, case.dtype)
    tolerance.assert_within(actual, reference, kind="gradient", band=width, label="gradient of the scores")
    if case.rule.name != "fixed" or kernel.name == "gaussian":
        flow = actual.double().sum(-1)
        # The rounding of independent keys adds up like √L, a common error like L.
        reach = math.sqrt(case.length) * width
        tolerance.assert_within(flow, torch.zeros_like(flow), band=reach, label="row sums of the gradient")


def weights_are_a_distribution(weights: Weights, case: WeightsCase) -> None:
    """w ≥ 0, Σw = 1 within the published limit, w = 0 where masked; fully masked (and empty "zero") rows are all 0."""
    z, mask, allowed, total = case.build()
    w = case.call(weights, z, mask)
    assert bool((w >= 0).all()), "a weight is negative or NaN"
    assert bool((w[~allowed] == 0).all()), "a masked key has weight"
    sums = w.double().sum(-1)
    hollow = torch.zeros_like(allowed[..., 0])
    if case.rule.name == "fixed" and getattr(case.rule, "empty", "") == "zero":
        kernel = get_kernel(case.kernel)
        hollow = ~(allowed & kernel.inside(total)).any(-1)
    full = allowed.any(-1) & ~hollow
    assert bool((sums[~full] == 0).all()), "a row without keys has weight"
    worst = tolerance.largest(sums[full] - 1.0)
    assert worst <= tolerance.ROW_SUM[case.dtype], f"a row sums to 1 ± {worst:.2e}"


def weights_contain_nonfinite(weights: Weights, case: WeightsCase) -> None:
    """A NaN score shows in its row and nowhere else; a NaN at a masked key shows nowhere."""
    case = dataclasses.replace(case, mask="bool", scores="normal")
    z, mask, allowed, _ = case.build()
    assert mask is not None
    clean = case.call(weights, z, mask)
    hidden = z.masked_fill(~allowed, math.nan)
    tolerance.assert_equal_bits(case.call(weights, hidden, mask), clean, "weights with NaN at masked keys")
    leaf = hidden.clone().requires_grad_()
    out = case.call(weights, leaf, mask)
    recorded = case.call(weights, z.clone().requires_grad_(), mask).detach()
    tolerance.assert_equal_bits(out.detach(), recorded, "recorded weights with NaN at masked keys")
    # Weights that are piecewise constant need not be part of the graph.
    if out.requires_grad:
        (grad,) = torch.autograd.grad(out, leaf, torch.ones_like(out) * torch.arange(case.length, dtype=case.dtype))
        assert bool(torch.isfinite(grad).all()), "a NaN at a masked key reaches the gradient"
        assert bool((grad[~allowed] == 0).all()), "a masked key has a gradient"
    row = int(allowed.any(-1).nonzero()[0])
    column = int(allowed[row].nonzero()[0])
    seen = z.clone()
    seen[row, column] = math.nan
    others = torch.arange(case.rows) != row
    for leaf, expected in ((seen, clean), (seen.clone().requires_grad_(), recorded)):
        w = case.call(weights, leaf, mask).detach()
        tolerance.assert_equal_bits(w[others], expected[others], "rows beside a NaN")
        assert bool(torch.isnan(w[row][allowed[row]]).all()), "a visible NaN does not show in every weight of its row"
        assert bool((w[row][~allowed[row]] == 0).all()), "a masked key of a NaN row has weight"


def weights_follow_the_scores(weights: Weights, case: WeightsCase) -> None:
    """A larger score never has a smaller weight, and equal scores have equal weights."""
    z, mask, allowed, total = case.build()
    w = case.call(weights, z, mask)
    for row in range(case.rows):
        keys = allowed[row].nonzero().squeeze(-1)
        order = keys[total[row][keys].argsort()]
        values, ranked = total[row][order], w[row][order].double()
        rising = ranked[1:] - ranked[:-1]
        tied = values[1:] == values[:-1]
        assert bool((rising[tied] == 0).all()), f"row {row}: equal scores have different weights"
        assert bool((rising >= 0).all()), f"row {row}: a larger score has a smaller weight"


def weights_ignore_the_order(weights: Weights, case: WeightsCase) -> None:
    """Permuted scores give permuted weights, along any dimension."""
    z, mask, allowed, total = case.build()
    order = torch.randperm(case.length, generator=torch.Generator().manual_seed(2))
    answer, moved = _formula(case, total, allowed)
    width = tolerance.band(answer.weights, [other.weights for other in moved], case.dtype)
    permuted = None if mask is None else mask if mask.shape[-1] == 1 else mask[:, order]
    w = case.call(weights, z[:, order], permuted)
    tolerance.assert_within(w, answer.weights[:, order], band=width, label="weights of permuted scores")
    across = case.call(weights, z.T.contiguous(), None if mask is None else mask.T, dim=0)
    tolerance.assert_within(across.T, answer.weights, band=width, label="weights along dimension 0")


def stays_within_reach(weights: Weights, case: WeightsCase) -> None:
    """The bounds max z − n ≤ t ≤ max z − n|A|^{−1/n} of the adaptive threshold, seen from the weights.

    The support lies inside the anchored support, the largest weight between 1/|A| and 1, and a key that is n ahead of
    all others takes everything.
    """
    assert case.rule.name == "adaptive", "the bounds are those of the adaptive rule"
    kernel = get_kernel(case.kernel)
    z, mask, allowed, total = case.build()
    w = case.call(weights, z, mask)
    top = torch.where(allowed, total, -math.inf).amax(-1, keepdim=True)
    assert not bool(((w > 0) & (total <= top - kernel.support)).any()), "a key outside the anchored support has weight"
    live = allowed.any(-1)
    largest = w.double().amax(-1)[live]
    fair = 1.0 / allowed.sum(-1).double()[live]
    slack = tolerance.ROW_SUM[case.dtype]
    assert bool((largest >= fair * (1 - slack)).all()), "the largest weight is below the mean"
    assert bool((largest <= 1 + slack).all()), "a weight is above 1"
    if math.isfinite(float(kernel.support)):  # type: ignore[arg-type]
        second = torch.where((total == top) | ~allowed, -math.inf, total).amax(-1, keepdim=True)
        # A best key that is n ahead of all others takes everything.
        alone = (top - second >= kernel.support).squeeze(-1) & live
        winners = (allowed & (total == top)).sum(-1)
        share = torch.where(alone, w.double().amax(-1) * winners, 1.0)
        assert tolerance.largest(share - 1.0) <= slack, "a key that is n ahead does not take all the weight"


def approaches_softmax(weights: Weights, case: WeightsCase, order: float = 1e6) -> None:
    """A huge order is the Gaussian, within the family's own distance O(1/n)."""
    z, mask, allowed, total = case.build()
    w = weights(z, kernel=Polynomial(order), normalization=case.normalization, mask=mask)
    live = allowed.any(-1, keepdim=True)
    softmax = torch.where(live, torch.where(allowed, total, -math.inf).softmax(-1), 0.0)
    worst = tolerance.largest(w.double() - softmax)
    assert worst <= tolerance.LARGE_ORDER, f"order {order:g} differs from softmax by {worst:.2e}"
