"""The checks that every implementation must pass: functions of an implementation and a case that raise AssertionError.

An *attention* check takes anything with the signature of ``epan.attention`` and a ``Case``; a *varlen* check anything
with the signature of ``epan.attention_varlen`` and a ``PackedCase``; a *weights* check anything with the signature of
``epan.attention_weights`` and a ``WeightsCase``. Each is itself tested: a deliberately broken implementation fails it.

>>> conformance.contains_nonfinite(epan.testing.execution.backend("tiled"), Case(mask="padding"))
"""

from __future__ import annotations

from collections.abc import Callable

from .agreement import agrees_with_formula, gradients_agree_with_formula, keeps_dtype_and_shape
from .dropout import drops_weights
from .emptiness import fully_masked_rows_are_zero, handles_nothing
from .invariance import answers_a_constant_shift, ignores_the_order_of_keys, repeats_itself, takes_three_dimensions
from .statistics import reports_statistics
from .varlen import PackedCase, packs_sequences
from .visibility import contains_nonfinite, hidden_keys_leave_no_trace, sees_exactly_the_allowed_keys
from .weights import (
    WeightsCase,
    approaches_softmax,
    stays_within_reach,
    weights_agree_with_formula,
    weights_are_a_distribution,
    weights_contain_nonfinite,
    weights_follow_the_scores,
    weights_gradient_agrees_with_formula,
    weights_ignore_the_order,
)

__all__ = [
    "ATTENTION_CHECKS",
    "VARLEN_CHECKS",
    "WEIGHTS_CHECKS",
    "PackedCase",
    "WeightsCase",
    "agrees_with_formula",
    "answers_a_constant_shift",
    "approaches_softmax",
    "contains_nonfinite",
    "drops_weights",
    "fully_masked_rows_are_zero",
    "gradients_agree_with_formula",
    "handles_nothing",
    "hidden_keys_leave_no_trace",
    "ignores_the_order_of_keys",
    "keeps_dtype_and_shape",
    "packs_sequences",
    "repeats_itself",
    "reports_statistics",
    "sees_exactly_the_allowed_keys",
    "stays_within_reach",
    "takes_three_dimensions",
    "weights_agree_with_formula",
    "weights_are_a_distribution",
    "weights_contain_nonfinite",
    "weights_follow_the_scores",
    "weights_gradient_agrees_with_formula",
    "weights_ignore_the_order",
]

ATTENTION_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        agrees_with_formula,
        gradients_agree_with_formula,
        keeps_dtype_and_shape,
        sees_exactly_the_allowed_keys,
        hidden_keys_leave_no_trace,
        contains_nonfinite,
        fully_masked_rows_are_zero,
        handles_nothing,
        ignores_the_order_of_keys,
        answers_a_constant_shift,
        repeats_itself,
        takes_three_dimensions,
        reports_statistics,
        drops_weights,
    )
}
VARLEN_CHECKS: dict[str, Callable[..., None]] = {packs_sequences.__name__: packs_sequences}
WEIGHTS_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        weights_agree_with_formula,
        weights_gradient_agrees_with_formula,
        weights_are_a_distribution,
        weights_contain_nonfinite,
        weights_follow_the_scores,
        weights_ignore_the_order,
        stays_within_reach,
        approaches_softmax,
    )
}
