"""Anchored and fixed by hand: the numbers of the papers, ties, empty rows of every policy, and refusals."""

from __future__ import annotations

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import epan
from epan.errors import EpanError, UnsupportedError
from epan.normalizations import Anchored, Fixed, Nearest
from epan.normalizations.fixed import _POLICIES
from epan.testing import tolerance

BOTH = pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weights(z: Tensor, kernel: object, rule: object, recorded: bool = False, **options: object) -> Tensor:
    leaf = z.clone().requires_grad_(recorded)
    return epan.attention_weights(leaf, kernel=kernel, normalization=rule, **options).detach()  # type: ignore[arg-type]


@BOTH
def test_anchored_weights_by_hand(recorded: bool) -> None:
    z = row(3.0, 2.5, 2.0, 1.0, -math.inf)
    # ReLUmax: [1 + z − 3]₊ = 1, ½, 0, 0.
    tolerance.assert_within(
        weights(z, "epanechnikov", "anchored", recorded), row(2 / 3, 1 / 3, 0, 0, 0), band=tolerance.EXACT
    )
    # [1 + x/2]₊² = 1, 9/16, 1/4, 0.
    expected = row(16, 9, 4, 0, 0) / 29
    tolerance.assert_within(weights(z, "biweight", "anchored", recorded), expected, band=tolerance.EXACT)
    # [1 + x/3]₊³ = 216, 125, 64, 8 of 216.
    expected = row(216, 125, 64, 8, 0) / 413
    tolerance.assert_within(weights(z, "triweight", "anchored", recorded), expected, band=tolerance.EXACT)
    # −2x = ¼π²/4 gives cos(π/4), and −2x ≥ π²/4 nothing.
    edge = math.pi**2 / 8
    z = row(1.0, 1.0 - edge / 4, 1.0 - edge - 1e-9, 1.0 - 2 * edge)
    expected = row(1, math.sqrt(0.5), 0, 0) / (1 + math.sqrt(0.5))
    tolerance.assert_within(weights(z, "cosine", "anchored", recorded), expected, band=tolerance.EXACT)


def test_tied_maxima_share_the_gradient_of_the_anchor() -> None:
    z = row(1.0, 1.0, 0.5).requires_grad_()
    # φ = 1, 1, ½ and Z = 5/2: ∂z = φ'/Z (g − Σwg) less its sum at the two maxima, half each.
    pull = row(1.0, 2.0, 5.0)
    w = epan.attention_weights(z, kernel="epanechnikov", normalization="anchored")
    (found,) = torch.autograd.grad(w, z, pull)
    mean = (1 + 2 + 2.5) / 2.5
    own = row(1 - mean, 2 - mean, 5 - mean) / 2.5
    expected = own - own.sum() * row(0.5, 0.5, 0.0)
    tolerance.assert_within(found, expected, kind="gradient", band=tolerance.EXACT)


@BOTH
def test_fixed_weights_by_hand(recorded: bool) -> None:
    z = row(-0.25, -0.5, -1.0, -4.0, -math.inf)
    # NormReLU: [1 + z]₊ = ¾, ½, 0, 0.
    tolerance.assert_within(weights(z, "epanechnikov", "fixed", recorded), row(0.6, 0.4, 0, 0, 0), band=tolerance.EXACT)
    expected = row(49, 36, 16, 0, 0) / 101
    tolerance.assert_within(weights(z, "biweight", "fixed", recorded), expected, band=tolerance.EXACT)
    # Within h² = 2 are the first three; the boundary belongs to the boxcar.
    expected = row(1, 1, 1, 0, 0) / 3
    radius = epan.Uniform(radius=math.sqrt(2.0))
    assert radius.support >= 1.0
    tolerance.assert_within(weights(z, radius, "fixed", recorded), expected, band=tolerance.EXACT)
    # Adding a constant changes them: that is what fixed means.
    moved = weights(z - 0.25, "epanechnikov", "fixed", recorded)
    tolerance.assert_within(moved, row(2 / 3, 1 / 3, 0, 0, 0), band=tolerance.EXACT)


def test_fixed_weights_do_not_underflow() -> None:
    """Far keys of a high order: every profile is zero in float32, their ratios are not."""
    z = torch.tensor([-39.6, -39.7, -39.9])
    kernel = epan.Polynomial(40.0)
    assert not bool(kernel.profile(z).any())
    exact = (1 + z.double() / 40) ** 40
    moved = (1 + (z.double() - tolerance.NOISE * torch.finfo(z.dtype).eps * (1 + z.double().abs())) / 40) ** 40
    width = tolerance.band(exact / exact.sum(), [moved / exact.sum()], z.dtype)
    for recorded in (False, True):
        found = weights(z, kernel, "fixed", recorded)
        tolerance.assert_within(found, exact / exact.sum(), band=width)


def test_the_policies_are_three() -> None:
    assert set(_POLICIES) == {"zero", "uniform", "nearest"}
    assert Fixed().empty == "nearest"
    assert Fixed() == Fixed(empty="nearest") != Fixed(empty="zero")


EMPTY = {"zero": row(0, 0, 0, 0), "uniform": row(1, 1, 1, 0) / 3, "nearest": row(0.5, 0.5, 0, 0)}


@BOTH
@pytest.mark.parametrize("kernel", ["epanechnikov", "triweight", "cosine", epan.Polynomial(4.5), epan.Uniform(1.5)])
@pytest.mark.parametrize("policy", _POLICIES)
def test_empty_rows_follow_their_policy(policy: str, kernel: object, recorded: bool) -> None:
    """The first row is within reach, the second is empty (its two best keys tied, one masked), the third masked."""
    z = torch.stack([row(-0.5, -0.9, -9.0, -0.1), row(-7.0, -7.0, -9.0, -8.0), row(-0.1, -0.2, -0.3, -0.4)])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    rule = Fixed(empty=policy)
    found = weights(z, kernel, rule, recorded, mask=mask)
    tolerance.assert_equal_bits(found[1], EMPTY[policy])
    tolerance.assert_equal_bits(found[2], row(0, 0, 0, 0))
    tolerance.assert_equal_bits(found[0], weights(z[0], kernel, Fixed(), recorded))
    assert abs(float(found[0].sum()) - 1.0) <= tolerance.ROW_SUM[torch.float64]
    _, stats = rule.weights(z.clone().requires_grad_(recorded), mask, epan.kernels.get(kernel))  # type: ignore[arg-type]
    # Zero says that the row is empty, whatever its weights.
    assert float(stats.partition[0]) > 0
    assert stats.partition[1:].tolist() == [0.0, 0.0]
    assert stats.support_size[1:].tolist() == [int((EMPTY[policy] > 0).sum()), 0]
    threshold = {"zero": math.inf, "uniform": -math.inf, "nearest": math.nextafter(-7.0, -math.inf)}
    assert stats.threshold[1:].tolist() == [threshold[policy], math.inf]


@pytest.mark.parametrize("kernel", ["epanechnikov", "biweight", "cosine", epan.Polynomial(4.5), epan.Polynomial(30.0)])
@pytest.mark.parametrize("policy", _POLICIES)
def test_empty_rows_have_no_gradient(policy: str, kernel: object) -> None:
    z = torch.stack([row(-0.5, -0.9, -0.3), row(-70.0, -70.0, -90.0)]).requires_grad_()
    w = epan.attention_weights(z, kernel=kernel, normalization=Fixed(empty=policy))  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(w, z, torch.tensor([[1.0, 2.0, 4.0]]).double().expand(2, 3), create_graph=True)
    assert bool((found[0] != 0).all())
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    (second,) = torch.autograd.grad(found.sum(), z, allow_unused=True)
    if second is not None:
        assert bool(torch.isfinite(second).all())
        assert second[1].tolist() == [0.0, 0.0, 0.0]


def test_an_empty_row_has_no_gradient_to_a_learnt_order() -> None:
    for policy in _POLICIES:
        order = torch.tensor([[2.0], [2.0]], dtype=torch.float64, requires_grad=True)
        z = torch.stack([row(-0.5, -0.9, -0.3), row(-70.0, -70.0, -90.0)])
        w = epan.attention_weights(z, kernel=epan.Polynomial(order), normalization=Fixed(empty=policy))
        (found,) = torch.autograd.grad(w, order, torch.tensor([[1.0, 2.0, 4.0]]).double().expand(2, 3))
        assert float(found[0]) != 0.0
        assert float(found[1]) == 0.0


@hypothesis.settings(max_examples=60)
@hypothesis.given(length=st.integers(1, 12), seed=st.integers(0, 10_000), order=st.sampled_from((1.0, 2.0, 3.5, 20.0)))
def test_the_nearest_policy_is_the_anchored_rule_in_the_limit(length: int, seed: int, order: float) -> None:
    """Anchored weights with ever smaller bandwidth: the best keys alone, as in an empty row."""
    generator = torch.Generator().manual_seed(seed)
    z = -100.0 - torch.randint(0, 4, (length,), generator=generator).double()
    empty = weights(z, epan.Polynomial(order), Fixed())
    tolerance.assert_within(weights(1e3 * z, epan.Polynomial(order), "anchored"), empty, band=tolerance.EXACT)


@pytest.mark.parametrize("empty", ["nearst", "Zero", "mean", "", None, 0])
def test_unknown_policies_are_refused(empty: object) -> None:
    with pytest.raises(EpanError, match="policy for empty rows") as caught:
        Fixed(empty=empty)  # type: ignore[arg-type]
    assert all(policy in str(caught.value) for policy in _POLICIES)
    if empty == "nearst":
        assert "did you mean 'nearest'" in str(caught.value.fix)


def test_what_a_rule_cannot_take_it_refuses_with_reason_and_fix() -> None:
    z = row(-1.0, -2.0)
    cases = [
        ("uniform", "anchored", "radius", UnsupportedError),
        (epan.Uniform(2.0), "anchored", "radius", UnsupportedError),
        ("uniform", "fixed", "radius", EpanError),
        ("cosine", "adaptive", "polynomials", UnsupportedError),
        ("uniform", "adaptive", "polynomials", UnsupportedError),
        ("biweight", Nearest(k=1), "uniform or Gaussian", UnsupportedError),
        (epan.Uniform(2.0), Nearest(k=1), "neighbour", UnsupportedError),
    ]
    for kernel, rule, reason, kind in cases:
        with pytest.raises(kind, match=reason) as caught:
            weights(z, kernel, rule)
        assert caught.value.fix
    with pytest.raises(UnsupportedError, match="distances") as caught:
        Fixed().check(epan.Biweight(), "dot")
    assert "euclidean" in str(caught.value.fix)
    Fixed().check(epan.Biweight(), "euclidean")
    Anchored().check(epan.Cosine(), "dot")
