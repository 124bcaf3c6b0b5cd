"""Cached decoding: the logits of any sequence of steps are those of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from epan.models import LanguageModel, build

VOCAB, LENGTH = 13, 21
MOSAIC = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "width": 16, "persistent_size": 7}
TRANSFORMER = {"vocab_size": VOCAB, "layers": 2, "heads": 4, "width": 16}
PIECES = [[1] * LENGTH, [LENGTH], [1, 20], [9, 1, 1, 10], [2, 5, 14]]

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("memory_mosaic", MOSAIC),
    ("memory_mosaic", {**MOSAIC, "gated_keys": True}),
    ("memory_mosaic", {**MOSAIC, "adaptive_bandwidth": True}),
    ("memory_mosaic", {**MOSAIC, "short_window": 5}),
    ("memory_mosaic", {**MOSAIC, "short_window": 8, "long_skip": 4, "adaptive_bandwidth": True, "gated_keys": True}),
    ("memory_mosaic", {**MOSAIC, "persistent": "swiglu"}),
    ("memory_mosaic", {**MOSAIC, "compat": "shifted-mask"}),
    ("memory_mosaic", {**MOSAIC, "persistent_kernel": "epanechnikov", "persistent_normalization": "fixed"}),
    ("memory_mosaic", {**MOSAIC, "learn_order": True}),
    ("transformer", TRANSFORMER),
    ("transformer", {**TRANSFORMER, "positions": "alibi"}),
    ("transformer", {**TRANSFORMER, "positions": "nope", "length_scaling": "ssmax", "kv_heads": 1}),
    ("transformer", {**TRANSFORMER, "positions": "half", "length_scaling": "asentmax", "kv_heads": 2}),
    ("transformer", {**TRANSFORMER, "positions": "half", "kernel": "epanechnikov", "normalization": "fixed"}),
    ("transformer", {**TRANSFORMER, "qk_norm": True, "learn_scale": True, "tie_head": False}),
    ("transformer", {**TRANSFORMER, "short_conv": 4, "kv_heads": 2}),
    ("transformer", {**TRANSFORMER, "local_layers": 1, "local_window": 4, "positions": "half"}),
    ("transformer", {**TRANSFORMER, "normalization": "anchored", "counting_heads": 2, "positions": "nope"}),
    ("transformer", {**TRANSFORMER, "short_conv": 3, "positions": "half", "length_scaling": "asentmax"}),
]


def stepped(model: LanguageModel, tokens: Tensor, pieces: list[int]) -> Tensor:
    cache, logits = model.init_cache(tokens.shape[0]), []
    for part in tokens.split(pieces, dim=1):
        out, cache = model.step(part, cache)
        logits.append(out)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def disagreement(model: LanguageModel, dtype: torch.dtype, pieces: list[int]) -> float:
    """The largest difference of a logit, relative to the largest logit if that is above 1."""
    model = model.to(dtype).eval()
    tokens = torch.randint(VOCAB, (3, sum(pieces)))
    whole = model(tokens)
    return float((stepped(model, tokens, pieces) - whole).abs().max() / whole.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("pieces", PIECES, ids=lambda pieces: f"{len(pieces)}-steps-of-{pieces[0]}")
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_any_steps_agree_with_the_whole(name: str, options: dict[str, Any], pieces: list[int]) -> None:
    assert disagreement(build(name, options), torch.float64, pieces) <= 1e-12
    assert disagreement(build(name, options), torch.float32, pieces) <= 1e-5


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [6, 15]], ids=["tokens", "pieces"])
@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_every_method_agrees(name: str, options: dict[str, Any], method: tuple[Any, Any], pieces: list[int]) -> None:
    model = build(name, {**options, "kernel": method[0], "normalization": method[1]})
    assert disagreement(model, torch.float64, pieces) <= 1e-12
    # Where a weight jumps with the score, at a radius or at the k-th neighbour, rounding alone may move an output.
    if not any(word in str(method) for word in ("uniform', 'radius", "nearest', 'k")):
        assert disagreement(model, torch.float32, pieces) <= 1e-5


@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_long_prompts_agree(name: str, options: dict[str, Any]) -> None:
    assert disagreement(build(name, options), torch.float64, [300, 1, 1, 200, 1]) <= 1e-11


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_cache_may_be_gone_on_from_twice(name: str, options: dict[str, Any]) -> None:
    model = build(name, options).double().eval()
    tokens = torch.randint(VOCAB, (2, 9))
    with torch.no_grad():
        _, cache = model.step(tokens[:, :5], model.init_cache(2))
        first, _ = model.step(tokens[:, 5:], cache)
        model.step(torch.zeros(2, 3, dtype=torch.long), cache)
        second, _ = model.step(tokens[:, 5:], cache)
    assert torch.equal(first, second)


def test_cache_follows_the_model_or_the_request() -> None:
    for name, options in (("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)):
        model = build(name, options).bfloat16().eval()
        with torch.no_grad():
            logits, _ = model.step(torch.zeros(2, 4, dtype=torch.long), model.init_cache(2))
        assert logits.dtype == torch.bfloat16
        cache = model.init_cache(2, device="meta", dtype=torch.float64)
        first = cache[0].keys if name == "transformer" else cache[0].contextual["contextual"].keys
        assert (first.device.type, first.dtype, first.shape[0]) == ("meta", torch.float64, 2)
