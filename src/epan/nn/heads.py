"""Small things that every layer with heads needs."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from ..errors import EpanError
from ..ops import Stats

__all__ = ["PerHead", "head_size", "init_linear", "merge_heads", "split_heads", "with_stats"]


class PerHead:
    """A layer that declares what of it belongs to single heads, so that a fault can be told by its head.

    Attributes
    ----------
    per_head: its own parameters whose first dimension is that of the heads.
    per_head_output: whether its (first) output is (B, H, …).
    """

    per_head: ClassVar[tuple[str, ...]] = ()
    per_head_output: ClassVar[bool] = False


def head_size(width: int, heads: int) -> int:
    """width / heads.

    Raises
    ------
    EpanError: if heads does not divide width, or either is below 1.
    """
    if heads < 1 or width < 1:
        raise EpanError("Width and number of heads must be at least 1", found=f"width={width}, heads={heads}")
    if width % heads:
        below = width - width % heads
        raise EpanError(
            "The width must be divisible by the number of heads",
            found=f"width={width}, heads={heads}",
            fix=f"use width={below or heads} or width={below + heads}, or another number of heads",
        )
    return width // heads


def split_heads(x_BTE: Tensor, heads: int) -> Tensor:
    """(B, T, H·D) as (B, H, T, D), without a copy."""
    return x_BTE.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHTD: Tensor) -> Tensor:
    """(…, H, T, D) as (…, T, H·D)."""
    return x_BHTD.transpose(-3, -2).flatten(-2)


def init_linear(linear: nn.Linear, *, depth: int = 1) -> None:
    """Normal with standard deviation 1/√(fan_in · depth); ``depth`` is the number of layers for output projections."""
    nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features * depth))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def with_stats(result: Tensor | tuple[Tensor, Stats]) -> tuple[Tensor, Stats | None]:
    """The output and the stats (None if none were asked for) of something called with ``return_stats``."""
    return result if isinstance(result, tuple) else (result, None)
