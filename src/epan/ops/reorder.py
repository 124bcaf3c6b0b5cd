"""Clustering reorder: queries and keys of one cluster side by side, so that whole tiles are without weight. Exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import EpanError, UnsupportedError, unknown_name
from ..kernels import Kernel, Polynomial
from ..kernels import get as get_kernel
from ..masks import Masking
from ..normalizations import Normalization, Stats
from ..normalizations import get as get_normalization
from ..normalizations.base import map_stats

__all__ = ["METHODS", "Probe", "cluster", "probe", "reordered"]

METHODS = ("kmeans",)
_SIMILARITIES = ("dot", "euclidean")
# Keys of a tile, and queries of a block, of the backends that leave out tiles.
_TILE = 128
# Centres: one per tile, but enough that few clusters are all found.
_LEAST_CENTRES = 16
_LLOYD_STEPS = 5
# Keys per centre from which the centres are learnt.
_SAMPLES = 32
# Distances held at a time.
_CHUNK = 1 << 24
# Share of the tiles that must go before the sort and the gathers of a call pay for themselves.
_GAIN = 0.3


class Probe(NamedTuple):
    """What :func:`probe` found.

    Attributes
    ----------
    before, after: estimated share of the 128 × 128 tiles of scores with any weight, in the order given and reordered.
    helps: whether ``after`` is below 0.7 of ``before``.
    """

    before: float
    after: float
    helps: bool


def reordered(
    dispatch: Callable[..., tuple[Tensor, Stats | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masking: Masking,
    scale: float | Tensor,
    kernel: Kernel,
    normalization: Normalization,
    similarity: str,
    *options: Any,
    method: str = "kmeans",
) -> tuple[Tensor, Stats | None]:
    """``dispatch`` on queries and keys sorted by cluster; outputs and stats come back in the order given.

    Attention does not know the order of its queries and keys, so the result is the same up to the rounding of sums. The
    clusters are those of the keys of each batch entry and key head (:func:`cluster`). Work on the GPU in proportion to
    the tiles with weight becomes less where keys fall into clusters (:func:`probe` tells). Gradients flow through; the
    order itself is a constant. Hidden keys take part in the clustering, so they may move sums by rounding.

    Parameters
    ----------
    dispatch: called as ``dispatch(query, key, value, masking, scale, kernel, normalization, similarity, *options)``.
    query: (B, H, Lq, D); key: (B, Hk, Lk, D); value: (B, Hk, Lk, Dv); Hk divides H.
    scale, order of the kernel: numbers, or tensors of four dimensions or fewer that broadcast to (B, H, Lq, 1).
    masking: a mask tensor is reordered too. One with rows or columns then needs memory for every head.

    Raises
    ------
    EpanError: for an unknown method.
    UnsupportedError: with a causal mask, a window, ALiBi or packed sequences, which mean places in the order given.

    Source: k-means clustering, Lloyd 1982; in attention, as an approximation: Roy et al. 2003.05997.
    """
    if method not in METHODS:
        raise unknown_name("reorder", method, METHODS)
    _check_order_is_free(masking)
    heads, groups = query.shape[1], query.shape[1] // max(1, key.shape[1])
    if not query.numel() or not key.numel():
        return dispatch(query, key, value, masking, scale, kernel, normalization, similarity, *options)
    by_query, by_key = cluster(query, key, similarity=similarity)
    back = by_query.argsort(-1)
    per_head = by_key.repeat_interleave(groups, 1)
    mask = masking.tensor
    if mask is not None:
        mask = _rows(mask, by_query, heads)
        mask = _rows(mask.mT, per_head, heads).mT
    tensor_order = kernel.order
    if isinstance(tensor_order, Tensor) and tensor_order.dim() > 1 and tensor_order.shape[-2] > 1:
        assert isinstance(kernel, Polynomial), "only a polynomial kernel has a tensor as order"
        kernel = Polynomial(_rows(_four(tensor_order), by_query, heads))
    if isinstance(scale, Tensor):
        scale = _rows(_four(scale), by_query, heads)
    out, stats = dispatch(
        _take(query, by_query), _take(key, by_key), _take(value, by_key),
        Masking(masking.q_len, masking.k_len, mask), scale, kernel, normalization, similarity, *options,
    )  # fmt: skip
    out = _take(out, back)
    # Stats that were not asked for may be empty.
    return out, None if stats is None else map_stats(
        lambda x: x.gather(-1, back) if x.shape == back.shape else x, stats
    )


def _check_order_is_free(masking: Masking) -> None:
    for name, given in (
        ("a causal mask or window", masking.left is not None or masking.right is not None),
        ("alibi_slopes", masking.slopes is not None),
        ("packed sequences", masking.packing is not None),
    ):
        if given:
            raise UnsupportedError(
                f"reorder with {name}",
                "it speaks of places in the order given, which reordering takes away",
                "leave out reorder, or give the same as a tensor through attn_mask",
            )


def _four(tensor: Tensor) -> Tensor:
    return tensor.reshape(*[1] * (4 - tensor.dim()), *tensor.shape)


def _take(tensor: Tensor, order: Tensor) -> Tensor:
    """(B, H, L, D) with its rows in the order (B, H, L)."""
    return tensor.gather(2, order.unsqueeze(-1).expand(*order.shape, tensor.shape[-1]))


def _rows(tensor: Tensor, order: Tensor, heads: int) -> Tensor:
    """A tensor that broadcasts to (B, H, L, any) with its rows in the order (B, H, L), unless all rows are alike."""
    if tensor.shape[2] == 1:
        return tensor
    return _take(tensor.expand(order.shape[0], heads, *tensor.shape[2:]), order)


@torch.no_grad()
def cluster(query: Tensor, key: Tensor, *, similarity: str = "dot") -> tuple[Tensor, Tensor]:
    """Orders (B, H, Lq) of the queries and (B, Hk, Lk) of the keys by cluster; the sort is stable.

    k-means on the keys of each batch entry and key head: about one centre per 128 keys, from keys at equal distances,
    a few steps of Lloyd on a sample, then every key goes to the nearest centre and every query to the nearest
    (euclidean) or to that of the largest product (dot). Centres are numbered along their first principal direction, so that
    neighbours are near. Products are taken in the precision of the inputs, bfloat16 for half ones. The same inputs give
    the same order, and nothing waits for the device. A non-finite row counts as the mean key.

    Parameters
    ----------
    query: (B, H, Lq, D); key: (B, Hk, Lk, D), not empty; Hk divides H.
    similarity: "dot" or "euclidean".
    """
    batch, key_heads, length, size = key.shape
    product = key.dtype if key.dtype in (torch.float32, torch.float64) else torch.bfloat16
    compute = torch.promote_types(key.dtype, torch.float32)
    count = min(length, max(_LEAST_CENTRES, length // _TILE))
    flat = key.reshape(batch * key_heads, length, size)
    finite = torch.isfinite(flat).all(-1, keepdim=True)
    # Relative to their mean, because bfloat16 has no digits left for a common offset.
    mean = torch.where(finite, flat, 0.0).to(compute).sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp(min=1)
    points = torch.where(finite, flat - mean, 0.0).to(product)
    centres = points[:, _spread(length, count, key.device)].to(compute)
    sample = points[:, _spread(length, min(length, _SAMPLES * count), key.device)]
    numbers = torch.arange(count, device=key.device).unsqueeze(-1)
    for _ in range(_LLOYD_STEPS):
        total, number = torch.zeros_like(centres), torch.zeros_like(centres[..., :1])
        for part in _chunks(sample, count):
            # Products with a one-hot matrix add up in a fixed order; a scatter on a GPU does not.
            chosen = (_nearest(part, centres, False).unsqueeze(-2) == numbers).to(product)
            total += chosen @ part
            number += chosen.to(compute).sum(-1, keepdim=True)
        centres = torch.where(number > 0, total / number.clamp(min=1), centres)
    place = _along_a_line(centres).unsqueeze(1).argsort(-1).argsort(-1)
    key_label = torch.cat([_nearest(part, centres, False) for part in _chunks(points, count)], 1)
    group = query.shape[1] // key_heads
    asked = query.reshape(batch * key_heads, group * query.shape[2], size)
    asked = torch.where(torch.isfinite(asked).all(-1, keepdim=True), asked, 0.0)
    dot = similarity == "dot"
    asked = asked.to(product) if dot else (asked - mean).to(product)
    query_label = torch.cat([_nearest(part, centres, dot) for part in _chunks(asked, count)], 1)
    orders = []
    for label, shape in ((query_label, query.shape[:3]), (key_label, key.shape[:3])):
        number_of = place.expand(-1, label.shape[1], -1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
        orders.append(number_of.reshape(shape).argsort(dim=-1, stable=True))
    return orders[0], orders[1]


def _spread(length: int, count: int, device: torch.device) -> Tensor:
    """``count`` indices below ``length`` at equal distances."""
    return torch.arange(count, device=device) * length // count


def _chunks(points: Tensor, count: int) -> tuple[Tensor, ...]:
    """The points in parts whose products with ``count`` centres need bounded memory."""
    return points.split(max(1, _CHUNK // (points.shape[0] * count)), 1)


def _nearest(points: Tensor, centres: Tensor, dot: bool) -> Tensor:
    """The number of the nearest centre, or with ``dot`` of that of the largest product."""
    scores = (points @ centres.to(points.dtype).mT).to(centres.dtype)
    return (scores if dot else scores - centres.square().sum(-1).unsqueeze(-2) / 2).argmax(-1)


def _along_a_line(centres: Tensor) -> Tensor:
    """The coordinate of the centres along their first principal direction, by power iteration."""
    centred = centres - centres.mean(1, keepdim=True)
    covariance = centred.mT @ centred
    direction = covariance.sum(-1, keepdim=True) + covariance.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    for _ in range(16):
        direction = covariance @ torch.nn.functional.normalize(direction, dim=1)
    return (centred @ torch.nn.functional.normalize(direction, dim=1)).squeeze(-1)


@torch.no_grad()
def probe(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | Tensor | None = None,
    kernel: str | Kernel = "biweight",
    normalization: str | Normalization = "adaptive",
    similarity: str = "dot",
    sample: int = 4,
) -> Probe:
    """Whether ``reorder="kmeans"`` makes tiles sparse: their density before and after, on a sample of query blocks.

    Weights are computed for ``sample`` blocks of 128 queries of up to four heads, against all keys: on long inputs a
    few per cent of one attention. It waits for the device. The Gaussian kernel gives weight to every key and is never
    helped. What counts is how much less work is done, so ``after`` must be below 0.7 of ``before``.

    Parameters
    ----------
    query: (B, H, Lq, D); key: (B, Hk, Lk, D); Hk divides H.
    scale, kernel, normalization, similarity: as in ``epan.attention``.
    sample: blocks of queries per head.

    Raises
    ------
    EpanError: for shapes that do not fit, an unknown similarity, or a sample below 1.
    """
    chosen, rule = get_kernel(kernel), get_normalization(normalization)
    if similarity not in _SIMILARITIES:
        raise unknown_name("similarity", similarity, _SIMILARITIES)
    rule.check(chosen, similarity)
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    fits = query.dim() == key.dim() == 4 and query.shape[0] == key.shape[0] and query.shape[-1] == key.shape[-1]
    if not fits or not query.numel() or not key.numel() or query.shape[1] % key.shape[1]:
        raise EpanError(
            "The probe needs queries and keys",
            found=shapes,
            allowed="(B, H, Lq, D) and (B, Hk, Lk, D), not empty, Hk a divisor of H",
        )
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise EpanError("sample must be a positive integer", found=repr(sample))
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    beta = torch.as_tensor(1.0 / math.sqrt(query.shape[-1]) if scale is None else scale, device=query.device)
    beta = beta.expand(*query.shape[:3], 1)
    order = chosen.order
    order = _four(order).expand(*query.shape[:3], 1) if isinstance(order, Tensor) and order.dim() else None
    head = _spread(query.shape[0] * heads, min(4, query.shape[0] * heads), query.device)
    b, h = head // heads, head % heads
    q, k, beta = query[b, h].unsqueeze(1), key[b, h // groups].unsqueeze(1), beta[b, h].unsqueeze(1)
    by_query, by_key = cluster(q, k, similarity=similarity)
    length = q.shape[2]
    blocks = -(-length // _TILE)
    starts = [i * blocks // min(sample, blocks) * _TILE for i in range(min(sample, blocks))]
    found = []
    for rows, columns in ((None, None), (by_query, by_key)):
        keys = k if columns is None else _take(k, columns)
        used = []
        for start in starts:
            index = torch.arange(start, min(start + _TILE, length), device=q.device).expand(len(head), 1, -1)
            index = index if rows is None else rows.gather(-1, index)
            local = chosen
            if order is not None:
                local = Polynomial(_take(order[b, h].unsqueeze(1), index))
            used.append(_density(_take(q, index), keys, _take(beta, index), local, rule, similarity == "euclidean"))
        found.append(float(torch.stack(used).mean()))
    return Probe(found[0], found[1], found[1] < (1.0 - _GAIN) * found[0])


def _density(query: Tensor, key: Tensor, scale: Tensor, kernel: Kernel, rule: Normalization, euclidean: bool) -> Tensor:
    """The share of tiles of 128 keys in which any of the queries has weight."""
    compute = torch.promote_types(query.dtype, torch.float32)
    raw = (query @ key.mT).to(compute)
    if euclidean:
        half = query.to(compute).square().sum(-1, keepdim=True) / 2, key.to(compute).square().sum(-1) / 2
        raw = (raw - half[0] - half[1].unsqueeze(-2)).clamp(max=0.0)
    weights, _ = rule.weights(raw * scale.to(compute), None, kernel.at_scale(scale.to(compute)))
    some = (weights > 0).any(-2)
    some = torch.nn.functional.pad(some, (0, -some.shape[-1] % _TILE)).unflatten(-1, (-1, _TILE))
    return some.any(-1).to(compute).mean()
