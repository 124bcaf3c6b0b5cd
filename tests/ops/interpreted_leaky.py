"""Runs checks of the leaky average's GPU kernels in Triton's interpreter; a process of its own, as that is chosen at import.

python tests/ops/interpreted_leaky.py GROUP
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import interpreter  # noqa: F401  isort: skip (before Triton)

import torch
from torch import Tensor

from epan.nn import KeyExtractor, leaky_average
from epan.nn._unit import unit_norm
from epan.ops.triton import leaky
from epan.testing.tolerance import NOISE, assert_equal_bits, assert_within, band, working_dtype

Function = Callable[[Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor]]
# (B, H, T, D), rate per step, with a state, unit norm, segments wanted.
CASES = (
    ((2, 3, 150, 5), False, True, False, 1),
    ((1, 2, 333, 20), True, False, True, 4),
    ((1, 2, 333, 20), False, True, True, 3),
    ((1, 2, 90, 130), True, True, False, 2),
    ((2, 1, 1, 16), True, True, False, 1),
    ((1, 1, 33, 130), False, False, True, 1),
)


def recurrence(x: Tensor, rate: Tensor, state: Tensor | None, unit: bool) -> tuple[Tensor, Tensor]:
    """One step at a time, in the working precision."""
    full = x.to(working_dtype(x.dtype))
    rate = rate[None, :, None].expand(x.shape[:3]) if rate.dim() == 1 else rate
    current = torch.zeros_like(full[:, :, 0]) if state is None else state.to(full.dtype)
    steps = []
    for t in range(x.shape[2]):
        current = full[:, :, t] + torch.exp(-rate[:, :, t].to(full.dtype))[..., None] * current
        steps.append(current)
    out = torch.stack(steps, 2)
    return (unit_norm(out) if unit else out).to(x.dtype), current


def fused(x: Tensor, rate: Tensor, state: Tensor | None, unit: bool) -> tuple[Tensor, Tensor]:
    return leaky.leaky_average(x, rate, state, unit=unit)


def everything(
    function: Function, tensors: Sequence[Tensor | None], unit: bool, weights: Sequence[Tensor], second: bool
) -> list[Tensor]:
    """Output, last state, first and (``second``) second derivatives by the tensors, for fixed weights of the outputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    x, rate, state = leaves
    assert x is not None
    assert rate is not None
    found = list(function(x, rate, state, unit))
    there = [leaf for leaf in leaves if leaf is not None]
    total = sum(((out * weight.to(out.dtype)).double().sum() for out, weight in zip(found, weights, strict=True)), 0.0)
    grads = torch.autograd.grad(total, there, create_graph=second)
    found += grads
    if second:
        generator = torch.Generator().manual_seed(5)
        mixed = sum(((g * torch.randn(g.shape, generator=generator).to(g.dtype)).double().sum() for g in grads), 0.0)
        # With one step and no state some of them do not depend on anything.
        found += torch.autograd.grad(mixed, there, allow_unused=True, materialize_grads=True)
    return found


def moved(tensors: Sequence[Tensor | None], seed: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE * torch.finfo(torch.float32).eps
    return [
        None if t is None else t * (1 + noise * (2 * torch.rand(t.shape, generator=generator) - 1).double())
        for t in tensors
    ]


def agree(dtype: torch.dtype, second: bool) -> None:
    for shape, per_step, stateful, unit, segments in CASES:
        b, h, t, d = shape
        leaky.PROGRAMS, leaky.LEAST_CHUNKS = segments * b * h * -(-d // leaky.program_columns(d, unit)), 1
        # Heads beside each other in memory, as a projection leaves them.
        x = torch.randn(b, t, h * d).unflatten(-1, (h, d)).transpose(1, 2).to(dtype)
        rate = 2.0 * torch.rand((b, h, t) if per_step else (h,))
        rate[..., :1] = 1e-3
        tensors = (x, rate, torch.randn(b, h, d) if stateful else None)
        weights = (torch.randn(shape).to(dtype), torch.randn(b, h, d))
        exact = [None if tensor is None else tensor.double() for tensor in tensors]
        actual = everything(fused, tensors, unit, weights, second)
        # The definition in the same dtype is the yardstick.
        yardstick = everything(recurrence, tensors, unit, weights, second)
        reference = everything(recurrence, exact, unit, weights, second)
        others = [everything(recurrence, moved(exact, seed), unit, weights, second) for seed in (1, 2)]
        for place, (got, base, right) in enumerate(zip(actual, yardstick, reference, strict=True)):
            width = band(right, [other[place] for other in others], got.dtype)
            kind = "output" if place < 2 else "gradient"
            assert_within(got, right, base, kind=kind, band=width, label=f"{shape} {per_step} {unit} result {place}")
        assert actual[0].dtype == dtype
        assert second or actual[2].stride() == x.stride()
        for got, again in zip(actual, everything(fused, tensors, unit, weights, second), strict=True):
            assert_equal_bits(got, again)


def contain() -> None:
    """No step sees a later one, not even a number that is not finite; huge rates forget, zero rates do not."""
    x, rate = torch.randn(1, 2, 70, 16), torch.tensor([0.0, 1e4])
    out, _ = leaky.leaky_average(x, rate)
    assert_equal_bits(out[:, 1], x[:, 1])
    for bad in (float("nan"), float("inf"), 1e3):
        changed = x.clone()
        changed[:, :, 40, 3] = bad
        other, _ = leaky.leaky_average(changed, rate)
        assert_equal_bits(other[:, :, :40], out[:, :, :40])
        assert_equal_bits(other[..., 4:], out[..., 4:])
        assert bool((other[:, 0, 40:, 3] != out[:, 0, 40:, 3]).all())
    zero, _ = leaky.leaky_average(torch.zeros(1, 1, 5, 4), torch.ones(1), unit=True)
    assert bool((zero == 0).all())
    for shape in ((0, 2, 5, 4), (2, 0, 5, 4)):
        assert leaky.leaky_average(torch.zeros(shape), torch.ones(shape[1]))[0].shape == shape


def surroundings() -> None:
    """The operator's own checks, one graph under the compiler, and the layer that uses it."""
    x, rate = torch.randn(1, 2, 40, 8, requires_grad=True), torch.rand(2, requires_grad=True)
    state = torch.randn(1, 2, 8, requires_grad=True)
    torch.library.opcheck(leaky._average, (x, rate, state, True))
    torch.library.opcheck(leaky._average, (x, torch.rand(1, 2, 40, requires_grad=True), None, False))
    compiled = torch.compile(leaky_average, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(x, rate).square().sum(), (x, rate)) for f in (compiled, leaky_average))
    for got, right in zip(found, expected, strict=True):
        assert_equal_bits(got, right)
    layer = KeyExtractor(16, 2)
    inputs = torch.randn(1, 50, 16, requires_grad=True)
    keys, last = layer(inputs)
    raw = layer.projection(inputs).unflatten(-1, (2, 8)).transpose(1, 2)
    for got, right in zip((keys, last), fused(raw, layer.average.rate, None, True), strict=True):
        assert_equal_bits(got, right)
    # Under a transform it is plain torch, to which transforms are no obstacle.
    per_sample = torch.func.vmap(lambda one: leaky_average(one[None], rate.detach())[0])(x.detach())
    width = band(expected := leaky_average(x.detach().double(), rate.detach().double()), [], torch.float32)
    assert_within(per_sample, expected, leaky_average(x.detach(), rate.detach()), band=width)


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1] == "surroundings":
        surroundings()
    elif sys.argv[1] == "containment":
        contain()
    elif sys.argv[1] == "second":
        agree(torch.float32, second=True)
    else:
        agree({"float32": torch.float32, "float16": torch.float16}[sys.argv[1]], second=False)
    print("passed", sys.argv[1])
