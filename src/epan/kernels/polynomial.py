"""Rectified polynomials of any real order n ≥ 1, also learnt."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from .._modes import is_traced
from ..errors import EpanError
from .base import RectifiedPolynomial

__all__ = ["Polynomial"]


@final
@dataclass(frozen=True, eq=False)
class Polynomial(RectifiedPolynomial):
    r"""Rectified polynomial :math:`\varphi_n(x) = [1 + x/n]_+^n` of real order n ≥ 1.

    Orders 1, 2, 3 are the Epanechnikov, biweight and triweight kernels; large orders approach the Gaussian. Under the
    adaptive normalization this is α-entmax with α = 1 + 1/n for any α in (1, 2].

    Parameters
    ----------
    order: a finite float ≥ 1, or a floating-point tensor of values ≥ 1 that broadcasts to the scores like ``scale``,
        e.g. (H, 1, 1) for one order per head. A tensor may require grad: the order is then learnt. Tensor orders are
        computed in float64 where the device has it, because one formula must serve small and large n.

    Raises
    ------
    EpanError: for an order below 1, where the threshold equation is not convex and gradients are unbounded at the
        edge of the support, and for an infinite or NaN order.

    Source: Peters et al. 1905.05702, equation 5; Correia et al. 1909.00015 (learning α).
    """

    order: float | Tensor = field()  # type: ignore[misc]

    name: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        order = self.order
        if isinstance(order, Tensor):
            if not order.is_floating_point():
                raise EpanError(
                    "A tensor order must be of floating point", found=str(order.dtype), fix="use order.float()"
                )
            # A look at the values would break tracing, and on a GPU would wait for it.
            if not is_traced() and order.device.type == "cpu":
                if not bool((order.detach() >= 1).all()):
                    raise _below_one(f"a tensor with minimum {float(order.detach().min()):.6g}")
                if bool(torch.isinf(order.detach()).any()):
                    raise _infinite("a tensor with an infinite entry")
            object.__setattr__(self, "handle", -1)
            return
        if isinstance(order, bool) or not isinstance(order, (int, float)):
            raise EpanError("The order of Polynomial must be a number or a tensor", found=order, allowed="real n >= 1")
        try:
            order = float(order)
        except OverflowError:
            raise _infinite("an integer beyond any float") from None
        if math.isnan(order) or order < 1:
            raise _below_one(repr(order))
        if math.isinf(order):
            raise _infinite(order)
        object.__setattr__(self, "order", order)
        super().__post_init__()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Polynomial) or isinstance(self.order, Tensor) or isinstance(other.order, Tensor):
            return self is other
        return self.order == other.order

    def __hash__(self) -> int:
        return id(self) if isinstance(self.order, Tensor) else hash(("polynomial", self.order))


def _below_one(found: str) -> EpanError:
    return EpanError(
        "The order of Polynomial must be at least 1: below it the threshold equation is not convex and gradients are "
        "unbounded at the edge of the support",
        found=found,
        allowed="real n >= 1 (alpha = 1 + 1/n in (1, 2])",
        fix="for a learnt order use 1 + softplus(parameter)",
    )


def _infinite(found: object) -> EpanError:
    return EpanError("The order of Polynomial must be finite", found=found, fix='use kernel="gaussian" for the limit')
