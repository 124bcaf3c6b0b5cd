"""The biweight (quartic) kernel: order 2, 1.5-entmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from .base import RectifiedPolynomial

__all__ = ["Biweight"]


def _device_profile(u, order):  # type: ignore[no-untyped-def]
    return u * u


def _device_derivative(u, order):  # type: ignore[no-untyped-def]
    return u


@final
@dataclass(frozen=True)
class Biweight(RectifiedPolynomial):
    r"""Biweight kernel :math:`\varphi(x) = [1 + x/2]_+^2`, on distances :math:`[1 - d^2/h^2]_+^2` with :math:`h^2 = 4/\beta`.

    adaptive: 1.5-entmax (α = 3/2).

    Source: Peters et al. 1905.05702; Santos et al. 2601.22766 (whose figure 1 swaps this label with the triweight's).
    """

    name: ClassVar[str] = "biweight"
    order: ClassVar[float] = 2.0
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_derivative)

    def power(self, base: Tensor) -> Tensor:
        return base * base

    def power_derivative(self, base: Tensor) -> Tensor:
        return base
