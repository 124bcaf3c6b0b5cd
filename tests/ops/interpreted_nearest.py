"""Runs checks of the nearest rule's kernels in Triton's interpreter; a process of its own, as that is chosen at import.

python tests/ops/interpreted_nearest.py GROUP
"""

from __future__ import annotations

import sys
from typing import Any

import interpreter  # noqa: F401  isort: skip (before Triton)

import torch
from torch import Tensor

import epan
from epan.masks import Masking
from epan.ops.triton import nearest
from epan.ops.triton.launch import Problem
from epan.testing import conformance, tolerance
from epan.testing.execution import backend, varlen_backend
from epan.testing.inputs import LOADED, PER_QUERY, Case

SETTINGS: tuple[dict[str, Any], ...] = (
    LOADED,
    PER_QUERY,
    {"content": "ties", "scale": -0.5, "mask": "bool", "similarity": "dot"},
    {"content": "ties", "scale": 0.5, "mask": "bool", "similarity": "euclidean"},
    # Several blocks of queries and tiles of keys: a bound from the tiles' maxima, or from the least score.
    {"normalization": epan.Nearest(k=3), "q_len": 150, "k_len": 300, "batch": 1, "heads": 1},
    {"normalization": epan.Nearest(k=70), "q_len": 140, "k_len": 200, "batch": 1, "heads": 1, "is_causal": False},
    # Rows too wide for tiles of the usual size.
    {"size": 200, "q_len": 70, "k_len": 90, "batch": 1},
    {"normalization": epan.Nearest(k=2), "q_len": 300, "k_len": 300, "batch": 1, "heads": 1, "is_causal": True},
)
GROUPS = {
    "uniform": [Case(kernel="uniform", normalization=epan.Nearest(k=k)) for k in (1, 4)],
    "gaussian": [
        Case(kernel="gaussian", normalization=epan.Nearest(k=4)),
        Case(kernel="gaussian", normalization=epan.Nearest(k=3), similarity="euclidean"),
    ],
}


def agree(case: Case) -> None:
    """Outputs, gradients and statistics, in float32 and float16 (the interpreter is wrong in bfloat16)."""
    for settings in SETTINGS:
        for dtype in (torch.float32, torch.float16) if settings is SETTINGS[0] else (torch.float32,):
            changed = case.but(dtype=dtype, **settings)
            conformance.agrees_with_formula(KERNELS, changed, EAGER)
            conformance.gradients_agree_with_formula(KERNELS, changed, EAGER)
    for k in (2, 100):
        told = case.but(dtype=torch.float32, mask="some_rows", scale="head", normalization=epan.Nearest(k=k))
        conformance.reports_statistics(KERNELS, told, EAGER)


def contain(case: Case) -> None:
    """What a query may not see leaves no trace."""
    case = case.but(dtype=torch.float32)
    conformance.contains_nonfinite(KERNELS, case.but(mask="padding", scale="head", q_len=4, k_len=6))
    conformance.fully_masked_rows_are_zero(KERNELS, case.but(mask="some_rows", scale="query", alibi="head"))
    conformance.handles_nothing(KERNELS, case.but(scale="head"))
    conformance.hidden_keys_leave_no_trace(KERNELS, case.but(is_causal=True, q_len=9))
    conformance.sees_exactly_the_allowed_keys(KERNELS, case.but(window=(2, 1), mask="float_inf", alibi="batch"))
    conformance.sees_exactly_the_allowed_keys(KERNELS, case.but(heads=4, key_heads=2, is_causal=True, q_len=9))
    for packed in (
        conformance.PackedCase(base=case, tail=2, scale="head"),
        conformance.PackedCase(q_lens=(70, 0, 80), base=case.but(is_causal=True)),
    ):
        conformance.packs_sequences(varlen_backend("triton"), packed, varlen_backend("eager"))


def scores_of(kind: str, length: int) -> Tensor:
    """Scores that a search might stumble over, each a float32."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(length, generator=generator)
    if kind == "scales":
        return z.sign() * torch.exp(60 * torch.rand(length, generator=generator) - 30)
    if kind == "masked":
        return torch.where(z > 0, z, -1e9)
    if kind == "ties":
        return z.round()
    if kind == "constant":
        return torch.full_like(z, 0.3)
    if kind == "near":
        return 1e4 + (z * 3).round() * 2**-10
    if kind == "zeros":
        return torch.where(z > 1, 1.0, z * 0.0)
    if kind == "peak":
        return torch.where(torch.arange(length) == 70, 1e30, z.round())
    if kind == "tiny":
        return z * 1e-40
    return z


def search() -> None:
    """The k-th best score is exact: with one coordinate a score has no rounding, and eager agrees to the last bit."""
    length = 80
    kinds = ("normal", "scales", "masked", "ties", "constant", "near", "zeros", "peak", "tiny")
    key = torch.stack([scores_of(kind, length) for kind in kinds])[None, :, :, None]
    query = torch.tensor([1.0, 0.5, -1.0, 0.0]).view(1, 1, 4, 1).expand(1, len(kinds), 4, 1)
    value = torch.eye(length).expand(1, len(kinds), length, length)
    for k in (1, 2, 3, 9, 40, 79, 80, 81):
        options = {"kernel": "uniform", "normalization": epan.Nearest(k=k), "scale": 1.0, "return_stats": True}
        out, stats = KERNELS(query, key, value, **options)
        expected, told = EAGER(query, key, value, **options)
        scores = (query @ key.mT).double()
        exact = epan.attention_weights(scores, kernel="uniform", normalization=epan.Nearest(k=k))
        label, width = f"weights, k = {k}", tolerance.band(exact, [], out.dtype)
        tolerance.assert_within(out, exact, expected, band=width, label=label)
        assert bool(((out > 0) == (exact > 0)).all()), f"another set of keys, k = {k}"
        for name in ("threshold", "support_size"):
            tolerance.assert_equal_bits(getattr(stats, name), getattr(told, name), f"{name}, k = {k}")
        assert bool((stats.partition == min(k, length)).all()), f"not {k} places are given"
        tolerance.assert_equal_bits(KERNELS(query, key, value, **options)[0], out, "second run")


def density() -> None:
    """Tiles with weight are counted, and a tile that no query uses has no gradient."""
    length = 512
    key = torch.zeros(1, 1, length, 8)
    # Queries of a block agree on the 128 keys that are best: those of their own block, or the first half for the last.
    index = torch.arange(length)
    key[0, 0, index, index // 128] = 1.0
    query = torch.zeros(1, 1, 256, 8)
    query[0, 0, :128, 2] = 1.0
    query[0, 0, 128:, 0] = query[0, 0, 128:, 1] = 1.0
    value = torch.randn(1, 1, length, 8)
    rows, seed = torch.ones(1, 1, 256), torch.zeros((), dtype=torch.long)
    for left, expected in ((None, (0.25, 0.5)), (0, (1.0, 1.0))):
        masking = Masking(256, length, left=left, right=None if left is None else 0)
        problem = Problem(masking, epan.kernels.get("gaussian"), epan.Nearest(k=100), False, 0.0)
        _, (_, support, _, share), saved = nearest.nearest_forward(problem, query, key, value, rows, seed, True)
        assert share.shape == (1, 1, 256)
        assert bool((share[..., :128] == expected[0]).all()), share
        assert bool((share[..., 128:] == expected[1]).all()), share
        assert left is not None or support.unique().tolist() == [128, 256]
        found = nearest.nearest_backward(
            problem, torch.ones(1, 1, 256, 8), query, key, value, rows, seed, saved, {"q", "k", "v"}
        )
        unused = slice(384, 512) if left is None else slice(256, 512)
        assert bool((found["v"][:, :, unused] == 0).all()), "a gradient of values that have no weight"
        assert bool((found["v"][:, :, :256] != 0).all()), "no gradient of values with weight"


def dropout(case: Case) -> None:
    """Dropped weights are gone, the others scaled, with the same draw forward and backward."""
    conformance.drops_weights(KERNELS, case.but(dtype=torch.float32))


if __name__ == "__main__":
    KERNELS, EAGER = backend("triton"), backend("eager")
    if sys.argv[1] == "search":
        search()
        density()
    elif sys.argv[1] == "containment":
        for group in GROUPS.values():
            contain(group[-1])
            dropout(group[-1])
    else:
        for case in GROUPS[sys.argv[1]]:
            agree(case)
    print("passed", sys.argv[1])
