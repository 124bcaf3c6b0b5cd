"""Nearest: who is among the k, how ties share, what is refused, and which gradients there are."""

from __future__ import annotations

import itertools
import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import epan
from epan.errors import EpanError
from epan.normalizations import Nearest
from epan.testing import tolerance

KERNELS = pytest.mark.parametrize("kernel", ["uniform", "gaussian"])


def weights(z: Tensor, k: int, kernel: str, mask: Tensor | None = None) -> Tensor:
    return epan.attention_weights(z, kernel=kernel, normalization=Nearest(k=k), mask=mask)


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mean_over_choices(z: Tensor, k: int, kernel: str) -> Tensor:
    """The mean, over every way to choose k best keys, of uniform or softmax weights on those chosen."""
    kept = [j for j in range(z.numel()) if z[j] != -math.inf]
    total, ways = torch.zeros_like(z), 0
    size = min(k, len(kept))
    best = sorted((float(z[j]) for j in kept), reverse=True)[:size]
    for chosen in itertools.combinations(kept, size):
        if sorted((float(z[j]) for j in chosen), reverse=True) != best:
            continue
        values = row(*(math.exp(float(z[j]) - best[0]) if kernel == "gaussian" else 1.0 for j in chosen))
        total[list(chosen)] += values / values.sum()
        ways += 1
    return total / max(1, ways)


@KERNELS
@hypothesis.settings(max_examples=80)
@hypothesis.given(
    values=st.lists(st.sampled_from((-math.inf, -2.0, -1.0, 0.0, 0.5, 3.0)), min_size=1, max_size=8),
    k=st.integers(1, 10),
)
def test_ties_share_as_if_broken_in_every_way(kernel: str, values: list[float], k: int) -> None:
    z = row(*values)
    expected = mean_over_choices(z, k, kernel)
    for leaf in (z, z.clone().requires_grad_()):
        tolerance.assert_within(weights(leaf, k, kernel), expected, band=tolerance.EXACT)


def test_shares_by_hand() -> None:
    z = row(3.0, 1.0, 1.0, 1.0, 0.0)
    tolerance.assert_within(weights(z, 2, "uniform"), row(3, 1, 1, 1, 0) / 6, band=tolerance.EXACT)
    third = math.exp(-2.0) / 3
    expected = row(1, third, third, third, 0) / (1 + 3 * third)
    tolerance.assert_within(weights(z, 2, "gaussian"), expected, band=tolerance.EXACT)
    tolerance.assert_equal_bits(weights(z, 1, "uniform"), row(1, 0, 0, 0, 0))
    tolerance.assert_within(weights(row(2.0, 2.0, 2.0), 2, "uniform"), row(1, 1, 1) / 3, band=tolerance.EXACT)


@KERNELS
def test_more_places_than_keys_take_all(kernel: str) -> None:
    z = row(0.3, -1.0, 2.0, 0.3)
    mask = torch.tensor([True, False, True, True])
    everything = torch.full((4,), 0.25, dtype=torch.float64) if kernel == "uniform" else z.softmax(-1)
    for k in (4, 5, 1000):
        tolerance.assert_within(weights(z, k, kernel), everything, band=tolerance.EXACT)
    kept = z.masked_fill(~mask, -math.inf)
    partial = mask.double() / 3 if kernel == "uniform" else kept.softmax(-1)
    for k in (3, 4, 99):
        tolerance.assert_within(weights(z, k, kernel, mask), partial, band=tolerance.EXACT)
    assert not bool(weights(z, 2, kernel, mask & False).any())
    assert weights(torch.zeros(2, 0), 3, kernel).shape == (2, 0)


@KERNELS
def test_permutations_go_along(kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = (3 * torch.randn((5, 40), generator=generator, dtype=torch.float64)).round()
    for k in (1, 3, 17, 39):
        order = torch.randperm(40, generator=generator)
        found = weights(z[:, order], k, kernel)
        tolerance.assert_within(found, weights(z, k, kernel)[:, order], band=tolerance.EXACT)


def test_the_boxcar_has_no_gradient_and_the_gaussian_that_of_softmax() -> None:
    z = row(2.0, 1.0, 0.5, -1.0).requires_grad_()
    pull = row(1.0, -2.0, 4.0, 8.0)
    uniform = weights(z, 2, "uniform")
    # Piecewise constant: the gradient is zero, not missing.
    assert not bool(torch.autograd.grad(uniform, z, pull)[0].any())
    q, k, v = (torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for name in ("eager", "tiled"):
        out = epan.attention(q, k, v, kernel="uniform", normalization=Nearest(k=2), backend=name)
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert not any(bool(grad.any()) for grad in grads[:2])
        assert bool(grads[2].any())
    (found,) = torch.autograd.grad(weights(z, 2, "gaussian"), z, pull)
    (expected,) = torch.autograd.grad(z[:2].softmax(-1), z, pull[:2])
    tolerance.assert_within(found, expected, kind="gradient", band=tolerance.EXACT)
    leaf = row(2.0, 1.0, 0.5, -1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: weights(t, 3, "gaussian"), leaf)
    assert torch.autograd.gradgradcheck(lambda t: weights(t, 3, "gaussian"), leaf)


@pytest.mark.parametrize("k", [0, -1, -(2**40)])
def test_fewer_than_one_neighbour_is_an_error(k: int) -> None:
    with pytest.raises(EpanError, match="at least 1") as caught:
        Nearest(k=k)
    assert caught.value.found == k
    assert caught.value.allowed == "k >= 1"


@pytest.mark.parametrize("k", [True, False, 2.0, "3", None, torch.tensor(3)])
def test_the_number_of_neighbours_is_an_integer(k: object) -> None:
    with pytest.raises(EpanError, match="must be an integer") as caught:
        Nearest(k=k)  # type: ignore[arg-type]
    assert caught.value.found is k
    assert caught.value.allowed == "k >= 1"
