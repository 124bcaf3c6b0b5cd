"""Contextual and persistent memories: associative memories on unit keys, with any kernel and normalization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import EpanError
from ..kernels import Gaussian, Kernel
from ..kernels import get as get_kernel
from ..normalizations import Normalization
from ..normalizations import get as get_normalization
from ..normalizations.base import map_stats
from ..ops import Stats, attention, attention_varlen
from ._growth import append
from .bandwidth import ContextualScale, LearnableOrder, LengthAdaptiveScale, initial_scale, similarity_for
from .documents import Documents, pack, starts_after, unpack, unpack_stats
from .extractors import KeyExtractor, ValueExtractor
from .heads import PerHead, head_size, init_linear, merge_heads, with_stats
from .inspection import ReadsSequence, dense_weights

__all__ = ["ContextualCache", "ContextualMemory", "PersistentMemory"]

_PUBLISHED_SCALE = math.exp(2.0)
# Stored pairs, counted for each head and part of a batch, whose gradients fill a GPU: flash attention makes those of 64 or 128
# pairs in one block of threads.
_PARALLEL_PAIRS = 1 << 15

KernelSpec = str | Mapping[str, object] | Kernel
NormalizationSpec = str | Mapping[str, object] | Normalization


class ContextualCache(NamedTuple):
    """What a contextual memory knows after s steps; s is ``keys.shape[2]``.

    Values lag one behind keys: the value at the newest position is final only when the next input is known.

    Attributes
    ----------
    keys: (B, H, s, D). values: (B, H, max(s − 1, 0), D).
    pending: ṽ at the newest position, (B, H, min(s, 1), D).
    state: the leaky average at the newest position, (B, H, D), at least float32.
    start: where the document at the newest position began, (B,) int64.
    """

    keys: Tensor
    values: Tensor
    pending: Tensor
    state: Tensor
    start: Tensor


class ContextualMemory(ReadsSequence, nn.Module):
    r"""Memory of the sequence itself: the query at i reads the pairs (k_j, v_j) of j ≤ i − 1 by kernel regression.

    :math:`y_i = W_o [\sum_{j<i} w_{ij} v_j]` over the heads, with the weights w of the scores
    :math:`\beta\, k_i\cdot k_j`. Keys are unit vectors and serve as queries too. Because v_j looks one step ahead,
    j = i − 1 is the newest pair that may be read, and it must be read: it holds what is known at i. Position 0 outputs
    zero.

    Parameters
    ----------
    width: d; heads: H, which divides d.
    kernel, normalization: names, mappings or objects, as in :func:`epan.attention`. Rules that need distances (fixed)
        use the euclidean similarity and start at a radius that leaves few rows empty
        (:func:`~epan.nn.bandwidth.initial_scale`).
    gated: gated time-variant keys. adaptive_bandwidth: β = β_1 n^a + β_0 in the number n of pairs that may be read.
    skip: the newest pair that may be read is i − skip, at least 1 (a long-term memory takes more).
    span: only the pairs i − span … i − skip are read (a short-term memory), or None for all.
    learn_order: learn the order of a polynomial kernel, one per head.
    dropout: on the weights. depth: number of layers, for the init of the output projection.

    Shapes: x (B, T, d) gives (B, T, d); with ``return_stats`` the pair of it and the ``Stats`` of shape (B, H, T). With
    ``documents`` each document of a row is a sequence of its own.

    Raises
    ------
    EpanError: for sizes, names or combinations that do not fit.

    Source: Zhang et al. 2405.06394; gated keys, bandwidth over length and spans: 2507.03285.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: KernelSpec = "biweight",
        normalization: NormalizationSpec = "adaptive",
        gated: bool = False,
        adaptive_bandwidth: bool = False,
        skip: int = 1,
        span: int | None = None,
        learn_order: bool = False,
        dropout: float = 0.05,
        depth: int = 1,
    ) -> None:
        super().__init__()
        head_dim = head_size(width, heads)
        if skip < 1:
            raise EpanError(
                "The newest pair that a contextual memory may read is one step back", found=skip, allowed="skip >= 1"
            )
        if span is not None and span < skip:
            raise EpanError(
                "The span of a contextual memory ends before it begins",
                found=f"span={span}, skip={skip}",
                allowed="span >= skip",
            )
        self.kernel, self.normalization = get_kernel(kernel), get_normalization(normalization)
        self.similarity = similarity_for(self.kernel, self.normalization)
        self.skip, self.span, self.dropout = skip, span, dropout
        self.key = KeyExtractor(width, heads, gated=gated)
        self.value = ValueExtractor(width, heads)
        start = initial_scale(self.kernel, self.normalization, head_dim, _PUBLISHED_SCALE)
        self.scale: ContextualScale | LengthAdaptiveScale
        if adaptive_bandwidth:
            most = None if span is None else span - skip + 1
            self.scale = LengthAdaptiveScale(heads, None if start == _PUBLISHED_SCALE else start, skip - 1, most)
        else:
            self.scale = ContextualScale(heads, start)
        self.order = LearnableOrder(heads, self.kernel) if learn_order else None
        self.output = nn.Linear(width, width, bias=False)
        init_linear(self.output, depth=depth)

    def _scale(self, first: int, steps: int) -> Tensor:
        scale: Tensor = self.scale(first, steps)
        return scale if self.scale_factor == 1.0 else scale * self.scale_factor

    def _read(
        self, queries: Tensor, keys: Tensor, values: Tensor, first: int, return_stats: bool, start: Tensor | None = None
    ) -> tuple[Tensor, Stats | None]:
        """Read for the queries at positions ``first`` …; the pairs are those of positions 0 …

        ``start`` (B, t) is where the document of each query began; None where all did at 0.
        """
        left = None if self.span is None else self.span - first
        steps, mask = queries.shape[2], None
        if start is None:
            scale = self._scale(first, steps)
        else:
            mask = (torch.arange(keys.shape[2], device=start.device) >= start[..., None])[:, None]
            position = torch.arange(first, first + steps, device=start.device) - start
            scale = self._scale(0, first + steps)
            if scale.shape[1] > 1:
                scale = scale[:, position].transpose(0, 1)
        queries, factor = self._scaled(queries, scale)
        result = attention(
            queries,
            keys,
            values.to(keys.dtype),
            attn_mask=mask,
            scale=factor,
            window=(left, first - self.skip),
            return_stats=return_stats,
            **self._settings(),
        )
        out, stats = with_stats(result)
        return self.output(merge_heads(out)), stats

    def _read_documents(
        self, keys: Tensor, values: Tensor, documents: Documents, return_stats: bool
    ) -> tuple[Tensor, Stats | None]:
        """Read for all positions, each from the pairs of its own document."""
        batch, _, steps, _ = keys.shape
        scale = self._scale(0, steps)
        scale = scale[:, 0] if scale.shape[1] == 1 else scale[:, documents.position.flatten()].transpose(0, 1)
        queries, factor = self._scaled(pack(keys), scale)
        result = attention_varlen(
            queries,
            pack(keys),
            pack(values.to(keys.dtype)),
            documents.offsets,
            documents.offsets,
            steps,
            steps,
            scale=factor,
            window=(self.span, -self.skip),
            return_stats=return_stats,
            **self._settings(packed=True),
        )
        out, stats = with_stats(result)
        return self.output(merge_heads(unpack(out, batch))), None if stats is None else unpack_stats(stats, batch)

    def _settings(self, *, packed: bool = False) -> dict[str, Any]:
        return {
            "dropout_p": self.dropout if self.training else 0.0,
            "kernel": self.kernel if self.order is None else self.order(packed=packed),
            "normalization": self.normalization,
            "similarity": self.similarity,
        }

    def _scaled(self, queries: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | float]:
        if queries.is_cuda and self.similarity == "dot" and isinstance(self.kernel, Gaussian):
            # Torch's own flash attention takes one number as scale, so β goes to the queries.
            return (queries * scale).to(queries.dtype), 1.0
        return queries, scale

    def forward(
        self, x: Tensor, return_stats: bool = False, documents: Documents | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        if documents is None:
            keys, _ = self.key(x)
            out, stats = self._read(keys, keys, self.value(x), 0, return_stats)
        else:
            keys, _ = self.key(x, begins=documents.begins)
            out, stats = self._read_documents(keys, self.value(x), documents, return_stats)
        return out if stats is None else (out, stats)

    @torch.no_grad()
    def weights(self, x: Tensor, places: Tensor | None = None) -> tuple[Tensor, Stats]:
        keys, _ = self.key(x)
        scale = self._scale(0, x.shape[1])
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)
        return dense_weights(
            self,
            keys[:, :, places],
            keys,
            places,
            scale=scale if scale.shape[1] == 1 else scale[:, places],
            kernel=self.kernel if self.order is None else self.order(),
            nearest=self.skip,
            farthest=self.span,
        )

    @torch.no_grad()
    def radius(self, stats: Stats, places: Tensor) -> Tensor:
        r"""The bandwidth h_i of the queries at ``places`` (Q,): pairs at a distance of h_i and more have no weight, (B, H, Q).

        From the threshold t of their ``stats`` (B, H, Q): :math:`h_i^2 = 2(1 - t/\beta)` for dot products of unit keys,
        :math:`-2t/\beta` for distances. The Gaussian has weight everywhere; its h_i is the standard deviation 1/√β.
        """
        scale = self._scale(0, int(places.max()) + 1)
        scale = (scale if scale.shape[1] == 1 else scale[:, places])[..., 0]
        relative = stats.threshold / scale
        square = 2 * (1 - relative) if self.similarity == "dot" else -2 * relative
        return torch.where(stats.threshold == -torch.inf, 1 / scale, square).clamp(min=0).sqrt()

    def init_cache(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ContextualCache:
        """The cache before the first step."""
        weight = self.output.weight
        heads = self.key.heads
        blank = weight.new_zeros(batch_size, heads, 0, weight.shape[0] // heads, device=device, dtype=dtype)
        state = blank.new_zeros(
            batch_size, heads, blank.shape[-1], dtype=torch.promote_types(blank.dtype, torch.float32)
        )
        start = torch.zeros(batch_size, dtype=torch.int64, device=blank.device)
        return ContextualCache(blank, blank, blank, state, start)

    def step(self, x: Tensor, cache: ContextualCache, begins: Tensor | None = None) -> tuple[Tensor, ContextualCache]:
        """The outputs (B, t, d) for the next inputs x (B, t, d), and the cache after them; ``cache`` stays.

        Where ``begins`` (B, t) is True a document begins, which reads nothing of those before it.
        """
        first = cache.keys.shape[2]
        start = None if begins is None or not x.shape[1] else starts_after(begins, cache.start, first)
        new, state = self.key(x, cache.state, begins)
        keys = append(cache.keys, new)
        raw = torch.cat([cache.pending, self.value.project(x)], dim=2)
        values = append(cache.values, self.value.combine(raw[:, :, :-1], raw[:, :, 1:]))
        out, _ = self._read(new, keys[:, :, : values.shape[2]], values, first, False, start)
        newest = cache.start if start is None else start[:, -1]
        return out, ContextualCache(keys, values, raw[:, :, -1:], state, newest)


class PersistentMemory(PerHead, nn.Module):
    r"""Memory of learnt pairs, the same for every sequence: the counterpart of a feed-forward layer.

    :math:`y_t = W_o [e^{10 b_h} \sum_j w_{tj} V_{hj}]` over the heads, with the weights w of the scores
    :math:`\beta\, k_t\cdot K_{hj}`. The queries k_t are unit vectors of the layer's own key extractor; the keys K
    are free vectors, so rules that need distances (fixed) use the euclidean similarity. No mask: every query sees all
    pairs.

    Parameters
    ----------
    width: d; heads: H, which divides d. size: number of stored pairs per head.
    kernel, normalization: as in :class:`ContextualMemory`; the published model uses the Gaussian here whatever the
        contextual kernel.
    gated, learn_order, dropout, depth: as in :class:`ContextualMemory`.

    Shapes: x (B, T, d) gives (B, T, d); with ``return_stats`` the pair of it and the ``Stats`` of shape (B, H, T).

    Raises
    ------
    EpanError: for sizes, names or combinations that do not fit.

    Source: Zhang et al. 2405.06394.
    """

    per_head = ("keys", "values", "log_gain")

    def __init__(
        self,
        width: int,
        heads: int,
        size: int,
        *,
        kernel: KernelSpec = "gaussian",
        normalization: NormalizationSpec = "adaptive",
        gated: bool = False,
        learn_order: bool = False,
        dropout: float = 0.05,
        depth: int = 1,
    ) -> None:
        super().__init__()
        head_dim = head_size(width, heads)
        if size < 1:
            raise EpanError("A persistent memory needs at least one pair", found=size, allowed="size >= 1")
        self.kernel, self.normalization = get_kernel(kernel), get_normalization(normalization)
        self.similarity = similarity_for(self.kernel, self.normalization)
        self.dropout = dropout
        self.key = KeyExtractor(width, heads, gated=gated)
        self.keys = nn.Parameter(torch.randn(heads, size, head_dim) / math.sqrt(head_dim))
        self.values = nn.Parameter(torch.randn(heads, size, head_dim) / math.sqrt(head_dim))
        self.scale = ContextualScale(heads, initial_scale(self.kernel, self.normalization, head_dim, _PUBLISHED_SCALE))
        self.log_gain = nn.Parameter(torch.full((heads,), -0.05))
        self.order = LearnableOrder(heads, self.kernel) if learn_order else None
        self.output = nn.Linear(width, width, bias=False)
        init_linear(self.output, depth=depth)

    def _parts(self, queries: Tensor) -> int:
        """Parts that the batch is cut into, so that the gradients of few pairs are work enough for a whole GPU."""
        if not (queries.is_cuda and self.training):
            return 1
        heads, pairs, _ = self.keys.shape
        parts = 1
        while queries.shape[0] % (2 * parts) == 0 and parts * heads * pairs < _PARALLEL_PAIRS:
            parts *= 2
        return parts

    def _read(
        self, x: Tensor, state: Tensor | None, return_stats: bool, begins: Tensor | None
    ) -> tuple[Tensor, Tensor, Stats | None]:
        queries, state = self.key(x, state, begins)
        b, h, t, d = queries.shape
        keys: Tensor = self.keys
        scale: Tensor | float = self.scale(0, 1)
        if self.similarity == "dot":
            # β on the few stored keys, before they are rounded, leaves scores of scale 1, which every backend has fastest.
            keys, scale = keys * scale, 1.0
        # The output is linear in the values, so the gain may be on them.
        values = self.values * torch.exp(10 * self.log_gain)[:, None, None]
        # All sequences read the same pairs, so they are queries of few: no copy of the pairs for each sequence, and no sum of
        # their gradients over all of them.
        parts = self._parts(queries)
        queries = queries.reshape(parts, b // parts, h, t, d).transpose(1, 2).reshape(parts, h, b // parts * t, d)
        result = attention(
            queries,
            keys.to(queries.dtype).expand(parts, -1, -1, -1),
            values.to(queries.dtype).expand(parts, -1, -1, -1),
            dropout_p=self.dropout if self.training else 0.0,
            scale=scale,
            kernel=self.kernel if self.order is None else self.order(),
            normalization=self.normalization,
            similarity=self.similarity,
            return_stats=return_stats,
        )
        out, stats = with_stats(result)
        out = merge_heads(out.view(parts, h, b // parts, t, d).transpose(1, 2))
        if stats is not None:
            stats = map_stats(lambda field: field.view(parts, h, b // parts, t).transpose(1, 2).reshape(b, h, t), stats)
        return self.output(out).flatten(0, 1), state, stats

    def forward(
        self, x: Tensor, return_stats: bool = False, documents: Documents | None = None
    ) -> Tensor | tuple[Tensor, Stats]:
        out, _, stats = self._read(x, None, return_stats, None if documents is None else documents.begins)
        return out if stats is None else (out, stats)

    def init_cache(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The leaky average before the first step, (B, H, D)."""
        heads, _, head_dim = self.keys.shape
        dtype = torch.promote_types(dtype or self.keys.dtype, torch.float32)
        return self.keys.new_zeros(batch_size, heads, head_dim, device=device, dtype=dtype)

    def step(self, x: Tensor, cache: Tensor, begins: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs (B, t, d) for the next inputs x (B, t, d), and the cache after them; ``begins`` as there."""
        out, state, _ = self._read(x, cache, False, begins)
        return out, state
