"""β per head: formulas, published starts, and the start that keeps the fixed rule's rows from being empty."""

from __future__ import annotations

import math

import pytest
import torch

from epan import kernels, normalizations
from epan.errors import EpanError, UnsupportedError
from epan.nn import (
    ContextualMemory,
    ContextualScale,
    LearnableOrder,
    LengthAdaptiveScale,
    initial_scale,
    radius_of_random_keys,
    similarity_for,
)
from epan.nn._unit import unit_norm
from epan.ops import attention

FIXED = normalizations.get("fixed")


def test_contextual_scale_starts_at_e_squared() -> None:
    scale = ContextualScale(3)
    assert torch.allclose(scale.log_scale, torch.tensor(0.1))
    assert torch.allclose(scale.current(), torch.tensor(math.exp(2)))
    assert scale(0, 7).shape == (3, 1, 1)


@pytest.mark.parametrize("a", [-0.3, 0.0, 0.2, 0.5, 0.9])
def test_contextual_scale_is_its_formula(a: float) -> None:
    scale = ContextualScale(1).double()
    with torch.no_grad():
        scale.log_scale.fill_(a)
    assert scale.current().item() == pytest.approx(math.exp(2 * min(10 * a, 5)))


def test_length_adaptive_scale_is_its_formula() -> None:
    scale = LengthAdaptiveScale(2, skip=3).double()
    with torch.no_grad():
        scale.log_growth.copy_(torch.tensor([0.4, 12.0]))
        scale.exponent.copy_(torch.tensor([-0.5, 3.0]))
    beta = scale(2, 6).squeeze(-1)
    for column, position in enumerate(range(2, 8)):
        n = max(position - 3, 1)
        assert beta[0, column].item() == pytest.approx(math.exp(0.4) * n**0.5 + math.exp(1.5))
        assert beta[1, column].item() == pytest.approx(math.exp(10) * n + math.exp(1.5))


def test_length_adaptive_scale_starts_as_published_and_has_finite_gradients() -> None:
    scale = LengthAdaptiveScale(2)
    assert torch.allclose(scale.current(), torch.tensor(2 * math.exp(1.5)))
    assert torch.allclose(scale.exponent, torch.tensor(1 / 3))
    scale(0, 5).sum().backward()
    assert all(bool((p.grad != 0).all() & torch.isfinite(p.grad).all()) for p in scale.parameters())


def test_length_adaptive_scale_counts_the_stored_pairs() -> None:
    memory = ContextualMemory(8, 2, adaptive_bandwidth=True, skip=4)
    # The first pair that a skip of 4 leaves to be read is read at position 4.
    assert torch.equal(memory.scale(4, 1), memory.scale(0, 1))
    assert bool((memory.scale(5, 1) > memory.scale(4, 1)).all())


@pytest.mark.parametrize(("skip", "span"), [(1, 4), (1, 1), (3, 7), (2, None)])
def test_the_adaptive_bandwidth_counts_exactly_the_pairs_that_may_be_read(skip: int, span: int | None) -> None:
    memory = ContextualMemory(8, 2, kernel="gaussian", adaptive_bandwidth=True, skip=skip, span=span).double()
    _, stats = memory(torch.randn(1, 20, 8, dtype=torch.float64), return_stats=True)
    n = stats.support_size[0].clamp(min=1).double()
    assert int(n.max()) == (20 - skip if span is None else span - skip + 1)
    expected = math.exp(1.5) * n ** float(memory.scale.exponent[0].detach()) + math.exp(1.5)
    assert (memory.scale(0, 20).squeeze(-1) - expected).abs().max() <= 1e-12
    assert torch.equal(memory.scale(11, 5), memory.scale(0, 20)[:, 11:16])


@pytest.mark.parametrize(("size", "radius"), [(16, 1.1), (32, 1.2), (64, 1.3)])
def test_initial_radius(size: int, radius: float) -> None:
    assert round(radius_of_random_keys(size), 1) == radius


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64, 128])
def test_about_a_twentieth_of_random_keys_is_within_the_initial_radius(size: int) -> None:
    keys = unit_norm(torch.randn(1500, size))
    inside = (torch.cdist(keys, keys) <= radius_of_random_keys(size)).double().mean() - 1 / 1500
    low, high = (0.04, 0.2) if size < 8 else (0.045, 0.075)
    assert low <= float(inside) <= high


@pytest.mark.parametrize(
    "kernel", ["epanechnikov", "biweight", "triweight", "cosine", {"name": "polynomial", "order": 7}]
)
@pytest.mark.parametrize("size", [16, 64])
def test_fixed_start_has_that_radius_for_every_kernel(kernel: object, size: int) -> None:
    chosen = kernels.get(kernel)  # type: ignore[arg-type]
    beta = initial_scale(chosen, FIXED, size, math.exp(2))
    distance = radius_of_random_keys(size) * torch.tensor([0.999, 1.001], dtype=torch.float64)
    weight = chosen.profile(-beta * distance**2 / 2)
    assert float(weight[0]) > 0 == float(weight[1])


def test_other_rules_keep_the_published_start() -> None:
    for kernel, rule in [("biweight", "adaptive"), ("epanechnikov", "anchored"), ("gaussian", "fixed")]:
        assert initial_scale(kernels.get(kernel), normalizations.get(rule), 16, 5.5) == 5.5
    assert initial_scale(kernels.Uniform(radius=1.0), FIXED, 16, 5.5) == 5.5


def empty_share(scale: float | None, kernel: str, width: int, heads: int) -> float:
    """Share of rows beyond the thirtieth that no key reaches, for random unit keys."""
    memory = ContextualMemory(width, heads, kernel=kernel, normalization="fixed")
    keys = unit_norm(torch.randn(4, heads, 200, width // heads))
    beta = memory.scale(0, 1) if scale is None else scale
    _, stats = attention(
        keys,
        keys,
        keys,
        scale=beta,
        kernel=kernel,
        normalization="fixed",
        similarity="euclidean",
        window=(None, -1),
        return_stats=True,
    )
    return float((stats.partition[..., 30:] == 0).double().mean())


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("kernel", ["epanechnikov", "triweight"])
def test_few_rows_of_the_fixed_rule_are_empty_at_the_start(size: int, kernel: str) -> None:
    assert empty_share(None, kernel, 2 * size, 2) < 0.1
    # The start of the other rules would leave them empty, so the test can fail.
    if kernel == "epanechnikov":
        assert empty_share(math.exp(2), kernel, 2 * size, 2) > 0.95


def test_fixed_start_of_the_adaptive_bandwidth() -> None:
    memory = ContextualMemory(32, 2, kernel="biweight", normalization="fixed", adaptive_bandwidth=True)
    plain = ContextualMemory(32, 2, kernel="biweight", normalization="fixed")
    assert torch.allclose(memory.scale.current(), plain.scale.current())
    assert (memory.scale(64, 1).max() / plain.scale.current().max()).item() < 1.4


def test_learnable_order_starts_at_the_kernel_and_stays_above_one() -> None:
    for name, order in [("biweight", 2.0), ("triweight", 3.0), ({"name": "polynomial", "order": 40}, 40.0)]:
        assert torch.allclose(LearnableOrder(3, kernels.get(name)).current(), torch.tensor(order))  # type: ignore[arg-type]
    layer = LearnableOrder(2, kernels.get("epanechnikov"))
    assert layer.current().min().item() == pytest.approx(1.01)
    with torch.no_grad():
        layer.order.fill_(-80.0)
    assert layer.current().min().item() >= 1.0
    with pytest.raises(UnsupportedError, match="learnt order"):
        LearnableOrder(2, kernels.get("gaussian"))


def test_similarity_is_euclidean_exactly_where_distances_are_needed(method: tuple[object, object]) -> None:
    kernel, rule = kernels.get(method[0]), normalizations.get(method[1])  # type: ignore[arg-type]
    assert similarity_for(kernel, rule) == ("euclidean" if rule.name == "fixed" else "dot")


def test_impossible_pairs_are_refused() -> None:
    with pytest.raises(EpanError):
        similarity_for(kernels.get("cosine"), normalizations.get("adaptive"))
    with pytest.raises(EpanError, match="radius"):
        similarity_for(kernels.get("uniform"), FIXED)
    with pytest.raises(EpanError, match="scale"):
        ContextualScale(2, math.exp(11))
