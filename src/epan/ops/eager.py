"""The eager backend: the definition, in plain torch. Every other backend is judged against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._modes import is_traced
from ..kernels import Kernel
from ..masks import Masking
from ..normalizations import Normalization, Stats
from ..normalizations.base import map_stats

__all__ = ["eager_attention"]


def eager_attention(
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
) -> tuple[Tensor, Stats]:
    r"""out_i = Σ_j w_ij v_j over the keys that the mask allows.

    The scores are :math:`z = \beta q\cdot k` or, euclidean, :math:`z = -\beta\|q - k\|^2/2` computed as
    :math:`\beta(q\cdot k - \|q\|^2/2 - \|k\|^2/2)` and clamped at 0; bias and ALiBi are added; the normalization turns them
    into weights. Inputs below float32 are computed in float32; the result has the dtype of the values.

    A query that is allowed to see a non-finite key or value, or is non-finite itself, gets NaN, forward, and no gradient
    flows through it; no other query is touched.
    """
    dtype = v_BHSE.dtype
    compute = torch.promote_types(dtype, torch.float32)
    q, k, v = (t.to(compute) for t in (q_BHLD, k_BHSD, v_BHSE))
    allowed, bias = masking.whole(q.device, compute)
    q, k, v, bad_q, bad_k = _contain(q, k, v)
    raw = q @ k.transpose(-2, -1)
    if euclidean:
        raw = raw - (q * q).sum(-1, keepdim=True) / 2 - (k * k).sum(-1).unsqueeze(-2) / 2
        raw = raw.clamp(max=0.0)
    if isinstance(scale, Tensor):
        scale = scale.to(compute)
        if allowed is not None:
            # The score of a key that no query may see might overflow, and 0·inf would reach the gradient of the scale.
            raw = torch.where(allowed, raw, 0.0)
    scores = raw * scale
    if bias is not None:
        scores = scores + bias
    weights, stats = normalization.weights(scores, allowed, kernel.at_scale(scale))
    if dropout_p > 0:
        weights = torch.nn.functional.dropout(weights, dropout_p, training=True)
    out = weights @ v
    if bad_q is not None and bad_k is not None:
        seen = bad_k.unsqueeze(-2) if allowed is None else bad_k.unsqueeze(-2) & allowed
        reached = seen.any(-1) | (bad_q & (allowed.any(-1) if allowed is not None else k.shape[-2] > 0))
        out = torch.where(reached.unsqueeze(-1), math.nan, out)
        stats = map_stats(lambda field: _poison(field, reached), stats)
    return out.to(dtype), stats


def _contain(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rows with a non-finite entry set to zero, and where they were: 0·NaN must not leak through a matrix product."""
    good_q, good_k, good_v = (torch.isfinite(t).all(-1, keepdim=True) for t in (q, k, v))
    # A look at the data would break tracing, and on a GPU would wait for it.
    if q.device.type == "cpu" and not is_traced() and bool(good_q.all() & good_k.all() & good_v.all()):
        return q, k, v, None, None
    good = good_k & good_v
    q, k, v = torch.where(good_q, q, 0.0), torch.where(good, k, 0.0), torch.where(good, v, 0.0)
    return q, k, v, ~good_q.squeeze(-1), ~good.squeeze(-1)


def _poison(field: Tensor, reached: Tensor) -> Tensor:
    return torch.where(reached, math.nan, field) if field.is_floating_point() else field
