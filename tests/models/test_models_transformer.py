"""The transformer: every option runs, sizes, formulas of the parts, configuration."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epan.errors import EpanError
from epan.models import Transformer, TransformerConfig, build, config_of

SMALL = {"vocab_size": 11, "layers": 2, "heads": 4, "width": 16}


def transcript(model: Transformer, tokens: Tensor) -> Tensor:
    """A GPT-style model with softmax attention, layer norm, GELU, no positions, in torch's own words."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    width, heads = model.config.width, model.config.heads
    x = F.embedding(tokens, state["embedding.weight"])
    for layer in range(model.config.layers):
        prefix = f"layers.{layer}."
        normed = F.layer_norm(x, (width,), state[prefix + "attention_norm.weight"])
        q, k, v = (
            (normed @ state[f"{prefix}attention.{name}.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + read @ state[prefix + "attention.output.weight"].T
        normed = F.layer_norm(x, (width,), state[prefix + "feed_forward_norm.weight"])
        hidden = F.gelu(normed @ state[prefix + "feed_forward.up.weight"].T)
        x = x + hidden @ state[prefix + "feed_forward.down.weight"].T
    return F.layer_norm(x, (width,), state["norm.weight"]) @ state["embedding.weight"].T


def test_the_model_is_its_formulas() -> None:
    options = {"kernel": "gaussian", "positions": "nope", "norm": "layer", "feed_forward": "gelu"}
    model = build("transformer", {**SMALL, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.randint(11, (2, 20))
    assert isinstance(model, Transformer)
    assert (model(tokens) - transcript(model, tokens)).abs().max() <= 1e-11


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"norm": "layer", "feed_forward": "gelu"}, 11 * 16 + 2 * (4 * 16**2 + 8 * 16**2 + 2 * 16) + 16),
        ({}, 11 * 16 + 2 * (4 * 16**2 + 3 * 16 * 48 + 2 * 16) + 16),
        ({"tie_head": False}, 2 * 11 * 16 + 2 * (4 * 16**2 + 3 * 16 * 48 + 2 * 16) + 16),
        ({"kv_heads": 2, "hidden": 5}, 11 * 16 + 2 * (3 * 16**2 + 3 * 16 * 5 + 2 * 16) + 16),
        ({"qk_norm": True, "hidden": 5}, 11 * 16 + 2 * (4 * 16**2 + 3 * 16 * 5 + 2 * 16 + 2 * 4) + 16),
    ],
)
def test_parameter_counts(options: dict[str, Any], count: int) -> None:
    assert build("transformer", {**SMALL, **options}).num_parameters() == count


OPTIONS: list[dict[str, Any]] = [
    {"positions": "rope"},
    {"positions": "alibi", "norm": "layer"},
    {"positions": "nope", "feed_forward": "gelu"},
    {"positions": "half", "kv_heads": 2},
    {"positions": "half", "length_scaling": "asentmax", "learn_scale": True},
    {"positions": "nope", "length_scaling": "ssmax", "qk_norm": True},
    {"positions": "half", "kernel": "triweight", "learn_order": True, "tie_head": False},
    {"positions": "half", "kernel": "epanechnikov", "normalization": "fixed", "length_scaling": "asentmax"},
    {"positions": "nope", "short_conv": 4, "kv_heads": 2},
    {"positions": "half", "local_layers": 1, "local_window": 3},
    {"positions": "nope", "normalization": "anchored", "counting_heads": 2},
    {"dropout": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_option_trains(options: dict[str, Any]) -> None:
    model = build("transformer", {**SMALL, **options})
    tokens = torch.randint(11, (4, 16))
    logits, stats = model(tokens, return_stats=True)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool((parameter.grad != 0).any()), name
    assert list(stats) == ["layers.0.attention", "layers.1.attention"]
    assert all(field.shape == (4, 4, 16) for values in stats.values() for field in values[:3])
    assert {name: list(beta.shape) for name, beta in model.bandwidths().items()} == {name: [4] for name in stats}


def test_initialisation() -> None:
    model = Transformer(TransformerConfig(vocab_size=300, layers=8, heads=8, width=256))
    state = model.state_dict()
    assert float(state["embedding.weight"].std()) * 16 == pytest.approx(1, rel=0.05)
    assert float(state["layers.7.attention.query.weight"].std()) * 16 == pytest.approx(1, rel=0.05)
    assert float(state["layers.7.attention.output.weight"].std()) * 16 * 4 == pytest.approx(1, rel=0.05)
    hidden = model.config.hidden_size
    assert hidden == 688
    assert float(state["layers.7.feed_forward.down.weight"].std()) * math.sqrt(hidden) * 4 == pytest.approx(1, rel=0.05)
    assert not any("bias" in name for name in state)


def test_parameter_groups_leave_gains_and_scales_alone() -> None:
    model = build("transformer", {**SMALL, "qk_norm": True, "learn_scale": True})
    decay, rest = model.parameter_groups(0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("norm" in names[id(p)] or "log_scale" in names[id(p)] for p in rest["params"])
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_configuration_is_plain_data() -> None:
    config = config_of("transformer", {**SMALL, "kernel": {"name": "polynomial", "order": 5}, "positions": "half"})
    assert config_of("transformer", json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feedforward": "gelu"}, "feed_forward"),
        ({"positions": "rop"}, "rope"),
        ({"norm": "batch"}, "rms"),
        ({"feed_forward": "relu"}, "gelu"),
        ({"length_scaling": "asentmax"}, "half"),
        ({"length_scaling": "sqrt", "positions": "nope"}, "ssmax"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"heads": 3}, "divisible"),
        ({"rope_base": 0}, "rope_base"),
        ({"tie_head": "yes"}, "true or false"),
        ({"kernel": "sparsemax"}, "epanechnikov"),
        ({"local_layers": 1}, "local_window"),
        ({"local_window": 4}, "local_layers"),
        ({"local_layers": 3, "local_window": 4}, "local_layers"),
        ({"counting_heads": 5, "normalization": "anchored"}, "0 to 4"),
        ({"counting_heads": 1}, "anchored"),
        ({"counting_heads": 1, "normalization": "anchored", "kernel": "gaussian"}, "bounded support"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EpanError, match=message):
        build("transformer", {**SMALL, **values})


def test_local_layers_see_a_window_alone_and_the_others_all() -> None:
    model = build("transformer", {**SMALL, "positions": "nope", "local_layers": 1, "local_window": 3}).eval()
    tokens = torch.randint(1, 11, (1, 12))
    _, stats = model(tokens, return_stats=True)
    weights, _ = model.layers[0].attention.weights(torch.randn(1, 12, 16))  # type: ignore[operator, union-attr]
    back = torch.arange(12)[:, None] - torch.arange(12)
    assert not bool(weights[:, :, (back < 0) | (back > 2)].any())
    assert int(stats["layers.0.attention"].support_size.max()) <= 3
    other = tokens.clone()
    other[0, 2] = 0
    first = [(model(t, return_stats=True)[1]["layers.0.attention"].threshold) for t in (tokens, other)]
    changed = (first[0] != first[1])[0].any(0)
    assert changed.nonzero().squeeze(1).tolist() == [2, 3, 4]
    assert bool((model(tokens)[0, 11] != model(other)[0, 11]).any())
