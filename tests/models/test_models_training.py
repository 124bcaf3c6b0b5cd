"""Training: every method takes a step with finite gradients, state is stable, models compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epan import kernels, normalizations
from epan.models import LanguageModel, build
from epan.models.base import _Rows as Rows
from epan.models.base import make_embedding

VOCAB = 13
MOSAIC = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "width": 16, "persistent_size": 7}
TRANSFORMER = {"vocab_size": VOCAB, "layers": 2, "heads": 2, "width": 16}


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def is_flat(method: tuple[Any, Any]) -> bool:
    """True for methods whose weights are piecewise constant, so that keys and scales get no gradient."""
    return kernels.get(method[0]).name == "uniform"


def check_step(model: LanguageModel, flat: tuple[str, ...]) -> None:
    """One optimizer step; parameters whose name contains one of ``flat`` may lack a gradient."""
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-3)
    tokens = torch.randint(VOCAB, (8, 24))
    loss_of(model, tokens).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert any(part in name for part in flat), name
            continue
        assert bool(torch.isfinite(parameter.grad).all()), name
        if not any(part in name for part in flat):
            assert bool((parameter.grad != 0).any()), name
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert bool(torch.isfinite(parameter).all()), name
        if not any(part in name for part in flat):
            assert not torch.equal(parameter, before[name]), name


def test_every_method_of_the_contextual_memory_trains(method: tuple[Any, Any]) -> None:
    model = build("memory_mosaic", {**MOSAIC, "kernel": method[0], "normalization": method[1]})
    flat = ("contextual.key", "contextual.scale") if is_flat(method) else ()
    check_step(model, flat)


def test_every_method_of_the_persistent_memory_trains(method: tuple[Any, Any]) -> None:
    options = {"persistent_kernel": method[0], "persistent_normalization": method[1]}
    model = build("memory_mosaic", {**MOSAIC, **options})
    # What the keys alone read goes without, too: the norm in front of them.
    flat = ("persistent.key", "persistent.scale", "persistent_norm") if is_flat(method) else ()
    check_step(model, flat)


def test_every_method_of_the_transformer_trains(method: tuple[Any, Any]) -> None:
    kernel, normalization = method
    if isinstance(kernel, dict) and "radius" in kernel:
        # Queries and keys of the transformer have norm √D, not 1.
        kernel = {**kernel, "radius": kernel["radius"] * (16 // 2) ** 0.5}
    options = {"kernel": kernel, "normalization": normalization, "positions": "half", "learn_scale": True}
    model = build("transformer", {**TRANSFORMER, **options})
    flat = ("attention.query", "attention.key", "attention.scale") if is_flat(method) else ()
    check_step(model, flat)


@pytest.mark.parametrize(
    "options",
    [
        {"gated_keys": True},
        {"adaptive_bandwidth": True},
        {"short_window": 6, "gated_keys": True, "adaptive_bandwidth": True, "persistent": "swiglu"},
        {"learn_order": True},
        {"normalization": "fixed", "adaptive_bandwidth": True},
    ],
)
def test_every_option_of_the_mosaic_trains(options: dict[str, Any]) -> None:
    check_step(build("memory_mosaic", {**MOSAIC, **options}), ())


@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_a_method_may_be_an_instance_of_another_package(name: str, options: dict[str, Any]) -> None:
    model = build(
        name, {**options, "kernel": kernels.Polynomial(order=2.5), "normalization": normalizations.Anchored()}
    )
    check_step(model, ())


@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_state_survives_saving(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    model, other = build(name, options).eval(), build(name, options).eval()
    tokens = torch.randint(VOCAB, (2, 30))
    assert not torch.equal(model(tokens), other(tokens))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_running_changes_no_state_and_no_length_is_built_in(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for length in (1, 3, 90):
        model(torch.randint(VOCAB, (2, length)), return_stats=True)
    model.step(torch.zeros(2, 4, dtype=torch.long), model.init_cache(2))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not list(model.buffers())


def test_state_names_are_stable() -> None:
    contextual = ["key.projection.weight", "key.average.leak", "value.lookahead", "value.log_gain"]
    contextual += ["value.projection.weight", "scale.log_scale", "output.weight"]
    persistent = ["keys", "values", "log_gain", "key.projection.weight", "key.average.leak", "scale.log_scale"]
    persistent += ["output.weight"]
    expected = {"embedding.weight", "norm.weight"}
    for layer in (0, 1):
        prefix = f"layers.{layer}."
        expected |= {prefix + "contextual_norm.weight", prefix + "persistent_norm.weight"}
        expected |= {f"{prefix}contextual.contextual.{name}" for name in contextual}
        expected |= {f"{prefix}persistent.{name}" for name in persistent}
    assert set(build("memory_mosaic", MOSAIC).state_dict()) == expected
    blocks = ["attention_norm", "attention.query", "attention.key", "attention.value", "attention.output"]
    blocks += ["feed_forward_norm", "feed_forward.gate", "feed_forward.up", "feed_forward.down"]
    expected = {"embedding.weight", "norm.weight"}
    expected |= {f"layers.{layer}.{name}.weight" for layer in (0, 1) for name in blocks}
    assert set(build("transformer", TRANSFORMER).state_dict()) == expected


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(("name", "options"), [("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)])
def test_empty_batches_and_sequences(name: str, options: dict[str, Any], batch: int) -> None:
    model = build(name, options)
    for length in (0, 1, 60) if batch == 0 else (0, 1):
        logits = model(torch.zeros(batch, length, dtype=torch.long))
        assert logits.shape == (batch, length, VOCAB)
        logits.sum().backward()


def test_low_precision_runs_close_to_float32() -> None:
    tokens = torch.randint(VOCAB, (2, 40))
    for name, options in (("memory_mosaic", MOSAIC), ("transformer", TRANSFORMER)):
        model = build(name, options).eval()
        expected = model(tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(tokens)
        loss = out.float().square().mean()
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
        assert (out.float() - expected).abs().max() <= 0.1 * expected.abs().max()
        low = model.bfloat16()(tokens)
        assert low.dtype == torch.bfloat16
        assert (low.float() - expected).abs().max() <= 0.2 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        # The second goes through all that the first does, and more.
        pytest.param("memory_mosaic", MOSAIC, marks=pytest.mark.slow),
        ("memory_mosaic", {**MOSAIC, "gated_keys": True, "adaptive_bandwidth": True, "short_window": 6}),
        ("transformer", {**TRANSFORMER, "positions": "rope"}),
        ("transformer", {**TRANSFORMER, "positions": "half", "length_scaling": "asentmax", "kv_heads": 1}),
    ],
)
def test_compiles_into_one_graph(name: str, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = build(name, {**options, "dropout": 0.0})
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    tokens = torch.randint(VOCAB, (2, 20))
    out, expected = compiled(tokens), model(tokens)
    assert torch.allclose(out, expected, atol=1e-5)
    grads, wanted = (torch.autograd.grad(o.square().sum(), list(model.parameters())) for o in (out, expected))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_of_few_tokens_is_a_product(compiled: bool) -> None:
    weight, tokens, grad = torch.randn(VOCAB, 6), torch.randint(VOCAB, (3, 40)), torch.randn(3, 40, 6)
    look = torch.compile(Rows.apply, backend="aot_eager") if compiled else Rows.apply
    found = []
    for rows in (look, lambda weight, tokens: F.embedding(tokens, weight)):
        leaf = weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = rows(leaf, tokens)
        (out * grad).sum().backward()
        found.append((out.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


@pytest.mark.gpu
def test_the_gradient_of_few_tokens_repeats_itself_on_a_gpu() -> None:
    embedding = make_embedding(36, 128).cuda()
    tokens, grad = torch.randint(36, (64, 130), device="cuda"), torch.randn(64, 130, 128, device="cuda")
    found = []
    for deterministic in (False, True, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            (out := embedding(tokens)).backward(grad)
        finally:
            torch.use_deterministic_algorithms(False)
        assert (type(out.grad_fn).__name__ == "_RowsBackward") == deterministic
        found.append(embedding.weight.grad)
        embedding.weight.grad = None
    assert torch.equal(found[1], found[2])
    assert torch.allclose(found[0], found[1], atol=1e-3)
