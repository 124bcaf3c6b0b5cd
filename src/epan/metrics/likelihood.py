"""How likely a sparse output distribution finds its targets, where the cross-entropy may be infinite."""

from __future__ import annotations

import torch

from epan.kernels import Gaussian, Kernel
from epan.metrics.loss import target_probabilities

__all__ = ["LikelihoodMeter"]


class LikelihoodMeter:
    """Sums over batches; nothing for the Gaussian, whose loss is the cross-entropy.

    Parameters
    ----------
    kernel: whose adaptive weights of the logits the output distribution is.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.sparse = kernel, not isinstance(kernel, Gaussian)
        self.count = self.zeros = 0
        self.total = 0.0

    def add(self, logits: torch.Tensor, tokens: torch.Tensor, loss_mask: torch.Tensor) -> None:
        """Take in a batch; the arguments are those of :func:`next_token_loss`."""
        if not self.sparse:
            return
        chances = target_probabilities(logits, tokens, loss_mask, self.kernel).double()
        positive = chances[chances > 0]
        self.count += len(chances)
        self.zeros += len(chances) - len(positive)
        self.total -= float(positive.log().sum())

    def result(self) -> dict[str, float | None]:
        """``cross_entropy``, ``cross_entropy_positive`` and ``zero_probability``, as ``evaluate`` tells them."""
        if not self.sparse:
            return {}
        positive = self.count - self.zeros
        mean = self.total / positive if positive else None
        return {
            "cross_entropy": None if self.zeros else mean,
            "cross_entropy_positive": mean,
            "zero_probability": self.zeros / max(1, self.count),
        }
