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


def alibi_slopes(
    positions: str, heads: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Tensor | None:
    r"""ALiBi slope of each head, (H,), or None for kinds of positions without ALiBi.

    ``"alibi"``: :math:`2^{-8h/H}` for h = 1 … H (Press et al. 2108.12409). ``"half"``: the first H/2 heads have no
    positions (slope 0), the others 1/1, 1/2, …, 1/(H/2) (Vasylenko et al. 2506.16640). Made on the device, so that a CUDA
    graph can hold it.

    Raises
    ------
    EpanError: for an unknown kind, and for ``"half"`` with an odd number of heads.
    """
    if positions not in POSITIONS:
        raise unknown_name("kind of positions", positions, POSITIONS, {"none": 'no positions is "nope"'})
    if positions == "half" and heads % 2:
        raise EpanError('positions="half" needs an even number of heads', found=heads)
    if positions not in ("alibi", "half"):
        return None
    head = torch.arange(1, heads + 1, device=device, dtype=dtype)
    if positions == "alibi":
        return torch.exp2(-8.0 * head / heads)
    free = heads // 2
    return torch.where(head <= free, 0.0, 1.0 / (head - free).clamp(min=1.0))
