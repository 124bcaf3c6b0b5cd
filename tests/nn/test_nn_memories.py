"""Contextual and persistent memories: which pairs are read, the formulas, the cache, and the statistics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from epan.errors import EpanError, UnsupportedError
from epan.nn import ContextualMemory, PersistentMemory
from epan.ops import attention_weights

WIDTH, HEADS, LENGTH = 16, 2, 13


class Given(nn.Module):
    """Stands in for the value extractor, so that each stored value is a tensor of its own."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values


def influence(memory: ContextualMemory, length: int = LENGTH) -> Tensor:
    """(T, T) bool: whether the output at i changes with the value stored at j."""
    values = torch.randn(1, HEADS, length, WIDTH // HEADS, dtype=torch.float64, requires_grad=True)
    memory = memory.double().eval()
    memory.value = Given(values)  # type: ignore[assignment]
    out = memory(torch.randn(1, length, WIDTH, dtype=torch.float64))
    rows = []
    for i in range(length):
        (grad,) = torch.autograd.grad(out[0, i].square().sum() + out[0, i].sum(), values, retain_graph=True)
        rows.append((grad[0] != 0).any(-1).any(0))
    return torch.stack(rows)


def lags(length: int = LENGTH) -> Tensor:
    return torch.arange(length)[:, None] - torch.arange(length)


def test_query_i_reads_exactly_the_pairs_before_i() -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel="gaussian")
    assert torch.equal(influence(memory), lags() >= 1)


def test_every_method_reads_the_newest_pair_and_none_newer(method: tuple[Any, Any]) -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel=method[0], normalization=method[1])
    read = influence(memory)
    assert not bool((read & (lags() < 1)).any())
    # With a single pair stored, i = 1, that pair is all there is to read; only an empty row may refuse it.
    if "zero" not in str(method[1]):
        assert bool(read[1, 0])


def test_a_wide_fixed_radius_reads_every_pair_and_none_newer() -> None:
    for kernel in ("epanechnikov", "biweight", "triweight", "cosine"):
        memory = ContextualMemory(WIDTH, HEADS, kernel=kernel, normalization="fixed")
        with torch.no_grad():
            memory.scale.log_scale.fill_(math.log(0.2) / 20)
        assert torch.equal(influence(memory), lags() >= 1)


@pytest.mark.parametrize(("skip", "span"), [(3, None), (1, 4), (2, 5), (1, 1), (40, None)])
def test_skip_and_span(skip: int, span: int | None) -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel="gaussian", skip=skip, span=span)
    expected = lags() >= skip
    if span is not None:
        expected &= lags() <= span
    if skip >= LENGTH:
        with torch.no_grad():
            assert bool((memory(torch.randn(2, LENGTH, WIDTH)) == 0).all())
    else:
        assert torch.equal(influence(memory, LENGTH), expected)


@pytest.mark.parametrize(
    ("kernel", "normalization"), [("gaussian", "adaptive"), ("biweight", "adaptive"), ("epanechnikov", "anchored")]
)
@pytest.mark.parametrize("options", [{}, {"gated": True}, {"adaptive_bandwidth": True}])
def test_contextual_memory_is_its_formula(kernel: str, normalization: str, options: dict[str, Any]) -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel=kernel, normalization=normalization, **options).double().eval()
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    keys, _ = memory.key(x)
    values = memory.value(x)
    n = torch.arange(LENGTH, dtype=torch.float64).clamp(min=1)
    beta = torch.full_like(n, math.exp(2))
    if "adaptive_bandwidth" in options:
        beta = math.exp(1.5) * n ** float(memory.scale.exponent[0].detach()) + math.exp(1.5)
    elif not options:
        beta = beta * math.exp(20 * (float(memory.scale.log_scale[0].detach()) - 0.1))
    if options.get("gated"):
        beta = torch.full_like(n, math.exp(20 * float(memory.scale.log_scale[0].detach())))
    scores = beta[:, None] * (keys @ keys.transpose(-2, -1))
    weights = attention_weights(scores, kernel=kernel, normalization=normalization, mask=lags() >= 1)
    expected = (weights @ values).transpose(1, 2).reshape(3, LENGTH, WIDTH) @ memory.output.weight.T
    out = memory(x)
    assert (out - expected).abs().max() <= 1e-12
    assert bool((out[:, 0] == 0).all())


def test_fixed_contextual_memory_uses_distances() -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel="epanechnikov", normalization="fixed").double().eval()
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    keys, _ = memory.key(x)
    beta = memory.scale.current().detach()[:, None, None]
    weights = torch.relu(1 - beta * torch.cdist(keys, keys) ** 2 / 2) * (lags() >= 1)
    total = weights.sum(-1, keepdim=True)
    expected = (weights / total) @ memory.value(x)
    out = memory(x)
    full = (total > 0).squeeze(-1).all(1)
    assert bool(full[:, 1:].any())
    wanted = expected.transpose(1, 2).reshape(3, LENGTH, WIDTH) @ memory.output.weight.T
    assert (out - wanted)[full].abs().max() <= 1e-12


def test_persistent_memory_is_its_formula() -> None:
    memory = PersistentMemory(WIDTH, HEADS, 7).double().eval()
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    queries, _ = memory.key(x)
    beta = memory.scale.current()[:, None, None]
    weights = torch.softmax(beta * queries @ memory.keys.transpose(-2, -1), dim=-1)
    read = weights @ memory.values * torch.exp(10 * memory.log_gain)[:, None, None]
    expected = read.transpose(1, 2).reshape(3, LENGTH, WIDTH) @ memory.output.weight.T
    assert (memory(x) - expected).abs().max() <= 1e-12


def test_parts_of_the_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PersistentMemory(WIDTH, HEADS, 7, dropout=0.0).double()
    x = torch.randn(6, LENGTH, WIDTH, dtype=torch.float64)
    found = []
    for parts in (1, 3):
        monkeypatch.setattr(PersistentMemory, "_parts", lambda *_, count=parts: count)
        out, stats = memory(x, return_stats=True)
        found.append(
            (
                out,
                stats.threshold,
                stats.partition,
                *torch.autograd.grad(out.sum() + (out**2).sum(), [*memory.parameters()]),
            )
        )
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_persistent_memory_takes_any_method(method: tuple[Any, Any]) -> None:
    memory = PersistentMemory(WIDTH, HEADS, 9, kernel=method[0], normalization=method[1]).double().eval()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    out, stats = memory(x, return_stats=True)
    queries, _ = memory.key(x)
    keys = memory.keys.detach()
    if memory.similarity == "euclidean":
        scores = -((queries[:, :, :, None] - keys[None, :, None]) ** 2).sum(-1) / 2
    else:
        scores = queries @ keys.transpose(-2, -1)
    scores = scores * memory.scale.current()[:, None, None]
    kernel = memory.kernel.at_scale(memory.scale.current()[:, None, None])
    weights = attention_weights(scores, kernel=kernel, normalization=memory.normalization)
    read = weights @ memory.values * torch.exp(10 * memory.log_gain)[:, None, None]
    expected = read.transpose(1, 2).reshape(2, LENGTH, WIDTH) @ memory.output.weight.T
    assert (out - expected).abs().max() <= 1e-9
    assert all(field.shape == (2, HEADS, LENGTH) for field in stats[:3])
    alone = memory(x[1:], return_stats=True)[1]
    assert torch.allclose(stats.threshold[1:], alone.threshold, rtol=1e-9, atol=1e-9)
    assert torch.equal(stats.support_size[1:], alone.support_size)
    if kernel.order != math.inf or memory.normalization.name == "nearest":
        assert torch.equal(stats.support_size, (weights > 0).sum(-1))


def test_persistent_memory_starts_as_published() -> None:
    memory = PersistentMemory(64, 4, 200, depth=9)
    assert float(memory.keys.detach().std()) == pytest.approx(1 / 4, rel=0.05)
    assert float(memory.values.detach().std()) == pytest.approx(1 / 4, rel=0.05)
    assert float(memory.output.weight.detach().std()) == pytest.approx(1 / (8 * 3), rel=0.05)
    assert torch.allclose(memory.scale.current(), torch.tensor(math.exp(2)))
    assert bool((memory.log_gain == -0.05).all())
    assert torch.allclose(memory.key.average.leak, torch.linspace(0.05, 0.5, 4))


@pytest.mark.parametrize(
    "options", [{}, {"gated": True}, {"adaptive_bandwidth": True}, {"skip": 3}, {"span": 4, "adaptive_bandwidth": True}]
)
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [5, 8], [2, 1, 7, 3], [LENGTH]])
def test_steps_give_what_the_whole_gives(options: dict[str, Any], pieces: list[int]) -> None:
    memory = ContextualMemory(WIDTH, HEADS, **options).double().eval()
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    cache, done, outs = memory.init_cache(3), 0, []
    for piece in pieces:
        before = [field.clone() for field in cache]
        out, after = memory.step(x[:, done : done + piece], cache)
        assert all(torch.equal(old, new) for old, new in zip(before, cache, strict=True))
        outs.append(out)
        cache, done = after, done + piece
    assert cache.keys.shape[2] == LENGTH
    assert cache.values.shape[2] == LENGTH - 1
    assert (torch.cat(outs, dim=1) - memory(x)).abs().max() <= 1e-12


def test_dropout_acts_in_training_only() -> None:
    x = torch.randn(2, 40, WIDTH)
    for memory in (ContextualMemory(WIDTH, HEADS, dropout=0.5), PersistentMemory(WIDTH, HEADS, 30, dropout=0.5)):
        assert not torch.equal(memory(x), memory(x))
        memory.eval()
        assert torch.equal(memory(x), memory(x))


def test_learnt_order_gets_a_gradient() -> None:
    memory = ContextualMemory(WIDTH, HEADS, kernel="biweight", learn_order=True)
    memory(torch.randn(2, 30, WIDTH)).square().sum().backward()
    assert memory.order is not None
    assert bool((memory.order.order.grad != 0).all())
    plain = ContextualMemory(WIDTH, HEADS, kernel="biweight").eval()
    plain.load_state_dict({k: v for k, v in memory.state_dict().items() if not k.startswith("order.")})
    x = torch.randn(1, 20, WIDTH)
    assert torch.allclose(plain(x), memory.eval()(x), atol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(EpanError, match="divisible"):
        ContextualMemory(10, 4)
    with pytest.raises(EpanError, match="one step back"):
        ContextualMemory(8, 2, skip=0)
    with pytest.raises(EpanError, match="span"):
        ContextualMemory(8, 2, skip=3, span=2)
    with pytest.raises(EpanError, match="at least one pair"):
        PersistentMemory(8, 2, 0)
    with pytest.raises(UnsupportedError):
        ContextualMemory(8, 2, kernel="cosine", normalization="adaptive")
    with pytest.raises(EpanError, match="biweight"):
        PersistentMemory(8, 2, 4, kernel="biwieght")
