"""Weights written out are those of the forward pass, and a multiplied β is that of another temperature."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from epan.errors import EpanError
from epan.models import build
from epan.nn import ContextualMemory, KernelAttention, scaled

WIDTH, HEADS, LENGTH = 16, 4, 13


def read(layer: ContextualMemory | KernelAttention, x: Tensor) -> Tensor:
    return layer(x) if isinstance(layer, ContextualMemory) else layer(x, is_causal=True)


def values(layer: ContextualMemory | KernelAttention, x: Tensor) -> Tensor:
    if isinstance(layer, ContextualMemory):
        return layer.value(x)
    return layer._project(x, x, 0)[2].repeat_interleave(layer.heads // layer.kv_heads, dim=1)


def check_weights(layer: ContextualMemory | KernelAttention) -> None:
    layer, x = layer.double().eval(), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    weights, stats = layer.weights(x)
    out = (weights @ values(layer, x)).transpose(1, 2).flatten(2) @ layer.output.weight.T
    assert (out - read(layer, x)).abs().max() <= 1e-12
    assert torch.equal(stats.support_size, (weights > 0).sum(-1)) or "nearest" in layer.normalization.name
    places = torch.tensor([7, 0, 12])
    some, some_stats = layer.weights(x, places)
    assert torch.allclose(some, weights[:, :, places], atol=1e-13)
    assert torch.allclose(some_stats.threshold, stats.threshold[:, :, places], atol=1e-12)


def test_weights_of_every_method(method: tuple[Any, Any]) -> None:
    check_weights(ContextualMemory(WIDTH, HEADS, kernel=method[0], normalization=method[1]))
    check_weights(KernelAttention(WIDTH, HEADS, kernel=method[0], normalization=method[1], positions="half"))


@pytest.mark.parametrize(
    "options",
    [
        {"skip": 2},
        {"span": 4},
        {"skip": 3, "span": 6, "adaptive_bandwidth": True},
        {"gated": True},
        {"learn_order": True},
    ],
)
def test_weights_of_every_memory(options: dict[str, Any]) -> None:
    check_weights(ContextualMemory(WIDTH, HEADS, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "rope", "kv_heads": 2, "qk_norm": True},
        {"positions": "alibi", "learn_scale": True, "learn_order": True},
        {"positions": "half", "length_scaling": "asentmax", "short_conv": 3},
        {"positions": "nope", "length_scaling": "ssmax"},
    ],
)
def test_weights_of_every_attention(options: dict[str, Any]) -> None:
    check_weights(KernelAttention(WIDTH, HEADS, **options))


@pytest.mark.parametrize(
    ("kernel", "rule"), [("gaussian", "adaptive"), ("biweight", "anchored"), ("triweight", "fixed")]
)
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_scaled_memory_is_one_of_another_bandwidth(kernel: str, rule: str, adaptive: bool) -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel=kernel, normalization=rule, adaptive_bandwidth=adaptive).double()
    memory.eval()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    before, pieces = memory(x), memory.init_cache(2, dtype=torch.float64)
    with scaled(memory, 3.0):
        got = memory(x)
        stepped, _ = memory.step(x, pieces)
        assert (memory.scale.current() > 0).all()
    with torch.no_grad():
        for name, parameter in memory.scale.named_parameters():
            if name != "exponent":
                # The logarithm of β, or a twentieth of it.
                parameter.add_(math.log(3) / (1 if adaptive else 20))
        assert (got - memory(x)).abs().max() <= 1e-12
        assert (stepped - got).abs().max() <= 1e-12
        assert (got - before).abs().max() > 1e-3


def test_a_scaled_transformer_is_one_of_longer_queries_and_alibi_stays() -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="gaussian", positions="half", length_scaling="ssmax").double()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    with scaled(nn.Sequential(layer), 2.0):
        got, weights = layer(x, is_causal=True), layer.weights(x)[0]
    with torch.no_grad():
        layer.query.weight.mul_(2)
        assert (got - layer(x, is_causal=True)).abs().max() <= 1e-12
        assert (weights - layer.weights(x)[0]).abs().max() <= 1e-12


def test_the_context_ends_also_by_an_error_and_may_be_nested() -> None:
    model = build("memory_mosaic", {"vocab_size": 11, "layers": 2, "heads": 2, "width": 8}).eval()
    tokens = torch.randint(11, (2, 9))
    before, state = model(tokens), set(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), scaled(model, 2.0), scaled(model, 4.0):  # noqa: PT012
        got = model(tokens)
        assert set(model.state_dict()) == state
        raise RuntimeError("inside")
    assert torch.equal(model(tokens), before)
    with scaled(model, 8.0):
        assert torch.equal(model(tokens), got)
    with scaled(model, 1.0):
        assert torch.equal(model(tokens), before)


def test_top_k_with_equal_weights_has_no_temperature() -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel="uniform", normalization={"name": "nearest", "k": 3}).double()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    with scaled(memory.eval(), 4.0):
        got = memory(x)
    assert torch.equal(got, memory(x))


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, True, "2"])
def test_no_temperature(factor: Any) -> None:
    with pytest.raises(EpanError, match="positive"), scaled(nn.Linear(2, 2), factor):
        pass


@pytest.mark.parametrize("method", [("biweight", "adaptive"), ("epanechnikov", "anchored"), ("triweight", "fixed")])
@pytest.mark.parametrize("adaptive", [False, True])
def test_pairs_have_weight_within_the_radius_alone(method: tuple[str, str], adaptive: bool) -> None:
    memory = ContextualMemory(8, 2, kernel=method[0], normalization=method[1], adaptive_bandwidth=adaptive).double()
    x, places = torch.randn(2, LENGTH, 8, dtype=torch.float64), torch.tensor([12, 3, 7])
    weights, stats = memory.weights(x, places)
    keys, _ = memory.key(x)
    distance = torch.cdist(keys[:, :, places], keys)
    inside = (distance < memory.radius(stats, places)[..., None]) & (torch.arange(LENGTH) < places[:, None])
    # A row without a pair in reach takes the nearest one.
    full = stats.partition > 0
    assert bool(full.any())
    assert torch.equal((weights > 0)[full], inside[full])


def test_the_gaussian_has_its_standard_deviation_as_radius() -> None:
    memory, x, places = ContextualMemory(8, 2, kernel="gaussian"), torch.randn(2, LENGTH, 8), torch.arange(1, 4)
    radius = memory.radius(memory.weights(x, places)[1], places)
    assert torch.allclose(radius, torch.full((2, 2, 3), math.exp(-1.0)))
    with scaled(memory, 4.0):
        assert torch.allclose(memory.radius(memory.weights(x, places)[1], places), radius / 2)
