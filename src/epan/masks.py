"""Which keys a query may see, and what is added to its scores: one description that every backend evaluates by blocks."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import FLOATS, as_integer, check_strided
from .errors import EpanError

__all__ = ["Masking", "Packing", "combine_window", "split_mask"]

_FARTHEST = 2**63 - 1


@dataclass(frozen=True)
class Packing:
    """Sequences packed one after the other: offsets of shape (sequences + 1,), the same number for queries and keys."""

    cu_q: Tensor
    cu_k: Tensor

    def segments(self, q_len: int, k_len: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sequence number and position in the sequence of each query and key; traceable."""
        return (*_positions(self.cu_q, q_len, -1), *_positions(self.cu_k, k_len, -2))


def _positions(offsets: Tensor, length: int, outside: int) -> tuple[Tensor, Tensor]:
    offsets = offsets.long()
    index = torch.arange(length, device=offsets.device)
    segment = torch.bucketize(index, offsets[1:], right=True)
    position = index - offsets[segment.clamp(max=offsets.shape[0] - 2)]
    # Tokens after the last offset belong to no sequence, and no query shares a number with a key there.
    return torch.where(index < offsets[-1], segment, outside), position


@dataclass(frozen=True)
class Masking:
    """The mask of one attention call, by intersection and sum of its parts.

    Attributes
    ----------
    q_len, k_len: number of queries and keys (for packed sequences the totals).
    tensor: (B|1, H|1, Lq|1, Lk|1) bool (True = take part) or float (added; −inf = masked), or None.
    left, right: query i sees keys i − left … i + right, both inclusive, None = unbounded; counted from the top left.
    slopes: ALiBi slopes (B|1, H, 1, 1), adding −slope·|i + offset − j|, or None.
    offset: alignment of the ALiBi distance: 0 top left, Lk − Lq lower right.
    packing: offsets of packed sequences, or None; positions then count within each sequence.
    """

    q_len: int
    k_len: int
    tensor: Tensor | None = None
    left: int | None = None
    right: int | None = None
    slopes: Tensor | None = None
    offset: int = 0
    packing: Packing | None = None

    def whole(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """(allowed, bias) for all queries and keys; traceable, broadcastable to (B, H, Lq, Lk)."""
        rows, columns = torch.arange(self.q_len, device=device), torch.arange(self.k_len, device=device)
        segments = self.packing.segments(self.q_len, self.k_len) if self.packing else None
        tensor = self.tensor
        return self._evaluate(rows, columns, tensor, self.slopes, segments, dtype, self.left, self.right)

    def block(
        self,
        rows: slice,
        columns: slice | Tensor,
        batch: slice,
        heads: slice,
        segments: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor | None]:
        """(allowed, bias) for some queries, keys, batch entries and heads; ``columns`` a slice or an index."""
        i, j = _indices(rows, device), _indices(columns, device)
        tensor = self.tensor
        if tensor is not None:
            tensor = narrow(narrow(narrow(tensor, 0, batch), 1, heads), 2, rows)
            tensor = narrow(tensor, 3, columns) if isinstance(columns, slice) else take_keys(tensor, columns)
        slopes = None if self.slopes is None else narrow(narrow(self.slopes, 0, batch), 1, heads)
        left, right = self.left, self.right
        if segments is None and isinstance(columns, slice):
            # Bounds that exclude nothing in this block need no mask.
            if right is not None and columns.stop - 1 - rows.start <= right:
                right = None
            if left is not None and rows.stop - 1 - columns.start <= left:
                left = None
        return self._evaluate(i, j, tensor, slopes, segments, dtype, left, right)

    def distance(
        self,
        rows: slice,
        columns: slice | Tensor,
        segments: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        device: torch.device,
    ) -> Tensor:
        """|i + offset − j| of a block, the factor of the ALiBi slopes."""
        i, j = _indices(rows, device), _indices(columns, device)
        if segments is not None:
            i, j = segments[1][i], segments[3][j]
        return (i[:, None] + self.offset - j[None, :]).abs()

    def key_range(self, rows: slice, bounds: tuple[list[int], list[int]] | None) -> tuple[int, int]:
        """Keys [start, stop) that any of the queries may see by window and packing; ``bounds``: the offsets as lists."""
        first, last = rows.start, rows.stop - 1
        if bounds is None:
            start = 0 if self.left is None else first - self.left
            stop = self.k_len if self.right is None else last + self.right + 1
            return max(0, min(start, self.k_len)), max(0, min(stop, self.k_len))
        cu_q, cu_k = bounds
        if first >= cu_q[-1]:
            return 0, 0
        low = bisect.bisect_right(cu_q, first) - 1
        high = min(bisect.bisect_right(cu_q, last), len(cu_q) - 1)
        start, stop = cu_k[low], cu_k[high]
        if high == low + 1:
            shift = cu_k[low] - cu_q[low]
            if self.left is not None:
                start = max(start, first + shift - self.left)
            if self.right is not None:
                stop = min(stop, last + shift + self.right + 1)
        # Empty if the window ends before it starts, and never beyond the last key.
        return min(start, max(0, stop)), max(0, stop)

    def _evaluate(
        self,
        i: Tensor,
        j: Tensor,
        tensor: Tensor | None,
        slopes: Tensor | None,
        segments: tuple[Tensor, Tensor, Tensor, Tensor] | None,
        dtype: torch.dtype,
        left: int | None,
        right: int | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        allowed: Tensor | None = None
        bias: Tensor | None = None
        if segments is not None:
            q_segment, q_position, k_segment, k_position = segments
            allowed = q_segment[i][:, None] == k_segment[j][None, :]
            delta = k_position[j][None, :] - q_position[i][:, None]
        else:
            delta = j[None, :] - i[:, None]
        if right is not None:
            allowed = _and(allowed, delta <= right)
        if left is not None:
            allowed = _and(allowed, delta >= -left)
        if slopes is not None:
            bias = -slopes.to(dtype) * (delta - self.offset).abs()
        if tensor is not None:
            if tensor.dtype == torch.bool:
                allowed = _and(allowed, tensor)
            else:
                visible = tensor != -math.inf
                allowed = _and(allowed, visible)
                added = torch.where(visible, tensor, 0.0).to(dtype)
                bias = added if bias is None else bias + added
        return allowed, bias


def _indices(part: slice | Tensor, device: torch.device) -> Tensor:
    return torch.arange(part.start, part.stop, device=device) if isinstance(part, slice) else part


def _and(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b


def narrow(tensor: Tensor, dim: int, part: slice) -> Tensor:
    """``tensor`` restricted along ``dim``, unless it broadcasts there."""
    if tensor.shape[dim] == 1:
        return tensor
    return tensor.narrow(dim, part.start, part.stop - part.start)


def take_keys(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor`` at some keys (last dimension), unless it broadcasts there."""
    return tensor if tensor.shape[-1] == 1 else tensor.index_select(-1, index)


def combine_window(
    is_causal: bool, window: Sequence[int | None] | None, right_from_mask: int | None
) -> tuple[int | None, int | None]:
    """The window that results from ``is_causal``, ``window`` and a causal bias, by intersection."""
    left: int | None = None
    right: int | None = None
    if window is not None:
        if not isinstance(window, (tuple, list)) or len(window) != 2:
            raise _no_window(window)
        left, right = (None if bound is None else _bound(bound, window) for bound in window)
    for bound in (0 if is_causal else None, right_from_mask):
        if bound is not None:
            right = bound if right is None else min(right, bound)
    return left, right


def _bound(bound: object, window: object) -> int:
    number = as_integer(bound)
    if number is None:
        raise _no_window(window)
    # The size of a symbolic number is left open.
    symbolic = isinstance(number, torch.SymInt) or torch.compiler.is_compiling()
    if not symbolic and abs(number) > _FARTHEST:
        raise EpanError(
            "A bound of window exceeds 64 bits", found=window, allowed="|bound| < 2**63", fix="use None for no bound"
        )
    return number


def _no_window(window: object) -> EpanError:
    return EpanError(
        "window must be a pair (left, right) of integers or None", found=window, fix="e.g. window=(128, 0)"
    )


def split_mask(attn_mask: Tensor | None, q_len: int, k_len: int) -> tuple[Tensor | None, int | None, int]:
    """An attention mask as (tensor, right bound, ALiBi offset): causal biases of torch become bounds.

    ``torch.nn.attention.bias.causal_lower_right`` and ``causal_upper_left`` are accepted.
    """
    if attn_mask is None:
        return None, None, 0
    kind = type(attn_mask).__name__
    if kind == "CausalBias":
        variant = attn_mask.variant.name  # type: ignore[attr-defined]
        sizes = (attn_mask.seq_len_q, attn_mask.seq_len_kv)  # type: ignore[attr-defined]
        if sizes != (q_len, k_len):
            raise EpanError("The causal bias was made for other lengths", found=sizes, allowed=f"({q_len}, {k_len})")
        offset = k_len - q_len if variant == "LOWER_RIGHT" else 0
        return None, offset, offset
    if not isinstance(attn_mask, Tensor):
        raise EpanError("attn_mask must be a tensor or a causal bias of torch.nn.attention.bias", found=kind)
    check_strided(attn_mask, "attn_mask")
    if attn_mask.dtype != torch.bool and attn_mask.dtype not in FLOATS:
        raise EpanError(
            "attn_mask must be boolean (True = take part) or floating point (added to the scores)",
            found=str(attn_mask.dtype),
            allowed="bool, float16, bfloat16, float32 or float64",
            fix="use attn_mask.bool()",
        )
    return attn_mask, None, 0
