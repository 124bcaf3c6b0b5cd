"""The custom operators by torch's own checks: schema, autograd registration, fake tensors, dynamic compilation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import epan.ops  # which registers the operators
from epan import kernels, normalizations

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
F64, I32 = torch.float64, torch.int32


def draw(*shape: int, dtype: torch.dtype = F64, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype).requires_grad_(grad)


def arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kernel: str = "biweight",
    rule: str = "adaptive",
    euclidean: bool = False,
    scale: Tensor | None = None,
    order: Tensor | None = None,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    offsets: Tensor | None = None,
    dropout_p: float = 0.0,
    left: int | None = None,
    right: int | None = None,
    with_stats: bool = True,
) -> tuple[Any, ...]:
    """The arguments of ``epan::tiled``."""
    if scale is None:
        scale = torch.full((*q.shape[:3], 1), 0.5, dtype=torch.promote_types(q.dtype, torch.float32))
    handle = -1 if order is not None else kernels.get(kernel).handle
    numbers = [handle, normalizations.get(rule).handle, int(euclidean), 0]
    seed = torch.tensor(3) if dropout_p else None
    return (q, k, v, scale, order, mask, slopes, offsets, offsets, seed, numbers, left, right, dropout_p, with_stats)


def qkv(length: int = 5, dtype: torch.dtype = F64, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    return (
        draw(1, 2, length, 4, dtype=dtype, grad=grad),
        draw(1, 2, length + 2, 4, dtype=dtype, grad=grad),
        draw(1, 2, length + 2, 3, dtype=dtype, grad=grad),
    )


def laid_out(tensor: Tensor) -> Tensor:
    return tensor.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def shared(groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Key heads shared by query heads, as :func:`epan.attention` passes them on."""
    k, v = draw(2, 1, 7, 4), draw(2, 1, 7, 3)
    return draw(2, groups, 5, 4), *(t.detach().repeat_interleave(groups, 1).requires_grad_() for t in (k, v))


CASES: dict[str, tuple[Any, ...]] = {
    "plain": arguments(*qkv()),
    "no-gradient": arguments(*qkv(grad=False), with_stats=False),
    "only-values": arguments(draw(1, 2, 5, 4, grad=False), draw(1, 2, 7, 4, grad=False), draw(1, 2, 7, 3)),
    "bfloat16": arguments(*qkv(dtype=torch.bfloat16)),
    "shared-key-heads": arguments(*shared(4)),
    "scale-per-query": arguments(*qkv(), scale=(0.5 + torch.rand(1, 2, 5, 1, dtype=F64)).requires_grad_()),
    "expanded-scale": arguments(*qkv(), scale=torch.full((), 0.5, dtype=F64).expand(1, 2, 5, 1)),
    "float-mask": arguments(*qkv(), mask=draw(1, 1, 5, 7)),
    "boolean-mask": arguments(*qkv(), mask=draw(1, 2, 5, 7, grad=False) > 0),
    "slopes": arguments(*qkv(), slopes=torch.rand(1, 2, 1, 1, dtype=F64).requires_grad_()),
    "window": arguments(*qkv(), left=2, right=0),
    "packed": arguments(*(draw(1, 2, 6, n) for n in (4, 4, 3)), offsets=torch.tensor([0, 2, 6], dtype=I32)),
    "dropout": arguments(*qkv(), dropout_p=0.3),
    "learnt-order": arguments(*qkv(), order=(1.0 + torch.rand(1, 2, 5, 1, dtype=F64)).requires_grad_()),
    "fixed": arguments(*qkv(), rule="fixed", euclidean=True, kernel="triweight"),
    "anchored": arguments(*qkv(), rule="anchored", kernel="cosine"),
    "gaussian": arguments(*qkv(), kernel="gaussian"),
    "heads-last": arguments(*(laid_out(t) for t in qkv())),
    "several-tiles": arguments(draw(1, 1, 140, 4), draw(1, 1, 200, 4), draw(1, 1, 200, 3)),
    "nothing": arguments(draw(1, 2, 0, 4), draw(1, 2, 0, 4), draw(1, 2, 0, 3)),
}
# Backward they are one of the others again.
FORWARD_ONLY = ("no-gradient", "expanded-scale", "boolean-mask", "window", "anchored", "gaussian", "heads-last")
X = -torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
LEVELS: dict[str, tuple[Tensor, Tensor | None, float]] = {
    "height": (X, None, 2.0),
    "shift": (X, None, 40.0),
    "order-per-row": (X, torch.tensor([[1.0], [2.5], [30.0]], dtype=F64), 0.0),
    "one-order": (X.expand(2, 3, 5), torch.tensor(1.5, dtype=F64), 0.0),
    "float32": (X.float(), None, 1.0),
    "candidates": (torch.where(X.repeat(1, 32) > -0.5, 10.0 * X.repeat(1, 32), -math.inf), None, 3.0),
    "strided": (X.T, None, 2.0),
    "no-keys": (X[:, :0], None, 2.0),
    "no-rows": (X[:0], None, 2.0),
}


def passes(operator: Any, inputs: tuple[Any, ...]) -> None:
    assert opcheck(operator, inputs) == dict.fromkeys(TESTS, "SUCCESS")


@pytest.mark.parametrize("case", CASES)
def test_tiled(case: str) -> None:
    passes(torch.ops.epan.tiled, CASES[case])


@pytest.mark.parametrize("case", [case for case in CASES if case not in FORWARD_ONLY])
def test_tiled_backward(case: str) -> None:
    """With the state that the forward operator makes, for every gradient that the case asks for."""
    inputs = CASES[case]
    out, reference, level, divisor, _, _, _, active, bad = torch.ops.epan.tiled(*inputs)
    wanted = [int(isinstance(t, Tensor) and t.requires_grad) for t in inputs[:7]]
    detached = [t.detach() if isinstance(t, Tensor) else t for t in inputs[:10]]
    state = [t.detach() for t in (reference, level, divisor, active, bad)]
    grad = torch.ones_like(out.detach())
    passes(torch.ops.epan.tiled_backward, (grad, *detached, state, *inputs[10:14], wanted))


@pytest.mark.parametrize("case", LEVELS)
def test_adaptive_level(case: str) -> None:
    passes(torch.ops.epan.adaptive_level, LEVELS[case])


def test_opcheck_sees_a_wrong_fake() -> None:
    """What the tests above rely on: an operator whose fake has another shape does not pass."""

    @torch.library.custom_op("epan_test::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return 2.0 * x

    @doubled.register_fake
    def _(x: Tensor) -> Tensor:
        return x.new_empty((*x.shape, 1))

    result = opcheck(torch.ops.epan_test.doubled, (torch.ones(3),), raise_exception=False)
    assert result["test_schema"] == "SUCCESS"
    assert result["test_faketensor"] != "SUCCESS"


OPTIONS: list[dict[str, Any]] = [
    {},
    {"kernel": "gaussian", "is_causal": True},
    {"kernel": "epanechnikov", "normalization": "anchored", "window": (2, 0)},
    {"kernel": "triweight", "normalization": "fixed", "similarity": "euclidean", "dropout_p": 0.5},
    {"kernel": "gaussian", "normalization": epan.Nearest(k=2)},
    {"kernel": epan.Polynomial(order=30.0), "similarity": "euclidean"},
]


@pytest.mark.parametrize("name", ["auto", "eager"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fake_tensors_have_the_right_shapes(options: dict[str, Any], name: str) -> None:
    for dtype in (torch.bfloat16, torch.float64):
        with FakeTensorMode():
            q = torch.randn(2, 4, 7, 8, dtype=dtype, requires_grad=True)
            k, v = (torch.randn(2, 2, 7, n, dtype=dtype, requires_grad=True) for n in (8, 3))
            out, stats = epan.attention(q, k, v, enable_gqa=True, return_stats=True, backend=name, **options)
            assert (out.shape, out.dtype) == ((2, 4, 7, 3), dtype)
            for field in stats[:3]:
                assert field.shape == (2, 4, 7)
            for leaf, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
                assert (grad.shape, grad.dtype) == (leaf.shape, dtype)


def test_fake_packed_sequences_and_weights() -> None:
    with FakeTensorMode():
        x, offsets = torch.randn(6, 2, 4), torch.tensor([0, 2, 6])
        packed = epan.attention_varlen(x, x, x, offsets, offsets, 4, 4, backend="eager")
        assert isinstance(packed, Tensor)
        assert packed.shape == (6, 2, 4)
        assert epan.attention_weights(torch.randn(3, 5), dim=0).shape == (3, 5)


def test_weights_of_meta_tensors() -> None:
    weights = epan.attention_weights(torch.empty(3, 5, device="meta", dtype=torch.bfloat16))
    assert (weights.shape, weights.dtype, weights.device.type) == ((3, 5), torch.bfloat16, "meta")
