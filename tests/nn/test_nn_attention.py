"""Plain attention: against torch, positions, length scaling, grouped queries, the cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epan.errors import EpanError, UnsupportedError
from epan.nn import ASEntmax, KernelAttention, SSMax, alibi_slopes, radius_of_random_keys, rotate

WIDTH, HEADS, LENGTH = 16, 4, 11


def heads_of(x: Tensor, weight: Tensor) -> Tensor:
    out = x @ weight.T
    return out.view(*out.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], WIDTH)


def sample(length: int = LENGTH) -> Tensor:
    return torch.randn(3, length, WIDTH, dtype=torch.float64)


def projections(layer: KernelAttention, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        heads_of(x, layer.query.weight),
        heads_of(context, layer.key.weight),
        heads_of(context, layer.value.weight),
    )


@pytest.mark.parametrize("kv_heads", [None, 2, 1])
def test_gaussian_causal_is_torch(kv_heads: int | None) -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="gaussian", kv_heads=kv_heads).double()
    x = sample()
    q, k, v = projections(layer, x, x)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads is not None)
    assert (layer(x, is_causal=True) - merged(expected) @ layer.output.weight.T).abs().max() <= 1e-12


def test_cross_attention_and_masks_are_torch() -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="gaussian").double()
    x, context = sample(), sample(7)
    mask = torch.rand(LENGTH, 7) > 0.4
    mask[:, 0] = True
    q, k, v = projections(layer, x, context)
    expected = merged(F.scaled_dot_product_attention(q, k, v, mask)) @ layer.output.weight.T
    assert (layer(x, context, attn_mask=mask) - expected).abs().max() <= 1e-12
    with pytest.raises(EpanError, match="is_causal"):
        layer(x, context, is_causal=True)


def test_alibi_is_a_bias_of_the_distance() -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="gaussian", positions="alibi").double()
    x = sample()
    step = torch.arange(LENGTH)
    lag = (step[:, None] - step).double()
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
    bias = (-slopes[:, None, None] * lag).masked_fill(lag < 0, -math.inf)
    expected = merged(F.scaled_dot_product_attention(*projections(layer, x, x), bias)) @ layer.output.weight.T
    assert (layer(x, is_causal=True) - expected).abs().max() <= 1e-12


def test_half_and_half_slopes() -> None:
    half = alibi_slopes("half", 6)
    assert half is not None
    assert half.tolist() == [0, 0, 0, 1, 1 / 2, 1 / 3]
    assert alibi_slopes("rope", 6) is None
    assert alibi_slopes("nope", 6) is None


def test_rotation_depends_on_the_distance_only() -> None:
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        return float((rotate(q[None, None, None], i) * rotate(k[None, None, None], j)).sum())

    assert product(5, 2) == pytest.approx(product(70_005, 70_002), rel=1e-9)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-3)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    assert torch.allclose(rotate(x, 0).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate(x, 0)[:, :, 4:], rotate(x[:, :, 4:], 4))
    turned = rotate(x, 0)[0, 0, 3]
    angle = 3 * 10_000 ** (-1 / 4)
    assert float(turned[1]) == pytest.approx(float(x[0, 0, 3, 1] * math.cos(angle) - x[0, 0, 3, 5] * math.sin(angle)))


def test_rope_attention_forgets_where_it_is_and_nope_everything() -> None:
    shift = 3
    x = sample(LENGTH)
    padded = torch.cat([torch.zeros(3, shift, WIDTH, dtype=torch.float64), x], dim=1)
    mask = torch.ones(LENGTH + shift, LENGTH + shift, dtype=torch.bool).tril()
    mask[:, :shift] = torch.eye(LENGTH + shift, shift, dtype=torch.bool)
    layer = KernelAttention(WIDTH, HEADS, positions="rope").double()
    assert torch.allclose(layer(padded, attn_mask=mask)[:, shift:], layer(x, is_causal=True), atol=1e-9)
    order = torch.randperm(LENGTH - 1)
    mixed = torch.cat([x[:, :-1][:, order], x[:, -1:]], dim=1)
    nope = KernelAttention(WIDTH, HEADS, positions="nope").double()
    assert torch.allclose(nope(mixed, is_causal=True)[:, -1], nope(x, is_causal=True)[:, -1], atol=1e-12)
    assert not torch.allclose(layer(mixed, is_causal=True)[:, -1], layer(x, is_causal=True)[:, -1], atol=1e-3)


def test_asentmax_is_its_formula() -> None:
    layer, x = ASEntmax(WIDTH, 2).double(), sample(5)
    factor = layer(x, first=7)
    for t in range(5):
        strength = torch.log1p(torch.exp(x[:, t] @ layer.weight.weight.T))
        exponent = 2 * torch.tanh(x[:, t] @ layer.exponent.weight.T)
        assert torch.allclose(factor[:, :, t, 0], 1 + strength * math.log(7 + t + 2) ** exponent)


def test_ssmax_is_its_formula() -> None:
    layer = SSMax(3).double()
    factor = layer(sample(5), first=2)
    assert factor.shape == (1, 3, 5, 1)
    assert torch.allclose(factor[0, 1, :, 0], 0.25 * torch.log(torch.arange(4, 9, dtype=torch.float64)))


@pytest.mark.parametrize("scaling", ["asentmax", "ssmax"])
def test_length_scaling_multiplies_the_queries_of_heads_without_positions(scaling: str) -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="gaussian", positions="half", length_scaling=scaling).double()
    x = sample()
    q, k, v = projections(layer, x, x)
    factor = layer.length_scaling(x, 0).expand(3, 2, LENGTH, 1)  # type: ignore[misc]
    q = torch.cat([q[:, :2] * factor, q[:, 2:]], dim=1)
    step = torch.arange(LENGTH)
    lag = (step[:, None] - step).double()
    slopes = torch.tensor([0, 0, 1, 1 / 2], dtype=torch.float64)
    bias = (-slopes[:, None, None] * lag).masked_fill(lag < 0, -math.inf)
    expected = merged(F.scaled_dot_product_attention(q, k, v, bias)) @ layer.output.weight.T
    assert (layer(x, is_causal=True) - expected).abs().max() <= 1e-12


def test_qk_norm_makes_the_size_of_queries_and_keys_irrelevant() -> None:
    layer = KernelAttention(WIDTH, HEADS, qk_norm=True).double()
    x = sample()
    before = layer(x, is_causal=True)
    with torch.no_grad():
        layer.query.weight.mul_(1000)
        layer.key.weight.mul_(1000)
    assert torch.allclose(layer(x, is_causal=True), before, atol=1e-5)


def test_learnt_scale_starts_where_the_constant_is() -> None:
    plain, learnt = KernelAttention(WIDTH, HEADS), KernelAttention(WIDTH, HEADS, learn_scale=True)
    learnt.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, LENGTH, WIDTH)
    assert torch.allclose(plain(x, is_causal=True), learnt(x, is_causal=True), atol=1e-6)
    assert torch.allclose(plain.bandwidth(), learnt.bandwidth())
    assert torch.allclose(plain.bandwidth(), torch.tensor(1 / math.sqrt(WIDTH // HEADS)))
    learnt(x, is_causal=True).square().sum().backward()
    assert learnt.scale is not None
    assert bool((learnt.scale.log_scale.grad != 0).all())


def test_fixed_attention_starts_with_few_empty_rows() -> None:
    layer = KernelAttention(64, 4, kernel="epanechnikov", normalization="fixed", qk_norm=True)
    assert layer.initial_scale == pytest.approx(2 / (16 * radius_of_random_keys(16) ** 2))
    _, stats = layer(torch.randn(4, 200, 64), is_causal=True, return_stats=True)
    assert float((stats.partition[..., 30:] == 0).double().mean()) < 0.1


def test_every_method_runs_and_reports(method: tuple[Any, Any]) -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel=method[0], normalization=method[1], positions="half")
    out, stats = layer(torch.randn(2, LENGTH, WIDTH), is_causal=True, return_stats=True)
    assert bool(torch.isfinite(out).all())
    assert all(field.shape == (2, HEADS, LENGTH) for field in stats[:3])


def test_counting_heads_give_a_compressed_sum_where_others_give_a_mean() -> None:
    options = {"kernel": "epanechnikov", "normalization": "anchored"}
    layer = KernelAttention(WIDTH, HEADS, counting_heads=3, **options).double()  # type: ignore[arg-type]
    x = sample()
    q, k, v = projections(layer, x, x)
    scores = (q @ k.transpose(-2, -1) / 2).masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), -math.inf)
    kernel = (1 + scores - scores.amax(-1, keepdim=True)).clamp(min=0)
    total = kernel @ v
    read = torch.cat([total[:, :3].asinh(), (total / kernel.sum(-1, keepdim=True))[:, 3:]], dim=1)
    assert (layer(x, is_causal=True) - merged(read) @ layer.output.weight.T).abs().max() <= 1e-12
    out, stats = layer(x, is_causal=True, return_stats=True)
    assert torch.equal(out, layer(x, is_causal=True))
    assert torch.allclose(stats.partition, kernel.sum(-1))


def test_a_window_is_a_mask() -> None:
    layer, plain = (KernelAttention(WIDTH, HEADS, positions="half", window=w).double() for w in (4, None))
    plain.load_state_dict(layer.state_dict())
    x, back = sample(), torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    expected = plain(x, is_causal=True, attn_mask=back < 4)
    assert (layer(x, is_causal=True) - expected).abs().max() <= 1e-12
    with pytest.raises(EpanError, match="window"):
        KernelAttention(WIDTH, HEADS, window=0)


@pytest.mark.parametrize("positions", ["rope", "alibi", "nope", "half"])
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [4, 1, 6]])
def test_steps_give_what_the_whole_gives(positions: str, pieces: list[int]) -> None:
    scaling = "asentmax" if positions in ("nope", "half") else None
    layer = KernelAttention(
        WIDTH, HEADS, kv_heads=2, positions=positions, length_scaling=scaling, qk_norm=True
    ).double()
    x = sample()
    cache, done, outs = layer.init_cache(3), 0, []
    for piece in pieces:
        out, cache = layer.step(x[:, done : done + piece], cache)
        outs.append(out)
        done += piece
    assert (torch.cat(outs, dim=1) - layer(x, is_causal=True)).abs().max() <= 1e-12


def test_learnt_order_gets_a_gradient() -> None:
    layer = KernelAttention(WIDTH, HEADS, kernel="triweight", learn_order=True)
    layer(torch.randn(2, 30, WIDTH), is_causal=True).square().sum().backward()
    assert layer.order is not None
    assert bool((layer.order.order.grad != 0).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "divisible"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"positions": "rop"}, "rope"),
        ({"positions": "half", "heads": 1}, "even"),
        ({"positions": "rope", "width": 12}, "even"),
        ({"length_scaling": "asentmax", "positions": "rope"}, "half"),
        ({"length_scaling": "asentmx"}, "asentmax"),
        ({"kernel": "softmax"}, "gaussian"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    sizes = {"width": WIDTH, "heads": HEADS, **options}
    with pytest.raises(EpanError, match=message):
        KernelAttention(**sizes)
    with pytest.raises(UnsupportedError):
        KernelAttention(WIDTH, HEADS, kernel="gaussian", learn_order=True)
