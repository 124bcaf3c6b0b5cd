"""The Gaussian kernel where torch's own fused attention computes the very same thing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ...kernels import Gaussian, Kernel
from ...masks import Masking
from ...normalizations import Nearest, Normalization

__all__ = ["expresses", "softmax_attention"]

# What torch's flash attention takes; its other kernels would keep all scores, or fail.
_DTYPES = (torch.float16, torch.bfloat16)
_MAX_SIZE = 256


def expresses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masking: Masking,
    scale: float,
    kernel: Kernel,
    rule: Normalization,
    euclidean: bool,
) -> bool:
    """Whether flash attention expresses the call without loss: half precision, one scale, no mask but causal ones.

    Full, causal, and strictly causal with as many keys as queries. A mask tensor might hide all keys of a query, whose
    output flash attention does not promise to be zero.
    """
    if not isinstance(kernel, Gaussian) or isinstance(rule, Nearest) or euclidean:
        return False
    if masking.tensor is not None or masking.slopes is not None or masking.packing is not None:
        return False
    if q.dtype not in _DTYPES or q.shape[-1] != v.shape[-1] or q.shape[-1] > _MAX_SIZE:
        return False
    # Flash attention takes the maximum before it scales, so a scale below zero would overflow.
    if masking.left is not None or 0 in q.shape[:3] or k.shape[2] == 0 or not scale > 0:
        return False
    if masking.right is None:
        return True
    return masking.q_len == masking.k_len and masking.right in (0, -1) and masking.q_len > 1


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, masking: Masking, scale: float, dropout_p: float) -> Tensor:
    """Softmax attention (B, H, Lq, Dv) through torch.nn.functional.scaled_dot_product_attention; see :func:`expresses`."""
    strict = masking.right == -1
    if strict:
        # Query i sees keys before i: the causal mask of all queries but the first and all keys but the last.
        q, k, v = q[:, :, 1:], k[:, :, :-1], v[:, :, :-1]
    out = scaled_dot_product_attention(
        q, k, v, None, dropout_p, masking.right is not None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return pad(out, (0, 0, 1, 0)) if strict else out
