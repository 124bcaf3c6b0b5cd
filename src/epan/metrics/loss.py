"""The cross-entropy of next-token prediction."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["next_token_loss"]


def next_token_loss(
    logits: torch.Tensor, tokens: torch.Tensor, loss_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of −log p(token t | tokens before t) over the tokens with loss, and their number.

    Parameters
    ----------
    logits: (B, T − 1, V) or (B, T, V); ``logits[:, t]`` predicts ``tokens[:, t + 1]``. What is beyond T − 1 is not
        read.
    tokens: (B, T) int64.
    loss_mask: (B, T) bool; token t is predicted with loss. The first token has no prediction and never counts.

    Returns
    -------
    The sum, in at least float32 with gradient, and the count (int64); both 0-d tensors. Without a loss token both are
    0.
    """
    target_mask = loss_mask[:, 1:]
    chosen = logits[:, : tokens.shape[1] - 1][target_mask]
    if chosen.dtype not in (torch.float32, torch.float64):
        chosen = chosen.float()
    return F.cross_entropy(chosen, tokens[:, 1:][target_mask], reduction="sum"), target_mask.sum()
