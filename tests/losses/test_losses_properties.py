"""What a Fenchel–Young loss is, for any scores: at least zero, zero where the margin is met, convex, p − y as gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import epan
from epan.losses import fenchel_young_loss

ORDERS = [1.0, 2.0, 3.0, 1.37, 5.0, 20.0]
orders = st.sampled_from(ORDERS)
scores = st.lists(st.floats(-30, 30), min_size=2, max_size=12).map(lambda row: torch.tensor(row, dtype=torch.float64))


def loss(z: Tensor, target: int, order: float) -> Tensor:
    kernel = "gaussian" if math.isinf(order) else epan.Polynomial(order)
    return fenchel_young_loss(z, torch.tensor(target), kernel=kernel, reduction="none")


@settings(max_examples=50)
@given(scores, st.integers(0, 1), st.sampled_from([*ORDERS, math.inf]))
def test_the_loss_is_at_least_zero_and_its_gradient_is_p_minus_y(z: Tensor, target: int, order: float) -> None:
    z.requires_grad_()
    value = loss(z, target, order)
    assert float(value.detach()) >= 0
    (gradient,) = torch.autograd.grad(value, z)
    kernel = "gaussian" if math.isinf(order) else epan.Polynomial(order)
    expected = epan.attention_weights(z.detach(), kernel=kernel)
    expected[target] -= 1
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12)


@settings(max_examples=50)
@given(scores, orders, st.floats(1e-4, 5))
def test_the_loss_is_zero_exactly_where_the_margin_is_met(z: Tensor, order: float, distance: float) -> None:
    others = float(z[1:].max())
    z[0] = others + order + distance
    assert float(loss(z, 0, order)) == 0.0
    z[0] = others + order - distance
    assert float(loss(z, 0, order)) > 0.0
    z[0] = others + order + distance
    assert float(loss(z, 0, math.inf)) > 0.0


@settings(max_examples=50)
@given(scores, st.integers(0, 1), st.sampled_from([*ORDERS, math.inf]), st.floats(0, 1), st.integers(0, 999))
def test_the_loss_is_convex_along_lines(z: Tensor, target: int, order: float, part: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    other = z + 10 * torch.randn(z.shape, dtype=torch.float64, generator=generator)
    between = loss(part * z + (1 - part) * other, target, order)
    bound = part * loss(z, target, order) + (1 - part) * loss(other, target, order)
    assert float(between) <= float(bound) * (1 + 1e-12) + 1e-12


@settings(max_examples=40)
@given(scores, st.integers(0, 1), orders, st.floats(-1e3, 1e3))
def test_a_constant_changes_nothing(z: Tensor, target: int, order: float, constant: float) -> None:
    assert float((loss(z + constant, target, order) - loss(z, target, order)).abs()) < 1e-11


@pytest.mark.parametrize("order", ORDERS)
def test_with_a_margin_the_gradient_is_exactly_zero(order: float) -> None:
    z = torch.tensor([order + 0.01, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(z, 0, order), z)
    assert not gradient.any()
