"""Predicted distributions of the next token against the one that it was drawn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Divergence", "DivergenceMeter", "divergence"]


class Divergence(NamedTuple):
    """How far predictions are from the truth, position by position.

    Attributes
    ----------
    legal: (…) bool; whether the most probable token is one that may come.
    tvd: (…) total variation distance, half the L1 distance, 0 to 1.
    kl: (…) Kullback–Leibler divergence of the prediction from the truth, Σ q (log q − log p), in nats.
    """

    legal: Tensor
    tvd: Tensor
    kl: Tensor


def divergence(logits: Tensor, probabilities: Tensor, among: Tensor) -> Divergence:
    """Compare softmax(logits) over the tokens ``among`` with the exact distribution.

    Parameters
    ----------
    logits: (…, V), or logarithms of probabilities; −∞ is allowed as long as one token of ``among`` is finite.
    probabilities: (…, V), q; zero outside ``among``.
    among: (V,) bool; the other tokens are left out of the prediction, and what is left is normalised.

    Returns
    -------
    At least float32. KL is infinite where a token that may come has probability zero.
    """
    full = torch.promote_types(logits.dtype, torch.float32)
    left = logits.to(full).masked_fill(~among, -torch.inf)
    logs = left.log_softmax(-1)
    exact = probabilities.to(full)
    legal = exact.gather(-1, left.argmax(-1, keepdim=True)).squeeze(-1) > 0
    tvd = (logs.exp() - exact).abs().sum(-1) / 2
    # Where q is zero, log p may be −∞.
    kl = torch.where(exact > 0, exact * (exact.log() - logs), 0).sum(-1)
    return Divergence(legal, tvd, kl)


class DivergenceMeter:
    """Means over the scored positions of many sequences, also by position.

    ``accuracy`` is the share of positions whose most probable token is legal, ``tvd`` and ``kl`` are means.
    """

    def __init__(self) -> None:
        # Count, legal, tvd, kl by position.
        self._sums = torch.zeros(4, 0, dtype=torch.float64)

    def add(self, logits: Tensor, probabilities: Tensor, scored: Tensor, among: Tensor) -> None:
        """Take in sequences.

        Parameters
        ----------
        logits: (B, T, V); ``logits[:, t]`` is the prediction of the token at t.
        probabilities, scored: (B, T, V) and (B, T); what it was drawn from, and whether it counts.
        among: (V,) bool, as in :func:`divergence`.
        """
        found = divergence(logits, probabilities, among)
        rows = (torch.ones_like(found.tvd), found.legal, found.tvd, found.kl)
        sums = torch.stack([torch.where(scored, row.double(), 0).sum(0) for row in rows]).cpu()
        width = max(sums.shape[1], self._sums.shape[1])
        self._sums = sum(torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (self._sums, sums))  # type: ignore[assignment]

    def result(self) -> dict[str, float]:
        """accuracy, tvd, kl."""
        return _means(self._sums.sum(1))

    def by_position(self) -> list[dict[str, Any]]:
        """The same in ranges of positions, each twice as long as the one before: ``first``, ``last``, ``tokens``, means."""
        found, first, width = [], 1, self._sums.shape[1]
        while first < width:
            last = min(2 * first, width) - 1
            sums = self._sums[:, first : last + 1].sum(1)
            if sums[0] > 0:
                found.append({"first": first, "last": last, "tokens": int(sums[0]), **_means(sums)})
            first *= 2
        return found


def _means(sums: Tensor) -> dict[str, float]:
    count, *totals = sums.tolist()
    return {name: total / max(1.0, count) for name, total in zip(("accuracy", "tvd", "kl"), totals, strict=True)}
