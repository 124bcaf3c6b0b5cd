"""The loss of next-token prediction."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from epan.kernels import Gaussian, Kernel
from epan.losses import fenchel_young_loss
from epan.ops import attention_weights

__all__ = ["next_token_loss", "target_probabilities"]

_IGNORED = -100
# Rows of logits are turned into probabilities in pieces of about so many.
_PIECE = 1 << 22


def next_token_loss(
    logits: torch.Tensor, tokens: torch.Tensor, loss_mask: torch.Tensor, kernel: Kernel | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses of token t given the tokens before t, over the tokens with loss, and their number.

    Parameters
    ----------
    logits: (B, T − 1, V) or (B, T, V); ``logits[:, t]`` predicts ``tokens[:, t + 1]``. What is beyond T − 1 is not
        read.
    tokens: (B, T) int64.
    loss_mask: (B, T) bool; token t is predicted with loss. The first token has no prediction and never counts.
    kernel: None or the Gaussian for the cross-entropy −log p, in nats; else its Fenchel–Young loss (:mod:`epan.losses`).

    Returns
    -------
    The sum, in at least float32 with gradient, and the count (int64); both 0-d tensors. Without a loss token both are
    0.
    """
    target_mask, targets = loss_mask[:, 1:], tokens[:, 1:]
    logits = logits[:, : tokens.shape[1] - 1]
    if not (kernel is None or isinstance(kernel, Gaussian)):
        if not logits.is_cuda:
            logits, targets = logits[target_mask], targets[target_mask]
        else:
            targets = targets.masked_fill(~target_mask, _IGNORED)
        total = fenchel_young_loss(logits, targets, kernel=kernel, ignore_index=_IGNORED, reduction="sum")
        return total, target_mask.sum()
    full = torch.promote_types(logits.dtype, torch.float32)
    if logits.is_cuda:
        # How many there are is not known to the host, which would have to wait for it.
        targets = targets.masked_fill(~target_mask, _IGNORED)
        total = F.cross_entropy(
            logits.flatten(0, 1).to(full), targets.flatten(), reduction="sum", ignore_index=_IGNORED
        )
        return total, target_mask.sum()
    return F.cross_entropy(logits[target_mask].to(full), targets[target_mask], reduction="sum"), target_mask.sum()


def target_probabilities(
    logits: torch.Tensor, tokens: torch.Tensor, loss_mask: torch.Tensor, kernel: Kernel
) -> torch.Tensor:
    """p(token t | tokens before t) of the tokens with loss, (N,), at least float32; without gradient.

    Parameters
    ----------
    logits, tokens, loss_mask: as in :func:`next_token_loss`.
    kernel: whose adaptive weights the output distribution is.
    """
    target_mask, targets = loss_mask[:, 1:], tokens[:, 1:]
    rows, chosen = target_mask.nonzero(as_tuple=True), targets[target_mask]
    scores = logits.detach()[:, : tokens.shape[1] - 1][rows]
    step = max(1, math.ceil(_PIECE / logits.shape[-1]))
    found = []
    for part, target in zip(scores.split(step), chosen.split(step), strict=True):
        full = part.to(torch.promote_types(part.dtype, torch.float32))
        found.append(attention_weights(full, kernel=kernel).gather(1, target[:, None]).squeeze(1))
    return torch.cat(found) if found else scores.new_zeros(0)
