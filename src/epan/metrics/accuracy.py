"""Is the predicted target right: per sequence and per token."""

from __future__ import annotations

import torch

__all__ = ["count_right", "exact_match"]


def exact_match(predicted: torch.Tensor, tokens: torch.Tensor, score_mask: torch.Tensor) -> torch.Tensor:
    """Whether every scored token of a sequence is right.

    Parameters
    ----------
    predicted: (B, T) integers; what stands at positions without score does not matter.
    tokens: (B, T) integers, the truth.
    score_mask: (B, T) bool.

    Returns
    -------
    (B,) bool. A sequence without a scored token counts as wrong: it proves nothing.
    """
    return ((predicted == tokens) | ~score_mask).all(dim=1) & score_mask.any(dim=1)


def count_right(
    predicted: torch.Tensor, tokens: torch.Tensor, score_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right and scored tokens (0-d integer tensors, shapes as in exact_match); their quotient is the token accuracy."""
    return ((predicted == tokens) & score_mask).sum(), score_mask.sum()
