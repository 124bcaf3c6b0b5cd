"""Runs checks of the fused GPU kernels in Triton's interpreter; a process of its own, as that is chosen at import.

python tests/ops/interpreted.py GROUP
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

import epan
from epan.ops.triton.attention import triton_attention
from epan.testing import conformance
from epan.testing.execution import backend
from epan.testing.inputs import Case

SETTINGS = (
    {
        "scale": "head",
        "mask": "float_inf",
        "alibi": "head",
        "heads": 4,
        "key_heads": 2,
        "window": (6, 4),
        "layout": "heads_last",
    },
    {"scale": "query", "mask": "some_rows", "is_causal": True, "q_len": 9, "value_size": 5, "layout": "strided"},
    # Several blocks of queries and tiles of keys, plain products.
    {"q_len": 150, "k_len": 300, "batch": 1, "heads": 1, "key_heads": 1, "spread": 1.5},
)
GROUPS = {
    "adaptive": [Case(kernel=kernel) for kernel in ("epanechnikov", "biweight", "triweight", epan.Polynomial(5.0))],
    "anchored": [Case(kernel=kernel, normalization="anchored") for kernel in ("epanechnikov", "cosine")],
    "fixed": [
        Case(kernel=kernel, normalization=rule, similarity="euclidean")
        for kernel, rule in (("triweight", "fixed"), ("cosine", "fixed"), ("biweight", epan.Fixed(empty="uniform")))
    ],
    "gaussian": [Case(kernel="gaussian"), Case(kernel="gaussian", similarity="euclidean")],
}


def agree(case: Case) -> None:
    """Outputs, gradients and statistics, in float32 and float16 (the interpreter is wrong in bfloat16)."""
    for settings in SETTINGS:
        for dtype in (torch.float32, torch.float16) if settings is SETTINGS[0] else (torch.float32,):
            changed = case.but(dtype=dtype, **settings)
            conformance.agrees_with_formula(KERNELS, changed, EAGER)
            conformance.gradients_agree_with_formula(KERNELS, changed, EAGER)
    conformance.reports_statistics(KERNELS, case.but(dtype=torch.float32, mask="some_rows", scale="head"), EAGER)


def contain(case: Case) -> None:
    """What a query may not see leaves no trace."""
    case = case.but(dtype=torch.float32)
    conformance.contains_nonfinite(KERNELS, case.but(mask="padding", scale="head", q_len=4, k_len=6))
    conformance.fully_masked_rows_are_zero(KERNELS, case.but(mask="some_rows", scale="query", alibi="head"))
    conformance.handles_nothing(KERNELS, case.but(scale="head"))
    conformance.hidden_keys_leave_no_trace(KERNELS, case.but(is_causal=True, q_len=9))
    conformance.sees_exactly_the_allowed_keys(KERNELS, case.but(window=(2, 1), mask="float_inf", alibi="batch"))


if __name__ == "__main__":
    # The public function with the fused kernels in the place of the tiled backend.
    sys.modules["epan.ops.attention"].tiled_attention = triton_attention  # type: ignore[attr-defined]
    KERNELS, EAGER = backend("tiled"), backend("eager")
    if sys.argv[1] == "containment":
        for case in (GROUPS["adaptive"][1], GROUPS["anchored"][0], GROUPS["fixed"][0]):
            contain(case)
    else:
        for case in GROUPS[sys.argv[1]]:
            agree(case)
    print("passed", sys.argv[1])
