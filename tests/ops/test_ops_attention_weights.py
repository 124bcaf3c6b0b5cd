"""attention_weights: any dimension, broadcast masks, dtypes, derivatives, mistakes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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


@pytest.mark.parametrize("dim", range(-3, 3))
def test_an_order_per_row_is_laid_out_like_the_scores(dim: int) -> None:
    """Each row as if alone, with gradient; and a NumPy integer names the same dimension."""
    z, order = scores(2, 3, 4), 1.0 + 20.0 * torch.rand(2, 3, 4, dtype=torch.float64)
    order = order.narrow(dim, 0, 1).clone().requires_grad_()
    actual = epan.attention_weights(z, kernel=epan.Polynomial(order=order), dim=np.int64(dim))
    rows = z.movedim(dim, -1).flatten(0, -2)
    alone = [
        epan.attention_weights(row, kernel=epan.Polynomial(order=n))
        for row, n in zip(rows, order.movedim(dim, -1).flatten(), strict=True)
    ]
    expected = torch.stack(alone).view(z.movedim(dim, -1).shape).movedim(-1, dim)
    tolerance.assert_within(actual, expected, band=tolerance.EXACT)
    upstream = torch.randn_like(z)
    grads = [torch.autograd.grad(w, order, upstream)[0] for w in (actual, expected)]
    tolerance.assert_within(*grads, band=tolerance.EXACT * max(1.0, tolerance.largest(grads[1])))


def test_an_order_that_broadcasts() -> None:
    z = scores(2, 3, 4)
    for shape in ((), (1,), (3, 1), (1, 1), (2, 1, 1)):
        order = 1.0 + 20.0 * torch.rand(shape, dtype=torch.float64)
        whole = epan.attention_weights(z, kernel=epan.Polynomial(order=order.expand(2, 3, 1).clone()))
        tolerance.assert_equal_bits(epan.attention_weights(z, kernel=epan.Polynomial(order=order)), whole)


Z = torch.zeros(3, 5)
MISTAKES: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "integers": (Z.int(), {}, ("torch.int32", "scores.float()")),
    "a list": ([1.0], {}, ("list", "torch.as_tensor(scores)")),
    "8 bits": (Z.to(torch.float8_e5m2), {}, ("torch.float8_e5m2", "bfloat16", "scores.float()")),
    "sparse": (Z.to_sparse(), {}, ("torch.sparse_coo", "scores.to_dense()")),
    "dimension as text": (Z, {"dim": "a"}, ("'a'", "integer", "(3, 5)")),
    "no dimension": (Z, {"dim": None}, ("None", "integer", "(3, 5)")),
    "dimension as a float": (Z, {"dim": 0.0}, ("0.0", "integer", "(3, 5)")),
    "dimension as a truth": (Z, {"dim": True}, ("True", "integer", "(3, 5)")),
    "mask on another device": (
        Z,
        {"mask": torch.ones(5, device="meta").bool()},
        ("mask on meta, scores on cpu", "mask.to(scores.device)"),
    ),
    "sparse mask": (Z, {"mask": torch.ones(3, 5).to_sparse()}, ("sparse_coo", "to_dense()")),
    "order of other rows": (Z, {"kernel": epan.Polynomial(order=torch.full((2, 1), 2.0))}, ("(2, 1)", "(3, 1)")),
    "order per key": (Z, {"kernel": epan.Polynomial(order=torch.full((3, 5), 2.0))}, ("(3, 5)", "(3, 1)")),
    "order per key alone": (Z, {"kernel": epan.Polynomial(order=torch.full((5,), 2.0))}, ("(5,)", "(3, 1)")),
    "order per key in front": (
        Z,
        {"kernel": epan.Polynomial(order=torch.full((3, 1), 2.0)), "dim": 0},
        ("(3, 1)", "(1, 5)"),
    ),
    "order of more dimensions": (
        Z,
        {"kernel": epan.Polynomial(order=torch.full((1, 3, 1), 2.0))},
        ("(1, 3, 1)", "(3, 1)"),
    ),
    "order on another device": (
        Z,
        {"kernel": epan.Polynomial(order=torch.full((), 2.0, device="meta"))},
        ("order on meta, scores on cpu", "order.to(scores.device)"),
    ),
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
