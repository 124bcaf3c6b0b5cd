"""Positions for plain attention: rotary angles, ALiBi slopes, none, or half and half."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import EpanError, unknown_name

__all__ = ["POSITIONS", "alibi_slopes", "rotate"]

POSITIONS = ("rope", "alibi", "nope", "half")


def rotate(x: Tensor, first: int, base: float = 10_000.0) -> Tensor:
    r"""Rotary embedding: the pair (x_i, x_{i + D/2}) is turned by :math:`p \cdot \text{base}^{-2i/D}` at position p.

    Angles are computed on the fly, in float64 where the device has it (a float32 angle is off by 4e-3 at position
    65,536), so there is no table that bounds the length.

    Parameters
    ----------
    x: (B, H, T, D), D even. first: position of the first step.

    Returns
    -------
    (B, H, T, D) in the dtype of ``x``.

    Source: Su et al. 2104.09864.
    """
    half = x.shape[-1] // 2
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    position = torch.arange(first, first + x.shape[-2], device=x.device, dtype=dtype)
    frequency = base ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = position[:, None] * frequency
    compute = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(compute), angle.sin().to(compute)
    a, b = x[..., :half].to(compute), x[..., half:].to(compute)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def alibi_slopes(positions: str, heads: int) -> list[float] | None:
    r"""ALiBi slope of each head, or None for kinds of positions without ALiBi.

    ``"alibi"``: :math:`2^{-8h/H}` for h = 1 … H (Press et al. 2108.12409). ``"half"``: the first H/2 heads have no
    positions (slope 0), the others 1/1, 1/2, …, 1/(H/2) (Vasylenko et al. 2506.16640).

    Raises
    ------
    EpanError: for an unknown kind, and for ``"half"`` with an odd number of heads.
    """
    if positions not in POSITIONS:
        raise unknown_name("kind of positions", positions, POSITIONS, {"none": 'no positions is "nope"'})
    if positions == "alibi":
        return [2.0 ** (-8.0 * h / heads) for h in range(1, heads + 1)]
    if positions == "half":
        if heads % 2:
            raise EpanError('positions="half" needs an even number of heads', found=heads)
        return [0.0] * (heads // 2) + [1.0 / h for h in range(1, heads // 2 + 1)]
    return None
