"""Masks evaluated block by block against one pair of positions at a time; the range of keys that a block may see."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from epan.masks import Masking
from epan.ops import tiled
from epan.testing import conformance, tolerance
from epan.testing.execution import backend
from epan.testing.inputs import Case

CPU, DTYPE = torch.device("cpu"), torch.float64
BOUNDS = st.none() | st.integers(-4, 12)


@dataclass(frozen=True)
class Drawn:
    """A mask, and what it says in plain loops: allowed and bias of shape (B, H, Lq, Lk)."""

    masking: Masking
    batch: int
    heads: int
    allowed: Tensor
    bias: Tensor


def reference(masking: Masking, batch: int, heads: int) -> Drawn:
    shape = (batch, heads, masking.q_len, masking.k_len)
    allowed, bias = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=DTYPE)
    left, right, slopes = masking.left, masking.right, masking.slopes
    for i in range(masking.q_len):
        for j in range(masking.k_len):
            if left is not None and j < i - left:
                allowed[:, :, i, j] = False
            if right is not None and j > i + right:
                allowed[:, :, i, j] = False
            if slopes is not None:
                bias[:, :, i, j] = -slopes[:, :, 0, 0].double() * abs(i + masking.offset - j)
    if masking.tensor is not None:
        full = masking.tensor.expand(shape)
        if full.dtype == torch.bool:
            allowed &= full
        else:
            allowed &= full != -math.inf
            bias += torch.where(full == -math.inf, 0.0, full.double())
    return Drawn(masking, batch, heads, allowed, bias)


@st.composite
def masks(draw: st.DrawFn) -> Drawn:
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    q_len, k_len = draw(st.integers(1, 9)), draw(st.integers(1, 11))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensor = None
    kind = draw(st.sampled_from(("none", "bool", "float", "float_inf", "float32", "half")))
    if kind != "none":
        # Each dimension there or broadcast: (1, 1, 1, L), (B, 1, Lq, Lk) and all the others.
        shape = [draw(st.sampled_from((1, size))) for size in (batch, heads, q_len, k_len)]
        keep = torch.rand(shape, generator=generator) < 0.6
        values = torch.randn(shape, generator=generator, dtype=DTYPE)
        tensor = {
            "bool": keep,
            "float": values,
            "float_inf": torch.where(keep, values, -math.inf),
            "float32": torch.where(keep, values, -math.inf).float(),
            "half": values.to(torch.bfloat16),
        }[kind]
    slopes = None
    if draw(st.booleans()):
        slopes = torch.rand((draw(st.sampled_from((1, batch))), heads, 1, 1), generator=generator, dtype=DTYPE)
    left, right = draw(BOUNDS), draw(BOUNDS)
    offset = draw(st.sampled_from((0, k_len - q_len)))
    return reference(Masking(q_len, k_len, tensor, left, right, slopes, offset), batch, heads)


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[slice]:
    """A range in pieces."""
    inner = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=4)) - {length})
    ends = [0, *inner, length]
    return [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]


def assert_says(found: tuple[Tensor | None, Tensor | None], allowed: Tensor, bias: Tensor, label: str) -> None:
    seen, added = found
    if seen is None:
        assert bool(allowed.all()), f"{label}: nothing is masked"
    else:
        assert seen.dtype == torch.bool
        assert torch.equal(seen.expand(allowed.shape), allowed), f"{label}: other keys are allowed"
    if added is None:
        assert not bool(bias.any()), f"{label}: nothing is added"
    else:
        assert added.dtype == DTYPE
        # What is added to a masked key does not matter.
        full = torch.where(allowed, added.expand(bias.shape), 0.0)
        width = tolerance.EXACT * max(1.0, tolerance.largest(bias))
        tolerance.assert_within(full, torch.where(allowed, bias, 0.0), band=width, label=label)


@hypothesis.settings(max_examples=150)
@hypothesis.given(drawn=masks())
def test_the_whole_mask_is_what_pairs_of_positions_say(drawn: Drawn) -> None:
    assert_says(drawn.masking.whole(CPU, DTYPE), drawn.allowed, drawn.bias, "whole")


@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_blocks_are_parts_of_the_whole(data: st.DataObject) -> None:
    """Any boundaries of queries, keys, heads and batch; the keys as a range or as an index."""
    drawn = data.draw(masks())
    masking = drawn.masking
    for rows in data.draw(cuts(masking.q_len)):
        for batch in data.draw(cuts(drawn.batch)):
            for heads in data.draw(cuts(drawn.heads)):
                place = (batch, heads, rows)
                for columns in data.draw(cuts(masking.k_len)):
                    found = masking.block(rows, columns, batch, heads, None, CPU, DTYPE)
                    expected = (drawn.allowed[(*place, columns)], drawn.bias[(*place, columns)])
                    assert_says(found, *expected, f"{rows} × {columns}")
                    distance = masking.distance(rows, columns, None, CPU)
                    assert distance.tolist() == [
                        [abs(i + masking.offset - j) for j in range(columns.start, columns.stop)]
                        for i in range(rows.start, rows.stop)
                    ]
                some = data.draw(st.lists(st.integers(0, masking.k_len - 1), min_size=1, max_size=6))
                index = torch.tensor(some)
                found = masking.block(rows, index, batch, heads, None, CPU, DTYPE)
                assert_says(found, drawn.allowed[place][..., index], drawn.bias[place][..., index], f"{rows} × {some}")
                assert masking.distance(rows, index, None, CPU).shape == (rows.stop - rows.start, len(some))


@hypothesis.settings(max_examples=200)
@hypothesis.given(
    q_len=st.integers(1, 12),
    k_len=st.integers(0, 14),
    left=BOUNDS,
    right=BOUNDS,
    cut=st.integers(0, 11),
    data=st.data(),
)
def test_the_key_range_is_the_smallest_that_holds_every_visible_key(
    q_len: int, k_len: int, left: int | None, right: int | None, cut: int, data: st.DataObject
) -> None:
    drawn = reference(Masking(q_len, k_len, None, left, right), 1, 1)
    first = min(cut, q_len - 1)
    rows = slice(first, data.draw(st.integers(first + 1, q_len)))
    start, stop = drawn.masking.key_range(rows, None)
    assert 0 <= start <= k_len
    assert 0 <= stop <= k_len
    seen = drawn.allowed[0, 0, rows].any(0).nonzero().flatten().tolist()
    if seen:
        assert (start, stop) == (seen[0], seen[-1] + 1)


def test_bounds_that_exclude_nothing_make_no_mask() -> None:
    """A block inside the window costs nothing, one that crosses its edge is masked."""
    masking = Masking(100, 100, None, 20, 0)
    everything = slice(0, 1)
    inside = masking.block(slice(30, 40), slice(20, 30), everything, everything, None, CPU, DTYPE)
    assert inside == (None, None)
    for rows, columns in ((slice(30, 40), slice(25, 32)), (slice(30, 40), slice(10, 20))):
        allowed, _ = masking.block(rows, columns, everything, everything, None, CPU, DTYPE)
        assert allowed is not None
        assert bool(allowed.any())
        assert not bool(allowed.all())


def test_a_lower_right_causal_mask_is_a_window() -> None:
    for q_len, k_len in ((3, 7), (7, 3), (4, 4)):
        masking = Masking(q_len, k_len, None, None, k_len - q_len, None, k_len - q_len)
        allowed, _ = masking.whole(CPU, DTYPE)
        expected = torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)
        assert allowed is not None
        assert torch.equal(allowed, expected)
        assert bool(allowed[-1].all())


MASKED = [
    Case(window=(3, 2), alibi="batch"),
    Case(window=(None, -1), mask="float_inf"),
    Case(window=(-2, None), mask="padding", scale="head"),
    Case(is_causal=True, q_len=9, mask="bool_full", scale="query"),
    Case(mask="lower_right", alibi="head"),
    Case(mask="float32", window=(0, 0)),
    Case(mask="some_rows", window=(5, 4), alibi="head", heads=4, key_heads=2),
]
SMALL = {"KEY_TILE": 4, "MAX_ROWS": 3, "PANEL_ELEMENTS": 40, "GATHER_ABOVE": 0}


@pytest.mark.parametrize("case", MASKED, ids=str)
@pytest.mark.parametrize(
    "kind", [Case(), Case(kernel="epanechnikov", normalization="anchored"), Case(kernel="gaussian")], ids=str
)
def test_attention_in_blocks_of_a_few_tokens(case: Case, kind: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask crosses many tiles of queries and keys, in both passes; far keys are gathered around."""
    for name, value in SMALL.items():
        monkeypatch.setattr(tiled, name, value)
    for lengths in ({}, {"k_len": 31, "q_len": 31 if case.is_causal else 17}):
        small = replace(case, kernel=kind.kernel, normalization=kind.normalization, spread=2.0, **lengths)
        conformance.agrees_with_formula(backend("tiled"), small)
        conformance.gradients_agree_with_formula(backend("tiled"), small)
