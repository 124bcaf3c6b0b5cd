"""Polynomial kernels: large orders, the Gaussian limit, the derivative by the order, tensor orders, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

import epan
from epan.errors import EpanError
from epan.kernels import Biweight, Epanechnikov, Polynomial, RectifiedPolynomial, Triweight
from epan.testing import tolerance
from epan.testing.execution import backend
from epan.testing.inputs import Case

ORDERS = (1.0, 1.5, 2.0, 3.0, 5.0, 16.0, 16.5, 40.0, 1e3, 1e6, 1e9)
LARGE = (16.5, 40.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
NAMED = ((1.0, Epanechnikov()), (2.0, Biweight()), (3.0, Triweight()))


def digits(function: Callable[[Decimal, Decimal], Decimal], order: float, x: float) -> Tensor:
    """A formula of (1 + x/n, n) with sixty digits, zero outside the support."""
    with localcontext() as context:
        context.prec = 60
        base = 1 + Decimal(x) / Decimal(order)
        value = float(function(base, Decimal(order))) if base > 0 else 0.0
    return torch.tensor(value, dtype=torch.float64)


def power(base: Decimal, n: Decimal) -> Decimal:
    return (n * base.ln()).exp()


def by_order(base: Decimal, n: Decimal) -> Decimal:
    return power(base, n) * (base.ln() - (base - 1) / base)


def points(order: float, dtype: torch.dtype) -> Tensor:
    """Inside the support, from the neighbourhood of zero to weights of 10⁻¹³."""
    reach = min(order * 0.99, 30.0)
    return -(reach * torch.logspace(-6, 0, 40, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", LARGE)
def test_large_orders_lose_no_digits(order: float, dtype: torch.dtype) -> None:
    """Each value by its own size: an error of 1 + x/n would be multiplied by n."""
    kernel, x = Polynomial(order), points(order, dtype)
    eps = torch.finfo(dtype).eps
    for values, formula in (
        (kernel.profile(x), power),
        (kernel.derivative(x), lambda base, n: power(base, n - 1)),
    ):
        for value, at in zip(values.double(), x.tolist(), strict=True):
            reference = digits(formula, order, at)
            moved = digits(formula, order, at - tolerance.NOISE * eps * (1 + abs(at)))
            width = tolerance.band(reference / reference, [moved / reference], dtype)
            tolerance.assert_within(
                value / reference, reference / reference, band=width, label=f"order {order:g} at {at:g}"
            )


@pytest.mark.parametrize("order", LARGE)
def test_the_gaussian_is_the_limit(order: float) -> None:
    """0 ≤ e^x − φ_n(x) ≤ e^x x²/n for −n ≤ x ≤ 0, so the difference is O(1/n)."""
    x = points(order, torch.float64)
    gap = torch.exp(x) - Polynomial(order).profile(x)
    assert bool((gap >= -tolerance.EXACT).all())
    assert bool((gap <= torch.exp(x) * x * x / order + tolerance.EXACT).all())
    # To leading order it is e^x x²/2n, so it is no better than that either.
    if order < 1e6:
        assert float(gap.max()) > 0.25 * float((torch.exp(x) * x * x / (2 * order)).max())


@pytest.mark.parametrize(("order", "named"), NAMED, ids=["1", "2", "3"])
def test_small_integer_orders_are_the_named_kernels(order: float, named: RectifiedPolynomial) -> None:
    general = Polynomial(order)
    x = torch.linspace(-2 * order, 0.5, 101, dtype=torch.float64)
    top = torch.tensor(-0.3 * order, dtype=torch.float64)
    below = x[x <= top]
    for ours, theirs in (
        (general.profile(x), named.profile(x)),
        (general.derivative(x), named.derivative(x)),
        (general.order_derivative(x), named.order_derivative(x)),
        (general.log_profile(x).exp(), named.profile(x)),
        (general.relative_profile(below, top), named.relative_profile(below, top)),
        (general.relative_derivative(below, top), named.relative_derivative(below, top)),
        (general.inside(x).double(), named.inside(x).double()),
    ):
        tolerance.assert_within(ours, theirs, band=tolerance.EXACT * max(1.0, tolerance.largest(theirs)))
    assert (general.order, general.support, general.alpha) == (named.order, named.support, named.alpha)


@pytest.mark.parametrize("order", ORDERS)
def test_the_change_of_formula_at_order_16_does_not_show(order: float) -> None:
    """A tensor order always takes the logarithmic form, a number only above 16."""
    x = torch.cat([points(order, torch.float64), torch.tensor([0.0, -order, -2 * order], dtype=torch.float64)])
    number, tensor = Polynomial(order), Polynomial(torch.tensor(order, dtype=torch.float64))
    assert number.uses_log_form == (order > 16)
    assert tensor.uses_log_form
    tolerance.assert_within(tensor.profile(x), number.profile(x), band=tolerance.EXACT)
    tolerance.assert_within(tensor.derivative(x), number.derivative(x), band=tolerance.EXACT)
    tolerance.assert_within(tensor.order_derivative(x), number.order_derivative(x), band=tolerance.EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_derivative_by_the_order_follows_the_formula(order: float, dtype: torch.dtype) -> None:
    x = points(order, dtype)
    found = Polynomial(order).order_derivative(x)
    assert found.dtype == dtype
    eps = tolerance.NOISE * torch.finfo(dtype).eps
    for value, at in zip(found, x.tolist(), strict=True):
        reference = digits(by_order, order, at)
        width = tolerance.band(reference, [digits(by_order, order, at - eps * (1 + abs(at)))], dtype)
        tolerance.assert_within(value, reference, band=width, label=f"order {order:g} at {at:g}")
    edge = torch.tensor([0.0, -order, -order - 1, -math.inf], dtype=dtype)
    assert Polynomial(order).order_derivative(edge).tolist() == [0.0] * 4
    assert bool(torch.isnan(Polynomial(order).order_derivative(torch.tensor([math.nan], dtype=dtype))).all())


@pytest.mark.parametrize("order", [1.0, 1.5, 3.0, 16.0, 24.0, 1e3])
def test_a_tensor_order_has_that_derivative(order: float) -> None:
    leaf = torch.full((40, 1), order, dtype=torch.float64, requires_grad=True)
    x = points(order, torch.float64).unsqueeze(-1)
    (found,) = torch.autograd.grad(Polynomial(leaf).profile(x).sum(), leaf)
    tolerance.assert_within(found, Polynomial(order).order_derivative(x), band=tolerance.EXACT)
    inner = leaf.detach().clamp(min=1.25).requires_grad_()
    x = 0.5 * x[::8].clamp(min=-20.0)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda n, z: Polynomial(n).profile(z), (inner[::8], x), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda n, z: Polynomial(n).profile(z), (inner[::8], x))


def test_nothing_outside_the_support_reaches_the_order() -> None:
    order = torch.tensor([[1.0], [2.0], [30.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([-30.0, -31.0, -1e30, -math.inf], dtype=torch.float64)
    value = Polynomial(order).profile(x)
    assert not bool(value.any())
    (found,) = torch.autograd.grad(value.sum(), order)
    assert found.tolist() == [[0.0]] * 3


@pytest.mark.parametrize("name", ["eager", "tiled"])
@pytest.mark.parametrize(
    ("rule", "similarity"), [("adaptive", "dot"), ("anchored", "dot"), ("fixed", "euclidean")], ids=str
)
def test_orders_per_head_and_per_query_are_that_many_kernels(rule: str, similarity: str, name: str) -> None:
    inputs = Case(normalization=rule, similarity=similarity, scale=0.6, spread=0.8).build()
    q, k, v = inputs.query, inputs.key, inputs.value
    options = {"normalization": rule, "similarity": similarity, "scale": 0.6}
    batch, heads, q_len, _ = q.shape
    for shape in ((), (1, 1), (heads, 1, 1), (batch, 1, 1, 1), (batch, heads, q_len, 1)):
        orders = 1.0 + 30.0 * torch.rand(shape, dtype=torch.float64) ** 3
        leaf = orders.clone().requires_grad_()
        out = backend(name)(q, k, v, kernel=Polynomial(leaf), **options)
        full = orders.expand(batch, heads, q_len, 1)
        for b, h, i in ((0, 0, 0), (1, 1, 3), (1, 0, q_len - 1)):
            kernel = Polynomial(float(full[b, h, i, 0]))
            row = (q[b : b + 1, h : h + 1, i : i + 1], k[b : b + 1, h : h + 1], v[b : b + 1, h : h + 1])
            alone = epan.attention(*row, kernel=kernel, backend="eager", **options)
            width = tolerance.EXACT * max(1.0, tolerance.largest(alone))
            tolerance.assert_within(out[b : b + 1, h : h + 1, i : i + 1], alone, band=width, label=str(shape))
        (found,) = torch.autograd.grad(out, leaf, inputs.grad)
        assert found.shape == orders.shape
        step = 1e-6
        pulls = [
            (backend(name)(q, k, v, kernel=Polynomial(orders + sign * step), **options) * inputs.grad).sum()
            for sign in (1.0, -1.0)
        ]
        slope = (pulls[0] - pulls[1]) / (2 * step)
        # The tolerance of torch's own comparison with finite differences.
        assert torch.allclose(found.sum(), slope, rtol=1e-3, atol=1e-5)


def test_orders_that_do_not_fit_are_refused() -> None:
    inputs = Case().build()
    for shape in ((2,), (3, 1, 1), (2, 2, 7, 9)):
        with pytest.raises(EpanError, match="order of Polynomial does not broadcast") as caught:
            epan.attention(inputs.query, inputs.key, inputs.value, kernel=Polynomial(torch.full(shape, 2.0)))
        assert str(shape) in str(caught.value.found)
        assert caught.value.allowed


@pytest.mark.parametrize("order", [0.999, 0, -3.0, math.nan, torch.tensor([2.0, 0.5]), torch.tensor([math.nan, 2.0])])
def test_orders_below_one_are_refused_with_the_reason(order: float | Tensor) -> None:
    with pytest.raises(EpanError, match="not convex") as caught:
        Polynomial(order)
    assert caught.value.found
    assert "n >= 1" in str(caught.value.allowed)
    assert "softplus" in str(caught.value.fix)
    minimum = order if isinstance(order, (int, float)) else float(order.min())
    assert f"{minimum:.6g}" in str(caught.value)


def test_an_infinite_order_is_the_gaussian() -> None:
    with pytest.raises(EpanError, match="finite") as caught:
        Polynomial(math.inf)
    assert caught.value.found == math.inf
    assert "gaussian" in str(caught.value.fix)


@pytest.mark.parametrize("order", [True, None, "5", [2.0], 2 + 1j])
def test_an_order_is_a_number(order: object) -> None:
    with pytest.raises(EpanError, match="must be a number or a tensor") as caught:
        Polynomial(order)  # type: ignore[arg-type]
    assert caught.value.found == order
    assert "n >= 1" in str(caught.value.allowed)


def test_a_tensor_order_is_of_floating_point() -> None:
    with pytest.raises(EpanError, match="floating point") as caught:
        Polynomial(torch.tensor([2, 3]))
    assert "int64" in str(caught.value.found)
    assert "order.float()" in str(caught.value.fix)
