"""Calls in unusual surroundings: modes that watch, tensors without numbers, other default devices, extreme numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import epan
from epan.errors import EpanError
from epan.testing import catalogue, tolerance

BACKENDS = (*catalogue.backends(), "auto")
KINDS = (("biweight", "adaptive"), ("epanechnikov", "anchored"), ("gaussian", epan.Nearest(3)))


def inputs(length: int = 40, size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(1, 2, length, size, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("name", BACKENDS)
def test_modes_that_only_watch_change_nothing(name: str) -> None:
    q, k, v = inputs()
    plain = epan.attention(q, k, v, is_causal=True, backend=name)
    with FlopCounterMode(display=False):
        watched = epan.attention(q, k, v, is_causal=True, backend=name)
    tolerance.assert_equal_bits(watched, plain)

    def block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return epan.attention(q, k, v, is_causal=True, backend=name).square()

    def contexts() -> tuple[object, object]:
        return create_selective_checkpoint_contexts(lambda *a, **o: CheckpointPolicy.PREFER_RECOMPUTE)

    kept = checkpoint(block, q, k, v, use_reentrant=False, context_fn=contexts)
    for found, expected in zip(
        torch.autograd.grad(kept.sum(), (q, k, v)), torch.autograd.grad(block(q, k, v).sum(), (q, k, v)), strict=True
    ):
        tolerance.assert_equal_bits(found, expected, "gradient through a selective checkpoint")


@pytest.mark.parametrize("name", BACKENDS)
def test_tensors_without_numbers_have_shapes(name: str) -> None:
    q, k, v = (torch.empty(2, 4, 7, 8, device="meta", dtype=torch.bfloat16) for _ in range(3))
    for kernel, rule in KINDS:
        out, stats = epan.attention(q, k, v, kernel=kernel, normalization=rule, backend=name, return_stats=True)
        assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, "meta")
        assert stats.threshold.shape == (2, 4, 7)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_default_device_is_not_used(name: str) -> None:
    q, k, v = inputs(160)
    for kernel, rule in KINDS:
        results = []
        for device in ("cpu", "meta"):
            torch.manual_seed(3)
            with torch.device(device):
                results.append(
                    epan.attention(
                        q, k, v, is_causal=True, kernel=kernel, normalization=rule, dropout_p=0.3, backend=name,
                        window=(100, 0), alibi_slopes=torch.ones(2, device="cpu"),
                    )
                )  # fmt: skip
        tolerance.assert_equal_bits(results[1], results[0], f"{kernel}, {rule}")
        z = torch.randn(5, 256, device="cpu")
        with torch.device("meta"):
            found = epan.attention_weights(z, kernel=kernel, normalization=rule)
        tolerance.assert_equal_bits(found, epan.attention_weights(z, kernel=kernel, normalization=rule))


def test_backends_agree_on_a_negative_scale() -> None:
    q, k, v = inputs()
    for kernel, rule in KINDS:
        found = [
            epan.attention(q, k, v, kernel=kernel, normalization=rule, similarity="euclidean", scale=-0.2, backend=name)
            for name in ("eager", "tiled")
        ]
        tolerance.assert_within(found[1], found[0], band=tolerance.EXACT)


def test_large_scores_keep_their_digits_in_the_gradient() -> None:
    """exp(z - logsumexp) at z = 1000 has lost three digits in float32; exp(z - max)/sum has not."""
    scores, expected = torch.tensor([1000.0, 993.0]), torch.tensor([0.0, -7.0]).double().softmax(0)
    value = torch.zeros(1, 1, 2, 1, requires_grad=True)
    key = scores.view(1, 1, 2, 1)
    for name in BACKENDS:
        out = epan.attention(torch.ones(1, 1, 1, 1), key, value, kernel="gaussian", scale=1.0, backend=name)
        (grad,) = torch.autograd.grad(out.sum(), value)
        tolerance.assert_within(grad.flatten(), expected, band=torch.finfo(torch.float32).eps)


def test_a_learnt_order_at_the_end_of_a_fixed_radius() -> None:
    """(1 - 0.99)^24 is no number of float32's, its derivative relative to itself is."""
    grads = []
    for name in ("eager", "tiled"):
        order = torch.tensor(24.0, requires_grad=True)
        key = torch.tensor([0.99, 0.995]).mul(24 * 2).sqrt().view(1, 1, 2, 1)
        out = epan.attention(
            torch.zeros(1, 1, 1, 1), key, torch.tensor([1.0, 5.0]).view(1, 1, 2, 1), kernel=epan.Polynomial(order),
            normalization="fixed", similarity="euclidean", scale=1.0, backend=name,
        )  # fmt: skip
        grads.append(torch.autograd.grad(out.sum(), order)[0])
    assert bool(torch.isfinite(grads[1]))
    # Both come from float32 scores whose distance to the radius holds five digits.
    assert float(grads[1]) == pytest.approx(float(grads[0]), rel=1e-3)


def test_objects_made_inside_a_compiled_function_are_refused_with_a_fix() -> None:
    def call(x: Tensor) -> Tensor:
        return epan.attention(x, x, x, kernel="gaussian", normalization=epan.Nearest(k=29), backend="tiled")

    x = torch.randn(1, 1, 6, 4)
    torch.compiler.reset()
    with pytest.raises(EpanError, match="compiled function") as caught:
        torch.compile(call, backend="eager")(x)
    assert "outside" in str(caught.value.fix)
