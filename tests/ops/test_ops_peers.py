"""Other people's answers: torch's attention, scikit-learn's regressors and densities, the package entmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KernelDensity, KNeighborsRegressor
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import epan
from epan.testing import catalogue, oracles, tolerance

BACKENDS = catalogue.backends()
LABELS = ("out", "query", "key", "value")
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.arange(7) < torch.tensor([3, 7]).view(2, 1, 1, 1)},
    "float": {"attn_mask": torch.linspace(-2.0, 2.0, 49).reshape(7, 7)},
    "minus-infinity": {"attn_mask": torch.full((7, 7), -math.inf).triu(1)},
    "dead-row": {"attn_mask": torch.arange(7).view(7, 1) != 3},
    "scale": {"scale": 1.7},
}


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def in_dtype(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """torch wants a float mask in the dtype of the queries."""
    mask = options.get("attn_mask")
    return {**options, "attn_mask": mask.to(dtype)} if mask is not None and mask.is_floating_point() else options


def near(actual: Tensor, expected: Tensor, baseline: Tensor | None = None, label: str = "out") -> None:
    """Within rounding of float64, or within the allowed multiple of the peer's error in the same dtype."""
    limit = tolerance.EXACT * max(1.0, tolerance.largest(expected))
    if baseline is not None:
        limit = torch.finfo(actual.dtype).eps * max(1.0, tolerance.largest(expected))
    kind = "output" if label == "out" else "gradient"
    tolerance.assert_within(actual, expected, baseline, kind=kind, band=limit, label=label)


def with_gradients(function: Any, tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_gaussian_is_scaled_dot_product_attention(mask: str, key_heads: int, name: str) -> None:
    tensors = [draw(2, h, 7, n) for h, n in ((4, 8), (key_heads, 8), (key_heads, 5))]
    upstream = draw(2, 4, 7, 5)
    gqa = key_heads != 4
    double = in_dtype(MASKS[mask], torch.float64)

    def torchs(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **options)

    def ours(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return epan.attention(q, k, v, enable_gqa=gqa, kernel="gaussian", backend=name, **options)

    reference = with_gradients(lambda *t: torchs(*t, **double), tensors, upstream)
    for label, actual, expected in zip(
        LABELS, with_gradients(lambda *t: ours(*t, **double), tensors, upstream), reference, strict=True
    ):
        near(actual, expected, label=label)
    single = in_dtype(MASKS[mask], torch.float32)
    # Numbers that float32 holds exactly, so that float64 answers the same question.
    tensors, upstream = [t.float() for t in tensors], upstream.float()
    exact = with_gradients(lambda *t: torchs(*t, **double), [t.double() for t in tensors], upstream.double())
    theirs = with_gradients(lambda *t: torchs(*t, **single), tensors, upstream)
    for label, actual, expected, peer in zip(
        LABELS, with_gradients(lambda *t: ours(*t, **single), tensors, upstream), exact, theirs, strict=True
    ):
        near(actual, expected, peer, label)


def test_positional_arguments_are_those_of_torch() -> None:
    q, k, v = (draw(2, 3, 6, 4) for _ in range(3))
    mask = torch.rand(6, 6) < 0.7
    mask.fill_diagonal_(True)
    for positional in ((), (None,), (mask,), (mask, 0.0), (mask, 0.0, False), (None, 0.0, True)):
        for keywords in ({}, {"scale": 0.3}, {"scale": None, "enable_gqa": False}):
            expected = scaled_dot_product_attention(q, k, v, *positional, **keywords)
            near(epan.attention(q, k, v, *positional, **keywords, kernel="gaussian"), expected)
    named = {"attn_mask": mask, "dropout_p": 0.0, "is_causal": False, "scale": 0.3, "enable_gqa": False}
    expected = scaled_dot_product_attention(query=q, key=k, value=v, **named)
    near(epan.attention(query=q, key=k, value=v, **named, kernel="gaussian"), expected)
    # The last two are keywords of torch only; here they may follow in the same order.
    near(epan.attention(q, k, v, mask, 0.0, False, 0.3, False, kernel="gaussian"), expected)


def test_three_dimensions_and_dropout_of_everything_as_in_torch() -> None:
    q, k, v = (draw(3, 5, 4) for _ in range(3))
    near(epan.attention(q, k, v, kernel="gaussian"), scaled_dot_product_attention(q, k, v))
    mask = torch.rand(3, 5, 5) < 0.8
    near(epan.attention(q, k, v, mask, kernel="gaussian"), scaled_dot_product_attention(q, k, v, mask))
    assert bool((epan.attention(q, k, v, dropout_p=1.0, kernel="gaussian") == 0).all())


def regression(count: int = 30, queries: int = 12, size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return draw(queries, size), draw(count, size), draw(count, 3)


def estimate(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    batched = (t.view(1, 1, *t.shape) for t in (q, k, v))
    return epan.attention(*batched, similarity="euclidean", **options)[0, 0]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [1, 3, 30])
def test_uniform_nearest_is_k_neighbours_regression(k: int, name: str) -> None:
    query, key, value = regression()
    expected = KNeighborsRegressor(n_neighbors=k, weights="uniform").fit(key, value).predict(query)
    rule = epan.Nearest(k=k)
    actual = estimate(query, key, value, kernel="uniform", normalization=rule, scale=2.3, backend=name)
    near(actual, torch.from_numpy(expected))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", ["adaptive", "anchored", "fixed"])
def test_gaussian_is_nadaraya_watson_on_an_rbf_kernel(rule: str, name: str) -> None:
    query, key, value = regression()
    weights = rbf_kernel(query, key, gamma=3.0 / 2)
    expected = weights @ value.numpy() / weights.sum(1, keepdims=True)
    near(
        estimate(query, key, value, kernel="gaussian", normalization=rule, scale=3.0, backend=name),
        torch.from_numpy(expected),
    )


def density_weights(query: Tensor, key: Tensor, kernel: str, bandwidth: float) -> np.ndarray:
    """The weight of each key as the density that this key alone would spread; a common factor cancels."""
    density = KernelDensity(kernel=kernel, bandwidth=bandwidth)
    return np.stack([np.exp(density.fit(key[j : j + 1]).score_samples(query)) for j in range(len(key))], axis=1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kernel", ["epanechnikov", "cosine", "gaussian", "tophat"])
def test_fixed_is_nadaraya_watson_on_a_kernel_density(kernel: str, name: str) -> None:
    radius = 0.9
    # h² = 2/β, h = π/(2√β), 1/β: each kernel's own relation of scale and width.
    scale = {"epanechnikov": 2 / radius**2, "cosine": (math.pi / (2 * radius)) ** 2, "gaussian": 1 / radius**2}
    query, key, value = regression()
    # Out of reach of every key.
    query[0] = 40.0
    weights = density_weights(query, key, kernel, radius)
    total = weights.sum(1, keepdims=True)
    empty = torch.from_numpy(total[:, 0] == 0)
    assert bool(empty[0])
    assert not bool(empty.all())
    expected = torch.from_numpy(weights @ value.numpy() / np.where(total == 0, 1.0, total))
    actual = estimate(
        query,
        key,
        value,
        kernel=epan.Uniform(radius=radius) if kernel == "tophat" else kernel,
        normalization=epan.Fixed(empty="zero"),
        scale=scale.get(kernel, 1.3),
        backend=name,
    )
    # The Gaussian is nowhere zero, it only underflows in their density.
    rows = ~empty if kernel == "gaussian" else slice(None)
    near(actual[rows], expected[rows])


@pytest.mark.parametrize("name", BACKENDS)
def test_empty_rows_fall_back_to_the_nearest_neighbour(name: str) -> None:
    query, key, value = regression()
    scale = 2 / 0.05**2
    weights = density_weights(query, key, "epanechnikov", 0.05)
    empty = torch.from_numpy(weights.sum(1) == 0)
    assert int(empty.sum()) >= 6
    expected = torch.from_numpy(KNeighborsRegressor(n_neighbors=1).fit(key, value).predict(query))
    actual = estimate(query, key, value, kernel="epanechnikov", normalization="fixed", scale=scale, backend=name)
    near(actual[empty], expected[empty])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kernel", "order"), [("epanechnikov", 1), ("biweight", 2), ("triweight", 3)])
def test_adaptive_is_the_entmax_package(kernel: str, order: int, causal: bool, name: str) -> None:
    """Dense attention with their sparsemax, entmax15 and bisection, forward and backward, beyond one tile of keys."""
    length = 150
    tensors = [1.5 * draw(1, 2, length, 4) for _ in range(2)] + [draw(1, 2, length, 3)]
    upstream = draw(1, 2, length, 3)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        # Far enough for weight zero, and no infinity for their sums to meet.
        scores = scores.masked_fill(hidden, -1e4) if causal else scores
        return oracles.entmax_weights(scores, order) @ v

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return epan.attention(q, k, v, kernel=kernel, is_causal=causal, backend=name)

    for label, actual, expected in zip(
        LABELS, with_gradients(ours, tensors, upstream), with_gradients(theirs, tensors, upstream), strict=True
    ):
        near(actual, expected, label=label)
