"""What a kernel is: a profile of the score relative to a reference."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._intern import intern, restore
from .._vectors import alike

__all__ = ["Kernel", "RectifiedPolynomial"]


# Without an equality of its own: a subclass that is no dataclass would inherit one that knows none of its parameters.
@dataclass(frozen=True, eq=False)
class Kernel(ABC):
    r"""A kernel as a profile :math:`\varphi(x)` with :math:`x = -\beta d^2/2` and :math:`\varphi(0) = 1`.

    ``x`` is a score in units of the bandwidth, relative to a reference that the normalization chooses. A subclass is
    one file: a frozen dataclass with ``name``, ``support``, :meth:`profile` and :meth:`derivative`. Instances may be
    passed wherever a kernel name is accepted, also those of classes defined outside this package.

    Attributes
    ----------
    name: the name under which the kernel is found and reported.
    support: :math:`\varphi(x) > 0` if and only if :math:`x > -\text{support}`; infinite for the Gaussian.
    order: n of :math:`[1 + x/n]_+^n` if the kernel is of that family (infinite for the Gaussian), else None.

    Source: Nadaraya 1964; Watson 1964; Santos et al. 2601.22766, section 2.
    """

    name: ClassVar[str]
    order: ClassVar[float | Tensor | None] = None
    # The GPU path: φ and φ' as plain functions of (u, order) in ``tl`` terms, of u = 1 + x/support where
    # that is positive and 0 elsewhere; both must be 0 at u = 0.
    device_profile: ClassVar[Callable[..., Any] | None] = None
    device_derivative: ClassVar[Callable[..., Any] | None] = None
    # Set once per instance; lets custom operators, which take only numbers, name the kernel.
    handle: int = field(init=False, repr=False, compare=False, default=-1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "handle", intern(self))

    def __setstate__(self, state: dict[str, object]) -> None:
        restore(self, state)

    @property
    @abstractmethod
    def support(self) -> float | Tensor:
        """Half-width of the support in units of x (a positive number or a tensor that broadcasts to the scores)."""

    @property
    def alpha(self) -> float | None:
        """α of the entmax twin, 1 + 1/n, or None where there is none or the order is a tensor."""
        order = self.order
        if order is None or isinstance(order, Tensor):
            return None
        return 1.0 if math.isinf(order) else 1.0 + 1.0 / order

    @property
    def is_closed(self) -> bool:
        """True if the support includes its boundary (the uniform kernel)."""
        return False

    @abstractmethod
    def profile(self, x: Tensor) -> Tensor:
        """φ(x), elementwise, differentiable twice, zero (never NaN) outside the support, also at −inf."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """φ'(x), elementwise, zero outside the support."""

    def relative_profile(self, x: Tensor, top: Tensor) -> Tensor:
        """φ(x)/φ(top) without underflow where the kernel allows it; ``top`` ≥ x, broadcastable, inside the support."""
        return self.profile(x) / self.profile(top)

    def relative_derivative(self, x: Tensor, top: Tensor) -> Tensor:
        """φ'(x)/φ(top), the companion of :meth:`relative_profile`."""
        return self.derivative(x) / self.profile(top)

    def at_scale(self, scale: float | Tensor) -> Kernel:
        """The kernel to use for scores of inverse temperature ``scale``; only a radius in units of distance depends on it."""
        return self

    def inside(self, x: Tensor) -> Tensor:
        """True where x lies in the support."""
        return x >= -self.support if self.is_closed else x > -self.support


# triton.language, which stands here where ops/triton runs the two functions below.
tl: Any


def _device_profile(u, order):  # type: ignore[no-untyped-def]
    return tl.where(u > 0, tl.exp2(order * tl.log2(tl.maximum(u, 1e-30))), 0.0)


def _device_derivative(u, order):  # type: ignore[no-untyped-def]
    return tl.where(u > 0, tl.exp2((order - 1.0) * tl.log2(tl.maximum(u, 1e-30))), 0.0)


@dataclass(frozen=True, eq=False)
class RectifiedPolynomial(Kernel):
    r"""The family :math:`\varphi_n(x) = [1 + x/n]_+^n` of order n ≥ 1; on distances :math:`[1 - d^2/h^2]_+^n`, :math:`h^2 = 2n/\beta`.

    All orders have the same curvature at distance zero, and tend to the Gaussian as n → ∞ (difference O(1/n)).
    Under the adaptive normalization order n is α-entmax with α = 1 + 1/n.

    Source: Santos et al. 2601.22766; Peters et al. 1905.05702.
    """

    # Above this order 1 + x/n loses digits of x that n·log1p(x/n) keeps.
    LOG_FORM_ABOVE: ClassVar[float] = 16.0

    order: ClassVar[float | Tensor]
    device_profile = staticmethod(_device_profile)
    device_derivative = staticmethod(_device_derivative)

    @property
    def support(self) -> float | Tensor:
        return self.order

    @property
    def uses_log_form(self) -> bool:
        """True if profiles are evaluated as exp(n·log1p(x/n)): for large and for tensor orders."""
        return isinstance(self.order, Tensor) or self.order > self.LOG_FORM_ABOVE

    def power(self, base: Tensor) -> Tensor:
        """base^n for a rectified base = [1 + x/n]_+ ≥ 0, twice differentiable at 0."""
        return _safe_power(base, self.order)

    def power_derivative(self, base: Tensor) -> Tensor:
        """base^(n−1) on base > 0 and 0 elsewhere, which is φ'(x); at n = 1 the indicator of the support."""
        return _safe_power(base, self.order - 1.0)

    def _not_outside(self, x: Tensor) -> Tensor:
        """Inside the support or NaN, so that a non-finite score is never turned into a zero weight."""
        return ~(x <= -self.support)

    def log_profile(self, x: Tensor) -> Tensor:
        """n·log1p(x/n) inside the support and −inf outside."""
        inside = self._not_outside(x)
        safe = torch.where(inside, x, 0.0)
        return torch.where(inside, self.order * torch.log1p(safe / self.order), -math.inf)

    def profile(self, x: Tensor) -> Tensor:
        if self.uses_log_form:
            return torch.exp(self.log_profile(x))
        return self.power(torch.relu(1.0 + x / self.order))

    def derivative(self, x: Tensor) -> Tensor:
        if self.uses_log_form:
            n = self.order
            inside = self._not_outside(x)
            safe = torch.where(inside, x, 0.0)
            return torch.where(inside, torch.exp((n - 1.0) * torch.log1p(safe / n)), 0.0)
        return self.power_derivative(torch.relu(1.0 + x / self.order))

    def order_derivative(self, x: Tensor) -> Tensor:
        r""":math:`\partial\varphi_n(x)/\partial n = \varphi_n (\ln(1 + x/n) - \frac{x/n}{1 + x/n})`, zero outside the support."""
        inside, ratio, n = self._ratio(x)
        log = torch.log1p(ratio)
        change = torch.exp(n * log) * log - torch.exp((n - 1.0) * log) * ratio
        return torch.where(inside, change, 0.0).to(x.dtype)

    def log_order_derivative(self, x: Tensor) -> Tensor:
        r""":math:`\partial\ln\varphi_n(x)/\partial n = \ln(1 + x/n) - \frac{x/n}{1 + x/n}`, zero outside the support."""
        inside, ratio, _ = self._ratio(x)
        return torch.where(inside, torch.log1p(ratio) - ratio / (1.0 + ratio), 0.0).to(x.dtype)

    def _ratio(self, x: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Where x lies inside, x/n there, and n; in float64, as two terms of its functions cancel to second order."""
        n, inside = self.order, self._not_outside(x)
        if x.device.type != "mps":
            x = x.double()
            n = n.double() if isinstance(n, Tensor) else n
        return inside, torch.where(inside, x, 0.0) / n, n

    def relative_profile(self, x: Tensor, top: Tensor) -> Tensor:
        if self.uses_log_form:
            return torch.exp(self.log_profile(x) - self.log_profile(top))
        return self.power(torch.relu(1.0 + x / self.order) / (1.0 + top / self.order))

    def relative_derivative(self, x: Tensor, top: Tensor) -> Tensor:
        base_top = 1.0 + top / self.order
        if self.uses_log_form:
            inside = self._not_outside(x)
            base = torch.where(inside, 1.0 + x / self.order, 1.0)
            return torch.where(inside, self.relative_profile(x, top) / base, 0.0)
        return self.power_derivative(torch.relu(1.0 + x / self.order) / base_top) / base_top


def _safe_power(base: Tensor, exponent: float | Tensor) -> Tensor:
    """base^exponent where base > 0, else 0, so that 0⁰ and derivatives at 0 never leak."""
    inside = base > 0
    safe = torch.where(inside, base, 1.0)
    # Comparing with itself lets NaN through, so that a non-finite score is never turned into a zero weight.
    outside = torch.where(base == base, 0.0, base)
    if isinstance(exponent, Tensor):
        return torch.where(inside, torch.pow(safe, exponent), outside)
    return torch.where(inside, alike(lambda part: torch.pow(part, exponent), safe), outside)
