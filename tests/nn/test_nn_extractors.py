"""Key and value extractors against their formulas, and the unit norm at the zero vector."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from epan.nn import KeyExtractor, ValueExtractor
from epan.nn._unit import unit_norm


def test_unit_norm() -> None:
    x = torch.randn(5, 7, dtype=torch.float64) * torch.tensor([1e-9, 1e-3, 1.0, 1e3, 1e9])[:, None]
    assert torch.allclose(unit_norm(x).norm(dim=-1), torch.ones(5, dtype=torch.float64), rtol=1e-14, atol=0)
    assert unit_norm(torch.randn(2, 3).bfloat16()).dtype == torch.bfloat16


def test_unit_norm_of_the_zero_vector_is_zero_with_zero_gradient() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    x[1] = 0
    x.requires_grad_()
    out = unit_norm(x)
    (grad,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert bool((out[1] == 0).all() & (grad[1] == 0).all())
    assert bool(torch.isfinite(grad).all() & torch.isfinite(second).all())
    assert bool((grad[0] != 0).all())


def test_unit_norm_derivatives() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(unit_norm, (x,))
    assert gradgradcheck(unit_norm, (x,))


def test_keys_are_their_formula() -> None:
    extractor = KeyExtractor(12, 3).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    keys, state = extractor(x)
    raw = (x @ extractor.projection.weight.T).view(2, 20, 3, 4)
    rate = 10 * extractor.average.leak.detach()
    assert torch.allclose(rate, torch.tensor([0.5, 2.75, 5.0], dtype=torch.float64))
    mean = torch.zeros(2, 3, 4, dtype=torch.float64)
    for t in range(20):
        mean = raw[:, t] + torch.exp(-rate)[:, None] * mean
        assert torch.allclose(keys[:, :, t], mean / mean.norm(dim=-1, keepdim=True), rtol=1e-12, atol=1e-12)
    assert torch.allclose(state, mean, rtol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_keys_go_on_from_the_state(gated: bool) -> None:
    extractor = KeyExtractor(12, 3, gated=gated).double()
    x = torch.randn(2, 70, 12, dtype=torch.float64)
    keys, state = extractor(x)
    head, carried = extractor(x[:, :33])
    tail, last = extractor(x[:, 33:], carried)
    assert (torch.cat([head, tail], dim=2) - keys).abs().max() <= 1e-13
    assert torch.allclose(last, state, rtol=1e-12)
    nothing, same = extractor(x[:, :0], carried)
    assert nothing.shape == (2, 3, 0, 4)
    assert same is carried


def test_key_rates_start_as_published() -> None:
    leak = KeyExtractor(32, 8).average.leak
    assert torch.allclose(leak, torch.linspace(0.05, 0.5, 8))


def test_values_are_their_formula() -> None:
    extractor = ValueExtractor(12, 3).double()
    with torch.no_grad():
        extractor.log_gain.copy_(torch.tensor([-0.05, 0.0, 0.1]))
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    raw = (x @ extractor.projection.weight.T).view(2, 9, 3, 4).transpose(1, 2)
    values = extractor(x)
    for head in range(3):
        c = float(extractor.lookahead[head].detach())
        for t in range(9):
            following = raw[:, head, t + 1] if t < 8 else torch.zeros(2, 4, dtype=torch.float64)
            mixed = (1 - c) * following + c * raw[:, head, t]
            gain = math.exp(10 * float(extractor.log_gain[head].detach()))
            assert torch.allclose(values[:, head, t], gain * mixed / mixed.norm(dim=-1, keepdim=True), atol=1e-12)


def test_value_parameters_start_as_published() -> None:
    extractors = [ValueExtractor(64, 16) for _ in range(4)]
    mix = torch.cat([extractor.lookahead for extractor in extractors])
    assert 0 <= float(mix.min()) < 0.2
    assert 0.8 < float(mix.max()) <= 1
    assert bool((extractors[0].log_gain == -0.05).all())
    assert float(extractors[0].projection.weight.std()) == pytest.approx(1 / 8, rel=0.1)


def test_zero_inputs_give_zero_and_finite_gradients() -> None:
    key, value = KeyExtractor(8, 2), ValueExtractor(8, 2)
    x = torch.zeros(1, 5, 8, requires_grad=True)
    (key(x)[0].sum() + value(x).sum()).backward()
    assert bool((key(x)[0] == 0).all() & (value(x) == 0).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in [*key.parameters(), *value.parameters(), x])
