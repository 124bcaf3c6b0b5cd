"""A pre-norm transformer on the same attention: the counterpart that Memory Mosaics are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import EpanError
from ..kernels import get as get_kernel
from ..nn import AttentionCache, GELUFeedForward, KernelAttention, SwiGLU, similarity_for
from ..nn.documents import Documents
from ..nn.heads import head_size, init_linear, with_stats
from ..nn.length_scaling import LENGTH_SCALINGS
from ..nn.positions import POSITIONS
from ..normalizations import get as get_normalization
from ..ops import Stats
from .base import LanguageModel, check_tokens, make_embedding
from .config import check_choice, check_count, check_document_token, check_flag, check_probability

__all__ = ["Transformer", "TransformerConfig"]

NORMS = ("rms", "layer")
FEED_FORWARDS = ("swiglu", "gelu")


@dataclass(frozen=True)
class TransformerConfig:
    """Configuration of :class:`Transformer`; JSON-able as long as kernel and normalization are given by name.

    Attributes
    ----------
    vocab_size, layers, heads, width: sizes; heads divide the width.
    kv_heads: key and value heads, a divisor of heads; None: as many.
    kernel, normalization: a name, or a mapping such as ``{"name": "polynomial", "order": 5}``.
    positions: "rope", "alibi", "nope", or "half" (half of the heads without positions, half ALiBi).
    length_scaling: "asentmax" or "ssmax" on the heads without positions, or None.
    norm: "rms" or "layer" (with a gain, without bias). qk_norm: RMS norm of queries and keys.
    feed_forward: "swiglu" or "gelu". hidden: its size; None: 8/3·width rounded up to a multiple of 8, or 4·width.
    tie_head: the head is the embedding. dropout: on weights, hidden layers and residual branches.
    learn_scale, learn_order: learn β, or the order of a polynomial kernel, one per head and layer.
    rope_base: base of the rotary angles.
    counting_heads: so many heads sum up where the others average (:class:`epan.nn.KernelAttention`); anchored rules only.
    local_layers, local_window: the first ``local_layers`` layers see the last ``local_window`` steps alone, so that what they
        pass on does not depend on how long the sequence is.
    short_conv: steps of causal convolutions of queries, keys and values (:class:`epan.nn.ShortConvolution`), or None.
    document_token: the token that begins a document, of which nothing is read by the documents after it; None: one document.
    """

    vocab_size: int
    layers: int = 2
    heads: int = 4
    width: int = 64
    kv_heads: int | None = None
    kernel: str | dict[str, Any] = "biweight"
    normalization: str | dict[str, Any] = "adaptive"
    positions: str = "rope"
    length_scaling: str | None = None
    norm: str = "rms"
    qk_norm: bool = False
    feed_forward: str = "swiglu"
    hidden: int | None = None
    tie_head: bool = True
    dropout: float = 0.0
    learn_scale: bool = False
    learn_order: bool = False
    rope_base: float = 10_000.0
    counting_heads: int = 0
    local_layers: int = 0
    local_window: int | None = None
    short_conv: int | None = None
    document_token: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "heads", "width"):
            check_count(name, getattr(self, name))
        for name in ("kv_heads", "hidden"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("qk_norm", "tie_head", "learn_scale", "learn_order"):
            check_flag(name, getattr(self, name))
        for name in ("counting_heads", "local_layers"):
            check_count(name, getattr(self, name), least=0)
        if self.local_window is not None:
            check_count("local_window", self.local_window)
        if (self.local_layers > 0) != (self.local_window is not None) or self.local_layers > self.layers:
            raise EpanError(
                "Layers that see a window alone need both their number and the window",
                found=f"local_layers={self.local_layers}, local_window={self.local_window}, layers={self.layers}",
                allowed="local_layers from 1 to layers, with a local_window; or neither",
            )
        if self.short_conv is not None:
            check_count("short_conv", self.short_conv, least=2)
        check_probability("dropout", self.dropout)
        check_document_token(self.document_token, self.vocab_size)
        if self.short_conv is not None and self.document_token is not None:
            raise EpanError(
                "Short convolutions read across the beginning of a document",
                found=f"short_conv={self.short_conv}, document_token={self.document_token}",
                fix="leave one of them out",
            )
        check_choice("kind of positions", self.positions, POSITIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("feed-forward layer", self.feed_forward, FEED_FORWARDS)
        if self.length_scaling is not None:
            check_choice("length scaling", self.length_scaling, LENGTH_SCALINGS)
        if isinstance(self.rope_base, bool) or not isinstance(self.rope_base, (int, float)) or not self.rope_base > 1:
            raise EpanError("rope_base must be a number above 1", found=self.rope_base)
        head_size(self.width, self.heads)
        similarity_for(get_kernel(self.kernel), get_normalization(self.normalization))

    @property
    def hidden_size(self) -> int:
        """Size of the hidden layer."""
        if self.hidden is not None:
            return self.hidden
        return 8 * -(-self.width // 3) if self.feed_forward == "swiglu" else 4 * self.width


def _make_norm(kind: str, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=1e-6) if kind == "rms" else nn.LayerNorm(width, bias=False)


class Block(nn.Module):
    """x + attention of norm(x), then x + feed-forward of norm(x)."""

    def __init__(self, config: TransformerConfig, window: int | None) -> None:
        super().__init__()
        # Two branches a layer add to the residual stream.
        depth = 2 * config.layers
        self.dropout = config.dropout
        self.attention_norm = _make_norm(config.norm, config.width)
        self.attention = KernelAttention(
            config.width,
            config.heads,
            kv_heads=config.kv_heads,
            kernel=config.kernel,
            normalization=config.normalization,
            positions=config.positions,
            length_scaling=config.length_scaling,
            qk_norm=config.qk_norm,
            learn_scale=config.learn_scale,
            learn_order=config.learn_order,
            counting_heads=config.counting_heads,
            window=window,
            short_conv=config.short_conv,
            dropout=config.dropout,
            depth=depth,
            rope_base=config.rope_base,
        )
        self.feed_forward_norm = _make_norm(config.norm, config.width)
        feed_forward = SwiGLU if config.feed_forward == "swiglu" else GELUFeedForward
        self.feed_forward = feed_forward(config.width, config.hidden_size, dropout=config.dropout, depth=depth)

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + F.dropout(branch, self.dropout, self.training and self.dropout > 0)

    def forward(self, x: Tensor, return_stats: bool, documents: Documents | None) -> tuple[Tensor, Stats | None]:
        normed = self.attention_norm(x)
        found = self.attention(normed, is_causal=True, return_stats=return_stats, documents=documents)
        out, stats = with_stats(found)
        x = self._add(x, out)
        return self._add(x, self.feed_forward(self.feed_forward_norm(x))), stats

    def step(self, x: Tensor, cache: AttentionCache, begins: Tensor | None) -> tuple[Tensor, AttentionCache]:
        out, cache = self.attention.step(self.attention_norm(x), cache, begins)
        x = self._add(x, out)
        return self._add(x, self.feed_forward(self.feed_forward_norm(x))), cache


class Transformer(LanguageModel):
    """Tokens → embedding → pre-norm blocks of attention and feed-forward → norm → head.

    No biases. Initialisation: linear maps 1/√fan_in, output projections of the 2·layers branches additionally
    1/√(2·layers), embedding 1/√d (standard deviations).

    Parameters
    ----------
    config: sizes, kernel and options, see :class:`TransformerConfig`.

    Shapes: tokens (B, T) give logits (B, T, V). Stats and bandwidths are named ``layers.0.attention``.

    Source: Vaswani et al. 1706.03762; Touvron et al. 2302.13971 (RMS norm, RoPE, SwiGLU); Vasylenko et al. 2506.16640
    (half-and-half positions, ASEntmax).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = make_embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            Block(config, config.local_window if number < config.local_layers else None)
            for number in range(config.layers)
        )
        self.norm = _make_norm(config.norm, config.width)
        self.head = None if config.tie_head else nn.Linear(config.width, config.vocab_size, bias=False)
        if self.head is not None:
            init_linear(self.head)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight if self.head is None else self.head.weight)

    def forward(self, tokens: Tensor, return_stats: bool = False) -> Tensor | tuple[Tensor, dict[str, Stats]]:
        check_tokens(tokens, self.config.vocab_size)
        documents = Documents.of(tokens, self.config.document_token)
        x = self.embedding(tokens)
        found: dict[str, Stats] = {}
        for number, layer in enumerate(self.layers):
            x, stats = self.run_block(layer, x, return_stats, documents)
            if stats is not None:
                found[f"layers.{number}.attention"] = stats
        return (self._logits(x), found) if return_stats else self._logits(x)

    def init_cache(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> tuple[AttentionCache, ...]:
        device = None if device is None else torch.device(device)
        return tuple(layer.attention.init_cache(batch_size, device, dtype) for layer in self.layers)  # type: ignore[operator, union-attr]

    def step(self, tokens: Tensor, cache: tuple[AttentionCache, ...]) -> tuple[Tensor, tuple[AttentionCache, ...]]:
        check_tokens(tokens, self.config.vocab_size)
        begins = self.begins(tokens)
        x = self.embedding(tokens)
        after: list[AttentionCache] = []
        for layer, state in zip(self.layers, cache, strict=True):
            x, state = layer.step(x, state, begins)  # type: ignore[operator]
            after.append(state)
        return self._logits(x), tuple(after)

    @torch.no_grad()
    def bandwidths(self) -> dict[str, Tensor]:
        return {
            f"layers.{number}.attention": layer.attention.bandwidth()  # type: ignore[operator, union-attr]
            for number, layer in enumerate(self.layers)
        }
