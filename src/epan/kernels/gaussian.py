"""The Gaussian kernel: softmax attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .base import Kernel

__all__ = ["Gaussian"]


# triton.language, which stands here where ops/triton runs the two functions below.
tl: Any


def _device_profile(x, order):  # type: ignore[no-untyped-def]
    return tl.exp(x)


@final
@dataclass(frozen=True)
class Gaussian(Kernel):
    r"""Gaussian kernel :math:`\varphi(x) = e^x`, on distances :math:`e^{-\beta d^2/2}`: the limit n → ∞ of the polynomials.

    Every normalization except ``nearest`` turns it into softmax; its standard deviation is :math:`\beta^{-1/2}`.
    The support is unbounded, so no weight is exactly zero.

    Source: Nadaraya 1964; Tsai et al. 1908.11775 (softmax attention as a kernel smoother).
    """

    name: ClassVar[str] = "gaussian"
    order: ClassVar[float] = math.inf
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_profile)

    @property
    def support(self) -> float:
        return math.inf

    def profile(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def relative_profile(self, x: Tensor, top: Tensor) -> Tensor:
        return torch.exp(x - top)

    def relative_derivative(self, x: Tensor, top: Tensor) -> Tensor:
        return torch.exp(x - top)
