"""Length scaling: an inverse temperature that grows with the position, for heads without positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import unknown_name
from .heads import init_linear

__all__ = ["LENGTH_SCALINGS", "ASEntmax", "SSMax", "make_length_scaling"]

LENGTH_SCALINGS = ("asentmax", "ssmax")


def _log_position(first: int | Tensor, x: Tensor) -> Tensor:
    """log(pos + 2), (T,) or (B, T), at least float32: positive from position 0 on."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if isinstance(first, Tensor):
        return torch.log((first + 2).to(dtype))
    return torch.log(torch.arange(first + 2, first + 2 + x.shape[1], device=x.device, dtype=dtype))


class ASEntmax(nn.Module):
    r"""Factor on β read from the input, at position p:
    :math:`1 + \text{softplus}(w_\beta\cdot x)\, \log(p + 2)^{2\tanh(w_\gamma\cdot x)}`.

    Parameters
    ----------
    width: size of x. heads: number of heads, each with its own w_β and w_γ.

    Shapes: x (B, T, width) at the positions ``first`` …, or at those of a tensor (B, T), gives (B, heads, T, 1). Multiplying β is the same as multiplying the query of a dot product,
    and has a meaning for distances too.

    Source: Vasylenko et al. 2506.16640.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, heads, bias=False)
        self.exponent = nn.Linear(width, heads, bias=False)
        init_linear(self.weight)
        init_linear(self.exponent)

    def forward(self, x: Tensor, first: int | Tensor) -> Tensor:
        log = _log_position(first, x)[..., None]
        exponent = 2 * torch.tanh(self.exponent(x).to(log.dtype))
        factor = 1 + F.softplus(self.weight(x).to(log.dtype)) * log**exponent
        return factor.transpose(1, 2)[..., None]


class SSMax(nn.Module):
    r"""Factor on β: :math:`s_h \log(p + 2)` at position p, s learnt per head.

    Parameters
    ----------
    heads: number of heads. s starts at 1/4, so that the factor starts near 1 at some fifty positions, the length on
        which the sequence tasks are trained.

    Shapes: x (B, T, width) at the positions ``first`` … gives (1, heads, T, 1), at those of a tensor (B, T) (B, heads, T, 1).

    Source: Nakanishi 2501.19399.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((heads,), 0.25))

    def forward(self, x: Tensor, first: int | Tensor) -> Tensor:
        log = _log_position(first, x)
        log = log if log.dim() == 2 else log[None]
        return (self.strength[:, None] * log[:, None])[..., None]


def make_length_scaling(kind: str | None, width: int, heads: int) -> ASEntmax | SSMax | None:
    """The layer called ``kind``, or None.

    Raises
    ------
    EpanError: for an unknown kind.
    """
    if kind is None:
        return None
    if kind == "asentmax":
        return ASEntmax(width, heads)
    if kind == "ssmax":
        return SSMax(heads)
    raise unknown_name("length scaling", kind, LENGTH_SCALINGS)
