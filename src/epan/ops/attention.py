"""The public attention functions: validate, choose a backend, call it. No mathematics here."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, overload

import torch
from torch import Tensor

from .._checks import as_integer, as_real, check_flag, check_floats, check_strided, fits, on_device
from .._modes import is_exported, is_traced, is_transformed
from ..errors import EpanError, UnsupportedError, unknown_name
from ..kernels import Kernel, Polynomial
from ..kernels import get as get_kernel
from ..masks import Masking, Packing, combine_window, split_mask
from ..normalizations import Normalization, Stats
from ..normalizations import get as get_normalization
from ..normalizations.base import map_stats
from .eager import eager_attention
from .reorder import reordered
from .tiled import tiled_attention
from .triton.support import obstacle

__all__ = ["attention", "attention_varlen", "choose_backend"]

BACKENDS = ("auto", "eager", "tiled", "triton")
_SIMILARITIES = ("dot", "euclidean")
_log = logging.getLogger("epan")
_announced: set[tuple[str, str]] = set()


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    dropout_p: float = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    enable_gqa: bool = ...,
    *,
    kernel: str | Kernel = ...,
    normalization: str | Normalization = ...,
    similarity: str = ...,
    window: Sequence[int | None] | None = ...,
    alibi_slopes: Tensor | None = ...,
    return_stats: Literal[False] = ...,
    backend: str = ...,
    reorder: str | None = ...,
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    dropout_p: float = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    enable_gqa: bool = ...,
    *,
    kernel: str | Kernel = ...,
    normalization: str | Normalization = ...,
    similarity: str = ...,
    window: Sequence[int | None] | None = ...,
    alibi_slopes: Tensor | None = ...,
    return_stats: Literal[True],
    backend: str = ...,
    reorder: str | None = ...,
) -> tuple[Tensor, Stats]: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = ...,
    dropout_p: float = ...,
    is_causal: bool = ...,
    scale: float | Tensor | None = ...,
    enable_gqa: bool = ...,
    *,
    kernel: str | Kernel = ...,
    normalization: str | Normalization = ...,
    similarity: str = ...,
    window: Sequence[int | None] | None = ...,
    alibi_slopes: Tensor | None = ...,
    return_stats: bool,
    backend: str = ...,
    reorder: str | None = ...,
) -> Tensor | tuple[Tensor, Stats]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    enable_gqa: bool = False,
    *,
    kernel: str | Kernel = "biweight",
    normalization: str | Normalization = "adaptive",
    similarity: str = "dot",
    window: Sequence[int | None] | None = None,
    alibi_slopes: Tensor | None = None,
    return_stats: bool = False,
    backend: str = "auto",
    reorder: str | None = None,
) -> Tensor | tuple[Tensor, Stats]:
    r"""Kernel-regression attention :math:`\text{out}_i = \sum_j w_{ij} v_j`; a drop-in for scaled_dot_product_attention.

    Parameters
    ----------
    query: (B, H, Lq, D), or (B, Lq, D) as in torch; float16, bfloat16, float32 or float64.
    key: (B, Hk, Lk, D); Hk = H, or a divisor of H with ``enable_gqa``.
    value: (B, Hk, Lk, Dv).
    attn_mask: boolean (True = takes part) or floating point (added to the scores, −inf = masked), broadcastable to
        (B, H, Lq, Lk); or ``torch.nn.attention.bias.causal_lower_right(Lq, Lk)``.
    dropout_p: probability of dropping a weight; always applied, the rest scaled by 1/(1 − p).
    is_causal: query i sees keys j ≤ i; needs Lq = Lk.
    scale: inverse temperature β of the scores; a float or a tensor that broadcasts to (B, H, Lq, 1), with gradient,
        e.g. (H, 1, 1) per head. None: 1/√D. The Gaussian kernel of standard deviation h has β = 1/h².
    enable_gqa: lets several query heads share a key head.
    kernel: a name ("gaussian", "epanechnikov", "biweight", "triweight", "uniform", "cosine") or an object such as
        ``epan.Polynomial(order=5)``.
    normalization: "adaptive" (entmax), "anchored" (ReLUmax), "fixed" (NormReLU), or ``epan.Nearest(k=16)``,
        ``epan.Fixed(empty="zero")``.
    similarity: "dot": z = β q·k; "euclidean": z = −β‖q − k‖²/2. "fixed" needs the latter.
    window: (left, right), inclusive, None = unbounded: query i sees keys i − left … i + right, counted from the top
        left; (None, −1) is strictly causal, (None, Lk − Lq) lower-right causal.
    alibi_slopes: (H,) or (B, H); adds −slope·|i − j| (with causal_lower_right −slope·|i + Lk − Lq − j|).
    return_stats: also return ``Stats`` (threshold, support_size, partition), each (B, H, Lq); triton adds tile_density.
    backend: "eager" (the definition, memory Lq·Lk), "tiled" (memory linear in length, first derivatives, any device),
        "triton" (fused kernels on an NVIDIA GPU: float16, bfloat16, float32, head sizes up to 256, first derivatives; a
        kernel needs device functions) or "auto": triton for bfloat16 where it can take the call (but for "nearest"), else
        tiled. An explicit choice never falls back.
    reorder: "kmeans" sorts queries and keys by cluster before the backend sees them, and its results back. Exact, a
        permutation only; it spares a backend that leaves out tiles without weight work where keys fall into clusters
        (``epan.reorder_probe`` says whether they do). Not with causal masks, windows or ALiBi. None: nothing is moved.

    All masks combine by intersection, biases by sum. A fully masked query gives zero, forward and backward. A non-finite
    key or value makes exactly the queries that may see it NaN. On triton the Gaussian kernel in half precision, without
    masks other than causal ones and without stats, is torch's own flash attention, with its rounding and its treatment
    of non-finite numbers: one that a query may not see reaches it if both lie in one tile. Not so for short sequences
    with head sizes up to 32, which have kernels of their own (:func:`epan.ops.triton.short`).

    Returns
    -------
    (B, H, Lq, Dv) in the dtype of the values, or a pair with the stats.

    Raises
    ------
    EpanError: for wrong shapes, dtypes, names or values, saying what is allowed.
    UnsupportedError: for a combination without meaning, with reason and fix.

    Source: Santos et al. 2601.22766; Nadaraya 1964; Watson 1964.
    """
    chosen_kernel, rule, dropout_p = _resolve(kernel, normalization, similarity, dropout_p, backend)
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa), ("return_stats", return_stats)):
        check_flag(flag, name)
    _check_tensors(query, key, value)
    three = query.dim() == key.dim() == value.dim() == 3
    if three:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    query, key, value = _autocast(query, key, value)
    batch, heads, q_len, k_len = _check_shapes(query, key, value, enable_gqa)
    if is_causal and q_len != k_len:
        raise EpanError(
            "is_causal=True with different numbers of queries and keys is ambiguous (PyTorch aligns top left, flash-attention "
            "lower right)",
            found=f"Lq = {q_len}, Lk = {k_len}",
            fix="pass attn_mask=torch.nn.attention.bias.causal_lower_right(Lq, Lk), or window=(None, Lk - Lq); top left is "
            "window=(None, 0)",
        )
    mask, right_from_mask, offset = split_mask(attn_mask, q_len, k_len)
    left, right = combine_window(is_causal, window, right_from_mask)
    if mask is not None:
        mask = on_device(mask, "attn_mask", query)
        mask = _four(
            mask.unsqueeze(1) if three and mask.dim() == 3 else mask, (batch, heads, q_len, k_len), "attn_mask"
        )
    slopes = _check_slopes(alibi_slopes, batch, heads, query)
    masking = Masking(q_len, k_len, mask, left, right, slopes, offset)
    beta = _check_scale(scale, query, (batch, heads, q_len, 1))
    chosen_kernel = _check_order(chosen_kernel, query)
    dispatch = _dispatch if reorder is None else functools.partial(reordered, _dispatch, method=reorder)
    out, stats = dispatch(
        query, key, value, masking, beta, chosen_kernel, rule, similarity, dropout_p, return_stats, backend
    )
    if three:
        out = out.squeeze(1)
        stats = None if stats is None else map_stats(lambda field: field.squeeze(1), stats)
    return out if stats is None else (out, stats)


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    is_causal: bool = False,
    scale: float | Tensor | None = None,
    kernel: str | Kernel = "biweight",
    normalization: str | Normalization = "adaptive",
    similarity: str = "dot",
    window: Sequence[int | None] | None = None,
    alibi_slopes: Tensor | None = None,
    dropout_p: float = 0.0,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Stats]:
    """Attention within each of several sequences packed one after the other, without padding.

    Parameters
    ----------
    query: (Tq, H, D); key: (Tk, Hk, D); value: (Tk, Hk, Dv); Hk divides H.
    cu_seq_q, cu_seq_k: int32 or int64 offsets, (sequences + 1,), from 0, non-decreasing (a sequence may be empty).
        Tokens after the last offset belong to no sequence: zero output, zero gradient.
    max_q, max_k: the length of the longest sequence or more, as for flash-attention. They do not change the result; a
        smaller number is refused, except under transforms and compilation and on a GPU, where the offsets are not looked
        at: there they must be right.
    is_causal: query i of a sequence sees its keys j ≤ i; needs the same offsets object twice.
    scale: β; a float or a tensor of shape (), (H, 1) or (Tq, H, 1), with gradient. The same shapes are those of a tensor
        order, ``kernel=epan.Polynomial(order=…)``.
    window, alibi_slopes ((H,)), kernel, normalization, similarity, dropout_p, backend: as in :func:`attention`; positions
        count within each sequence, from the top left.

    Returns
    -------
    (Tq, H, Dv), or a pair with ``Stats`` of shape (Tq, H).

    Raises
    ------
    EpanError, UnsupportedError: as in :func:`attention`.

    Source: the layout is that of torch.nn.attention.varlen and flash-attention.
    """
    chosen_kernel, rule, dropout_p = _resolve(kernel, normalization, similarity, dropout_p, backend)
    for name, flag in (("is_causal", is_causal), ("return_stats", return_stats)):
        check_flag(flag, name)
    _check_tensors(query, key, value)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 3:
            raise EpanError(
                f"{name} must be packed",
                found=f"shape {tuple(tensor.shape)}",
                allowed="(tokens, heads, size)",
            )
    query, key, value = _autocast(query, key, value)
    if is_causal and cu_seq_q is not cu_seq_k:
        raise EpanError(
            "is_causal=True needs the same offsets for queries and keys, as the same object",
            found="two tensors",
            fix="pass cu_seq_q twice, or window=(None, 0) if top-left alignment of different lengths is meant",
        )
    max_q, max_k = _check_longest(max_q, "max_q"), _check_longest(max_k, "max_k")
    _check_offsets(cu_seq_q, query, query, max_q, "q")
    if cu_seq_k is not cu_seq_q or max_k != max_q or key.shape[0] != query.shape[0]:
        _check_offsets(cu_seq_k, key, query, max_k, "k")
    if cu_seq_q.shape != cu_seq_k.shape:
        raise EpanError(
            "cu_seq_q and cu_seq_k hold different numbers of sequences", found=f"{len(cu_seq_q)}, {len(cu_seq_k)}"
        )
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
    _, heads, q_len, k_len = _check_shapes(q, k, v, True)
    left, right = combine_window(is_causal, window, None)
    slopes = _check_slopes(alibi_slopes, 1, heads, query)
    masking = Masking(q_len, k_len, None, left, right, slopes, 0, Packing(cu_seq_q, cu_seq_k))
    if isinstance(scale, Tensor):
        scale = _per_head(on_device(scale, "scale", query), q_len, heads, "scale")
    beta = _check_scale(scale, q, (1, heads, q_len, 1))
    chosen_kernel = _check_order(chosen_kernel, query)
    if isinstance(chosen_kernel, Polynomial) and isinstance(chosen_kernel.order, Tensor):
        chosen_kernel = Polynomial(_per_head(chosen_kernel.order, q_len, heads, "The order of Polynomial"))
    out, stats = _dispatch(q, k, v, masking, beta, chosen_kernel, rule, similarity, dropout_p, return_stats, backend)
    out = out.squeeze(0).transpose(0, 1)
    return out if stats is None else (out, map_stats(lambda field: field.squeeze(0).transpose(0, 1), stats))


def choose_backend(
    query: Tensor | None = None,
    value: Tensor | None = None,
    kernel: Kernel | None = None,
    normalization: Normalization | None = None,
) -> tuple[str, str]:
    """(backend, reason) that "auto" takes for a call; without a query for one on the CPU.

    Parameters
    ----------
    query, value: (B, H, Lq, D), (B, Hk, Lk, Dv); only device, dtype and head size count. No value: it is like the query.
    kernel, normalization: None for the defaults.
    """
    if is_transformed() and not torch.compiler.is_compiling():
        return "eager", "a functorch transform or forward-mode differentiation is active"
    if is_exported():
        return "eager", "an export is active"
    if query is not None and query.is_cuda:
        rule = get_normalization("adaptive") if normalization is None else normalization
        kernel = get_kernel("biweight") if kernel is None else kernel
        found = obstacle(query, query if value is None else value, kernel, rule)
        if found is None and query.dtype == torch.bfloat16:
            return "triton", "fused kernels on an NVIDIA GPU"
        if found is None:
            # What has not passed every test on a GPU yet is not chosen unasked.
            return "tiled", f'memory linear in length; {query.dtype} takes the fused kernels with backend="triton" only'
        return "tiled", f"memory linear in length; not triton, because {found.reason} ({found.subject})"
    return "tiled", "memory linear in length on any device"


def _dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masking: Masking,
    scale: float | Tensor,
    kernel: Kernel,
    rule: Normalization,
    similarity: str,
    dropout_p: float,
    with_stats: bool,
    backend: str,
) -> tuple[Tensor, Stats | None]:
    """The output, and the stats if wanted."""
    if isinstance(kernel.order, Tensor):
        _broadcasts(kernel.order, (*query.shape[:3], 1), "The order of Polynomial")
    if backend == "auto":
        backend, reason = choose_backend(query, value, kernel, rule)
        _announce(backend, reason)
    elif backend != "eager":
        _check_backend(backend, query, value, kernel, rule)
    groups = query.shape[1] // max(1, key.shape[1])
    if groups > 1 and backend != "triton":
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    inputs = (query, key, value, masking, scale, kernel, rule)
    euclidean = similarity == "euclidean"
    with torch.autocast(query.device.type, enabled=False) if _is_autocast(query) else nullcontext():
        if backend == "eager":
            out, stats = eager_attention(*inputs, euclidean=euclidean, dropout_p=dropout_p)
            return out, stats if with_stats else None
        if backend == "triton":
            # Triton is imported only when it is used.
            from .triton.attention import triton_attention

            return triton_attention(*inputs, euclidean=euclidean, dropout_p=dropout_p, with_stats=with_stats)
        out, stats = tiled_attention(*inputs, euclidean=euclidean, dropout_p=dropout_p, with_stats=with_stats)
        return out, stats if with_stats else None


def _check_backend(backend: str, query: Tensor, value: Tensor, kernel: Kernel, rule: Normalization) -> None:
    """Refuses a call that a backend asked for by name cannot take."""
    if is_transformed() and not torch.compiler.is_compiling():
        raise UnsupportedError(
            f"backend={backend!r} under vmap, jvp or another functorch transform",
            "its operator is opaque to them",
            'use backend="eager"',
        )
    found = obstacle(query, value, kernel, rule) if backend == "triton" else None
    if found is not None:
        raise UnsupportedError(f"backend='triton' with {found.subject}", found.reason, found.fix)


def _announce(backend: str, reason: str) -> None:
    """Logs what "auto" chose, once per choice."""
    if torch.compiler.is_compiling() or (backend, reason) in _announced:
        return
    _announced.add((backend, reason))
    _log.info('backend="auto" chose %r: %s', backend, reason)


def _resolve(
    kernel: str | Kernel, normalization: str | Normalization, similarity: str, dropout_p: float, backend: str
) -> tuple[Kernel, Normalization, float]:
    chosen_kernel, rule = get_kernel(kernel), get_normalization(normalization)
    if similarity not in _SIMILARITIES:
        raise unknown_name("similarity", similarity, _SIMILARITIES)
    if backend not in BACKENDS:
        hints = {"flash": 'memory linear in length: backend="triton" on an NVIDIA GPU, backend="tiled" anywhere'}
        raise unknown_name("backend", backend, BACKENDS, hints)
    rule.check(chosen_kernel, similarity)
    probability = as_real(dropout_p)
    if probability is None or not 0.0 <= probability <= 1.0:
        raise EpanError("dropout_p must be a probability", found=repr(dropout_p), allowed="0 <= dropout_p <= 1")
    return chosen_kernel, rule, probability


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """What must hold before the inputs are touched; autocast may still make their dtypes equal."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise EpanError(f"{name} must be a tensor", found=type(tensor).__name__, fix=f"torch.as_tensor({name})")
        check_floats(tensor, name)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Inputs in the autocast dtype where autocast is on, as for scaled_dot_product_attention; float64 is left alone."""
    if not _is_autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors)


def _is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on where the tensor is; those without numbers (meta) have none."""
    device = tensor.device.type
    return (device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)) and torch.is_autocast_enabled(device)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[int, int, int, int]:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise EpanError(
                f"{name} has the wrong number of dimensions",
                found=f"shape {tuple(tensor.shape)}",
                allowed="(batch, heads, length, size), or all three inputs (batch, length, size)",
            )
    if not query.dtype == key.dtype == value.dtype:
        raise EpanError(
            "query, key and value differ in dtype",
            found=f"{query.dtype}, {key.dtype}, {value.dtype}",
            fix="cast them to one dtype, e.g. key.to(query.dtype)",
        )
    if not query.device == key.device == value.device:
        raise EpanError(
            "query, key and value are on different devices",
            found=f"{query.device}, {key.device}, {value.device}",
            fix="move them to one device, e.g. key.to(query.device)",
        )
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if query.shape[0] != key.shape[0] or key.shape[:3] != value.shape[:3]:
        raise EpanError("The batch sizes, key heads or key lengths do not match", found=shapes)
    if query.shape[-1] != key.shape[-1]:
        raise EpanError("query and key differ in head size", found=shapes)
    if query.shape[-1] == 0:
        raise EpanError("The head size is zero", found=shapes)
    heads, key_heads = query.shape[1], key.shape[1]
    if heads != key_heads:
        if not enable_gqa:
            raise EpanError(
                "query and key differ in the number of heads",
                found=shapes,
                fix="pass enable_gqa=True to share key heads",
            )
        if key_heads == 0 or heads % key_heads != 0:
            raise EpanError("The number of query heads is no multiple of the number of key heads", found=shapes)
    return query.shape[0], heads, query.shape[2], key.shape[2]


def _broadcasts(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    if not fits(tensor, shape):
        raise EpanError(
            f"{what} does not broadcast", found=f"shape {tuple(tensor.shape)}", allowed=f"broadcastable to {shape}"
        )


def _four(tensor: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """The tensor with four dimensions, after a check that it broadcasts to ``shape``."""
    _broadcasts(tensor, shape, what)
    return tensor.reshape(*[1] * (4 - tensor.dim()), *tensor.shape)


def _check_scale(scale: float | Tensor | None, query: Tensor, shape: tuple[int, ...]) -> float | Tensor:
    if scale is None:
        return 1.0 / math.sqrt(query.shape[-1])
    if not isinstance(scale, Tensor):
        number = as_real(scale)
        if number is None:
            raise EpanError("scale must be a number, a tensor or None", found=repr(scale))
        # Compared, not math.isfinite, which would break the graph of a symbolic number.
        if not -math.inf < number < math.inf:
            raise EpanError("scale must be finite", found=number)
        return number
    check_floats(scale, "scale")
    scale = on_device(scale, "scale", query)
    if scale.dim() == 1 and scale.shape[0] > 1:
        raise EpanError(
            "A scale of one dimension is ambiguous",
            found=f"shape {tuple(scale.shape)}",
            fix="per head: scale.view(-1, 1, 1); per query: scale.view(-1, 1)",
        )
    _broadcasts(scale, shape, "scale")
    return scale.to(torch.promote_types(scale.dtype, torch.float32))


def _per_head(tensor: Tensor, q_len: int, heads: int, what: str) -> Tensor:
    """A scale or an order of packed sequences, of shape (), (H, 1) or (Tq, H, 1), as (1, H, Tq, 1)."""
    if not fits(tensor, (q_len, heads, 1)):
        raise EpanError(
            f"{what} has a wrong shape for packed sequences",
            found=f"shape {tuple(tensor.shape)}",
            allowed=f"(), ({heads}, 1) or ({q_len}, {heads}, 1)",
        )
    return tensor.reshape(*[1] * (3 - tensor.dim()), *tensor.shape).transpose(0, 1).unsqueeze(0)


def _check_order(kernel: Kernel, query: Tensor) -> Kernel:
    """The kernel with a tensor order where the query is."""
    if not isinstance(kernel.order, Tensor):
        return kernel
    check_floats(kernel.order, "order")
    order = on_device(kernel.order, "order", query)
    return Polynomial(order) if isinstance(kernel, Polynomial) and order is not kernel.order else kernel


def _check_slopes(slopes: Tensor | None, batch: int, heads: int, query: Tensor) -> Tensor | None:
    if slopes is None:
        return None
    if not isinstance(slopes, Tensor):
        raise EpanError("alibi_slopes must be a floating-point tensor", found=type(slopes).__name__)
    check_floats(slopes, "alibi_slopes")
    if slopes.shape not in ((heads,), (batch, heads)):
        raise EpanError(
            "alibi_slopes has a wrong shape", found=tuple(slopes.shape), allowed=f"({heads},) or ({batch}, {heads})"
        )
    return on_device(slopes, "alibi_slopes", query).reshape(-1, heads, 1, 1)


def _check_longest(longest: int, name: str) -> int:
    number = as_integer(longest)
    if number is None:
        raise EpanError(
            f"{name} must be an integer", found=repr(longest), allowed="the length of the longest sequence, or more"
        )
    return number


def _check_offsets(offsets: Tensor, tokens: Tensor, query: Tensor, longest: int, name: str) -> None:
    if not isinstance(offsets, Tensor):
        found = type(offsets).__name__
    else:
        check_strided(offsets, f"cu_seq_{name}")
        found = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
    if (
        not isinstance(offsets, Tensor)
        or offsets.dim() != 1
        or offsets.dtype not in (torch.int32, torch.int64)
        or offsets.shape[0] < 2
    ):
        raise EpanError(
            f"cu_seq_{name} must hold the integer offsets of the sequences",
            found=found,
            allowed="int32 or int64 of shape (sequences + 1,)",
        )
    on_device(offsets, f"cu_seq_{name}", query)
    # A look at the values would break tracing, and on a GPU would wait for it; a meta tensor has none.
    if is_traced() or offsets.device.type != "cpu":
        return
    values, total = offsets.tolist(), tokens.shape[0]
    lengths = [b - a for a, b in zip(values, values[1:], strict=False)]
    if values[0] != 0 or min(lengths) < 0 or values[-1] > total:
        raise EpanError(
            f"cu_seq_{name} must start at 0, never decrease, and end at most at the number of tokens",
            found=f"{values[:4]}…{values[-1]} for {total} tokens",
        )
    if max(lengths) > longest:
        raise EpanError(
            f"max_{name} is smaller than the longest sequence",
            found=f"{longest} < {max(lengths)}",
            fix=f"pass max_{name}={max(lengths)}, or any larger number",
        )
