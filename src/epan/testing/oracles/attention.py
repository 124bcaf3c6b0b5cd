r"""One attention call and all its gradients in float64, from the inputs of a case.

.. math:: \partial q_i = \beta \sum_j \partial z_{ij} k_j, \quad \partial k_j = \beta \sum_i \partial z_{ij} q_i, \quad
          \partial\beta_i = \sum_j \partial z_{ij} s_{ij}

for dot scores z = β s + bias with s = q·k; for euclidean ones s = −‖q − k‖²/2, and k_j is replaced by k_j − q_i in the
first formula, q_i by q_i − k_j in the second.

Source: Santos et al. 2601.22766.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .weights import RowAnswer, order_gradient, score_gradient, weights

if TYPE_CHECKING:
    from ..inputs import Inputs

__all__ = ["Answer", "attention", "visible"]


@dataclass(frozen=True)
class Answer:
    """What attention should return.

    Attributes
    ----------
    out: (B, H, Lq, Dv).
    rows: weights and statistics per query.
    allowed: (B, H, Lq, Lk) the keys that each query may see.
    scores: (B, H, Lq, Lk) with bias, before the mask.
    grads: gradient of every differentiable input by name, for ``Inputs.grad``; empty unless asked for.
    """

    out: Tensor
    rows: RowAnswer
    allowed: Tensor
    scores: Tensor
    grads: dict[str, Tensor]


def visible(inputs: Inputs) -> Tensor:
    """(B, H, Lq, Lk): whether query i may see key j, asked one pair of positions at a time."""
    q_len, k_len = inputs.query.shape[-2], inputs.key.shape[-2]
    left, right = inputs.window if inputs.window is not None else (None, None)
    table = [
        [
            (left is None or j >= i - left)
            and (right is None or j <= i + right)
            and (not inputs.is_causal or j <= i)
            and (not inputs.lower_right or j - k_len <= i - q_len)
            for j in range(k_len)
        ]
        for i in range(q_len)
    ]
    shape = (*inputs.query.shape[:-1], k_len)
    allowed = torch.tensor(table, dtype=torch.bool).reshape(q_len, k_len).expand(shape).clone()
    mask = inputs.attn_mask
    if mask is not None:
        allowed &= (mask if mask.dtype == torch.bool else mask > -math.inf) | torch.isnan(mask)
    return allowed


def _bias(inputs: Inputs) -> Tensor:
    """Added to the scaled scores: float mask and ALiBi."""
    k_len = inputs.key.shape[-2]
    total = torch.zeros((*inputs.query.shape[:-1], k_len), dtype=torch.float64)
    mask = inputs.attn_mask
    if mask is not None and mask.dtype != torch.bool:
        total = total + torch.where(mask == -math.inf, 0.0, mask.double())
    if inputs.alibi_slopes is not None:
        total = total - inputs.alibi_slopes.double()[..., None, None] * distances(inputs)
    return total


def distances(inputs: Inputs) -> Tensor:
    """|i − j|, or |i + Lk − Lq − j| under a lower-right causal bias."""
    q_len, k_len = inputs.query.shape[-2], inputs.key.shape[-2]
    offset = k_len - q_len if inputs.lower_right else 0
    table = [[abs(i + offset - j) for j in range(k_len)] for i in range(q_len)]
    return torch.tensor(table, dtype=torch.float64).reshape(q_len, k_len)


def attention(inputs: Inputs, gradients: bool = False) -> Answer:
    """The answer to ``inputs`` (four dimensions), all in float64."""
    q, k, v = (t.detach().double() for t in (inputs.query, inputs.key, inputs.value))
    groups = q.shape[1] // max(1, k.shape[1])
    # Query head h reads key head h // groups.
    source = [h // groups for h in range(q.shape[1])]
    k, v = k[:, source], v[:, source]
    beta = inputs.beta()
    euclidean = inputs.similarity == "euclidean"
    raw = torch.einsum("bhid,bhjd->bhij", q, k)
    if euclidean:
        raw = -((q.unsqueeze(3) - k.unsqueeze(2)) ** 2).sum(-1) / 2
    if inputs.noise is not None:
        raw = raw + inputs.noise / beta
    scores, allowed = raw * beta + _bias(inputs), visible(inputs)
    kernel, rule = inputs.kernel, inputs.normalization
    # The radius of a boxcar is a distance, so it reads scores without their scale.
    unit = beta if kernel.name == "uniform" and rule.name == "fixed" else torch.ones_like(beta)
    rows = weights(scores / unit, allowed, kernel, rule)
    rows = dataclasses.replace(rows, threshold=rows.threshold * unit.expand(*q.shape[:-1], 1).squeeze(-1))
    factor = torch.ones_like(rows.weights) if inputs.factor is None else inputs.factor
    dropped = rows.weights * factor
    out = dropped @ v
    grads: dict[str, Tensor] = {}
    if gradients:
        g = inputs.grad.double()
        grad_w = (g @ v.transpose(-2, -1)) * factor
        dz = score_gradient(scores / unit, allowed, kernel, rule, grad_w)
        grads = _gradients(inputs, q, k, raw, beta, dz, euclidean)
        grads["value"] = _fold(dropped.transpose(-2, -1) @ g, groups)
        grads["key"] = _fold(grads["key"], groups)
        if inputs.order is not None:
            per_row = order_gradient(scores, allowed, kernel, rule, grad_w)
            grads["order"] = _sum_to(per_row, inputs.order.shape)
    return Answer(out, rows, allowed, scores, grads)


def _gradients(
    inputs: Inputs, q: Tensor, k: Tensor, raw: Tensor, beta: Tensor, dz: Tensor, euclidean: bool
) -> dict[str, Tensor]:
    scaled = dz * beta
    grad_q = scaled @ k
    grad_k = scaled.transpose(-2, -1) @ q
    if euclidean:
        grad_q = grad_q - scaled.sum(-1, keepdim=True) * q
        grad_k = grad_k - scaled.sum(-2).unsqueeze(-1) * k
    grads = {"query": grad_q, "key": grad_k}
    if isinstance(inputs.scale, Tensor):
        per_query = (dz * raw).sum(-1, keepdim=True)
        grads["scale"] = _sum_to(per_query, inputs.scale.shape)
    if inputs.attn_mask is not None and inputs.attn_mask.dtype != torch.bool:
        grads["attn_mask"] = _sum_to(dz, inputs.attn_mask.shape)
    if inputs.alibi_slopes is not None:
        per_head = -(dz * distances(inputs)).sum((-2, -1))
        grads["alibi_slopes"] = _sum_to(per_head, inputs.alibi_slopes.shape)
    return grads


def _fold(per_head: Tensor, groups: int) -> Tensor:
    """Sum over the query heads that share a key head."""
    return per_head if groups <= 1 else per_head.unflatten(1, (-1, groups)).sum(2)


def _sum_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The transpose of broadcasting from ``shape``."""
    for _ in range(tensor.dim() - len(shape)):
        tensor = tensor.sum(0)
    for dim, size in enumerate(shape):
        if size == 1 and tensor.shape[dim] != 1:
            tensor = tensor.sum(dim, keepdim=True)
    return tensor
