"""The uniform (boxcar) kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from ..errors import EpanError
from .base import Kernel

__all__ = ["Uniform"]


@final
@dataclass(frozen=True)
class Uniform(Kernel):
    r"""Uniform kernel :math:`1[d \le h]`: all keys within the radius count alike.

    With ``Nearest(k)`` it is top-k with equal weights and needs no radius; with the fixed normalization it averages the
    values of all keys within ``radius``. Its weights are piecewise constant: keys and queries get zero gradient, only
    values learn.

    Parameters
    ----------
    radius: h in units of distance, whatever the scale; None only with ``Nearest``. Where only scores are known, as in
        ``attention_weights``, they are taken as :math:`-d^2/2`.

    Raises
    ------
    EpanError: for a radius that is not a positive finite number.

    Source: theory of kernel regression with a boxcar window; k-nearest-neighbour regression (Fix & Hodges 1951).
    """

    radius: float | None = None

    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        radius = self.radius
        if radius is not None:
            if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 < radius < math.inf:
                raise EpanError(
                    "The radius of Uniform must be a positive finite number or None",
                    found=radius,
                    allowed="0 < radius < inf, in units of distance",
                )
            object.__setattr__(self, "radius", float(radius))
        super().__post_init__()

    @property
    def support(self) -> float:
        return math.inf if self.radius is None else self.radius**2 / 2

    @property
    def is_closed(self) -> bool:
        return True

    def at_scale(self, scale: float | Tensor) -> Kernel:
        return self if self.radius is None else _ScaledUniform(self.radius, scale)

    def profile(self, x: Tensor) -> Tensor:
        return _boxcar(x, self.support)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x == x, 0.0, x)


@dataclass(frozen=True, eq=False)
class _ScaledUniform(Kernel):
    """The uniform kernel on scores −βd²/2 of known β: the radius becomes βh²/2."""

    radius: float
    scale: float | Tensor

    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "handle", -1)

    @property
    def support(self) -> float | Tensor:
        return self.scale * (self.radius**2 / 2)

    @property
    def is_closed(self) -> bool:
        return True

    def profile(self, x: Tensor) -> Tensor:
        return _boxcar(x, self.support)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x == x, 0.0, x)


def _boxcar(x: Tensor, support: float | Tensor) -> Tensor:
    # x·0 would turn −inf into NaN; the comparison with itself keeps NaN visible.
    return torch.where(x == x, (x >= -support).to(x.dtype), x)
