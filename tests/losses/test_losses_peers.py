"""Fenchel–Young losses beside the entmax package and torch's cross-entropy, in float64."""

from __future__ import annotations

from collections.abc import Callable

import entmax
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import epan
from epan.losses import KernelSpec, fenchel_young_loss

Peer = Callable[[Tensor, Tensor], Tensor]


def alpha(value: float) -> Peer:
    return lambda logits, target: entmax.entmax_bisect_loss(logits, target, value, n_iter=80)


PEERS: dict[str, tuple[KernelSpec, Peer]] = {
    "sparsemax": ("epanechnikov", entmax.sparsemax_loss),
    "1.5-entmax": ("biweight", entmax.entmax15_loss),
    "4/3-entmax": ("triweight", alpha(4 / 3)),
    "alpha-1.75": (epan.Polynomial(1 / 0.75), alpha(1.75)),
    "alpha-1.1": ({"name": "polynomial", "order": 10}, alpha(1.1)),
    "alpha-1.04": (epan.Polynomial(25), alpha(1.04)),
    "alpha-1.04-learnt": (epan.Polynomial(torch.tensor(25.0, dtype=torch.float64)), alpha(1.04)),
    "cross-entropy": ("gaussian", lambda logits, target: F.cross_entropy(logits, target, reduction="none")),
}


@pytest.mark.parametrize(("classes", "spread"), [(2, 1.0), (7, 6.0), (1000, 0.1), (1000, 2.0)])
@pytest.mark.parametrize("name", PEERS)
def test_value_and_gradient_are_those_of_the_peer(name: str, classes: int, spread: float) -> None:
    kernel, peer = PEERS[name]
    logits = (spread * torch.randn(24, classes, dtype=torch.float64) + 50.0).requires_grad_()
    target, weights = torch.randint(classes, (24,)), torch.rand(24, dtype=torch.float64)
    found, expected = fenchel_young_loss(logits, target, kernel=kernel, reduction="none"), peer(logits, target)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((weights * loss).sum(), logits)[0] for loss in (found, expected))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    # Not by having met nothing but margins.
    assert ours.abs().max() > 1e-3


def test_target_distributions_give_the_divergence() -> None:
    logits = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    target = torch.rand(9, 6, dtype=torch.float64)
    target[:, 4] = 0.0
    target /= target.sum(-1, keepdim=True)
    found = fenchel_young_loss(logits, target, kernel="gaussian")
    expected = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean")
    assert float((found - expected).detach().abs()) < 1e-12
    # Half the squared distance of the closest point, for sparsemax: H_1 is that of Gini.
    p = entmax.sparsemax(logits, dim=-1)
    gini = lambda q: (1 - (q * q).sum(-1)) / 2  # noqa: E731
    expected = gini(p) - gini(target) + ((p - target) * logits).sum(-1)
    found = fenchel_young_loss(logits, target, kernel="epanechnikov", reduction="none")
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_reductions_weights_and_ignored_rows_are_those_of_torch() -> None:
    logits = torch.randn(2, 5, 4, dtype=torch.float64)
    target = torch.tensor([[0, 3, 9, 1, 2], [9, 9, 2, 2, 0]])
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        for factor in (None, weight):
            found = fenchel_young_loss(
                logits, target, kernel="gaussian", weight=factor, ignore_index=9, reduction=reduction
            )
            expected = F.cross_entropy(
                logits.movedim(-1, 1), target, weight=factor, ignore_index=9, reduction=reduction
            )
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12), (reduction, factor)


def test_the_limit_of_large_orders_is_the_cross_entropy() -> None:
    logits, target = torch.randn(50, 30, dtype=torch.float64), torch.randint(30, (50,))
    errors = []
    for order in (1e3, 1e5, 1e7):
        found = fenchel_young_loss(logits, target, kernel=epan.Polynomial(order), reduction="none")
        errors.append(float((found - F.cross_entropy(logits, target, reduction="none")).abs().max()))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 50
    assert errors[2] < errors[1] / 50
