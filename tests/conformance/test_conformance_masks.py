"""Masks, shapes, strides, contents: a few kernels through everything that a call can look like, on every backend."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

import epan
from epan.testing import catalogue, conformance, inputs, tolerance
from epan.testing.execution import Attention, backend
from epan.testing.inputs import Case

BACKENDS = catalogue.backends()
KINDS = [
    Case(),
    Case(kernel="epanechnikov", normalization="anchored"),
    Case(kernel="triweight", normalization="fixed", similarity="euclidean", scale=0.4),
    Case(kernel="gaussian", similarity="euclidean"),
]
WINDOWS = (
    (None, 0),
    (None, -1),
    (3, 0),
    (0, 0),
    (2, 5),
    (-2, None),
    (None, 3),
    (1, -1),
    (-3, 2),
    (50, 50),
    (None, None),
)
LENGTHS = ((7, 9), (9, 7), (1, 6), (6, 1), (1, 1))


def yardstick(name: str) -> Attention | None:
    return None if name == "eager" else backend("eager")


def verify(name: str, case: Case) -> None:
    conformance.agrees_with_formula(backend(name), case, yardstick(name) if case.dtype != torch.float64 else None)
    conformance.gradients_agree_with_formula(
        backend(name), case, yardstick(name) if case.dtype != torch.float64 else None
    )


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("mask", inputs.MASKS)
def test_masks_of_every_form(mask: str, kind: Case, name: str) -> None:
    for q_len, k_len in LENGTHS[:3]:
        case = kind.but(mask=mask, q_len=q_len, k_len=k_len, key_heads=1, alibi="batch")
        verify(name, case)
        conformance.sees_exactly_the_allowed_keys(backend(name), case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_count_from_the_top_left(window: tuple[int | None, int | None], kind: Case, name: str) -> None:
    for q_len, k_len in LENGTHS:
        case = kind.but(window=window, q_len=q_len, k_len=k_len, alibi="head")
        conformance.agrees_with_formula(backend(name), case)
        conformance.sees_exactly_the_allowed_keys(backend(name), case)
    verify(name, kind.but(window=window, mask="float_inf", is_causal=True, q_len=9))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lower_right_causal_is_a_window(kind: Case, name: str) -> None:
    for q_len, k_len in ((4, 9), (9, 4), (5, 5), (1, 8), (70, 140)):
        biased = kind.but(mask="lower_right", q_len=q_len, k_len=k_len)
        verify(name, biased)
        as_window = kind.but(window=(None, k_len - q_len), q_len=q_len, k_len=k_len)
        verify(name, as_window)
        # ALiBi counts its distance along the same diagonal.
        verify(name, biased.but(alibi="head", window=(3, None)))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_head_sizes_heads_and_batches(kind: Case, name: str) -> None:
    for size, value_size in ((1, 1), (3, 8), (32, 1), (80, 33)):
        verify(name, kind.but(size=size, value_size=value_size, scale="head"))
    for batch, heads, key_heads in ((1, 1, 1), (3, 6, 2), (2, 3, 1), (1, 8, 4)):
        verify(name, kind.but(batch=batch, heads=heads, key_heads=key_heads, scale="query", alibi="batch"))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", inputs.LAYOUTS)
def test_strides(layout: str, kind: Case, name: str) -> None:
    for dtype in (torch.float64, torch.float32):
        verify(name, kind.but(layout=layout, mask="bool_full", scale="scalar", dtype=dtype))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("content", inputs.CONTENTS)
def test_contents(content: str, kind: Case, name: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        case = kind.but(content=content, k_len=33, dtype=dtype, scale="head")
        conformance.agrees_with_formula(backend(name), case, yardstick(name) if dtype != torch.float64 else None)
        if content not in ("ties", "duplicates", "constant"):
            # Exactly tied scores sit on kinks where the formula picks one of several gradients.
            verify(name, case)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lengths_beyond_one_tile(kind: Case, name: str) -> None:
    """Several blocks of queries and tiles of keys, so sparse that whole tiles carry no weight."""
    base = kind.but(batch=1, heads=2, key_heads=1, size=4, spread=2.5)
    for q_len, k_len, extra in (
        (130, 200, {}),
        (150, 150, {"is_causal": True, "scale": "query"}),
        (200, 130, {"window": (20, 3), "alibi": "head", "scale": "head"}),
        (64, 257, {"mask": "float_inf"}),
        (3, 400, {"mask": "padding", "scale": "scalar"}),
    ):
        for dtype in (torch.float64, torch.float32):
            verify(name, base.but(q_len=q_len, k_len=k_len, dtype=dtype, **extra))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_long_causal_rows_leave_no_trace(kind: Case, name: str) -> None:
    case = kind.but(batch=1, heads=1, q_len=200, k_len=200, is_causal=True, dtype=torch.float32)
    for spread in (0.01, 1.0, 4.0):
        conformance.hidden_keys_leave_no_trace(backend(name), case.but(spread=spread), positions=(63, 64, 150, 199))


@pytest.mark.parametrize(
    ("kernel", "rule", "scale"),
    [
        (epan.Polynomial(7.5), "adaptive", 1.0),
        (epan.Polynomial(40.0), "adaptive", 1.0),
        ("epanechnikov", "adaptive", 8.0),
        ("epanechnikov", "anchored", 2.0),
    ],
    ids=str,
)
def test_tiles_left_out_leave_no_trace(kernel: str | epan.Kernel, rule: str, scale: float) -> None:
    """Beyond a thousand keys the tiled backend leaves out tiles; which ones is decided by all queries of a block."""
    length = 3000
    call = functools.partial(
        epan.attention, is_causal=True, kernel=kernel, normalization=rule, scale=scale, backend="tiled"
    )
    q, k, v = torch.randn(3, 1, 2, length, 16)
    clean = call(q, k, v)
    for token in (1600, 2013, 2500, 2700, 2990):
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[:, :, token:] = torch.randn(1, 2, length - token, 16) * 3
        tolerance.assert_equal_bits(call(*other)[:, :, :token], clean[:, :, :token], f"outputs before token {token}")


@pytest.mark.parametrize("name", BACKENDS)
def test_nearest_neighbours_at_equal_distance_share(name: str) -> None:
    """Squared distances 3, 4, 6, 4, 4: three keys share the second place at any scale, also one that rounds."""
    q = torch.tensor([[[[1.0, 0, -1, 1]]]], dtype=torch.float64)
    k = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [1, 0, -1, -1], [0, 1, 0, 0]], dtype=torch.float64)
    v = torch.eye(5, dtype=torch.float64)[None, None]
    out = epan.attention(
        q, k[None, None], v, kernel="uniform", normalization=epan.Nearest(2), similarity="euclidean", scale=0.3,
        backend=name,
    )  # fmt: skip
    expected = torch.tensor([1 / 2, 1 / 6, 0, 1 / 6, 1 / 6], dtype=torch.float64)
    tolerance.assert_within(out.flatten(), expected, band=tolerance.EXACT)


def test_combinations_are_intersections_and_sums() -> None:
    """Each pair of mask forms at once, on the default kernel."""
    parts = ({"mask": "bool"}, {"mask": "float_inf"}, {"window": (4, 2)}, {"is_causal": True}, {"alibi": "head"})
    for a, b in itertools.combinations(parts, 2):
        merged = {**a, **b}
        for name in BACKENDS:
            case = Case(q_len=9, k_len=9, **merged)  # type: ignore[arg-type]
            verify(name, case)
            conformance.sees_exactly_the_allowed_keys(backend(name), case)
