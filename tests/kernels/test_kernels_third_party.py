"""Kernels that live outside the package work wherever a name does, forward and backward, on every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import epan
from epan.errors import UnsupportedError
from epan.kernels import Kernel, RectifiedPolynomial
from epan.testing import catalogue, conformance, tolerance
from epan.testing.execution import backend
from epan.testing.inputs import Case

BACKENDS = catalogue.backends()


@dataclass(frozen=True)
class Logistic(Kernel):
    """A dataclass with a parameter and unbounded support: φ(x) = (1 + a)/(a + e^{−(1 + a)x}), of slope one at zero."""

    tilt: float = 1.0

    name: ClassVar[str] = "logistic"

    @property
    def support(self) -> float:
        return math.inf

    def profile(self, x: Tensor) -> Tensor:
        return (1 + self.tilt) / (self.tilt + torch.exp(-(1 + self.tilt) * x))

    def derivative(self, x: Tensor) -> Tensor:
        value = self.profile(x)
        return value * (1 + self.tilt - self.tilt * value)


class Bump(Kernel):
    """No dataclass, with an __init__ of its own and compact support: φ(x) = exp(x/(1 + x/s)) for x > −s."""

    name = "bump"

    def __init__(self, reach: float) -> None:
        self.reach = reach
        super().__post_init__()

    @property
    def support(self) -> float:
        return self.reach

    def profile(self, x: Tensor) -> Tensor:
        inside = ~(x <= -self.reach)
        safe = torch.where(inside, x, 0.0)
        return torch.where(inside, torch.exp(safe / (1 + safe / self.reach)), 0.0)

    def derivative(self, x: Tensor) -> Tensor:
        inside = ~(x <= -self.reach)
        safe = torch.where(inside, x, 0.0)
        return torch.where(inside, self.profile(safe) / (1 + safe / self.reach) ** 2, 0.0)


@dataclass(frozen=True)
class Quartic(RectifiedPolynomial):
    """A new order of the package's family; only what must be written."""

    name: ClassVar[str] = "quartic-power"
    order: ClassVar[float] = 4.0


class Forgetful(Kernel):
    """Its __init__ does not end as it should."""

    name = "forgetful"

    def __init__(self) -> None:
        pass

    @property
    def support(self) -> float:
        return math.inf

    def profile(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)


COMBINATIONS = [
    (kernel, rule, similarity)
    for kernel in (Logistic(), Logistic(tilt=3.0), Bump(2.0), Quartic())
    for rule, similarity in (("anchored", "dot"), ("anchored", "euclidean"), ("fixed", "euclidean"))
] + [(Quartic(), "adaptive", "dot"), (Quartic(), "adaptive", "euclidean")]
IDS = [f"{type(kernel).__name__}-{getattr(kernel, 'tilt', '')}-{rule}-{sim}" for kernel, rule, sim in COMBINATIONS]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("kernel", "rule", "similarity"), COMBINATIONS, ids=IDS)
def test_outputs_and_gradients_follow_the_formula(kernel: Kernel, rule: str, similarity: str, name: str) -> None:
    base = Case(kernel=kernel, normalization=rule, similarity=similarity, spread=0.8)
    for case in (
        base.but(scale="head", mask="some_rows"),
        base.but(scale="query", mask="float_inf", alibi="head", heads=4, key_heads=2, window=(5, 3)),
        base.but(scale=0.7, q_len=130, k_len=150, batch=1),
    ):
        conformance.agrees_with_formula(backend(name), case)
        conformance.gradients_agree_with_formula(backend(name), case)


@pytest.mark.parametrize(("kernel", "rule", "similarity"), COMBINATIONS, ids=IDS)
def test_derivatives_are_right(kernel: Kernel, rule: str, similarity: str) -> None:
    """The kernels above are no reference unless they are right themselves."""
    x = -torch.linspace(0.05, 0.9, 9, dtype=torch.float64) * min(kernel.support, 4.0)  # type: ignore[type-var]
    assert torch.autograd.gradcheck(kernel.profile, x.requires_grad_())
    (found,) = torch.autograd.grad(kernel.profile(x).sum(), x)
    tolerance.assert_within(kernel.derivative(x), found, band=tolerance.EXACT)
    zero = torch.zeros((), dtype=torch.float64)
    tolerance.assert_within(kernel.profile(zero), torch.ones_like(zero), band=tolerance.EXACT)
    tolerance.assert_within(kernel.derivative(zero), torch.ones_like(zero), band=tolerance.EXACT)


@pytest.mark.parametrize("make", [Logistic, Bump], ids=str)
def test_instances_with_other_parameters_are_not_confused(make: type[Kernel]) -> None:
    """An operator that knows a kernel by a number must not take one for another."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((1, 1, 6, 4), generator=generator, dtype=torch.float64) for _ in range(3))
    kernels = [make(parameter) for parameter in (1.0, 4.0, 1.0)]  # type: ignore[call-arg]
    outputs = {}
    for name in BACKENDS:
        outputs[name] = [epan.attention(q, k, v, kernel=it, normalization="anchored", backend=name) for it in kernels]
        assert not torch.equal(outputs[name][0], outputs[name][1])
        tolerance.assert_equal_bits(outputs[name][0], outputs[name][2])
    raw = (q @ k.transpose(-2, -1)) / 2
    for place, kernel in enumerate(kernels):
        value = kernel.profile(raw - raw.amax(-1, keepdim=True))
        expected = (value / value.sum(-1, keepdim=True)) @ v
        for name in BACKENDS:
            width = tolerance.EXACT * max(1.0, tolerance.largest(expected))
            tolerance.assert_within(outputs[name][place], expected, band=width)


def test_dataclasses_of_equal_parameters_share_a_handle() -> None:
    assert Logistic(2.0).handle == Logistic(2.0).handle
    assert Logistic(2.0).handle != Logistic(3.0).handle
    # Whether two such objects are alike cannot be known.
    assert Bump(2.0).handle != Bump(2.0).handle
    assert Quartic().handle == Quartic().handle != epan.Polynomial(4.0).handle


@pytest.mark.parametrize("kernel", [Logistic(), Bump(2.0)], ids=["Logistic", "Bump"])
def test_rules_that_need_a_family_refuse_with_reason_and_fix(kernel: Kernel) -> None:
    q = torch.zeros(1, 1, 2, 4)
    for rule in ("adaptive", epan.Nearest(k=1)):
        for name in BACKENDS:
            with pytest.raises(UnsupportedError, match=kernel.name) as caught:
                epan.attention(q, q, q, kernel=kernel, normalization=rule, backend=name)
            assert caught.value.fix


def test_a_kernel_that_was_not_initialised_says_so_where_that_matters() -> None:
    q = torch.randn(1, 1, 3, 4)
    eager = epan.attention(q, q, q, kernel=Forgetful(), normalization="anchored", backend="eager")
    softmax = torch.nn.functional.scaled_dot_product_attention(q.double(), q.double(), q.double())
    width = tolerance.band(softmax, [softmax * (1 + tolerance.NOISE * torch.finfo(q.dtype).eps)], q.dtype)
    tolerance.assert_within(eager, softmax, band=width)
    with pytest.raises(UnsupportedError, match="not initialised") as caught:
        epan.attention(q, q, q, kernel=Forgetful(), normalization="anchored", backend="tiled")
    assert "super().__post_init__()" in str(caught.value.fix)


def test_weights_take_them_too() -> None:
    scores = torch.tensor([[0.0, -1.0, -3.0, -math.inf]], dtype=torch.float64)
    for kernel in (Logistic(), Bump(2.0)):
        value = kernel.profile(scores)
        found = epan.attention_weights(scores, kernel=kernel, normalization="anchored")
        tolerance.assert_within(found, value / value.sum(), band=tolerance.EXACT)
    assert epan.attention_weights(scores, kernel=Bump(2.0), normalization="fixed")[0, 2:].tolist() == [0.0, 0.0]
