"""Looking at trained layers: their weights written out, and their β multiplied."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import EpanError
from ..kernels import Kernel
from ..normalizations import Normalization, Stats

__all__ = ["ReadsSequence", "dense_weights", "scaled"]


class ReadsSequence:
    """A layer whose queries read the sequence itself: contextual memories and attention.

    Attributes
    ----------
    kernel, normalization: how its weights fall with distance, and what makes them sum to one.
    similarity: "dot" or "euclidean". scale_factor: what β is multiplied by, see :func:`scaled`.
    """

    kernel: Kernel
    normalization: Normalization
    similarity: str
    scale_factor: float = 1.0

    @abstractmethod
    def weights(self, x: Tensor, places: Tensor | None = None) -> tuple[Tensor, Stats]:
        """The causal weights of the queries at ``places`` (Q,) int64, all if None, written out for inspection.

        Shapes: x (B, T, d), the input of the layer, gives weights (B, H, Q, T), without dropout, in at least float32, and
        their ``Stats`` (B, H, Q). No gradient. Memory grows with Q·T: ask for few queries at a time.
        """


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Within the context, β of every layer that reads the sequence is ``factor`` times what it was.

    That is a temperature of 1/factor, or a radius that is 1/√factor of what it was. Persistent memories, whose keys do not
    grow in number with the sequence, and ALiBi slopes stay as they are. For ``nearest`` with the uniform kernel nothing
    changes, because the order of the scores stays the same. Contexts may be nested: the factors multiply.

    Raises
    ------
    EpanError: if factor is not a positive finite number.
    """
    known = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not known or not (math.isfinite(factor) and factor > 0):
        raise EpanError("β can be multiplied by a positive number alone", found=factor, allowed="0 < factor < inf")
    layers = [layer for layer in model.modules() if isinstance(layer, ReadsSequence)]
    before = [layer.scale_factor for layer in layers]
    try:
        for layer in layers:
            layer.scale_factor *= float(factor)
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.scale_factor = value


@torch.no_grad()
def dense_weights(
    layer: ReadsSequence,
    q_BHQD: Tensor,
    k_BHSD: Tensor,
    places: Tensor,
    *,
    scale: float | Tensor,
    kernel: Kernel,
    nearest: int,
    farthest: int | None = None,
    slopes: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """Weights (B, H, Q, S) of the queries at ``places`` on the keys ``nearest`` to ``farthest`` steps back.

    The formulas of the eager backend, for queries that need not be neighbours.

    Parameters
    ----------
    scale: β, broadcastable to (B, H, Q, 1). kernel: of this step, should its order be learnt. slopes: ALiBi, (H,).
    """
    compute = torch.promote_types(k_BHSD.dtype, torch.float32)
    with torch.autocast(k_BHSD.device.type, enabled=False):
        q, k = q_BHQD.to(compute), k_BHSD.to(compute)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        raw = q @ k.transpose(-2, -1)
        if layer.similarity == "euclidean":
            raw = raw - (q * q).sum(-1, keepdim=True) / 2 - (k * k).sum(-1).unsqueeze(-2) / 2
            raw = raw.clamp(max=0.0)
        back = places[:, None] - torch.arange(k.shape[2], device=places.device)
        allowed = back >= nearest
        if farthest is not None:
            allowed &= back <= farthest
        scores = raw * scale
        if slopes is not None:
            scores = scores - slopes[:, None, None] * back.abs()
        allowed = allowed.expand(scores.shape)
        return layer.normalization.weights(scores, allowed, kernel.at_scale(scale))
