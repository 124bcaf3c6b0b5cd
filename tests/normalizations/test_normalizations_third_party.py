"""Normalizations that live outside the package: name, check and weights are enough for every backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import epan
from epan.errors import UnsupportedError
from epan.kernels import Kernel
from epan.normalizations import Normalization, Stats
from epan.testing import catalogue, tolerance

BACKENDS = catalogue.backends()


@dataclass(frozen=True)
class Sigmoid(Normalization):
    """w = σ(z − bias): no competition between the keys, so rows do not sum to one. A dataclass."""

    bias: float = 0.0

    name: ClassVar[str] = "sigmoid"

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        if kernel.name != "gaussian":
            raise UnsupportedError(f"sigmoid with {kernel.name}", "it has a profile of its own", 'use "gaussian"')

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        value = torch.sigmoid(scores - self.bias)
        value = value if allowed is None else torch.where(allowed, value, 0.0)
        total = value.sum(-1)
        with torch.no_grad():
            return value, Stats(torch.full_like(total, -math.inf), (value > 0).sum(-1), total.detach())


class Tempered(Normalization):
    """The anchored rule at scores multiplied by a temperature; no dataclass, and any kernel that rule takes."""

    name = "tempered"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        super().__post_init__()

    def check(self, kernel: Kernel, similarity: str | None) -> None:
        epan.Anchored().check(kernel, similarity)

    def weights(self, scores: Tensor, allowed: Tensor | None, kernel: Kernel) -> tuple[Tensor, Stats]:
        return epan.Anchored().weights(scores * self.temperature, allowed, kernel)


def tensors(size: int = 70) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((2, 2, length, 4), generator=generator, dtype=torch.float64) for length in (9, size, size))
    mask = torch.rand((9, size), generator=generator) < 0.6
    mask[3] = False
    return q, k, v, mask, torch.randn((2, 2, 9, 4), generator=generator, dtype=torch.float64)


def pulled(out: Tensor, leaves: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_alike(found: list[Tensor], expected: list[Tensor]) -> None:
    for actual, reference in zip(found, expected, strict=True):
        width = tolerance.EXACT * max(1.0, tolerance.largest(reference))
        tolerance.assert_within(actual, reference, band=width)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_rule_of_its_own(name: str) -> None:
    q, k, v, mask, _ = tensors()
    for bias in (0.0, 2.0):
        options = {"kernel": "gaussian", "normalization": Sigmoid(bias), "scale": 0.7, "attn_mask": mask}
        out, stats = epan.attention(q, k, v, backend=name, return_stats=True, **options)
        plain = torch.sigmoid(q @ k.transpose(-2, -1) * 0.7 - bias) * mask
        assert_alike([out, stats.partition], [plain @ v, plain.sum(-1)])
        assert torch.equal(stats.support_size, mask.sum(-1).expand(2, 2, 9))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kernel", ["biweight", "cosine", epan.Polynomial(20.0)], ids=str)
def test_a_rule_made_of_another(kernel: str | Kernel, name: str) -> None:
    q, k, v, mask, _ = tensors()
    for temperature in (0.5, 2.0):
        options = {"kernel": kernel, "attn_mask": mask, "window": (None, 40)}
        out = epan.attention(q, k, v, normalization=Tempered(temperature), scale=0.3, backend=name, **options)
        same = epan.attention(q, k, v, normalization="anchored", scale=0.3 * temperature, backend="eager", **options)
        assert_alike([out], [same])


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_pass_through(name: str) -> None:
    q, k, v, mask, grad = tensors()
    leaves = tuple(t.clone().requires_grad_() for t in (q, k, v))
    options = {"kernel": "gaussian", "normalization": Sigmoid(0.5), "scale": 0.7, "attn_mask": mask}
    out = epan.attention(*leaves, backend=name, **options)
    plain = (torch.sigmoid(leaves[0] @ leaves[1].transpose(-2, -1) * 0.7 - 0.5) * mask) @ leaves[2]
    assert_alike(pulled(out, leaves, grad), pulled(plain, leaves, grad))
    found = []
    for rule, scale, backend in ((Tempered(2.0), 0.3, name), ("anchored", 0.6, "eager")):
        order = torch.tensor([1.5, 20.0], dtype=torch.float64).view(-1, 1, 1).requires_grad_()
        kernel = epan.Polynomial(order)
        out = epan.attention(*leaves, mask, kernel=kernel, normalization=rule, scale=scale, backend=backend)
        found.append(pulled(out, (*leaves, order), grad))
    assert_alike(*found)


def test_its_check_is_asked() -> None:
    q = torch.zeros(1, 1, 2, 4)
    for name in (*BACKENDS, "auto"):
        with pytest.raises(UnsupportedError, match="profile of its own"):
            epan.attention(q, q, q, normalization=Sigmoid(), backend=name)
    with pytest.raises(UnsupportedError, match="radius"):
        epan.attention_weights(torch.zeros(3), kernel="uniform", normalization=Tempered(1.0))


def test_handles_tell_instances_apart() -> None:
    assert Sigmoid(1.0).handle == Sigmoid(1.0).handle != Sigmoid(2.0).handle
    assert Tempered(1.0).handle != Tempered(1.0).handle
