"""The tiled backend: exact attention with memory linear in length, forward and backward, in plain torch on any device.

Queries are worked on in blocks; the scores of a block against all keys it may see exist only while the block is worked
on. Key tiles outside the window are never computed. Once the weights of a block are known, key tiles in which no query
of the block has weight are left out of the product with the values, and, remembered in a bit per tile, of the whole
backward pass. The operators are opaque to torch.compile, so the data may decide what is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .._intern import lookup
from ..errors import UnsupportedError
from ..kernels import Gaussian, Kernel, Polynomial
from ..masks import Masking, Packing
from ..normalizations import Normalization, Rows, Stats

__all__ = ["tiled_attention"]

KEY_TILE = 64
# Scores held at a time; a few float32 copies of this many stay in a shared cache.
PANEL_ELEMENTS = 1 << 20
MAX_ROWS = 128
# Above this share of active tiles, gathering them costs more than it saves.
GATHER_BELOW = 0.7
# Up to this many keys no tile is left out; there is little to gain there.
GATHER_ABOVE = 1024
# Beyond, the values are summed up in groups of so many keys, one group after the other. Leaving out a group without
# weight then changes no bit: what a later query sees must not change an earlier one of its block, not even by rounding.
GROUP_KEYS = 256


@dataclass(frozen=True)
class _Call:
    """Everything about a call that is no differentiable tensor."""

    masking: Masking
    kernel: Kernel
    normalization: Normalization
    euclidean: bool
    dropout_p: float
    seed: int

    def kernel_at(self, scale: Tensor, order: Tensor | None) -> Kernel:
        kernel = self.kernel if order is None else Polynomial(order)
        return kernel.at_scale(scale)


@dataclass(frozen=True)
class _Block:
    batch: slice
    heads: slice
    rows: slice
    row_block: int
    number: int

    def of(self, tensor: Tensor, rows: bool = True) -> Tensor:
        part = tensor[self.batch, self.heads]
        return part[:, :, self.rows] if rows else part


def _rows_per_block(q_len: int, k_len: int) -> int:
    """A function of the shape alone, so that the tile bitmap has a known shape."""
    rows = MAX_ROWS
    while rows > 16 and rows * k_len > PANEL_ELEMENTS:
        rows //= 2
    return max(1, min(rows, q_len))


def _blocks(batch: int, heads: int, q_len: int, k_len: int) -> Iterator[_Block]:
    if batch * heads * q_len == 0:
        return
    rows = _rows_per_block(q_len, k_len)
    pairs = max(1, PANEL_ELEMENTS // max(1, rows * k_len))
    per_head = min(heads, pairs)
    per_batch = max(1, min(batch, pairs // heads))
    number = 0
    for b in range(0, batch, per_batch):
        for h in range(0, heads, per_head):
            for r, i in enumerate(range(0, q_len, rows)):
                yield _Block(
                    slice(b, min(b + per_batch, batch)),
                    slice(h, min(h + per_head, heads)),
                    slice(i, min(i + rows, q_len)),
                    r,
                    number,
                )
                number += 1


def _dropout_factor(call: _Call, block: _Block, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """0 or 1/(1 − p) for each weight of a block: the same in both passes, from the seed and the block's number."""
    generator = torch.Generator(device=device)
    generator.manual_seed((call.seed + 0x9E3779B97F4A7C15 * (block.number + 1)) % (1 << 63))
    keep = torch.rand(shape, generator=generator, device=device) >= call.dropout_p
    return keep.to(dtype).mul_(1.0 / (1.0 - call.dropout_p) if call.dropout_p < 1 else 0.0)


def _clean(*tensors: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Each tensor with rows that hold a non-finite entry set to zero, and which rows these are (None: none)."""
    result: list[tuple[Tensor, Tensor | None]] = []
    for tensor in tensors:
        # A row of finite numbers may overflow its sum, so the sum only decides whether to look closely.
        good = None if bool(torch.isfinite(tensor.sum())) else torch.isfinite(tensor).all(-1)
        if good is None or bool(good.all()):
            result.append((tensor, None))
        else:
            result.append((torch.where(good.unsqueeze(-1), tensor, 0.0), ~good))
    return result


def _either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a | b


class _Pass:
    """What the forward and the backward pass share: inputs in the working precision, cleaned, and scores of a block."""

    def __init__(self, call: _Call, q: Tensor, k: Tensor, v: Tensor, scale: Tensor, order: Tensor | None) -> None:
        self.call = call
        self.dtype = torch.promote_types(v.dtype, torch.float32)
        cleaned = _clean(*(t.to(self.dtype) for t in (q, k, v)))
        (self.q, self.bad_q), (self.k, bad_k), (self.v, bad_v) = cleaned
        self.bad_k = _either(bad_k, bad_v)
        if self.bad_k is not None:
            good = ~self.bad_k.unsqueeze(-1)
            self.k, self.v = torch.where(good, self.k, 0.0), torch.where(good, self.v, 0.0)
        self.scale = scale.to(self.dtype)
        self.order = order
        # Scaling the queries, in the working precision, spares a pass over the scores. Two more columns make the product
        # the euclidean score: β(q·k − ‖q‖²/2 − ‖k‖²/2).
        self.q_scaled, self.k_full = self.q * self.scale, self.k
        q_plain = self.q
        if call.euclidean:
            norm_q, norm_k = (self.q * self.q).sum(-1, keepdim=True) / 2, (self.k * self.k).sum(-1, keepdim=True) / 2
            # A masked key may be huge: an infinite norm times its zero gradient would be NaN.
            norm_k = norm_k.clamp(max=torch.finfo(self.dtype).max)
            q_plain = torch.cat((self.q, -norm_q, -torch.ones_like(norm_q)), -1)
            self.q_scaled = torch.cat((self.q_scaled, q_plain[..., -2:] * self.scale), -1)
            self.k_full = torch.cat((self.k, torch.ones_like(norm_k), norm_k), -1)
        # Distances are clamped before they are scaled; and a rule that compares scores with each other must not see ties
        # broken by the rounding of scaled queries.
        self.q_plain = q_plain if call.euclidean or not call.normalization.is_local else None
        packing = call.masking.packing
        self.bounds = None if packing is None else (packing.cu_q.tolist(), packing.cu_k.tolist())
        self.segments = None if packing is None else packing.segments(call.masking.q_len, call.masking.k_len)

    def blocks(self) -> Iterator[tuple[_Block, int, int]]:
        batch, heads, q_len, _ = self.q.shape
        for block in _blocks(batch, heads, q_len, self.call.masking.k_len):
            start, stop = self.call.masking.key_range(block.rows, self.bounds)
            yield block, start // KEY_TILE * KEY_TILE, stop

    def scores(
        self, block: _Block, columns: slice | Tensor, want_clamped: bool = False
    ) -> tuple[Tensor, Tensor | None, Kernel, Tensor | None]:
        """(scores, allowed, kernel, and if wanted where the clamp at distance zero acted) of a block against some keys."""
        keys = _take(block.of(self.k_full, rows=False), columns).transpose(-2, -1)
        scores = block.of(self.q_scaled if self.q_plain is None else self.q_plain) @ keys
        clamped = None
        if self.call.euclidean:
            clamped = scores > 0 if want_clamped else None
            scores.clamp_(max=0.0)
        if self.q_plain is not None:
            scores *= block.of(self.scale)
        allowed, bias = self.call.masking.block(
            block.rows, columns, block.batch, block.heads, self.segments, scores.device, self.dtype
        )
        if bias is not None:
            scores += bias
        order = None if self.order is None else block.of(self.order)
        return scores, allowed, self.call.kernel_at(block.of(self.scale), order), clamped


def _take(tensor: Tensor, columns: slice | Tensor) -> Tensor:
    """Keys (dimension 2) of a (B, H, L, D) tensor."""
    return tensor[:, :, columns] if isinstance(columns, slice) else tensor.index_select(2, columns)


def _is_compact(kernel: Kernel, normalization: Normalization) -> bool:
    """False if every allowed key has weight, so that looking for tiles without is in vain."""
    return not isinstance(kernel, Gaussian) or normalization.name == "nearest"


def _active_tiles(weights: Tensor, search: bool) -> Tensor:
    """(B, H, tiles): whether any weight of the block is not zero in each tile of keys; NaN counts."""
    width = weights.shape[-1]
    tiles = -(-width // KEY_TILE)
    if tiles <= 2 or not search:
        return torch.ones((*weights.shape[:2], tiles), dtype=torch.bool, device=weights.device)
    used = weights.amax(-2) != 0
    used = torch.nn.functional.pad(used, (0, tiles * KEY_TILE - width))
    return used.unflatten(-1, (tiles, KEY_TILE)).any(-1)


def _active_columns(active: Tensor, start: int, stop: int) -> slice | Tensor:
    """The keys [start, stop) in tiles that are active for any head of the block; a slice where gathering does not pay."""
    tiles = active.flatten(0, 1).any(0)
    if stop - start <= GATHER_ABOVE or float(tiles.float().mean()) > GATHER_BELOW:
        return slice(start, stop)
    first = tiles.nonzero().squeeze(-1) * KEY_TILE + start
    index = (first[:, None] + torch.arange(KEY_TILE, device=first.device)).flatten()
    return index[index < stop]


def _forward(work: _Pass, with_stats: bool) -> tuple[Tensor, ...]:
    call = work.call
    batch, heads, q_len, _ = work.q.shape
    k_len = call.masking.k_len
    rows_shape = (batch, heads, q_len, 1)
    out = work.v.new_zeros((batch, heads, q_len, work.v.shape[-1]))
    reference, level = (work.v.new_zeros(rows_shape) for _ in range(2))
    divisor = work.v.new_ones(rows_shape)
    threshold = work.v.new_full(rows_shape[:-1], math.inf)
    support = torch.zeros(rows_shape[:-1], dtype=torch.long, device=out.device)
    partition = work.v.new_zeros(rows_shape[:-1])
    bad = torch.zeros(rows_shape[:-1], dtype=torch.bool, device=out.device)
    active = torch.zeros(_bitmap_shape(batch, heads, q_len, k_len), dtype=torch.bool, device=out.device)
    for block, start, stop in work.blocks():
        if stop <= start:
            continue
        columns: slice | Tensor = slice(start, stop)
        scores, allowed, kernel, _ = work.scores(block, columns)
        if work.bad_q is not None or work.bad_k is not None:
            block.of(bad).copy_(_reached(work, block, allowed, columns))
        weights, rows, stats = call.normalization.solve(scores, allowed, kernel, with_stats)
        for whole, part in zip((reference, level, divisor), rows, strict=True):
            block.of(whole).copy_(part)
        if stats is not None and with_stats:
            for whole, part in zip((threshold, support, partition), stats[:3], strict=True):
                block.of(whole).copy_(part)
        tiles = _active_tiles(weights, search=_is_compact(kernel, call.normalization))
        block.of(active, rows=False)[:, :, block.row_block, start // KEY_TILE :][..., : tiles.shape[-1]] = tiles
        if call.dropout_p > 0:
            weights = weights * _dropout_factor(call, block, weights.shape, weights.device, weights.dtype)
        _add_values(block.of(out), weights, block.of(work.v, rows=False)[:, :, start:stop], tiles)
    if work.bad_q is not None or work.bad_k is not None:
        out.masked_fill_(bad.unsqueeze(-1), math.nan)
        threshold.masked_fill_(bad, math.nan)
        partition.masked_fill_(bad, math.nan)
    return out, reference, level, divisor, threshold, support, partition, active, bad


def _add_values(out: Tensor, weights: Tensor, values: Tensor, tiles: Tensor) -> None:
    """out += weights @ values in an order of summation that does not depend on which tiles carry weight; out is zero."""
    keys = weights.shape[-1]
    if keys <= GATHER_ABOVE:
        out.copy_(weights @ values)
        return
    count, per_group = keys // GROUP_KEYS, GROUP_KEYS // KEY_TILE
    whole = count * GROUP_KEYS
    used = tiles[..., : count * per_group].unflatten(-1, (count, per_group)).any(-1).flatten(0, 1).any(0)
    by_group = weights[..., :whole].unflatten(-1, (count, GROUP_KEYS)).transpose(-3, -2)
    values_by_group = values[:, :, :whole].unflatten(2, (count, GROUP_KEYS))
    if float(used.float().mean()) <= GATHER_BELOW:
        index = used.nonzero().squeeze(-1)
        by_group, values_by_group = by_group.index_select(2, index), values_by_group.index_select(2, index)
    for part in (by_group @ values_by_group).unbind(2):
        out += part
    if whole < keys:
        out += weights[..., whole:] @ values[:, :, whole:]


def _bitmap_shape(batch: int, heads: int, q_len: int, k_len: int) -> tuple[int, int, int, int]:
    return batch, heads, -(-q_len // _rows_per_block(q_len, k_len)), -(-k_len // KEY_TILE)


def _reached(work: _Pass, block: _Block, allowed: Tensor | None, columns: slice | Tensor) -> Tensor:
    """Queries of the block that are non-finite themselves or may see a non-finite key or value."""
    shape = (
        block.batch.stop - block.batch.start,
        block.heads.stop - block.heads.start,
        block.rows.stop - block.rows.start,
    )
    reached = torch.zeros(shape, dtype=torch.bool, device=work.q.device)
    if work.bad_k is not None:
        bad_k = block.of(work.bad_k, rows=False)[..., columns].unsqueeze(-2)
        reached = reached | (bad_k if allowed is None else bad_k & allowed).any(-1)
    if work.bad_q is not None:
        live = True if allowed is None else allowed.any(-1)
        reached = reached | (block.of(work.bad_q) & live)
    return reached


def _backward(work: _Pass, grad_out: Tensor, rows: Rows, active: Tensor, bad: Tensor, needs: dict[str, Tensor]) -> None:
    """Adds the gradients to the tensors in ``needs`` (q, k, v, scale, order, mask, slopes), whichever are there."""
    call = work.call
    grad_out = grad_out.to(work.dtype)
    if bool(bad.any()):
        grad_out = torch.where(bad.unsqueeze(-1), 0.0, grad_out)
    local, only_values = call.normalization.is_local, needs.keys() <= {"v"}
    for block, start, stop in work.blocks():
        if stop <= start:
            continue
        tiles = block.of(active, rows=False)[:, :, block.row_block, start // KEY_TILE : -(-stop // KEY_TILE)]
        columns = _active_columns(tiles, start, stop) if local else slice(start, stop)
        if not isinstance(columns, slice) and columns.numel() == 0:
            continue
        scores, allowed, kernel, clamped = work.scores(block, columns, want_clamped=True)
        state = Rows(*(block.of(t) for t in rows))
        g = block.of(grad_out)
        factor = None
        if call.dropout_p > 0:
            shape = torch.Size((*scores.shape[:-1], stop - start))
            factor = _dropout_factor(call, block, shape, scores.device, scores.dtype)
            factor = factor if isinstance(columns, slice) else factor.index_select(-1, columns - start)
        if only_values:
            weights = call.normalization.apply(scores, allowed, kernel, state)
        else:
            grad_weights = g @ _take(block.of(work.v, rows=False), columns).transpose(-2, -1)
            if factor is not None:
                grad_weights *= factor
            weights, grad_scores, grad_order = call.normalization.differentiate(
                scores, allowed, kernel, state, grad_weights
            )
        if "v" in needs:
            dropped = weights if factor is None else weights * factor
            _add(needs["v"], block, columns, dropped.transpose(-2, -1) @ g)
        if only_values:
            continue
        if "order" in needs and grad_order is not None:
            block.of(needs["order"]).add_(grad_order)
        if "mask" in needs:
            _add_reduced(needs["mask"], block, columns, grad_scores)
        if "slopes" in needs:
            distance = call.masking.distance(block.rows, columns, work.segments, grad_scores.device).to(work.dtype)
            _add_slopes(needs["slopes"], block, grad_scores, distance)
        if clamped is not None:
            # Beyond the clamp at distance zero there is no gradient, neither to the inputs nor (z = 0) to the scale.
            grad_scores = grad_scores.masked_fill(clamped, 0.0)
        _add_products(work, needs, block, columns, grad_scores)


def _add_products(
    work: _Pass, needs: dict[str, Tensor], block: _Block, columns: slice | Tensor, grad_scores: Tensor
) -> None:
    """∂L/∂q, ∂L/∂scale and ∂L/∂k; the two columns of the euclidean product bring the sums that they need."""
    q, euclidean, size = block.of(work.q), work.call.euclidean, work.q.shape[-1]
    k = _take(block.of(work.k_full, rows=False), columns)
    if "q" in needs or "scale" in needs:
        moment = grad_scores @ k
        towards = moment[..., :size]
        if "scale" in needs:
            grad_scale = (q * towards).sum(-1, keepdim=True)
            if euclidean:
                grad_scale -= (q * q).sum(-1, keepdim=True) / 2 * moment[..., size : size + 1] + moment[..., size + 1 :]
            block.of(needs["scale"]).add_(grad_scale)
        if "q" in needs:
            if euclidean:
                towards = towards - moment[..., size : size + 1] * q
            block.of(needs["q"]).copy_(towards * block.of(work.scale))
    if "k" in needs:
        moment = grad_scores.transpose(-2, -1) @ block.of(work.q_scaled)
        grad_k = moment[..., :size]
        if euclidean:
            grad_k = grad_k + moment[..., size + 1 :] * k[..., :size]
        _add(needs["k"], block, columns, grad_k)


def _add(total: Tensor, block: _Block, columns: slice | Tensor, part: Tensor) -> None:
    target = block.of(total, rows=False)
    if isinstance(columns, slice):
        target[:, :, columns] += part
    else:
        target.index_add_(2, columns, part)


def _add_reduced(total: Tensor, block: _Block, columns: slice | Tensor, part: Tensor) -> None:
    """Adds the gradient of a block of scores to a mask that may broadcast in any dimension."""
    for dim in range(4):
        if total.shape[dim] == 1:
            part = part.sum(dim, keepdim=True)
    target = total
    for dim, piece in enumerate((block.batch, block.heads, block.rows)):
        if total.shape[dim] != 1:
            target = target.narrow(dim, piece.start, piece.stop - piece.start)
    if total.shape[3] == 1:
        target += part
    elif isinstance(columns, slice):
        target[..., columns] += part
    else:
        target.index_add_(3, columns, part)


def _add_slopes(total: Tensor, block: _Block, grad_scores: Tensor, distance: Tensor) -> None:
    part = -(grad_scores * distance).sum((-2, -1), keepdim=True)
    if total.shape[0] == 1:
        part = part.sum(0, keepdim=True)
        total[:, block.heads] += part
    else:
        total[block.batch, block.heads] += part


def _call_of(
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    q_len: int,
    k_len: int,
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
) -> _Call:
    kernel, rule, euclidean, offset = numbers
    packing = None if cu_q is None or cu_k is None else Packing(cu_q, cu_k)
    masking = Masking(q_len, k_len, mask, left, right, slopes, offset, packing)
    return _Call(
        masking,
        # A tensor order is no part of the handle; the order itself comes with the call.
        cast(Kernel, lookup(kernel)) if kernel >= 0 else Polynomial(1.0),
        cast(Normalization, lookup(rule)),
        bool(euclidean),
        dropout_p,
        0 if seed is None else int(seed),
    )


@torch.library.custom_op("epan::tiled", mutates_args=())
def _tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    with_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _call_of(mask, slopes, cu_q, cu_k, seed, q.shape[2], k.shape[2], numbers, left, right, dropout_p)
    out, *rest = _forward(_Pass(call, q, k, v, scale, order), with_stats)
    return (out.to(v.dtype), *rest)  # type: ignore[return-value]


@_tiled.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    with_stats: bool,
) -> tuple[Tensor, ...]:
    batch, heads, q_len, _ = q.shape
    dtype = torch.promote_types(v.dtype, torch.float32)
    rows = [q.new_empty((batch, heads, q_len, 1), dtype=dtype) for _ in range(3)]
    per_query = (batch, heads, q_len)
    return (
        v.new_empty((*per_query, v.shape[-1])),
        *rows,
        q.new_empty(per_query, dtype=dtype),
        q.new_empty(per_query, dtype=torch.long),
        q.new_empty(per_query, dtype=dtype),
        q.new_empty(_bitmap_shape(batch, heads, q_len, k.shape[2]), dtype=torch.bool),
        q.new_empty(per_query, dtype=torch.bool),
    )


@torch.library.custom_op("epan::tiled_backward", mutates_args=())
def _tiled_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    state: list[Tensor],
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    wanted: list[int],
) -> list[Tensor]:
    call = _call_of(mask, slopes, cu_q, cu_k, seed, q.shape[2], k.shape[2], numbers, left, right, dropout_p)
    work = _Pass(call, q, k, v, scale, order)
    needs = {
        name: torch.zeros(like.shape, dtype=work.dtype, device=like.device)
        for name, like, flag in zip(_NAMES, (q, k, v, scale, order, mask, slopes), wanted, strict=True)
        if flag and like is not None
    }
    reference, level, divisor, active, bad = state
    _backward(work, grad_out, Rows(reference, level, divisor), active, bad, needs)
    likes = dict(zip(_NAMES, (q, k, v, scale, order, mask, slopes), strict=True))
    return [grad.to(cast(Tensor, likes[name]).dtype) for name, grad in needs.items()]


_NAMES = ("q", "k", "v", "scale", "order", "mask", "slopes")


@_tiled_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor,
    order: Tensor | None,
    mask: Tensor | None,
    slopes: Tensor | None,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    seed: Tensor | None,
    state: list[Tensor],
    numbers: list[int],
    left: int | None,
    right: int | None,
    dropout_p: float,
    wanted: list[int],
) -> list[Tensor]:
    likes = (q, k, v, scale, order, mask, slopes)
    return [like.new_empty(like.shape) for like, flag in zip(likes, wanted, strict=True) if flag and like is not None]


def _setup(ctx: object, inputs: tuple, output: tuple) -> None:
    q, k, v, scale, order, mask, slopes, cu_q, cu_k, seed, numbers, left, right, dropout_p, _ = inputs
    _, reference, level, divisor, _, _, _, active, bad = output
    saved = (q, k, v, scale, order, mask, slopes, cu_q, cu_k, seed, reference, level, divisor, active, bad)
    ctx.save_for_backward(*saved)  # type: ignore[attr-defined]
    ctx.constants = (numbers, left, right, dropout_p)  # type: ignore[attr-defined]


def _differentiate(ctx: object, grad_out: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, reference, level, divisor, active, bad = ctx.saved_tensors  # type: ignore[attr-defined]
    numbers, left, right, dropout_p = ctx.constants  # type: ignore[attr-defined]
    wanted = [int(flag) for flag in ctx.needs_input_grad[:7]]  # type: ignore[attr-defined]
    state = [reference, level, divisor, active, bad]
    grads = iter(
        _tiled_backward(grad_out.contiguous(), *tensors, state, numbers, left, right, dropout_p, wanted)
        if any(wanted)
        else ()
    )
    return (*(next(grads) if flag else None for flag in wanted), *[None] * 8)


_tiled.register_autograd(_differentiate, setup_context=_setup)


def _no_second_derivative(ctx: object, *_: object) -> None:
    raise UnsupportedError(
        "A second derivative on backend='tiled'", "its backward pass is opaque", 'use backend="eager"'
    )


_tiled_backward.register_autograd(_no_second_derivative, setup_context=lambda ctx, inputs, output: None)


def tiled_attention(
    q_BHLD: Tensor,
    k_BHSD: Tensor,
    v_BHSE: Tensor,
    masking: Masking,
    scale: float | Tensor,
    kernel: Kernel,
    normalization: Normalization,
    *,
    euclidean: bool,
    dropout_p: float,
    with_stats: bool = True,
) -> tuple[Tensor, Stats]:
    """Attention as in the eager backend, block by block; the stats are blank unless ``with_stats``.

    Memory beyond inputs and outputs: a few panels of about a million scores, three numbers per query, and one bit per
    block of queries and tile of keys. First derivatives only.
    """
    shape = (*q_BHLD.shape[:3], 1)
    dtype = torch.promote_types(v_BHSE.dtype, torch.float32)
    if not isinstance(scale, Tensor):
        scale = q_BHLD.new_full((), scale, dtype=dtype)
    order = kernel.order.expand(shape) if isinstance(kernel.order, Tensor) else None
    # One draw from the global generator per call, so that torch.manual_seed decides the dropout.
    seed = torch.randint(1 << 62, (), dtype=torch.long, device="cpu") if dropout_p > 0 else None
    packing = masking.packing
    if kernel.handle < 0 and order is None:
        raise UnsupportedError(
            f"kernel {kernel.name!r} on backend='tiled'",
            "the kernel object was not initialised",
            "call super().__post_init__()",
        )
    out, _, _, _, threshold, support, partition, _, _ = _tiled(
        q_BHLD,
        k_BHSD,
        v_BHSE,
        scale.expand(shape),
        order,
        masking.tensor,
        masking.slopes,
        None if packing is None else packing.cu_q,
        None if packing is None else packing.cu_k,
        seed,
        [kernel.handle, normalization.handle, int(euclidean), masking.offset],
        masking.left,
        masking.right,
        dropout_p,
        with_stats,
    )
    return out, Stats(threshold.detach(), support, partition.detach())
