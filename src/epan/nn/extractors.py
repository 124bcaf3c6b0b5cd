"""Key and value extractors of Memory Mosaics: what is stored in a contextual memory, and under which address."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._unit import unit_norm
from .documents import begin_anew
from .heads import PerHead, init_linear, split_heads
from .leaky_average import GatedLeakyAverage, LeakyAverage, unit_leaky_average

__all__ = ["KeyExtractor", "ValueExtractor"]


class KeyExtractor(PerHead, nn.Module):
    r"""Unit keys that summarise the recent past: :math:`\tilde k = W_k x`, leaky average, unit norm.

    :math:`\bar k_T = \tilde k_T + e^{-\lambda_h} \bar k_{T-1}`, :math:`k_T = \bar k_T/\|\bar k_T\|`; or,
    ``gated``, with gates read from x (:class:`~epan.nn.GatedLeakyAverage`). The same tensor serves as query and key.

    Parameters
    ----------
    width: size d of the input; heads: H, which divides d.

    Shapes: x (B, T, d) and an optional state (B, H, d/H), the average before its unit norm, give the keys
    (B, H, T, d/H), in the dtype of the projection, and the state after the last step, which is kept in at least float32:
    it is the only thing that is carried over every step. Where ``begins`` (B, T) is True, nothing is carried over.

    Source: Zhang et al. 2405.06394; gated: 2507.03285.
    """

    per_head_output = True

    def __init__(self, width: int, heads: int, *, gated: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, width, bias=False)
        self.average = GatedLeakyAverage(width, heads) if gated else LeakyAverage(heads)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module)

    def forward(self, x: Tensor, state: Tensor | None = None, begins: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raw = split_heads(self.projection(x), self.heads)
        if isinstance(self.average, GatedLeakyAverage):
            averaged, rate = self.average.drive(raw, x)
        else:
            averaged, rate = raw, self.average.rate
        if begins is not None:
            rate = begin_anew(rate, begins)
        keys, state = unit_leaky_average(averaged, rate, state)
        # Under autocast attention would round to this dtype anyway.
        return keys.to(raw.dtype), state


class ValueExtractor(PerHead, nn.Module):
    r"""Values that look one step ahead.

    :math:`v_t = e^{10 b_h}\,\text{unit}((1 - c_h)\tilde v_{t+1} + c_h \tilde v_t)` with :math:`\tilde v = W_v x`, which
    is zero past the end. Only a query after t may see v_t, because it holds what happens at t + 1.

    Parameters
    ----------
    width: size d of the input; heads: H, which divides d. ``lookahead`` (c) starts uniform in (0, 1), ``log_gain`` (b)
        at −0.05.

    Shapes: x (B, T, d) gives (B, H, T, d/H).

    Source: Zhang et al. 2405.06394.
    """

    per_head = ("lookahead", "log_gain")
    per_head_output = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection = nn.Linear(width, width, bias=False)
        self.lookahead = nn.Parameter(torch.rand(heads))
        self.log_gain = nn.Parameter(torch.full((heads,), -0.05))
        init_linear(self.projection)

    def project(self, x: Tensor) -> Tensor:
        """ṽ, (B, H, T, d/H)."""
        return split_heads(self.projection(x), self.heads)

    def combine(self, current: Tensor, following: Tensor) -> Tensor:
        """Values from ṽ_t and ṽ_{t+1}, both (B, H, T, d/H)."""
        mix, gain = self.lookahead[:, None, None], torch.exp(10 * self.log_gain)[:, None, None]
        return gain * unit_norm(following + mix * (current - following))

    def forward(self, x: Tensor) -> Tensor:
        current = self.project(x)
        following = nn.functional.pad(current[:, :, 1:], (0, 0, 0, 1))
        return self.combine(current, following)
