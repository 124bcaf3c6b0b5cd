"""Derivatives of the losses, first and second, in logits and order, in every mode of torch."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import epan
from epan.losses import KernelSpec, fenchel_young_loss

KERNELS: list[KernelSpec] = [
    "epanechnikov", "biweight", "triweight", epan.Polynomial(2.5), epan.Polynomial(40.0), "gaussian",
]  # fmt: skip
# Row 2 is left out, row 3 has its margin.
TARGET = torch.tensor([0, 3, -100, 4])


def logits() -> torch.Tensor:
    z = 2 * torch.randn(4, 6, dtype=torch.float64)
    z[3, 4] = 60.0
    return z.requires_grad_()


def distributions() -> torch.Tensor:
    target = torch.rand(4, 6, dtype=torch.float64)
    return target / target.sum(-1, keepdim=True)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_derivatives_agree_with_finite_differences(kernel: KernelSpec) -> None:
    for target in (TARGET, distributions()):
        function = lambda z, target=target: fenchel_young_loss(z, target, kernel=kernel)  # noqa: E731
        z = logits()
        assert gradcheck(function, (z,))
        assert gradgradcheck(function, (z,))


def test_a_learnt_order_has_its_derivatives() -> None:
    rows = torch.tensor([[1.5], [2.5], [3.0], [30.0]], dtype=torch.float64, requires_grad=True)
    single = torch.tensor(2.3, dtype=torch.float64, requires_grad=True)
    for target in (TARGET, distributions()):
        for order in (rows, single):
            function = lambda z, n, target=target: fenchel_young_loss(z, target, kernel=epan.Polynomial(n))  # noqa: E731
            assert gradcheck(function, (logits(), order))
        assert gradgradcheck(function, (logits(), rows))


def test_transforms_of_torch_func_agree() -> None:
    z, shift = logits().detach(), torch.randn(4, 6, dtype=torch.float64)
    target = TARGET.clamp(min=0)
    single = lambda row, label: fenchel_young_loss(row, label, kernel="triweight", reduction="none")  # noqa: E731
    found = torch.func.vmap(single)(z, target)
    assert torch.allclose(found, single(z, target), rtol=1e-12, atol=1e-12)
    total = lambda z: fenchel_young_loss(z, target, kernel="triweight")  # noqa: E731
    _, slope = torch.func.jvp(total, (z,), (shift,))
    assert float((slope - (torch.func.grad(total)(z) * shift).sum()).abs()) < 1e-12


def test_a_compiled_loss_is_the_same() -> None:
    z = logits()
    function = lambda z: fenchel_young_loss(2 * z, TARGET, kernel="biweight")  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, two in zip(*(torch.autograd.grad(f(z), z) for f in (compiled, function)), strict=True):
        assert torch.equal(one, two)


def test_operators_are_registered_as_torch_wants_them() -> None:
    z, y = logits(), TARGET.clamp(min=-1)
    order = torch.full((4, 1), 2.5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.epan.fenchel_young.default, (z, y, None, epan.Biweight().handle))
    torch.library.opcheck(torch.ops.epan.fenchel_young.default, (z, y, order, -1))
