"""A short causal convolution: each channel of a projection may look a few steps back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import EpanError

__all__ = ["ShortConvolution"]


class ShortConvolution(nn.Module):
    r"""Depthwise causal convolution :math:`y_t = \sum_{m=0}^{s-1} w_m \odot x_{t-m}`, x before the first step being zero.

    Queries and keys that mix the last s steps, each channel in its own way, can match runs of s symbols at any distance, in
    the same or in the opposite order; there is nothing in it that knows of lengths or positions.

    Parameters
    ----------
    width: channels d of x. size: s, at least 2. ``weight`` is (s, d), normal with standard deviation 1/√s.

    Shapes: x (B, T, d) gives (B, T, d) in the dtype of x, computed in at least float32.

    Raises
    ------
    EpanError: if size is below 2.

    Source: So et al. 2109.08668 (convolutions of queries, keys and values).
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        if size < 2:
            raise EpanError("A convolution over one step does nothing", found=f"size={size}", allowed="size >= 2")
        self.weight = nn.Parameter(torch.randn(size, width) / math.sqrt(size))

    def forward(self, x: Tensor) -> Tensor:
        # Shifted sums rather than a convolution of the library: a compiler makes one pass of them, forward and backward.
        wide, steps = x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[1]
        out = wide * self.weight[0]
        for lag in range(1, self.weight.shape[0]):
            out = out + nn.functional.pad(wide, (0, 0, lag, 0))[:, :steps] * self.weight[lag]
        return out.to(x.dtype)
