"""Independent answers in float64: the formulas written plainly, and other packages.

Nothing here shares code with ``epan.normalizations`` or ``epan.ops``: thresholds come from sorting or from bisection,
masks from comparing one pair of positions at a time, gradients from the formulas on paper.
"""

from __future__ import annotations

from .attention import Answer, attention, visible
from .packages import entmax_weights, fused_attention
from .weights import RowAnswer, order_gradient, score_gradient, sparsemax_by_sorting, weights

__all__ = [
    "Answer",
    "RowAnswer",
    "attention",
    "entmax_weights",
    "fused_attention",
    "order_gradient",
    "score_gradient",
    "sparsemax_by_sorting",
    "visible",
    "weights",
]
