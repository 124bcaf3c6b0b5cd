"""Feed-forward layers: the persistent memory of a transformer, and of version 2 of Memory Mosaics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .heads import init_linear

__all__ = ["GELUFeedForward", "SwiGLU"]


class SwiGLU(nn.Module):
    r""":math:`W_2(\text{silu}(W_1 x) \odot W_3 x)`, without biases.

    Parameters
    ----------
    width: d. hidden: size of the hidden layer. dropout: on the hidden layer. depth: number of layers, for the init.

    Shapes: (…, d) gives (…, d).

    Source: Shazeer 2002.05202.
    """

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, depth: int = 1) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        init_linear(self.gate)
        init_linear(self.up)
        init_linear(self.down, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.gate(x)) * self.up(x)
        return self.down(F.dropout(hidden, self.dropout, self.training and self.dropout > 0))


class GELUFeedForward(nn.Module):
    r""":math:`W_2\,\text{gelu}(W_1 x)`, without biases; parameters and shapes as in :class:`SwiGLU`.

    Source: Hendrycks & Gimpel 1606.08415.
    """

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, depth: int = 1) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        init_linear(self.up)
        init_linear(self.down, depth=depth)

    def forward(self, x: Tensor) -> Tensor:
        hidden: torch.Tensor = F.gelu(self.up(x))
        return self.down(F.dropout(hidden, self.dropout, self.training and self.dropout > 0))
