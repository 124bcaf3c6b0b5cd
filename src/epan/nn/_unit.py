"""Unit norm that survives the zero vector."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unit_norm"]


def unit_norm(x: Tensor, eps: float = 1e-12) -> Tensor:
    r""":math:`x/\|x\|` along the last dimension; zero, with zero gradient, where :math:`\|x\| \le` ``eps``.

    A vector of norm zero has no direction: dividing by a small constant instead would multiply its gradient by 10¹².
    16-bit inputs are normalised in float32; the result has the dtype of ``x``.
    """
    full = x.to(torch.promote_types(x.dtype, torch.float32))
    square = (full * full).sum(dim=-1, keepdim=True)
    long = square > eps**2
    # The root of a one in place of a zero keeps derivatives of every order finite.
    factor = torch.where(long, torch.rsqrt(torch.where(long, square, 1.0)), 0.0)
    return (full * factor).to(x.dtype)
