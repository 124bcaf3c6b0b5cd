"""The triweight kernel: order 3, 4/3-entmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from .base import RectifiedPolynomial

__all__ = ["Triweight"]


def _device_profile(u, order):  # type: ignore[no-untyped-def]
    return u * u * u


def _device_derivative(u, order):  # type: ignore[no-untyped-def]
    return u * u


@final
@dataclass(frozen=True)
class Triweight(RectifiedPolynomial):
    r"""Triweight kernel :math:`\varphi(x) = [1 + x/3]_+^3`, on distances :math:`[1 - d^2/h^2]_+^3` with :math:`h^2 = 6/\beta`.

    adaptive: 4/3-entmax (α = 4/3).

    Source: Peters et al. 1905.05702; Santos et al. 2601.22766 (whose figure 1 swaps this label with the biweight's).
    """

    name: ClassVar[str] = "triweight"
    order: ClassVar[float] = 3.0
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_derivative)

    def power(self, base: Tensor) -> Tensor:
        return base * base * base

    def power_derivative(self, base: Tensor) -> Tensor:
        return base * base
