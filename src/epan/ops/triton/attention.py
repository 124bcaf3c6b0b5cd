"""Attention through the fused kernels, in the form in which a backend is called."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels import Kernel
from ...masks import Masking
from ...normalizations import Normalization, Stats
from .launch import Problem, tile_size
from .operators import fused
from .short_sequences import is_narrow, is_short
from .softmax import expresses, softmax_attention

__all__ = ["triton_attention"]

# Blocks of queries among which one less counts for more than the copies that it takes.
_FEW = 4


def triton_attention(
    q_BHLD: Tensor,
    k_BKSD: Tensor,
    v_BKSE: Tensor,
    masking: Masking,
    scale: float | Tensor,
    kernel: Kernel,
    normalization: Normalization,
    *,
    euclidean: bool,
    dropout_p: float,
    with_stats: bool = True,
) -> tuple[Tensor, Stats | None]:
    """Attention as in the eager backend, first derivatives only; key heads K divide H; no stats unless ``with_stats``.

    Nothing here waits for the device or copies to it, so that a call may be part of a CUDA graph. Memory beyond inputs
    and outputs: a few numbers per query and a few bytes per tile of 128 × 128 scores.
    """
    short = not with_stats and is_short(masking, q_BHLD, v_BKSE)
    if not (with_stats or isinstance(scale, Tensor) or (short and is_narrow(q_BHLD))) and expresses(
        q_BHLD, k_BKSD, v_BKSE, masking, scale, kernel, normalization, euclidean
    ):
        return softmax_attention(q_BHLD, k_BKSD, v_BKSE, masking, scale, dropout_p), None
    if dropout_p >= 1:
        # No weight is left, and 1/(1 − p) would have no value; what remains are zeros that belong to the graph.
        v_BKSE, dropout_p = torch.where(v_BKSE.new_zeros((), dtype=torch.bool), v_BKSE, 0.0), 0.0
    if isinstance(scale, Tensor):
        plain, rows = False, scale.float().expand(*q_BHLD.shape[:3], 1).squeeze(-1)
    else:
        # Filled on the device; a copy from the host would be no part of a CUDA graph.
        plain, rows = scale >= 0, q_BHLD.new_full((), scale, dtype=torch.float32).expand(q_BHLD.shape[:3])
    # One draw from the device's generator per call, so that torch.manual_seed decides the dropout.
    seed = torch.randint(1 << 62, (), dtype=torch.long, device=q_BHLD.device) if dropout_p > 0 else None
    blind = 0 if with_stats else _spared(masking, tile_size(q_BHLD))
    if blind:
        masking = _without_first(masking, blind)
        q_BHLD, rows = q_BHLD[:, :, blind:], rows[:, :, blind:]
    problem = Problem(masking, kernel, normalization, euclidean, dropout_p, plain, short)
    out, stats = fused(problem, q_BHLD, k_BKSD, v_BKSE, rows, seed, with_stats)
    return (pad(out, (0, 0, blind, 0)) if blind else out), stats


def _spared(masking: Masking, side: int) -> int:
    """How many first queries, which see no key, to leave out: where few blocks of ``side`` queries become fewer by it."""
    if masking.right is None or masking.right >= 0 or masking.packing is not None or masking.tensor is not None:
        return 0
    blind, length = -masking.right, masking.q_len
    fewer = (length - blind + side - 1) // side < (length + side - 1) // side
    return blind if blind < length <= _FEW * side and fewer else 0


def _without_first(masking: Masking, count: int) -> Masking:
    """The mask of all queries but the first ones."""
    return dataclasses.replace(
        masking,
        q_len=masking.q_len - count,
        left=None if masking.left is None else masking.left - count,
        right=None if masking.right is None else masking.right + count,
        offset=masking.offset + count,
    )
