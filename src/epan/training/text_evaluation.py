"""A model on windows of text: loss per token and per byte, by position in the window, and the support of its memories."""

from __future__ import annotations

import math
from typing import Any

import torch

from epan.data.text import Text
from epan.losses import fenchel_young_loss
from epan.metrics import LikelihoodMeter, SupportMeter
from epan.models import LanguageModel
from epan.tasks import Batch, Truth

__all__ = ["TextMeter", "position_edges"]


def position_edges(length: int) -> list[int]:
    """Where groups of positions begin, and the end: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, … and ``length``."""
    edges = {0, 1}
    power = 1
    while power < length:
        power *= 2
        edges |= {power, power + power // 2}
    return [edge for edge in sorted(edges) if edge < length] + [length]


class TextMeter:
    """Sums over the windows of one length of one split.

    Parameters
    ----------
    stats: whether the support of the memories is measured, too.
    """

    def __init__(self, model: LanguageModel, task: Text, split: str, length: int, stats: bool) -> None:
        self.model, self.task, self.split, self.stats = model, task, split, stats
        device = next(model.parameters()).device
        self.losses = torch.zeros(length, dtype=torch.float64, device=device)
        self.support = SupportMeter()
        self.likelihood = LikelihoodMeter(model.output_kernel)
        self.sequences = 0
        lengths = task.corpus.byte_lengths
        self._byte_lengths = None if lengths is None else lengths.to(device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, batch: Batch, truth: Truth | None = None) -> None:
        """Take in some windows; how a text was drawn nobody knows."""
        # Statistics are those of all models, so what takes them is not here.
        from epan.training.evaluation import add_support

        targets = batch.tokens[:, 1:]
        if self.stats:
            logits, stats = self.model(batch.tokens[:, :-1], return_stats=True)
            add_support(self.model, stats, batch, self.support)
        else:
            logits = self.model(batch.tokens[:, :-1])
        losses = fenchel_young_loss(logits, targets, kernel=self.model.output_kernel, reduction="none")
        self.likelihood.add(logits, batch.tokens, batch.loss_mask)
        self.losses += losses.double().sum(dim=0)
        right = (logits.argmax(dim=-1) == targets).sum()
        size = targets.new_zeros(()) if self._byte_lengths is None else self._byte_lengths[targets].sum()
        self._counts += torch.stack([right, size])
        self.sequences += len(targets)

    def result(self) -> dict[str, Any]:
        """What ``evaluate`` writes of them; losses in nats."""
        length, total = len(self.losses), float(self.losses.sum())
        tokens = self.sequences * length
        right, size = self._counts.tolist()
        if self._byte_lengths is None:
            size = tokens / self.task.corpus.tokens_per_byte(self.split)
        sums, edges = self.losses.tolist(), position_edges(length)
        groups = [
            [first, last - 1, math.fsum(sums[first:last]) / (self.sequences * (last - first))]
            for first, last in zip(edges, edges[1:], strict=False)
        ]
        per_token, likelihood = total / tokens, self.likelihood.result()
        # Only of the cross-entropy, which may be infinite.
        nats = likelihood["cross_entropy"] if likelihood else per_token
        return {
            "loss": per_token,
            "loss_per_byte": total / max(1, size),
            "bits_per_byte": None if nats is None else nats * tokens / max(1, size) / math.log(2),
            "perplexity": None if nats is None else math.exp(min(nats, 700.0)),
            **likelihood,
            "token_accuracy": right / tokens,
            "tokens": tokens,
            "bytes": round(size),
            "loss_by_position": groups,
            "sequences": self.sequences,
            "decoding": "teacher-forced",
            **self.support.overall(),
            "per_layer": self.support.per_layer(),
        }
