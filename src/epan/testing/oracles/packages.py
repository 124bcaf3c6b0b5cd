"""Answers of other packages, imported only when asked: entmax (dense sparse maps) and torch's own fused attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["entmax_weights", "fused_attention"]


def entmax_weights(scores: Tensor, order: float) -> Tensor:
    """α-entmax of order n = 1/(α − 1) along the last dimension, by the package ``entmax``.

    Orders 1 and 2 use its exact algorithms, every other order its bisection with as many steps as float64 can use.

    Source: Peters et al. 1905.05702; https://github.com/deep-spin/entmax.
    """
    import entmax

    if order == 1:
        return entmax.sparsemax(scores, dim=-1)
    if order == 2:
        return entmax.entmax15(scores, dim=-1)
    # Its score is (α − 1) z and its weight a power of 1/(α − 1), which is z/n and n here.
    return entmax.entmax_bisect(scores, alpha=1.0 + 1.0 / order, dim=-1, n_iter=100)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, in plain mathematics: the Gaussian kernel."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
