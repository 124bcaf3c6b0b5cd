"""The cross-entropy of next-token prediction."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["next_token_loss"]

_IGNORED = -100


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
    target_mask, targets = loss_mask[:, 1:], tokens[:, 1:]
    logits = logits[:, : tokens.shape[1] - 1]
    full = torch.promote_types(logits.dtype, torch.float32)
    if logits.is_cuda:
        # How many there are is not known to the host, which would have to wait for it.
        targets = targets.masked_fill(~target_mask, _IGNORED)
        total = F.cross_entropy(
            logits.flatten(0, 1).to(full), targets.flatten(), reduction="sum", ignore_index=_IGNORED
        )
        return total, target_mask.sum()
    return F.cross_entropy(logits[target_mask].to(full), targets[target_mask], reduction="sum"), target_mask.sum()
