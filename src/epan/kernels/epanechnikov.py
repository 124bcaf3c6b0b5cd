"""The Epanechnikov kernel: order 1, sparsemax and ReLU attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .base import RectifiedPolynomial

__all__ = ["Epanechnikov"]


# triton.language, which stands here where ops/triton runs the two functions below.
tl: Any


def _device_profile(u, order):  # type: ignore[no-untyped-def]
    return u


def _device_derivative(u, order):  # type: ignore[no-untyped-def]
    return tl.where(u > 0, 1.0, 0.0)


@final
@dataclass(frozen=True)
class Epanechnikov(RectifiedPolynomial):
    r"""Epanechnikov kernel :math:`\varphi(x) = [1 + x]_+`, on distances :math:`[1 - d^2/h^2]_+` with :math:`h^2 = 2/\beta`.

    adaptive: sparsemax (α = 2). anchored: ReLUmax. fixed: normalised ReLU.

    Source: Epanechnikov 1969; Martins & Astudillo 1602.02068; Santos et al. 2601.22766.
    """

    name: ClassVar[str] = "epanechnikov"
    order: ClassVar[float] = 1.0
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_derivative)

    def power(self, base: Tensor) -> Tensor:
        return base

    def power_derivative(self, base: Tensor) -> Tensor:
        # A comparison would turn NaN into zero.
        return torch.where(base == base, (base > 0).to(base.dtype), base)
