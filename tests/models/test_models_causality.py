"""Causality: changing the token at t never changes a logit before t, for any method, bandwidth and way of running."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from epan.models import LanguageModel, build

VOCAB, LENGTH = 13, 12
MOSAIC = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "width": 16, "persistent_size": 7}
TRANSFORMER = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "width": 16}
# From nearly flat weights, through the start, to a β of e^10 where only the nearest key is left.
SHIFTS = [-0.35, 0.0, 0.4]

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("memory_mosaic", {**MOSAIC, "persistent_kernel": "biweight", "persistent_normalization": "fixed"}),
    ("memory_mosaic", {**MOSAIC, "gated_keys": True, "adaptive_bandwidth": True}),
    ("memory_mosaic", {**MOSAIC, "short_window": 4, "long_skip": 2, "persistent": "swiglu"}),
    ("transformer", {**TRANSFORMER, "positions": "rope", "qk_norm": True}),
    ("transformer", {**TRANSFORMER, "positions": "alibi", "kv_heads": 1}),
    ("transformer", {**TRANSFORMER, "positions": "half", "length_scaling": "asentmax", "learn_scale": True}),
    ("transformer", {**TRANSFORMER, "positions": "nope", "length_scaling": "ssmax"}),
]


def leak(model: nn.Module, changed_at: tuple[int, ...] = (1, 2, 7, LENGTH - 1)) -> float:
    """The largest change of a logit before the token that was changed; asserts that later logits do change."""
    tokens = torch.randint(VOCAB, (3, LENGTH))
    worst = 0.0
    with torch.no_grad():
        before = model(tokens)
        for t in changed_at:
            other = tokens.clone()
            other[:, t] = (other[:, t] + torch.randint(1, VOCAB, (3,))) % VOCAB
            difference = (model(other) - before).abs()
            worst = max(worst, float(difference[:, :t].max()))
            assert float(difference[:, t].max()) > 0
    return worst


def shift_bandwidth(model: nn.Module, shift: float) -> None:
    """β times e^(20·shift) in memories and, in step, in learnt scales."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_scale"):
                parameter.add_(shift)


@pytest.mark.parametrize("shift", SHIFTS)
def test_no_method_of_the_mosaic_leaks(method: tuple[Any, Any], shift: float) -> None:
    model = build("memory_mosaic", {**MOSAIC, "kernel": method[0], "normalization": method[1]}).eval()
    shift_bandwidth(model, shift)
    assert leak(model) == 0.0


def test_no_method_of_the_transformer_leaks(method: tuple[Any, Any]) -> None:
    options = {**TRANSFORMER, "kernel": method[0], "normalization": method[1], "positions": "half", "learn_scale": True}
    model = build("transformer", options).eval()
    for shift in (-4.0, 4.0, 4.0):
        shift_bandwidth(model, shift)
        assert leak(model) == 0.0


@pytest.mark.parametrize(("name", "options"), MODELS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_option_leaks(name: str, options: dict[str, Any], shift: float) -> None:
    model = build(name, options).eval()
    shift_bandwidth(model, shift)
    assert leak(model) == 0.0


class Stepped(nn.Module):
    """A model run through its cache, some tokens at a time."""

    def __init__(self, model: LanguageModel, piece: int) -> None:
        super().__init__()
        self.model, self.piece = model, piece

    def forward(self, tokens: Tensor) -> Tensor:
        cache, logits = self.model.init_cache(tokens.shape[0]), []
        for part in tokens.split(self.piece, dim=1):
            out, cache = self.model.step(part, cache)
            logits.append(out)
        return torch.cat(logits, dim=1)


@pytest.mark.parametrize("piece", [1, 5, LENGTH])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_no_option_leaks_through_the_cache(name: str, options: dict[str, Any], piece: int) -> None:
    assert leak(Stepped(build(name, options).eval(), piece)) == 0.0


def test_the_check_sees_a_leak() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embedding(tokens)
            return x + 1e-6 * x.roll(-1, dims=1)

    assert leak(Leaky()) > 0


@pytest.mark.parametrize("length", [256, 700])
@pytest.mark.parametrize(
    ("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", {**TRANSFORMER, "positions": "half"})]
)
def test_long_sequences_do_not_leak_either(name: str, options: dict[str, Any], length: int) -> None:
    """More steps than one tile or one chunk holds."""
    model = build(name, options).eval()
    tokens, cut = torch.randint(VOCAB, (1, length)), 3 * length // 4
    other = tokens.clone()
    other[:, cut] = (other[:, cut] + 1) % VOCAB
    with torch.no_grad():
        difference = (model(tokens) - model(other)).abs()
    assert float(difference[:, :cut].max()) == 0.0
    assert float(difference[:, cut:].max()) > 0
