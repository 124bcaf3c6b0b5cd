"""The cosine kernel: a compact kernel outside the polynomial family, in one file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .base import Kernel

__all__ = ["Cosine"]


# triton.language, which stands here where ops/triton runs the two functions below.
tl: Any


def _device_profile(u, order):  # type: ignore[no-untyped-def]
    # cos at the edge of the support is rounding, not zero.
    return tl.where(u > 0, tl.cos(1.5707963267948966 * tl.sqrt(tl.maximum(1.0 - u, 0.0))), 0.0)


def _device_derivative(u, order):  # type: ignore[no-untyped-def]
    root = 1.5707963267948966 * tl.sqrt(tl.maximum(1.0 - u, 0.0))
    return tl.where(u > 0, tl.where(root > 1e-3, tl.sin(root) / tl.maximum(root, 1e-3), 1.0), 0.0)


@final
@dataclass(frozen=True)
class Cosine(Kernel):
    r"""Cosine kernel :math:`\varphi(x) = \cos\sqrt{-2x}` for :math:`-2x < \pi^2/4`, else 0; on distances
    :math:`\cos(\sqrt\beta\, d)` up to :math:`h = \pi/(2\sqrt\beta)`.

    The same curvature at distance zero as the polynomials. It has no entmax twin, so it needs the fixed or the anchored
    normalization. For x > 0, which only a positive additive bias can produce, the profile stays at 1.

    Source: a standard kernel of density estimation (Silverman 1986, table 3.1 and following).
    """

    name: ClassVar[str] = "cosine"
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_derivative)

    @property
    def support(self) -> float:
        return math.pi**2 / 8

    def profile(self, x: Tensor) -> Tensor:
        square, inside, near = _argument(x)
        root = torch.sqrt(torch.where(near, 1.0, square))
        series = 1 - square * (1 / 2 - square * (1 / 24 - square * (1 / 720 - square / 40320)))
        value = torch.where(near, series, torch.cos(root))
        return torch.where(inside, value, torch.where(x == x, 0.0, x))

    def derivative(self, x: Tensor) -> Tensor:
        square, inside, near = _argument(x)
        root = torch.sqrt(torch.where(near, 1.0, square))
        series = 1 - square * (1 / 6 - square * (1 / 120 - square * (1 / 5040 - square / 362880)))
        value = torch.where(near, series, torch.sin(root) / root)
        return torch.where(inside & (x <= 0), value, torch.where(x == x, 0.0, x))


def _argument(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d²β = −2x where it counts, the support, and the neighbourhood of 0 in which the series replaces √ and cos."""
    square = -2.0 * x
    inside = square < math.pi**2 / 4
    square = torch.where(inside, square, 0.0).clamp(min=0.0)
    return square, inside, square < 0.02
