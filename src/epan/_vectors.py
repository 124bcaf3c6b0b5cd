"""Elementwise functions and sums whose last digit does not depend on where in a tensor a number lies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._modes import is_traced

__all__ = ["WIDTH", "alike", "row_sum"]

# A multiple of the numbers in a vector of any CPU.
WIDTH = 64
# Tensors of so few elements are never split among threads.
_SERIAL = 1 << 14


def alike(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of each number of ``x``, always by full vectors on a CPU; differentiable if ``function`` is.

    Numbers that are left over at the end of a thread's part are worked on one by one, which gives powers, exponentials
    and logarithms another last digit: equal numbers would have different results.
    """
    if x.device.type != "cpu" or is_traced():
        return function(x)
    count = x.numel()
    if count == 0:
        return function(x)
    flat = torch.nn.functional.pad(x.reshape(-1), (0, -count % WIDTH), value=1.0)
    parts = [function(part) for part in flat.split(_SERIAL)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[:count].view(x.shape)


def row_sum(x: Tensor) -> Tensor:
    """Sums over the last dimension, which stays; the row of a (1, L) tensor is summed as it would be beside others."""
    if x.dim() != 2 or x.shape[0] != 1 or x.device.type != "cpu":
        return x.sum(-1, keepdim=True)
    # The sum of a single long row would be split among threads.
    return x.expand(2, -1).sum(-1, keepdim=True)[:1]
