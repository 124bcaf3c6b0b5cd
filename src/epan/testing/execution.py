"""Runs an attention function on the inputs of a case and collects what comes out.

Cases and formulas live on the CPU. A backend that needs a GPU is given copies there, in the same strides, and what comes
out, gradients too, is brought back; so every check judges it as it judges the others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias

from ..kernels import Polynomial
from ..normalizations import Stats
from ..normalizations.base import map_stats
from ..ops import attention, attention_varlen
from .inputs import Inputs

__all__ = ["Attention", "Result", "backend", "device_of", "on_device", "run", "varlen_backend"]

#: Anything with the signature of ``epan.attention``.
Attention = Callable[..., Any]


@dataclass(frozen=True)
class Result:
    """Output, statistics (if asked for) and gradients by the name of the input."""

    out: Tensor
    stats: Stats | None = None
    grads: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that floats, by name."""
        named = {"out": self.out, **{f"gradient of {name}": grad for name, grad in self.grads.items()}}
        if self.stats is not None:
            named["threshold"], named["partition"] = self.stats.threshold, self.stats.partition
        return named


def device_of(name: str) -> str:
    """Where a backend runs in tests: triton on the GPU if there is one (else in its interpreter), others on the CPU."""
    return "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"


def backend(name: str) -> Attention:
    """``epan.attention`` on one backend, to be called with tensors on the CPU."""
    return on_device(functools.partial(attention, backend=name), device_of(name))


def varlen_backend(name: str) -> Attention:
    """``epan.attention_varlen`` on one backend, to be called with tensors on the CPU."""
    return on_device(functools.partial(attention_varlen, backend=name), device_of(name))


def on_device(function: Attention, device: str) -> Attention:
    """``function`` on copies of its tensors on ``device``; output, statistics and gradients come back to the CPU."""
    if device == "cpu":
        return function

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        # The same object again stays the same object.
        moved: dict[int, Tensor] = {}

        def move(value: Any) -> Any:
            if isinstance(value, Polynomial) and isinstance(value.order, Tensor):
                return Polynomial(order=move(value.order))
            if not isinstance(value, Tensor) or isinstance(value, CausalBias):
                return value
            if id(value) not in moved:
                moved[id(value)] = _Moved.apply(value, torch.device(device))
            return moved[id(value)]

        found = function(*(move(value) for value in args), **{name: move(value) for name, value in options.items()})
        if isinstance(found, Tensor):
            return found.cpu()
        return found[0].cpu(), map_stats(Tensor.cpu, found[1])

    return call


class _Moved(torch.autograd.Function):
    """A copy on another device in the same strides, with what lies between them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:  # type: ignore[override]
        ctx.home = tensor.device
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        flat = tensor.detach().as_strided((extent if tensor.numel() else 0,), (1,))
        return flat.to(device, copy=True).as_strided(tensor.shape, tensor.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.to(ctx.home), None


def run(function: Attention, inputs: Inputs, *, gradients: bool = True, stats: bool = False) -> Result:
    """Calls ``function`` and, with ``gradients``, pulls ``inputs.grad`` back to every differentiable input.

    Strides of the inputs are kept. An input that the result does not depend on has the gradient zero.
    """
    if gradients:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.leaves().items()}
        inputs = inputs.with_leaves(leaves)
    options = inputs.options()
    if stats:
        options["return_stats"] = True
    with torch.set_grad_enabled(gradients):
        returned = function(inputs.query, inputs.key, inputs.value, **options)
    out, statistics = returned if stats else (returned, None)
    grads: dict[str, Tensor] = {}
    if gradients:
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if out.requires_grad:
            found = torch.autograd.grad(out, list(leaves.values()), inputs.grad.to(out.dtype), allow_unused=True)
        for (name, leaf), grad in zip(leaves.items(), found, strict=True):
            grads[name] = torch.zeros_like(leaf) if grad is None else grad
    return Result(out.detach(), statistics, grads)
