"""Runs an attention function on the inputs of a case and collects what comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..normalizations import Stats
from ..ops import attention, attention_varlen
from .inputs import Inputs

__all__ = ["Attention", "Result", "backend", "run", "varlen_backend"]

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


def backend(name: str) -> Attention:
    """``epan.attention`` on one backend."""
    return functools.partial(attention, backend=name)


def varlen_backend(name: str) -> Attention:
    """``epan.attention_varlen`` on one backend."""
    return functools.partial(attention_varlen, backend=name)


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
