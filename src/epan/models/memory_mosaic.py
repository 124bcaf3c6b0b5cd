"""Memory Mosaics: a language model made of associative memories, without positional encoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import EpanError
from ..kernels import get as get_kernel
from ..nn import ContextualCache, ContextualMemory, PersistentMemory, SwiGLU, similarity_for
from ..nn.documents import Documents
from ..nn.heads import head_size, with_stats
from ..normalizations import get as get_normalization
from ..ops import Stats
from .base import LanguageModel, check_tokens, make_embedding
from .config import check_choice, check_count, check_document_token, check_flag, check_probability

__all__ = ["BlockCache", "MemoryMosaic", "MemoryMosaicConfig"]

PERSISTENT_KINDS = ("attention", "swiglu")
COMPAT = ("shifted-mask",)


@dataclass(frozen=True)
class MemoryMosaicConfig:
    """Configuration of :class:`MemoryMosaic`; JSON-able as long as kernels and normalizations are given by name.

    Attributes
    ----------
    vocab_size, layers, heads, width: sizes; heads divide the width.
    kernel, normalization: of the contextual memories: a name, or a mapping such as ``{"name": "nearest", "k": 16}``.
    persistent: "attention" (learnt pairs, as published) or "swiglu" (version 2).
    persistent_size: pairs per head, or hidden size of the SwiGLU; None: 3.5·width, or 3·width (the same parameters).
    persistent_kernel, persistent_normalization: of the persistent memories; published: Gaussian, adaptive.
    dropout: on the weights and on the residual branches.
    learn_order: learn the order of the contextual kernel, one per head and layer.
    adaptive_bandwidth: β = β_1 n^a + β_0 in the number n of stored pairs (version 2).
    gated_keys: keys averaged with gates read from the input (version 2).
    short_window: split the contextual memory in two (version 2): a short-term memory of the last ``short_window`` pairs
        and a long-term memory of the pairs at least ``long_skip`` steps back, each with its own extractors, summed.
    long_skip: None: a quarter of ``short_window``, so that the two overlap (published: 64 of 256).
    document_token: the token that begins a document, of which nothing is read by the documents after it; None: one document.
    compat: for comparisons with published code only. "shifted-mask": the query at i reads the pairs up to i − 2, not i − 1,
        as one of its models does for NormReLU, ReLUmax and top-k uniform.
    """

    vocab_size: int
    layers: int = 2
    heads: int = 4
    width: int = 64
    kernel: str | dict[str, Any] = "biweight"
    normalization: str | dict[str, Any] = "adaptive"
    persistent: str = "attention"
    persistent_size: int | None = None
    persistent_kernel: str | dict[str, Any] = "gaussian"
    persistent_normalization: str | dict[str, Any] = "adaptive"
    dropout: float = 0.05
    learn_order: bool = False
    adaptive_bandwidth: bool = False
    gated_keys: bool = False
    short_window: int | None = None
    long_skip: int | None = None
    compat: str | None = None
    document_token: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "heads", "width"):
            check_count(name, getattr(self, name))
        for name in ("persistent_size", "short_window", "long_skip"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("learn_order", "adaptive_bandwidth", "gated_keys"):
            check_flag(name, getattr(self, name))
        check_probability("dropout", self.dropout)
        check_document_token(self.document_token, self.vocab_size)
        check_choice("persistent memory", self.persistent, PERSISTENT_KINDS)
        if self.compat is not None:
            check_choice("compat", self.compat, COMPAT)
            if self.short_window is not None:
                raise EpanError(
                    "The shifted mask belongs to models without a short-term memory",
                    found=f"compat={self.compat!r}, short_window={self.short_window}",
                    fix="leave one of them out",
                )
        head_size(self.width, self.heads)
        similarity_for(get_kernel(self.kernel), get_normalization(self.normalization))
        similarity_for(get_kernel(self.persistent_kernel), get_normalization(self.persistent_normalization))
        if self.short_window is None and self.long_skip is not None:
            raise EpanError(
                "long_skip needs a short-term memory", found=f"long_skip={self.long_skip}", fix="set short_window"
            )
        if self.short_window is not None and self.skip > self.short_window + 1:
            raise EpanError(
                "Pairs between the short-term and the long-term memory would be read by neither",
                found=f"short_window={self.short_window}, long_skip={self.long_skip}",
                allowed="long_skip <= short_window + 1",
            )

    @property
    def skip(self) -> int:
        """Steps to the newest pair that the contextual memory reads; with a short-term memory, the long-term one."""
        if self.short_window is None:
            return 2 if self.compat == "shifted-mask" else 1
        return max(1, self.short_window // 4) if self.long_skip is None else self.long_skip

    @property
    def size(self) -> int:
        """Size of the persistent memories."""
        if self.persistent_size is not None:
            return self.persistent_size
        return 3 * self.width if self.persistent == "swiglu" else max(1, 7 * self.width // 2)


class BlockCache(NamedTuple):
    """Cache of a block: its contextual memories by name, and the leaky average of its persistent memory (or None)."""

    contextual: dict[str, ContextualCache]
    persistent: Tensor | None


class Block(nn.Module):
    """x + contextual memories of norm(x), then x + persistent memory of norm(x)."""

    def __init__(self, config: MemoryMosaicConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        spans: dict[str, dict[str, int | None]] = {"contextual": {"skip": config.skip}}
        if config.short_window is not None:
            spans = {"short": {"span": config.short_window}, "long": {"skip": config.skip}}
        self.dropout = config.dropout
        self.contextual_norm = nn.LayerNorm(width, bias=False)
        self.contextual = nn.ModuleDict(
            {
                name: ContextualMemory(
                    width,
                    heads,
                    kernel=config.kernel,
                    normalization=config.normalization,
                    gated=config.gated_keys,
                    adaptive_bandwidth=config.adaptive_bandwidth,
                    learn_order=config.learn_order,
                    dropout=config.dropout,
                    depth=config.layers,
                    **span,  # type: ignore[arg-type]
                )
                for name, span in spans.items()
            }
        )
        self.persistent_norm = nn.LayerNorm(width, bias=False)
        self.persistent: PersistentMemory | SwiGLU
        if config.persistent == "swiglu":
            self.persistent = SwiGLU(width, config.size, dropout=config.dropout, depth=config.layers)
        else:
            self.persistent = PersistentMemory(
                width,
                heads,
                config.size,
                kernel=config.persistent_kernel,
                normalization=config.persistent_normalization,
                gated=config.gated_keys,
                dropout=config.dropout,
                depth=config.layers,
            )

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + F.dropout(branch, self.dropout, self.training and self.dropout > 0)

    def forward(self, x: Tensor, return_stats: bool, documents: Documents | None) -> tuple[Tensor, dict[str, Stats]]:
        found: dict[str, Stats | None] = {}
        normed = self.contextual_norm(x)
        for name, memory in self.contextual.items():
            out, found[name] = with_stats(memory(normed, return_stats, documents))
            x = self._add(x, out)
        normed = self.persistent_norm(x)
        if isinstance(self.persistent, SwiGLU):
            out = self.persistent(normed)
        else:
            out, found["persistent"] = with_stats(self.persistent(normed, return_stats, documents))
        return self._add(x, out), {name: stats for name, stats in found.items() if stats is not None}

    def init_cache(self, batch_size: int, device: torch.device | None, dtype: torch.dtype | None) -> BlockCache:
        contextual = {name: memory.init_cache(batch_size, device, dtype) for name, memory in self.contextual.items()}  # type: ignore[operator]
        if isinstance(self.persistent, SwiGLU):
            return BlockCache(contextual, None)
        return BlockCache(contextual, self.persistent.init_cache(batch_size, device, dtype))

    def step(self, x: Tensor, cache: BlockCache, begins: Tensor | None) -> tuple[Tensor, BlockCache]:
        contextual: dict[str, ContextualCache] = {}
        normed = self.contextual_norm(x)
        for name, memory in self.contextual.items():
            out, contextual[name] = memory.step(normed, cache.contextual[name], begins)  # type: ignore[operator]
            x = self._add(x, out)
        normed = self.persistent_norm(x)
        state = cache.persistent
        if isinstance(self.persistent, SwiGLU):
            out = self.persistent(normed)
        else:
            assert state is not None
            out, state = self.persistent.step(normed, state, begins)
        return self._add(x, out), BlockCache(contextual, state)


class MemoryMosaic(LanguageModel):
    r"""Tokens → embedding → blocks of contextual and persistent memory → norm → tied head, logits divided by √d.

    No biases and no positional encoding; norms are layer norms with a gain. The query at position i reads the pairs of
    positions j ≤ i − 1 (:class:`epan.nn.ContextualMemory`), then a memory of learnt pairs
    (:class:`epan.nn.PersistentMemory`). Initialisation (standard deviations): linear maps 1/√fan_in, output projections
    additionally 1/√layers, embedding 1/√d.

    Parameters
    ----------
    config: sizes, kernels and options, see :class:`MemoryMosaicConfig`.

    Shapes: tokens (B, T) give logits (B, T, V). Stats and bandwidths are named ``layers.0.contextual`` (with a
    short-term memory ``layers.0.short`` and ``layers.0.long``) and ``layers.0.persistent``.

    Source: Zhang et al. 2405.06394; version 2: Zhang & Bottou 2507.03285; kernels: Santos et al. 2601.22766.
    """

    def __init__(self, config: MemoryMosaicConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight) / math.sqrt(self.config.width)

    def forward(self, tokens: Tensor, return_stats: bool = False) -> Tensor | tuple[Tensor, dict[str, Stats]]:
        check_tokens(tokens, self.config.vocab_size)
        documents = Documents.of(tokens, self.config.document_token)
        x = self.embedding(tokens)
        stats: dict[str, Stats] = {}
        for number, layer in enumerate(self.layers):
            x, found = self.run_block(layer, x, return_stats, documents)
            stats.update({f"layers.{number}.{name}": value for name, value in found.items()})
        return (self._logits(x), stats) if return_stats else self._logits(x)

    def init_cache(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[BlockCache, ...]:
        device = None if device is None else torch.device(device)
        return tuple(layer.init_cache(batch_size, device, dtype) for layer in self.layers)  # type: ignore[operator]

    def step(self, tokens: Tensor, cache: tuple[BlockCache, ...]) -> tuple[Tensor, tuple[BlockCache, ...]]:
        check_tokens(tokens, self.config.vocab_size)
        begins = self.begins(tokens)
        x = self.embedding(tokens)
        after: list[BlockCache] = []
        for layer, state in zip(self.layers, cache, strict=True):
            x, state = layer.step(x, state, begins)  # type: ignore[operator]
            after.append(state)
        return self._logits(x), tuple(after)

    @torch.no_grad()
    def bandwidths(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            for name, memory in layer.contextual.items():  # type: ignore[operator, union-attr]
                found[f"layers.{number}.{name}"] = memory.scale.current()
            if isinstance(layer.persistent, PersistentMemory):
                found[f"layers.{number}.persistent"] = layer.persistent.scale.current()
        return found
