"""Memory Mosaics: counts, the whole model against a dense transcript of its formulas, options, configuration."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epan.errors import EpanError, UnsupportedError
from epan.metrics import allowed_keys
from epan.models import MemoryMosaic, MemoryMosaicConfig, build, config_of, names

SMALL = {"vocab_size": 11, "layers": 2, "heads": 2, "width": 16, "persistent_size": 9}


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ({"vocab_size": 50304, "layers": 1, "heads": 12, "width": 768}, 45_713_748),
        ({"vocab_size": 50304, "layers": 12, "heads": 12, "width": 768, "persistent_size": 2688}, 123_588_336),
        ({"vocab_size": 20, "layers": 2, "heads": 8, "width": 128}, 396_528),
    ],
)
def test_parameter_counts(sizes: dict[str, int], count: int) -> None:
    with torch.device("meta"):
        model = MemoryMosaic(MemoryMosaicConfig(**sizes))
    assert model.num_parameters() == count
    assert sum(value.numel() for value in model.state_dict().values()) == count


def test_the_default_persistent_size_is_three_and_a_half_widths() -> None:
    assert MemoryMosaicConfig(vocab_size=2, width=768, heads=12).size == 2688
    assert MemoryMosaicConfig(vocab_size=2, width=128, heads=8).size == 448


def layer_norm(x: Tensor, gain: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return gain * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def transcript(model: MemoryMosaic, tokens: Tensor) -> Tensor:
    """The published model, softmax everywhere, dense T×T matrices, one head and one sequence at a time."""
    state = {name: value.double() for name, value in model.state_dict().items()}
    width, heads = model.config.width, model.config.heads
    size, length = width // heads, tokens.shape[1]
    step = torch.arange(length)
    lag = (step[:, None] - step).double()

    def keys_of(prefix: str, x: Tensor, head: int) -> Tensor:
        raw = (x @ state[prefix + "key.projection.weight"].T)[:, head * size : (head + 1) * size]
        rate = (10 * state[prefix + "key.average.leak"][head]).abs()
        mean = torch.exp(-rate * lag).tril() @ raw
        return mean / mean.norm(dim=-1, keepdim=True)

    def contextual(prefix: str, x: Tensor) -> Tensor:
        outs = []
        for head in range(heads):
            key = keys_of(prefix, x, head)
            raw = (x @ state[prefix + "value.projection.weight"].T)[:, head * size : (head + 1) * size]
            c = state[prefix + "value.lookahead"][head]
            value = (1 - c) * torch.cat([raw[1:], torch.zeros(1, size, dtype=raw.dtype)]) + c * raw
            value = value / value.norm(dim=-1, keepdim=True) * torch.exp(10 * state[prefix + "value.log_gain"][head])
            beta = torch.exp(2 * (10 * state[prefix + "scale.log_scale"][head]).clamp(max=5))
            weights = torch.exp(beta * key @ key.T) * (lag >= 1)
            outs.append(weights @ value / weights.sum(-1, keepdim=True).clamp(min=1e-300))
        return torch.cat(outs, dim=-1) @ state[prefix + "output.weight"].T

    def persistent(prefix: str, x: Tensor) -> Tensor:
        outs = []
        for head in range(heads):
            beta = torch.exp((10 * state[prefix + "scale.log_scale"][head]).clamp(max=5)) ** 2
            weights = torch.softmax(beta * keys_of(prefix, x, head) @ state[prefix + "keys"][head].T, dim=-1)
            outs.append(weights @ state[prefix + "values"][head] * torch.exp(10 * state[prefix + "log_gain"][head]))
        return torch.cat(outs, dim=-1) @ state[prefix + "output.weight"].T

    logits = []
    for sequence in tokens:
        x = state["embedding.weight"][sequence]
        for layer in range(model.config.layers):
            prefix = f"layers.{layer}."
            x = x + contextual(
                prefix + "contextual.contextual.", layer_norm(x, state[prefix + "contextual_norm.weight"])
            )
            x = x + persistent(prefix + "persistent.", layer_norm(x, state[prefix + "persistent_norm.weight"]))
        logits.append(layer_norm(x, state["norm.weight"]) @ state["embedding.weight"].T / math.sqrt(width))
    return torch.stack(logits)


def test_the_model_is_its_formulas() -> None:
    model = build("memory_mosaic", {**SMALL, "kernel": "gaussian"}).double().eval()
    with torch.no_grad():
        # Away from the common start, so that no parameter may be read in another's place.
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    tokens = torch.randint(11, (2, 60))
    assert isinstance(model, MemoryMosaic)
    assert (model(tokens) - transcript(model, tokens)).abs().max() <= 1e-11


def test_initialisation() -> None:
    model = MemoryMosaic(MemoryMosaicConfig(vocab_size=400, layers=4, heads=8, width=256, persistent_size=64))
    state = model.state_dict()

    def spread(name: str) -> float:
        return float(state[name].std()) * 16

    assert spread("embedding.weight") == pytest.approx(1, rel=0.05)
    for name in ("contextual.contextual.key", "contextual.contextual.value", "persistent.key"):
        assert spread(f"layers.3.{name}.projection.weight") == pytest.approx(1, rel=0.05)
    for name in ("contextual.contextual", "persistent"):
        assert spread(f"layers.3.{name}.output.weight") == pytest.approx(1 / 2, rel=0.05)
    assert not any("bias" in name for name in state)
    assert {name: list(beta.shape) for name, beta in model.bandwidths().items()} == {
        f"layers.{layer}.{memory}": [8] for layer in range(4) for memory in ("contextual", "persistent")
    }
    assert all(torch.allclose(beta, torch.tensor(math.exp(2))) for beta in model.bandwidths().values())


def test_parameter_groups() -> None:
    model = build("memory_mosaic", SMALL)
    decay, rest = model.parameter_groups(0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(parameter.dim() >= 2 for parameter in decay["params"])
    assert all(parameter.dim() < 2 for parameter in rest["params"])
    assert sum(p.numel() for group in (decay, rest) for p in group["params"]) == model.num_parameters()
    torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)


def test_stats_are_reported_per_layer_and_change_nothing() -> None:
    model = build("memory_mosaic", SMALL).eval()
    tokens = torch.randint(11, (3, 10))
    logits, stats = model(tokens, return_stats=True)
    assert torch.equal(logits, model(tokens))
    assert list(stats) == ["layers.0.contextual", "layers.0.persistent", "layers.1.contextual", "layers.1.persistent"]
    for name, values in stats.items():
        assert all(field.shape == (3, 2, 10) for field in values[:3])
        if name.endswith("contextual"):
            assert bool((values.support_size[..., 0] == 0).all())
            assert bool((values.support_size[..., 1] == 1).all())
            assert int(values.support_size.max()) <= 9
        else:
            assert bool((values.support_size == 9).all())


VERSION_TWO = {
    "adaptive_bandwidth": True,
    "gated_keys": True,
    "short_window": 6,
    "long_skip": 3,
    "persistent": "swiglu",
    "persistent_size": None,
}


def test_version_two() -> None:
    model = build("memory_mosaic", {**SMALL, **VERSION_TWO}).eval()
    logits, stats = model(torch.randint(11, (2, 12)), return_stats=True)
    assert logits.shape == (2, 12, 11)
    assert list(stats)[:2] == ["layers.0.short", "layers.0.long"]
    assert set(model.bandwidths()) == {f"layers.{layer}.{name}" for layer in (0, 1) for name in ("short", "long")}
    assert int(stats["layers.0.short"].support_size.max()) <= 6
    assert bool((stats["layers.0.long"].support_size[..., :3] == 0).all())
    assert bool((stats["layers.0.long"].support_size[..., 3:] > 0).all())


def test_swiglu_has_as_many_parameters_as_the_learnt_pairs() -> None:
    pairs, swiglu = (
        build("memory_mosaic", {"vocab_size": 5, "width": 64, "heads": 4, "persistent": kind})
        for kind in ("attention", "swiglu")
    )
    # The learnt pairs have three scalars a head more, in two layers.
    assert pairs.num_parameters() - swiglu.num_parameters() == 2 * 3 * 4


def test_configuration_is_plain_data() -> None:
    values = {**SMALL, "normalization": {"name": "nearest", "k": 4}, "kernel": "gaussian", **VERSION_TWO}
    config = config_of("memory_mosaic", values)
    again = config_of("memory_mosaic", json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 32}, "'width'"),
        ({"kernel": "biwieght"}, "biweight"),
        ({"kernel": "softmax"}, "gaussian"),
        ({"normalization": "adaptve"}, "adaptive"),
        ({"normalization": {"name": "nearest", "k": 0}}, "at least 1"),
        ({"heads": 3}, "divisible"),
        ({"layers": 0}, "layers"),
        ({"vocab_size": 2.5}, "integer"),
        ({"width": True}, "integer"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"gated_keys": 1}, "true or false"),
        ({"persistent": "swigl"}, "swiglu"),
        ({"persistent_kernel": "uniform"}, None),
        ({"long_skip": 4}, "short_window"),
        ({"short_window": 4, "long_skip": 6}, "neither"),
        ({"compat": "published"}, "shifted-mask"),
        ({"compat": "shifted-mask", "short_window": 4}, "short-term"),
        ({"kernel": "cosine"}, "cosine"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str | None) -> None:
    with pytest.raises(EpanError, match=message):
        build("memory_mosaic", {**SMALL, **values})


def test_missing_keys_names_and_tokens() -> None:
    with pytest.raises(EpanError, match="vocab_size"):
        build("memory_mosaic", {"width": 16})
    with pytest.raises(EpanError, match="memory_mosaic"):
        build("memory_mosiac", SMALL)
    assert names() == ("memory_mosaic", "transformer")
    with pytest.raises(UnsupportedError):
        build("memory_mosaic", {**SMALL, "kernel": "gaussian", "learn_order": True})
    model = build("memory_mosaic", SMALL)
    for tokens in (torch.randn(2, 3), torch.randint(11, (4,)), torch.zeros(1, 2, dtype=torch.bool)):
        with pytest.raises(EpanError, match="Tokens"):
            model(tokens)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("token", [-1, 5, 7])
def test_tokens_outside_the_vocabulary_are_refused(name: str, token: int) -> None:
    model = build(name, {"vocab_size": 5, "layers": 1, "heads": 1, "width": 4})
    tokens = torch.tensor([[0, 4], [4, token]])
    with pytest.raises(EpanError, match="outside the vocabulary") as caught:
        model(tokens)
    assert (caught.value.found, caught.value.allowed) == (token, "0 to 4")
    with pytest.raises(EpanError, match="outside the vocabulary"):
        model.step(tokens, model.init_cache(2))
    assert model(tokens.clamp(0, 4).int()).shape == (2, 2, 5)


def test_every_pair_is_read_by_one_of_two_memories_that_meet() -> None:
    model = build("memory_mosaic", {**SMALL, "kernel": "gaussian", "short_window": 4, "long_skip": 5, "layers": 1})
    _, stats = model(torch.randint(11, (1, 12)), return_stats=True)
    read = stats["layers.0.short"].support_size + stats["layers.0.long"].support_size
    assert torch.equal(read[0, 0].long(), torch.arange(12))


def test_the_shifted_mask_leaves_out_the_newest_pair() -> None:
    for compat, newest in ((None, 1), ("shifted-mask", 2)):
        model = build("memory_mosaic", {**SMALL, "kernel": "gaussian", "layers": 1, "compat": compat})
        _, stats = model(torch.randint(11, (1, 12)), return_stats=True)
        read = stats["layers.0.contextual"].support_size[0, 0].long()
        assert torch.equal(read, (torch.arange(12) + 1 - newest).clamp(min=0))
        assert torch.equal(read, allowed_keys("layers.0.contextual", 12, skip=model.config.skip))


def test_published_learning_problem_is_solvable() -> None:
    """A sequence that repeats with a random period of symbols is predicted after some hundred steps."""
    model = build("memory_mosaic", {"vocab_size": 16, "layers": 2, "heads": 2, "width": 32, "dropout": 0.0})
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    losses = []
    for _ in range(120):
        half = torch.randint(16, (16, 10))
        tokens = torch.cat([half, half], dim=1)
        logits = model(tokens)
        loss = F.cross_entropy(logits[:, 10:-1].flatten(0, 1), tokens[:, 11:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[:3]) / 3 > 2.0
    assert sum(losses[-3:]) / 3 < 0.5
