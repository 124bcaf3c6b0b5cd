"""attention_weights: any dimension, broadcast masks, dtypes, derivatives, mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention.bias import causal_lower_right

import epan
from epan.errors import EpanError
from epan.testing import tolerance

METHODS: dict[str, dict[str, Any]] = {
    "biweight": {},
    "sparsemax": {"kernel": "epanechnikov"},
    "gaussian": {"kernel": "gaussian"},
    "anchored": {"kernel": "triweight", "normalization": "anchored"},
    "cosine": {"kernel": "cosine", "normalization": "fixed"},
    "nearest": {"kernel": "uniform", "normalization": epan.Nearest(k=2)},
    "top-k softmax": {"kernel": "gaussian", "normalization": epan.Nearest(k=2)},
    "order 30": {"kernel": epan.Polynomial(order=30.0)},
}
each_method = pytest.mark.parametrize("method", METHODS)


def scores(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) - 0.5).to(dtype)


@each_method
@pytest.mark.parametrize("dim", range(-4, 4))
def test_every_dimension_may_hold_the_keys(dim: int, method: str) -> None:
    z, mask = scores(2, 3, 4, 5), torch.rand(2, 3, 4, 5) < 0.7
    expected = epan.attention_weights(z.movedim(dim, -1), mask=mask.movedim(dim, -1), **METHODS[method])
    actual = epan.attention_weights(z, mask=mask, dim=dim, **METHODS[method])
    assert actual.shape == z.shape
    tolerance.assert_equal_bits(actual.movedim(dim, -1).contiguous(), expected)
    live = mask.any(dim)
    tolerance.assert_within(actual.sum(dim)[live], torch.ones_like(actual.sum(dim)[live]), band=tolerance.EXACT)
    assert bool((actual[~mask] == 0).all())


@each_method
@pytest.mark.parametrize("shape", [(), (5,), (4, 1), (1, 5), (3, 1, 1), (3, 4, 5), (1, 1, 4, 5)], ids=str)
def test_masks_broadcast_before_the_dimension_moves(shape: tuple[int, ...], method: str) -> None:
    z = scores(2, 3, 4, 5)
    keep, bias = torch.rand(shape) < 0.6, torch.randn(shape, dtype=torch.float64)
    if not shape:
        keep = torch.tensor(True)
    for dim in (-1, 1):
        options = {**METHODS[method], "dim": dim}
        whole = epan.attention_weights(z, mask=keep.expand(z.shape).clone(), **options)
        tolerance.assert_equal_bits(epan.attention_weights(z, mask=keep, **options), whole)
        added = epan.attention_weights(z + bias, mask=keep, **options)
        sentinel = torch.where(keep, bias, -math.inf)
        tolerance.assert_equal_bits(epan.attention_weights(z, mask=sentinel, **options), added)


@each_method
def test_scores_of_one_dimension_and_of_none(method: str) -> None:
    assert epan.attention_weights(scores(7), **METHODS[method]).shape == (7,)
    assert epan.attention_weights(scores(1), **METHODS[method]).tolist() == [1.0]
    for shape in ((0,), (3, 0), (0, 3)):
        assert epan.attention_weights(scores(*shape), **METHODS[method]).shape == shape


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_rounded_once(dtype: torch.dtype, method: str) -> None:
    """Computed in float32 and rounded to the dtype of the scores."""
    z = scores(3, 300, dtype=dtype)
    for dim in (-1, 0):
        expected = epan.attention_weights(z.float(), dim=dim, **METHODS[method]).to(dtype)
        tolerance.assert_equal_bits(epan.attention_weights(z, dim=dim, **METHODS[method]), expected)


@each_method
def test_derivatives_along_another_dimension_and_behind_masks(method: str) -> None:
    z = scores(4, 3).requires_grad_()
    bias = torch.randn(4, 1, dtype=torch.float64, requires_grad=True)
    # One row without keys.
    keep = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.bool)

    def weights(points: Tensor, added: Tensor) -> Tensor:
        mask = torch.where(keep, added, -math.inf)
        return epan.attention_weights(points, mask=mask, dim=0, **METHODS[method])

    assert gradcheck(weights, (z, bias))
    assert gradgradcheck(weights, (z, bias))
    first, second = torch.autograd.grad(weights(z, bias).square().sum(), (z, bias))
    assert bool((first[~keep] == 0).all())
    assert bool(torch.isfinite(second).all())


def test_the_scores_and_the_mask_are_never_written_to() -> None:
    for method in METHODS.values():
        z, mask = scores(3, 200, dtype=torch.float32), scores(200, dtype=torch.float32)
        before = z.clone(), mask.clone()
        epan.attention_weights(z, mask=mask, **method)
        epan.attention_weights(z.requires_grad_(), mask=mask, **method)
        tolerance.assert_equal_bits(z.detach(), before[0])
        tolerance.assert_equal_bits(mask, before[1])


def test_the_example_of_the_docstring() -> None:
    weights = epan.attention_weights(torch.tensor([1.0, 0.5, -3.0]), kernel="epanechnikov")
    assert weights.tolist() == [0.75, 0.25, 0.0]


Z = torch.zeros(3, 5)
MISTAKES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "integers": (Z.int(), {}, ("torch.int32", "scores.float()")),
    "a list": ([1.0], {}, ("list", "scores.float()")),
    "complex numbers": (Z.cfloat(), {}, ("torch.complex64", "floating-point")),
    "a number": (Z[0, 0], {}, ("dim=-1", "()")),
    "no such dimension": (Z, {"dim": 2}, ("dim=2", "(3, 5)")),
    "no such dimension from behind": (Z, {"dim": -3}, ("dim=-3", "(3, 5)")),
    "mask too narrow": (Z, {"mask": torch.ones(4).bool()}, ("(4,)", "(3, 5)")),
    "mask of more dimensions": (Z, {"mask": torch.ones(2, 3, 5).bool()}, ("(2, 3, 5)", "(3, 5)")),
    "mask that would widen the scores": (Z[:1], {"mask": torch.ones(3, 5).bool()}, ("(3, 5)", "(1, 5)")),
    "mask of integers": (Z, {"mask": torch.ones(5, dtype=torch.int64)}, ("torch.int64", "bool()")),
    "mask as a list": (Z, {"mask": [True]}, ("list", "tensor")),
    "causal bias": (Z, {"mask": causal_lower_right(3, 5)}, ("causal bias", "tril()")),
    "kernel": (Z, {"kernel": "triwieght"}, ("did you mean 'triweight'", "gaussian")),
    "normalization": (Z, {"normalization": "fixd"}, ("did you mean 'fixed'?", "adaptive")),
    "nearest": (Z, {"normalization": "nearest"}, ("epan.Nearest(k=16)",)),
    "entmax": (Z, {"normalization": "entmax15"}, ('kernel="biweight"',)),
    "uniform": (Z, {"kernel": "uniform"}, ("uniform", "epan.Nearest(k)")),
    "uniform without radius": (
        Z,
        {"kernel": "uniform", "normalization": "fixed"},
        ("radius", "epan.Uniform(radius=h)"),
    ),
    "cosine": (Z, {"kernel": "cosine"}, ("cosine", 'normalization="anchored"')),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    z, options, words = MISTAKES[mistake]
    with pytest.raises(EpanError) as caught:
        epan.attention_weights(z, **options)
    for word in words:
        assert word in str(caught.value)
