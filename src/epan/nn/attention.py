"""Multi-head attention with any kernel and normalization: self-attention, causal or not, and cross-attention."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import EpanError, UnsupportedError
from ..kernels import Gaussian
from ..kernels import get as get_kernel
from ..normalizations import Anchored
from ..normalizations import get as get_normalization
from ..ops import Stats, attention, attention_varlen
from ._growth import append
from .bandwidth import HeadScale, LearnableOrder, initial_scale, similarity_for
from .documents import Documents, pack, starts_after, unpack, unpack_stats
from .heads import head_size, init_linear, merge_heads, split_heads, with_stats
from .inspection import ReadsSequence, dense_weights
from .length_scaling import make_length_scaling
from .memories import KernelSpec, NormalizationSpec
from .positions import alibi_slopes, rotate
from .short_convolution import ShortConvolution

__all__ = ["AttentionCache", "KernelAttention"]


class AttentionCache(NamedTuple):
    """Keys and values of the s steps so far, (B, key heads, s, D).

    Attributes
    ----------
    start: where the newest document began, (B,) int64.
    recent: the last inputs of a layer with short convolutions, (B, min(s, size − 1), d), or None.
    """

    keys: Tensor
    values: Tensor
    start: Tensor
    recent: Tensor | None = None


class KernelAttention(ReadsSequence, nn.Module):
    r"""Multi-head attention :math:`W_o\,[\text{attention}(W_q x, W_k c, W_v c)]_{\text{heads}}` by kernel regression.

    Parameters
    ----------
    width: d; heads: H, which divides d.
    kv_heads: number of key and value heads, a divisor of H (grouped queries); None: H.
    kernel, normalization: names, mappings or objects, as in :func:`epan.attention`. Rules that need distances (fixed)
        use the euclidean similarity and start at a radius that leaves few rows empty
        (:func:`~epan.nn.bandwidth.initial_scale`); the others at β = 1/√D.
    positions: "rope", "alibi", "nope" (none), or "half": the first half of the heads without positions, the others
        ALiBi with slopes 1/1 … 1/(H/2).
    length_scaling: "asentmax" or "ssmax" on the heads without positions, or None.
    qk_norm: RMS norm over each head of queries and keys, before the positions.
    learn_scale: learn β, one per head. learn_order: learn the order of a polynomial kernel, one per head.
    counting_heads: the first so many heads give :math:`\text{asinh}(\sum_j \varphi_j v_j)`, a compressed sum, in place of the
        mean :math:`\sum_j \varphi_j v_j / Z`. Of n keys with +1 and n − 1 with −1, all as good as the best, a mean sees
        1/(2n − 1), which fades as n grows with the length, and a sum 1. Anchored rules only, whose Z = Σφ counts the keys that
        are as good as the best and none that is out of reach; Z is a constant for the gradient.
    window: a causal query sees itself and the ``window`` − 1 steps before it; None: all steps before it.
    short_conv: steps of the causal convolutions of queries, keys and values
        (:class:`~epan.nn.ShortConvolution`), before all else that is done to them; None: none.
    dropout: on the weights. depth: number of layers, for the init of the output projection.
    rope_base: the base of the rotary angles.

    Shapes: x (B, T, d) and an optional context (B, S, d) give (B, T, d); with ``return_stats`` the pair of it and the
    ``Stats`` of shape (B, H, T).

    Raises
    ------
    EpanError: for sizes, names or combinations that do not fit.

    Source: Vaswani et al. 1706.03762; Santos et al. 2601.22766.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        kernel: KernelSpec = "biweight",
        normalization: NormalizationSpec = "adaptive",
        positions: str = "nope",
        length_scaling: str | None = None,
        qk_norm: bool = False,
        learn_scale: bool = False,
        learn_order: bool = False,
        counting_heads: int = 0,
        window: int | None = None,
        short_conv: int | None = None,
        dropout: float = 0.0,
        depth: int = 1,
        rope_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        head_dim = head_size(width, heads)
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise EpanError("kv_heads must divide heads", found=f"heads={heads}, kv_heads={kv_heads}")
        if positions == "rope" and head_dim % 2:
            raise EpanError('positions="rope" needs an even head size', found=f"width={width}, heads={heads}")
        # Told now whether they can be made.
        alibi_slopes(positions, heads)
        self.positions, self.rope_base = positions, rope_base
        free = {"nope": heads, "half": heads // 2}.get(positions, 0)
        if length_scaling is not None and free == 0:
            raise EpanError(
                "Length scaling acts on heads without positions, and there are none",
                found=f"length_scaling={length_scaling!r}, positions={positions!r}",
                fix='use positions="half" or positions="nope"',
            )
        self.kernel, self.normalization = get_kernel(kernel), get_normalization(normalization)
        self.similarity = similarity_for(self.kernel, self.normalization)
        self.dropout = dropout
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, self.kv_heads * head_dim, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        if window is not None and window < 1:
            raise EpanError("A window has room for the query itself at least", found=window, allowed="window >= 1")
        self.window, self.short_conv = window, short_conv
        if not 0 <= counting_heads <= heads:
            raise EpanError("There are not so many heads to count", found=counting_heads, allowed=f"0 to {heads}")
        counts = isinstance(self.normalization, Anchored) and not isinstance(self.kernel, Gaussian)
        if counting_heads and not counts:
            raise UnsupportedError(
                f"counting heads with kernel={self.kernel.name!r}, normalization={self.normalization.name!r}",
                "only the partition of an anchored kernel of bounded support counts the keys that are as good as the best",
                'use normalization="anchored"',
            )
        self.counting_heads = counting_heads
        if short_conv is not None:
            self.query_convolution = ShortConvolution(width, short_conv)
            self.key_convolution = ShortConvolution(self.kv_heads * head_dim, short_conv)
            self.value_convolution = ShortConvolution(self.kv_heads * head_dim, short_conv)
        self.query_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else None
        self.key_norm = nn.RMSNorm(head_dim, eps=1e-6) if qk_norm else None
        # Projections of unit variance, like RMS-normed ones, have norm √D.
        norm = math.sqrt(head_dim)
        self.initial_scale = initial_scale(self.kernel, self.normalization, head_dim, 1 / norm, norm)
        self.scale = HeadScale(heads, self.initial_scale) if learn_scale else None
        self.length_scaling = make_length_scaling(length_scaling, width, free)
        self.order = LearnableOrder(heads, self.kernel) if learn_order else None
        for linear in (self.query, self.key, self.value):
            init_linear(linear)
        init_linear(self.output, depth=depth)

    def bandwidth(self) -> Tensor:
        """β per head before length scaling, (H,)."""
        if self.scale is not None:
            return self.scale.current()
        return self.query.weight.new_full((self.heads,), self.initial_scale)

    def _project(self, x: Tensor, context: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.query(x), self.key(context), self.value(context)
        if self.short_conv is not None:
            q, k, v = self.query_convolution(q), self.key_convolution(k), self.value_convolution(v)
        q, k, v = split_heads(q, self.heads), split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.positions == "rope":
            q, k = rotate(q, first, self.rope_base), rotate(k, first, self.rope_base)
        return q, k.to(q.dtype), v.to(q.dtype)

    def _scale(self, x: Tensor, first: int | Tensor) -> float | Tensor:
        scale: float | Tensor = self.initial_scale
        if self.scale is not None:
            scale = self.scale.current()[:, None, None]
        if self.scale_factor != 1.0:
            scale = scale * self.scale_factor
        if self.length_scaling is None:
            return scale
        factor = self.length_scaling(x, first)
        positioned = self.heads - factor.shape[1]
        if positioned:
            factor = torch.cat([factor, factor.new_ones(factor.shape[0], positioned, *factor.shape[2:])], dim=1)
        return scale * factor

    def _slopes(self, x: Tensor) -> Tensor | None:
        return alibi_slopes(self.positions, self.heads, x.device, torch.promote_types(x.dtype, torch.float32))

    def _settings(self, *, packed: bool = False) -> dict[str, Any]:
        return {
            "dropout_p": self.dropout if self.training else 0.0,
            "kernel": self.kernel if self.order is None else self.order(packed=packed),
            "normalization": self.normalization,
            "similarity": self.similarity,
        }

    def _attend_documents(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, documents: Documents, return_stats: bool
    ) -> tuple[Tensor, Stats | None]:
        """Causal attention of each document over itself."""
        batch, heads, steps, _ = q.shape
        scale = self._scale(x, documents.position)
        if isinstance(scale, Tensor):
            scale = pack(scale.expand(batch, heads, steps, 1))
        if self.kv_heads != self.heads:
            k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        result = attention_varlen(
            pack(q),
            pack(k),
            pack(v),
            documents.offsets,
            documents.offsets,
            steps,
            steps,
            scale=scale,
            window=(None if self.window is None else self.window - 1, 0),
            alibi_slopes=self._slopes(x),
            return_stats=return_stats or self.counting_heads > 0,
            **self._settings(packed=True),
        )
        out, stats = with_stats(result)
        stats = None if stats is None else unpack_stats(stats, batch)
        out = self._counted(unpack(out, batch), stats)
        return self.output(merge_heads(out)), stats if return_stats else None

    def _mask(self, start: Tensor, first: int, keys: int, slopes: Tensor | None) -> Tensor:
        """What each new query adds to its scores: −inf before ``start`` (B, t), where its document began, and ALiBi's part."""
        j = torch.arange(keys, device=start.device)
        seen = (j >= start[..., None])[:, None]
        if slopes is None:
            return seen
        i = torch.arange(first, first + start.shape[1], device=start.device)
        return torch.where(seen, -slopes[:, None, None] * (i[:, None] - j).abs(), -math.inf)

    def _attend(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        first: int,
        causal: bool,
        attn_mask: Tensor | None,
        return_stats: bool,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Stats | None]:
        slopes = self._slopes(x)
        place: int | Tensor = first
        if start is not None:
            attn_mask, slopes = self._mask(start, first, k.shape[2], slopes), None
            place = torch.arange(first, first + q.shape[2], device=start.device) - start
        if slopes is not None and first > 0:
            # Loads torch._dynamo, which takes most of a second.
            from torch.nn.attention.bias import causal_lower_right

            # Distances, too, must count from the lower right when the queries are the newest of the keys.
            attn_mask = causal_lower_right(q.shape[2], k.shape[2])
        result = attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            scale=self._scale(x, place),
            enable_gqa=self.kv_heads != self.heads,
            window=(None if self.window is None else self.window - 1 - first, first) if causal else None,
            alibi_slopes=slopes,
            return_stats=return_stats or self.counting_heads > 0,
            **self._settings(),
        )
        out, stats = with_stats(result)
        return self.output(merge_heads(self._counted(out, stats))), stats if return_stats else None

    def _counted(self, out: Tensor, stats: Stats | None) -> Tensor:
        """The first heads sum up where the others average."""
        if not self.counting_heads:
            return out
        assert stats is not None
        counted = out[:, : self.counting_heads] * stats.partition[:, : self.counting_heads, :, None]
        return torch.cat([counted.asinh().to(out.dtype), out[:, self.counting_heads :]], dim=1)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        is_causal: bool = False,
        attn_mask: Tensor | None = None,
        return_stats: bool = False,
        documents: Documents | None = None,
    ) -> Tensor | tuple[Tensor, Stats]:
        """Attention of x over itself, or over ``context``; ``attn_mask`` as in :func:`epan.attention`.

        With ``documents``, which are for causal attention of x over itself, each is a sequence of its own.
        """
        if documents is not None and (not is_causal or context is not None or attn_mask is not None):
            raise EpanError(
                "Documents are for causal attention over the sequence itself", fix="pass is_causal=True alone"
            )
        q, k, v = self._project(x, x if context is None else context, 0)
        if is_causal and context is not None:
            raise EpanError("is_causal has no meaning with a context", fix="pass attn_mask")
        if documents is not None:
            out, stats = self._attend_documents(x, q, k, v, documents, return_stats)
            return out if stats is None else (out, stats)
        out, stats = self._attend(x, q, k, v, first=0, causal=is_causal, attn_mask=attn_mask, return_stats=return_stats)
        return out if stats is None else (out, stats)

    @torch.no_grad()
    def weights(self, x: Tensor, places: Tensor | None = None) -> tuple[Tensor, Stats]:
        q, k, _ = self._project(x, x, 0)
        scale = self._scale(x, 0)
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)
        if isinstance(scale, Tensor) and scale.shape[-2] > 1:
            scale = scale[..., places, :]
        kernel = self.kernel if self.order is None else self.order()
        return dense_weights(
            self,
            q[:, :, places],
            k,
            places,
            scale=scale,
            kernel=kernel,
            nearest=0,
            farthest=None if self.window is None else self.window - 1,
            slopes=self._slopes(x),
        )

    def init_cache(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> AttentionCache:
        """The cache before the first step."""
        size = self.query.weight.shape[0] // self.heads
        blank = self.query.weight.new_zeros(batch_size, self.kv_heads, 0, size, device=device, dtype=dtype)
        recent = None
        if self.short_conv is not None:
            recent = self.query.weight.new_zeros(batch_size, 0, self.query.weight.shape[1], device=device, dtype=dtype)
        return AttentionCache(blank, blank, torch.zeros(batch_size, dtype=torch.int64, device=blank.device), recent)

    def step(self, x: Tensor, cache: AttentionCache, begins: Tensor | None = None) -> tuple[Tensor, AttentionCache]:
        """Causal outputs (B, t, d) for the next inputs x (B, t, d), and the cache after them; ``cache`` stays.

        Where ``begins`` (B, t) is True a document begins, which reads nothing of those before it.
        """
        first, seen, recent = cache.keys.shape[2], x, None
        start = None if begins is None or not x.shape[1] else starts_after(begins, cache.start, first)
        if self.short_conv is not None and cache.recent is not None:
            seen = torch.cat([cache.recent.to(x.dtype), x], dim=1)
            recent = seen[:, max(0, seen.shape[1] - self.short_conv + 1) :]
        # Steps that are there for the convolutions of the new ones alone.
        before = seen.shape[1] - x.shape[1]
        q, k, v = (part[:, :, before:] for part in self._project(seen, seen, first - before))
        k, v = append(cache.keys, k), append(cache.values, v)
        out, _ = self._attend(x, q, k, v, first=first, causal=True, attn_mask=None, return_stats=False, start=start)
        return out, AttentionCache(k, v, cache.start if start is None else start[:, -1], recent)
