"""Gradient checkpointing: the same bits with dropout, statistics and torch.compile, and less kept for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from epan.models import LanguageModel, build

VOCAB = 13
OPTIONS: dict[str, dict[str, Any]] = {
    "memory_mosaic": {"persistent_size": 7, "gated_keys": True, "short_window": 8},
    "transformer": {"tie_head": False, "learn_scale": True},
}


def make(name: str, dropout: float = 0.2, layers: int = 3) -> LanguageModel:
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "layers": layers, "heads": 2, "width": 16, "dropout": dropout}
    return build(name, {**sizes, **OPTIONS[name]}).train()


def gradients(model: LanguageModel, tokens: Tensor, call: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(11)
    logits = (model if call is None else call)(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kept(model: LanguageModel, tokens: Tensor) -> int:
    """Bytes of different memory that a forward pass keeps, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(tokens)
    assert out.requires_grad
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradient_have_the_same_bits(name: str) -> None:
    model, tokens = make(name), torch.randint(VOCAB, (4, 20))
    expected, theirs = gradients(model, tokens)
    model.gradient_checkpointing = True
    found, ours = gradients(model, tokens)
    assert torch.equal(found, expected)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert torch.equal(ours[key], gradient), key
    # Dropout is at work, so that equality says something about it.
    torch.manual_seed(12)
    assert not torch.equal(model(tokens), make(name)(tokens))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_forward_pass_keeps_the_inputs_of_blocks_alone(name: str) -> None:
    tokens = torch.randint(VOCAB, (4, 20))
    sizes = {}
    for layers in (2, 4):
        model = make(name, layers=layers)
        model.gradient_checkpointing = True
        sizes[layers] = kept(model, tokens)
    # Two more blocks: two more inputs of width 16 in float32, and the state of dropout.
    assert sizes[4] - sizes[2] == 2 * 4 * 20 * 16 * 4
    assert sizes[4] < kept(make(name, layers=4), tokens) / 4


@pytest.mark.parametrize("name", OPTIONS)
def test_statistics_and_passes_without_gradient_are_the_same(name: str) -> None:
    model, tokens = make(name, dropout=0.0), torch.randint(VOCAB, (2, 12))
    logits, stats = model(tokens, return_stats=True)
    model.gradient_checkpointing = True
    found, ours = model(tokens, return_stats=True)
    assert torch.equal(found, logits)
    assert ours.keys() == stats.keys()
    for key, value in stats.items():
        assert torch.equal(ours[key].support_size, value.support_size)
    with torch.no_grad():
        assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("name", OPTIONS)
def test_compiled_it_gives_the_gradient_of_plain_execution(name: str) -> None:
    model, tokens = make(name, dropout=0.0, layers=1), torch.randint(VOCAB, (2, 12))
    expected, theirs = gradients(model, tokens)
    model.gradient_checkpointing = True
    found, ours = gradients(model, tokens, torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(found, expected)
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-4, atol=1e-6)
