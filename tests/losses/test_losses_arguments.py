"""Masks, dtypes, memory, and what the losses refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import epan
from epan import losses
from epan.errors import EpanError, UnsupportedError
from epan.losses import FenchelYoungLoss, KernelSpec, fenchel_young_loss
from epan.normalizations import _threshold

KERNELS: list[KernelSpec] = ["epanechnikov", "biweight", epan.Polynomial(30.0), "gaussian"]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_masked_classes_take_no_part(kernel: KernelSpec) -> None:
    z = torch.randn(3, 5, dtype=torch.float64)
    z[:, 2] = -math.inf
    z.requires_grad_()
    kept, target = z.detach()[:, [0, 1, 3, 4]].requires_grad_(), torch.tensor([3, 1, 4])
    found = fenchel_young_loss(z, target, kernel=kernel, reduction="sum")
    expected = fenchel_young_loss(kept, torch.tensor([2, 1, 3]), kernel=kernel, reduction="sum")
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = torch.autograd.grad(found, z)[0], torch.autograd.grad(expected, kept)[0]
    assert torch.allclose(ours[:, [0, 1, 3, 4]], theirs, rtol=0, atol=1e-12)
    assert not ours[:, 2].any()


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_a_masked_target_is_infinitely_wrong(kernel: KernelSpec) -> None:
    z = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf] * 3, [0.5, 0.0, 0.0]], dtype=torch.float64)
    found = fenchel_young_loss(z, torch.tensor([1, 0, 0]), kernel=kernel, reduction="none")
    assert found[:2].tolist() == [math.inf, math.inf]
    assert math.isfinite(float(found[2]))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_ignored_rows_give_zero_whatever_they_hold(kernel: KernelSpec) -> None:
    z = torch.randn(4, 5)
    z[1], z[2, 0] = math.nan, math.inf
    z.requires_grad_()
    found = fenchel_young_loss(z, torch.tensor([1, -100, -100, 0]), kernel=kernel)
    expected = fenchel_young_loss(z.detach()[[0, 3]], torch.tensor([1, 0]), kernel=kernel)
    assert torch.equal(found.detach(), expected)
    found.backward()
    assert not z.grad[1:3].any()


def test_a_number_that_is_none_is_told() -> None:
    z = torch.randn(2, 5)
    z[1, 3] = math.nan
    for kernel in KERNELS:
        found = fenchel_young_loss(z, torch.tensor([1, 2]), kernel=kernel, reduction="none")
        assert [math.isnan(value) for value in found.tolist()] == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_low_precision_is_computed_in_float32(kernel: KernelSpec, dtype: torch.dtype) -> None:
    z = (3 * torch.randn(20, 300)).to(dtype).requires_grad_()
    target = torch.randint(300, (20,))
    found = fenchel_young_loss(z, target, kernel=kernel, reduction="sum")
    exact = z.detach().double().requires_grad_()
    expected = fenchel_young_loss(exact, target, kernel=kernel, reduction="sum")
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    found.backward()
    expected.backward()
    assert z.grad.dtype == dtype
    assert float((z.grad.double() - exact.grad).abs().max()) <= 4 * torch.finfo(dtype).eps


def test_any_shape_and_piece_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    z, target = torch.randn(2, 3, 4, 160, dtype=torch.float64), torch.randint(160, (2, 3, 4))
    whole = [fenchel_young_loss(z, target, kernel=kernel, reduction="none") for kernel in KERNELS]
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 5 * 160)
    for kernel, expected in zip(KERNELS, whole, strict=True):
        flat = z.flatten(0, 2).requires_grad_()
        found = fenchel_young_loss(flat, target.flatten(), kernel=kernel, reduction="none")
        assert torch.allclose(found.view(2, 3, 4), expected, rtol=1e-13, atol=1e-13)
        (gradient,) = torch.autograd.grad(found.sum(), flat)
        weights = epan.attention_weights(flat.detach(), kernel=epan.kernels.get(kernel))
        assert torch.allclose(gradient.sum(-1), torch.zeros(24, dtype=torch.float64), rtol=0, atol=1e-12)
        assert torch.allclose(gradient + torch.eye(160)[target.flatten()], weights, rtol=0, atol=1e-12)
    assert fenchel_young_loss(torch.randn(0, 4), torch.zeros(0, dtype=torch.long), reduction="sum").item() == 0.0


def test_nothing_of_the_size_of_the_logits_is_kept() -> None:
    z, target = torch.randn(64, 4096, requires_grad=True), torch.randint(4096, (64,))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = fenchel_young_loss(z, target)
    kept.pop(z.untyped_storage().data_ptr())
    assert sum(kept.values()) < 64 * 64
    loss.backward()


def test_the_module_is_the_function() -> None:
    z, target = torch.randn(6, 4), torch.randint(4, (6,))
    weight = torch.rand(4)
    module = FenchelYoungLoss("triweight", weight=weight, reduction="sum", ignore_index=1)
    expected = fenchel_young_loss(z, target, kernel="triweight", weight=weight, reduction="sum", ignore_index=1)
    assert torch.equal(module(z, target), expected)
    assert "Triweight" in repr(module)


Z, Y = torch.randn(3, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kernel": "cross-entropy"}, "'gaussian'"),
        ({"kernel": "entmax15"}, "'biweight'"),
        ({"kernel": "biweigth"}, "did you mean 'biweight'"),
        ({"reduction": "men"}, "did you mean 'mean'"),
        ({"logits": torch.zeros(3, 4, dtype=torch.long)}, "floating-point"),
        ({"logits": torch.zeros(3, 0)}, "need classes"),
        ({"target": torch.tensor([0, 1, 4])}, "Found: 4. Allowed: 0 to 3"),
        ({"target": torch.tensor([0, 1, -1])}, "Found: -1"),
        ({"target": torch.tensor([0, 1])}, "classes, which come last"),
        ({"target": torch.zeros(3)}, "a distribution for each row"),
        ({"target": torch.full((3, 4), 0.5)}, "no distribution"),
        ({"target": torch.tensor([[2.0, -1, 0, 0]] * 3)}, "no distribution"),
        ({"target": torch.tensor([True, False, True])}, "integers or distributions"),
        ({"weight": torch.ones(3)}, "one number per class"),
        ({"target": torch.full((3, 4), 0.25), "weight": torch.ones(4)}, "belongs to integer targets"),
        ({"kernel": epan.Polynomial(torch.full((4, 1), 2.0))}, "one number per row"),
        ({"ignore_index": 0.5}, "must be an integer"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(EpanError, match=said):
        fenchel_young_loss(**{"logits": Z, "target": Y, **arguments})


def test_kernels_without_adaptive_weights_have_no_loss() -> None:
    for kernel in ("cosine", "uniform"):
        with pytest.raises(UnsupportedError, match="no adaptive weights"):
            FenchelYoungLoss(kernel)


@pytest.mark.parametrize("kernel", [*KERNELS, "triweight", epan.Polynomial(torch.tensor(2.5))], ids=str)
def test_nothing_waits_for_a_device_while_its_work_is_recorded(
    kernel: KernelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without numbers stand for those on a GPU: whatever looked at one would fail."""
    z = torch.zeros(6, 200, device="meta", dtype=torch.bfloat16)
    y = torch.zeros(6, device="meta", dtype=torch.long)
    kernel = epan.kernels.get(kernel)
    order = torch.full((6, 1), 2.5, device="meta") if isinstance(kernel.order, torch.Tensor) else None

    def both() -> torch.Tensor:
        found, states, _ = losses._loss._init_fn(z, y, order, kernel.handle)
        return losses._gradient._init_fn(found, z, y, states, order, kernel.handle)

    if kernel != epan.Gaussian():
        with pytest.raises(RuntimeError, match="meta"):
            both()
    monkeypatch.setattr(_threshold, "_is_recorded", lambda x: True)
    assert both().dtype == torch.bfloat16
