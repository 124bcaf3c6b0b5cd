"""Profiles and their derivatives: values at zero, the edge of the support, formulas, finite differences, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from epan.kernels import Kernel, Polynomial, Uniform
from epan.testing import catalogue, tolerance

KERNELS: dict[str, Kernel] = {
    **catalogue.kernels(),
    **{f"polynomial-{n}": Polynomial(float(n)) for n in ("1", "16", "17", "1e3", "1e9")},
    "polynomial-tensor": Polynomial(torch.tensor([[1.0], [2.5], [30.0]], dtype=torch.float64)),
}
SMOOTH = {name: kernel for name, kernel in KERNELS.items() if not isinstance(kernel, Uniform)}
# Their slopes do not depend on the score.
FLAT = ("epanechnikov", "uniform")
DTYPES = (torch.float32, torch.float64)


def each(kernels: dict[str, Kernel]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kernel", kernels.values(), ids=list(kernels))


def support_of(kernel: Kernel, pick: Callable[[list[float]], float] = min) -> float:
    """The smallest support, where a tensor order has several."""
    support = kernel.support
    return pick(support.flatten().tolist()) if isinstance(support, Tensor) else support


def interior(kernel: Kernel, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points inside the support, a step of finite differences away from its edge and from the kink of the cosine at 0."""
    reach = min(support_of(kernel), 8.0)
    return -reach * torch.tensor([1e-3, 0.02, 0.1, 0.37, 0.5, 0.8, 0.97], dtype=dtype)


def formula(kernel: Kernel, slope: bool = False) -> Callable[[float], float]:
    """φ or φ' with fifty digits, or from Python's own mathematics."""
    if kernel.name == "gaussian":
        return lambda x: math.exp(x)
    if kernel.name == "cosine" and slope:
        return lambda x: math.sin(math.sqrt(-2 * x)) / math.sqrt(-2 * x)
    if kernel.name == "cosine":
        return lambda x: math.cos(math.sqrt(-2 * x))
    order = kernel.order
    assert isinstance(order, float)

    def polynomial(x: float) -> float:
        with localcontext() as context:
            context.prec = 50
            base = 1 + Decimal(x) / Decimal(order)
            return float((base.ln() * (Decimal(order) - int(slope))).exp()) if base > 0 else 0.0

    return polynomial


def assert_follows(actual: Tensor, expected: Callable[[float], float], x: Tensor, dtype: torch.dtype) -> None:
    """Point by point, so that small values are judged by their own size."""
    for value, point in zip(actual, x.tolist(), strict=True):
        # Sums of 1 and the score are of the order of 1, and rounded as such; above zero the cosine has a kink.
        step = tolerance.NOISE * torch.finfo(dtype).eps * (1 + abs(point))
        reference, moved = (torch.tensor(expected(at), dtype=torch.float64) for at in (point, point - step))
        width = tolerance.band(reference, [moved], dtype)
        tolerance.assert_within(value, reference, band=width, label=f"at {point}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(KERNELS)
def test_one_at_zero_with_slope_one(kernel: Kernel, dtype: torch.dtype) -> None:
    zero = torch.zeros(3, 1, dtype=dtype)
    assert bool((kernel.profile(zero) == 1).all())
    slope = 0.0 if isinstance(kernel, Uniform) else 1.0
    assert bool((kernel.derivative(zero) == slope).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(KERNELS)
def test_exactly_zero_outside_the_support_and_at_minus_infinity(kernel: Kernel, dtype: torch.dtype) -> None:
    reach = support_of(kernel, max)
    points = [torch.finfo(dtype).min, -math.inf]
    if reach < math.inf:
        edge = torch.tensor(-reach, dtype=dtype)
        below = torch.nextafter(edge, torch.tensor(-math.inf, dtype=dtype))
        points += [float(below), 2 * float(edge) - 1]
        at_edge = kernel.profile(edge.expand(3, 1))
        assert float(at_edge.min()) == (1.0 if kernel.is_closed else 0.0)
        assert bool((kernel.derivative(edge) == 0).all())
    elif isinstance(kernel, Uniform):
        # Without a radius everything counts alike.
        assert bool((kernel.profile(torch.tensor(points, dtype=dtype)) == 1).all())
        return
    x = torch.tensor(points, dtype=dtype)
    assert bool((kernel.profile(x) == 0).all())
    assert bool((kernel.derivative(x) == 0).all())
    top = torch.zeros((), dtype=dtype)
    assert bool((kernel.relative_profile(x, top) == 0).all())
    assert bool((kernel.relative_derivative(x, top) == 0).all())


@each(KERNELS)
def test_inside_says_where_the_profile_is_positive(kernel: Kernel) -> None:
    reach = support_of(kernel)
    inner = interior(kernel)
    assert bool(kernel.inside(inner).all() & (kernel.profile(inner) > 0).all())
    if reach < math.inf:
        largest = support_of(kernel, max)
        outer = -largest * torch.tensor([1 + 1e-12, 1.5, 10.0], dtype=torch.float64)
        assert not bool(kernel.inside(outer).any() | (kernel.profile(outer) > 0).any())
        edge = -torch.as_tensor(kernel.support, dtype=torch.float64)
        assert torch.equal(kernel.inside(edge), kernel.profile(edge) > 0)
        assert bool(kernel.inside(edge).all()) == kernel.is_closed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each(KERNELS)
def test_nan_stays_nan(kernel: Kernel, dtype: torch.dtype) -> None:
    x = torch.tensor([-0.1, math.nan, -0.2], dtype=dtype)
    expected, top = torch.tensor([False, True, False]), torch.zeros((), dtype=dtype)
    assert bool((torch.isnan(kernel.profile(x)) == expected).all())
    assert bool((torch.isnan(kernel.relative_profile(x, top)) == expected).all())
    if kernel.name not in FLAT:
        assert bool((torch.isnan(kernel.derivative(x)) == expected).all())
        assert bool((torch.isnan(kernel.relative_derivative(x, top)) == expected).all())


@each(SMOOTH)
def test_gradients_are_finite_everywhere(kernel: Kernel) -> None:
    """Also at the edge of the support and at −∞, where they are zero; twice."""
    reach = min(support_of(kernel), 8.0)
    x = torch.tensor([0.0, -reach / 2, -reach, -2 * reach, -1e30, -math.inf], dtype=torch.float64, requires_grad=True)
    value = kernel.profile(x)
    for _ in range(2):
        if not value.requires_grad:
            break
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert bool(torch.isfinite(value).all())
        assert bool((value[-2:] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each({name: kernel for name, kernel in SMOOTH.items() if not isinstance(kernel.order, Tensor)})
def test_profile_and_derivative_follow_the_formula(kernel: Kernel, dtype: torch.dtype) -> None:
    reach = min(support_of(kernel), 60.0)
    near = -torch.logspace(-9, -1, 17, dtype=torch.float64)
    x = torch.cat([near * reach, -reach * torch.linspace(0.12, 0.995, 23, dtype=torch.float64)]).to(dtype)
    # Below the normal numbers of a precision a rounding is no longer relative.
    x = x[kernel.profile(x) > torch.finfo(dtype).tiny]
    assert x.numel() > 30
    assert_follows(kernel.profile(x), formula(kernel), x, dtype)
    assert_follows(kernel.derivative(x), formula(kernel, slope=True), x, dtype)


@each(SMOOTH)
def test_derivatives_agree_with_finite_differences(kernel: Kernel) -> None:
    x = interior(kernel).requires_grad_()
    assert torch.autograd.gradcheck(kernel.profile, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kernel.profile, x)
    assert torch.autograd.gradcheck(kernel.derivative, x, check_forward_ad=True)


@each(SMOOTH)
def test_derivative_is_what_autograd_finds(kernel: Kernel) -> None:
    shape = (3, 7) if isinstance(kernel.order, Tensor) else (7,)
    x = interior(kernel).expand(shape).clone().requires_grad_()
    (recorded,) = torch.autograd.grad(kernel.profile(x).sum(), x, create_graph=True)
    tolerance.assert_within(kernel.derivative(x), recorded, band=tolerance.EXACT)
    curved = kernel.derivative(x)
    if curved.requires_grad and recorded.requires_grad:
        second, other = (torch.autograd.grad(t.sum(), x, retain_graph=True)[0] for t in (curved, recorded))
        width = tolerance.EXACT * max(1.0, tolerance.largest(other))
        tolerance.assert_within(second, other, band=width)


@each(KERNELS)
def test_profiles_rise_from_zero_to_one(kernel: Kernel) -> None:
    reach = min(2 * support_of(kernel), 50.0)
    x = torch.linspace(-reach, 0, 400, dtype=torch.float64).expand(3, -1)
    values, slopes = kernel.profile(x), kernel.derivative(x)
    assert bool(((values >= 0) & (values <= 1)).all())
    assert bool((values.diff(dim=-1) >= 0).all())
    assert bool((slopes >= 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each({name: kernel for name, kernel in SMOOTH.items() if not isinstance(kernel.order, Tensor)})
def test_relative_profiles_are_ratios(kernel: Kernel, dtype: torch.dtype) -> None:
    """Where both are ordinary numbers; the reference takes the ratio of fifty-digit values."""
    reach = min(support_of(kernel), 8.0)
    value, slope = formula(kernel), formula(kernel, slope=True)
    x = (-reach * torch.tensor([0.4, 0.45, 0.7, 0.9], dtype=torch.float64)).to(dtype)
    for top in (-0.05 * reach, -0.4 * reach):
        pivot = torch.tensor(top, dtype=dtype)
        height = value(float(pivot))
        assert_follows(kernel.relative_profile(x, pivot), lambda p, h=height: value(p) / h, x, dtype)  # type: ignore[misc]
        assert_follows(kernel.relative_derivative(x, pivot), lambda p, h=height: slope(p) / h, x, dtype)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "top", "gap", "dtype"),
    [
        ("gaussian", -5000.0, 3.0, torch.float64),
        ("gaussian", -200.0, 3.0, torch.float32),
        ("polynomial-1e3", -700.0, 2.0, torch.float64),
        ("polynomial-1e9", -5000.0, 3.0, torch.float64),
        ("polynomial-40", -39.9, 0.01, torch.float32),
        ("polynomial-16", -15.99, 0.001, torch.float32),
    ],
)
def test_relative_profiles_survive_underflow(name: str, top: float, gap: float, dtype: torch.dtype) -> None:
    """Both profiles are zero in this precision, their ratio is not."""
    kernel = KERNELS[name]
    pivot = torch.tensor(top, dtype=dtype)
    x = torch.tensor([top - gap, top - 2 * gap], dtype=dtype)
    assert not bool(kernel.profile(pivot).any())

    def ratio(point: float, slope: bool = False) -> float:
        if kernel.name == "gaussian":
            return math.exp(point - float(pivot))
        with localcontext() as context:
            context.prec = 50
            n = Decimal(float(kernel.order))  # type: ignore[arg-type]
            base, best = 1 + Decimal(point) / n, 1 + Decimal(float(pivot)) / n
            logs = n * (base.ln() - best.ln()) - (base.ln() if slope else 0)
            return float(logs.exp())

    assert_follows(kernel.relative_profile(x, pivot), ratio, x, dtype)
    assert_follows(kernel.relative_derivative(x, pivot), lambda point: ratio(point, slope=True), x, dtype)
    assert bool((kernel.relative_profile(x, pivot) > 0).all())


def test_support_and_alpha_follow_the_order() -> None:
    orders = {"epanechnikov": 1.0, "biweight": 2.0, "triweight": 3.0, "polynomial-1.5": 1.5, "polynomial-40": 40.0}
    for name, order in orders.items():
        kernel = KERNELS[name]
        assert kernel.order == order
        assert kernel.support == order
        assert kernel.alpha == 1 + 1 / order
    assert KERNELS["gaussian"].support == math.inf
    assert KERNELS["gaussian"].alpha == 1.0
    assert KERNELS["cosine"].support == math.pi**2 / 8
    for name in ("cosine", "uniform", "polynomial-tensor"):
        assert KERNELS[name].alpha is None
    assert KERNELS["cosine"].order is None
    assert KERNELS["polynomial-tensor"].support is KERNELS["polynomial-tensor"].order


def test_the_radius_of_a_boxcar_is_a_distance() -> None:
    kernel = Uniform(radius=1.5)
    assert kernel.support == 1.125
    distance = torch.tensor([0.0, 1.0, 1.5, 1.5000001, 4.0], dtype=torch.float64)
    for beta in (1.0, 0.25, 8.0):
        scaled = kernel.at_scale(beta)
        assert scaled.profile(-beta * distance**2 / 2).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    per_head = kernel.at_scale(torch.tensor([[0.25], [8.0]], dtype=torch.float64))
    scores = -torch.tensor([[0.25], [8.0]], dtype=torch.float64) * distance**2 / 2
    assert per_head.profile(scores).tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0]] * 2
    assert Uniform().at_scale(3.0) == Uniform()
    for name, other in KERNELS.items():
        if not name.startswith("uniform"):
            assert other.at_scale(3.0) is other
