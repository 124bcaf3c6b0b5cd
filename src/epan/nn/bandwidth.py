"""The inverse temperature β of each head: how it is parameterised, and where it starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import EpanError, UnsupportedError
from ..kernels import Kernel, Polynomial, RectifiedPolynomial, Uniform
from ..normalizations import Normalization
from .heads import PerHead

__all__ = [
    "ContextualScale",
    "HeadScale",
    "LearnableOrder",
    "LengthAdaptiveScale",
    "initial_scale",
    "radius_of_random_keys",
    "similarity_for",
]

# The normal quantile of 0.95: a twentieth of random unit keys lies within the initial radius.
_QUANTILE = 1.645


def similarity_for(kernel: Kernel, normalization: Normalization) -> str:
    """``"dot"`` where the rule takes dot products, ``"euclidean"`` where it needs distances (the fixed rule).

    Raises
    ------
    UnsupportedError: if the rule takes the kernel with neither similarity.
    """
    try:
        normalization.check(kernel, "dot")
    except UnsupportedError:
        normalization.check(kernel, "euclidean")
        return "euclidean"
    return "dot"


def radius_of_random_keys(head_dim: int) -> float:
    r"""The radius h within which about 5 % (7 % at D = 8) of random unit vectors of D = ``head_dim`` dimensions lie.

    :math:`h^2 = 2(1 - c)`, :math:`c = s/\sqrt{D - 1 + s^2}` with s = 1.645: for the cosine c of two random directions
    :math:`c\sqrt{D-1}/\sqrt{1-c^2}` is Student-t with D − 1 degrees of freedom, here taken as normal. It gives 1.10,
    1.20 and 1.26 for 16, 32 and 64 dimensions. One dimension has no angles; c is bounded by 0.9.
    """
    cosine = min(_QUANTILE / math.sqrt(head_dim - 1 + _QUANTILE**2), 0.9)
    return math.sqrt(2 * (1 - cosine))


def initial_scale(
    kernel: Kernel, normalization: Normalization, head_dim: int, default: float, norm: float = 1.0
) -> float:
    r"""β at the start of training: ``default``, or :math:`2\,\text{support}/h^2` for a rule of one fixed radius h.

    With the usual β nearly every row of the fixed rule is empty. There h is :func:`radius_of_random_keys` times
    ``norm``, whatever the kernel: for order n it is :math:`\beta = 2n/h^2`, for the cosine kernel
    :math:`\beta = \pi^2/(4h^2)`. A kernel of unbounded support, or one with its own radius, keeps ``default``.

    Parameters
    ----------
    norm: the norm that queries and keys have at the start.
    """
    if similarity_for(kernel, normalization) == "dot" or isinstance(kernel, Uniform):
        return default
    support = float(kernel.support.max()) if isinstance(kernel.support, Tensor) else kernel.support
    if math.isinf(support):
        return default
    return 2 * support / (radius_of_random_keys(head_dim) * norm) ** 2


class ContextualScale(PerHead, nn.Module):
    r"""β per head of a memory on unit vectors: :math:`\beta_h = e^{2\min(10 a_h, 5)}`, a_h = 0.1 at the start (β = e²).

    Parameters
    ----------
    heads: number of heads H; ``log_scale`` holds a, (H,).
    initial: β at the start.

    Raises
    ------
    EpanError: if ``initial`` is not in (0, e¹⁰].

    Source: Zhang et al. 2405.06394.
    """

    per_head = ("log_scale",)
    LARGEST = 5.0

    def __init__(self, heads: int, initial: float = math.exp(2.0)) -> None:
        super().__init__()
        if not 0 < initial <= math.exp(2 * self.LARGEST):
            raise EpanError("The initial scale is out of range", found=initial, allowed="0 < scale <= e^10")
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(initial) / 20))

    def current(self) -> Tensor:
        """β per head, (H,)."""
        return torch.exp(2 * (10 * self.log_scale).clamp(max=self.LARGEST))

    def forward(self, first: int, steps: int) -> Tensor:
        """β as (H, 1, 1) for queries at positions ``first`` … ``first + steps − 1``, here the same for all."""
        return self.current()[:, None, None]


class LengthAdaptiveScale(PerHead, nn.Module):
    r"""β that grows with the number n of stored pairs: :math:`\beta = \beta_1 n^a + \beta_0`.

    :math:`\beta_i = e^{\min(\theta_i, 10)}` and :math:`a = \min(|\theta_a|, 1)`; θ starts at 1.5, 1.5, 1/3. Given
    ``initial`` (rules of one fixed radius, which a fast growth would leave with empty rows), nine tenths of it start in
    β_0 and one tenth in β_1.

    Parameters
    ----------
    heads: number of heads H; ``log_growth`` (θ_1), ``log_scale`` (θ_0) and ``exponent`` (θ_a) are (H,).
    initial: β at n = 1, or None for the published start.
    skip, most: the query at position i has max(i − skip, 1) stored pairs, and no more than ``most`` (None: any number).

    Source: Zhang & Bottou 2507.03285.
    """

    per_head = ("log_growth", "log_scale", "exponent")
    LARGEST = 10.0

    def __init__(self, heads: int, initial: float | None = None, skip: int = 0, most: int | None = None) -> None:
        super().__init__()
        growth, base = (1.5, 1.5) if initial is None else (math.log(0.1 * initial), math.log(0.9 * initial))
        self.log_growth = nn.Parameter(torch.full((heads,), growth))
        self.log_scale = nn.Parameter(torch.full((heads,), base))
        self.exponent = nn.Parameter(torch.full((heads,), 1 / 3))
        self.skip, self.most = skip, most

    def current(self) -> Tensor:
        """β per head with one stored pair, (H,)."""
        return self._at(self.log_scale.new_ones(1)).squeeze(-1)

    def forward(self, first: int, steps: int) -> Tensor:
        """β as (H, steps, 1) for queries at positions ``first`` … ``first + steps − 1``."""
        position = torch.arange(first, first + steps, device=self.log_scale.device)
        # Without a pair β plays no part; one instead of zero keeps the logarithm in the gradient of n^a finite.
        count = (position - self.skip).clamp(min=1, max=self.most).to(self.log_scale.dtype)
        return self._at(count)[..., None]

    def _at(self, count: Tensor) -> Tensor:
        growth, base = (theta.clamp(max=self.LARGEST).exp() for theta in (self.log_growth, self.log_scale))
        exponent = self.exponent.abs().clamp(max=1.0)
        return growth[:, None] * count ** exponent[:, None] + base[:, None]


class HeadScale(PerHead, nn.Module):
    r"""β per head of plain attention, :math:`\beta_h = e^{s_h}`, learnt.

    Parameters
    ----------
    heads: number of heads H; ``log_scale`` holds s, (H,).
    initial: β at the start.
    """

    per_head = ("log_scale",)

    def __init__(self, heads: int, initial: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(initial)))

    def current(self) -> Tensor:
        """β per head, (H,)."""
        return self.log_scale.exp()


class LearnableOrder(PerHead, nn.Module):
    r"""Kernel order per head, :math:`n_h = 1 + \text{softplus}(\theta_h)`, learnt: α = 1 + 1/n of the entmax twin.

    Parameters
    ----------
    heads: number of heads H; ``order`` holds θ, (H,).
    kernel: a polynomial kernel whose order is the start; order 1 itself is out of reach, so at least 1.01 is taken.

    Raises
    ------
    UnsupportedError: for a kernel outside the polynomial family.

    Source: Correia et al. 1909.00015 (learning α per head).
    """

    per_head = ("order",)

    def __init__(self, heads: int, kernel: Kernel) -> None:
        super().__init__()
        if not isinstance(kernel, RectifiedPolynomial) or isinstance(kernel.order, Tensor):
            raise UnsupportedError(
                f"a learnt order with kernel={kernel.name!r}",
                "only rectified polynomials with a number as order have one to start from",
                'use kernel="biweight" or {"name": "polynomial", "order": 5}',
            )
        above = max(float(kernel.order) - 1, 0.01)
        # The inverse of softplus, in the form that does not overflow.
        self.order = nn.Parameter(torch.full((heads,), above + math.log(-math.expm1(-above))))

    def current(self) -> Tensor:
        """n per head, (H,)."""
        return 1 + F.softplus(self.order)

    def forward(self, *, packed: bool = False) -> Polynomial:
        """The kernel of this step, its order (H, 1, 1), or (H, 1) for packed sequences."""
        return Polynomial(order=self.current()[:, None] if packed else self.current()[:, None, None])
