"""Packed sequences: which token belongs where, block by block, and the range of keys that a block may see."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from epan.masks import Masking, Packing
from epan.ops import tiled
from epan.testing import conformance
from epan.testing.conformance import PackedCase
from epan.testing.execution import varlen_backend
from epan.testing.inputs import Case

CPU, DTYPE = torch.device("cpu"), torch.float64
BOUNDS = st.none() | st.integers(-4, 9)
EVERYTHING = slice(0, 1)


@dataclass(frozen=True)
class Packed:
    """Sequences with their offsets, and the pairs of tokens that see each other, found by looking at each pair."""

    masking: Masking
    cu_q: list[int]
    cu_k: list[int]
    allowed: Tensor

    @property
    def segments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        assert self.masking.packing is not None
        return self.masking.packing.segments(self.masking.q_len, self.masking.k_len)


def home(offsets: list[int], token: int) -> tuple[int, int] | None:
    """(sequence, position in it) of a token, None behind the last sequence."""
    for number, (start, stop) in enumerate(zip(offsets, offsets[1:], strict=False)):
        if start <= token < stop:
            return number, token - start
    return None


def pack(
    q_lens: list[int], k_lens: list[int], tail: tuple[int, int], left: int | None, right: int | None, dtype: torch.dtype
) -> Packed:
    cu_q, cu_k = ([sum(lens[:n]) for n in range(len(lens) + 1)] for lens in (q_lens, k_lens))
    q_len, k_len = cu_q[-1] + tail[0], cu_k[-1] + tail[1]
    packing = Packing(torch.tensor(cu_q, dtype=dtype), torch.tensor(cu_k, dtype=dtype))
    allowed = torch.zeros((q_len, k_len), dtype=torch.bool)
    for i in range(q_len):
        for j in range(k_len):
            q_home, k_home = home(cu_q, i), home(cu_k, j)
            if q_home is None or k_home is None or q_home[0] != k_home[0]:
                continue
            step = k_home[1] - q_home[1]
            allowed[i, j] = (left is None or step >= -left) and (right is None or step <= right)
    return Packed(Masking(q_len, k_len, None, left, right, None, 0, packing), cu_q, cu_k, allowed)


@st.composite
def packs(draw: st.DrawFn) -> Packed:
    count = draw(st.integers(1, 4))
    lengths = [draw(st.lists(st.integers(0, most), min_size=count, max_size=count)) for most in (5, 6)]
    tail = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    dtype = draw(st.sampled_from((torch.int32, torch.int64)))
    packed = pack(lengths[0], lengths[1], tail, draw(BOUNDS), draw(BOUNDS), dtype)
    hypothesis.assume(packed.masking.q_len > 0 and packed.masking.k_len > 0)
    return packed


@hypothesis.settings(max_examples=100)
@hypothesis.given(packed=packs())
def test_every_token_knows_its_sequence_and_position(packed: Packed) -> None:
    q_segment, q_position, k_segment, k_position = packed.segments
    for offsets, segment, position, outside in (
        (packed.cu_q, q_segment, q_position, set(k_segment.tolist())),
        (packed.cu_k, k_segment, k_position, set(q_segment.tolist())),
    ):
        for token in range(segment.numel()):
            place = home(offsets, token)
            if place is None:
                # Tokens behind the last sequence share a number with nothing on the other side.
                assert int(segment[token]) < 0
                assert int(segment[token]) not in outside
            else:
                assert (int(segment[token]), int(position[token])) == place


@hypothesis.settings(max_examples=150)
@hypothesis.given(packed=packs(), data=st.data())
def test_blocks_are_parts_of_the_whole(packed: Packed, data: st.DataObject) -> None:
    masking = packed.masking
    allowed, bias = masking.whole(CPU, DTYPE)
    assert bias is None
    assert allowed is not None
    assert torch.equal(allowed, packed.allowed)
    for _ in range(4):
        first, start = data.draw(st.integers(0, masking.q_len - 1)), data.draw(st.integers(0, masking.k_len - 1))
        rows = slice(first, data.draw(st.integers(first + 1, masking.q_len)))
        columns = slice(start, data.draw(st.integers(start + 1, masking.k_len)))
        index = torch.tensor(data.draw(st.lists(st.integers(0, masking.k_len - 1), min_size=1, max_size=5)))
        for keys in (columns, index):
            found, _ = masking.block(rows, keys, EVERYTHING, EVERYTHING, packed.segments, CPU, DTYPE)
            assert found is not None
            assert torch.equal(found, packed.allowed[rows][:, keys])


@hypothesis.settings(max_examples=200)
@hypothesis.given(packed=packs(), data=st.data())
def test_the_key_range_holds_every_visible_key(packed: Packed, data: st.DataObject) -> None:
    masking = packed.masking
    first = data.draw(st.integers(0, masking.q_len - 1))
    rows = slice(first, data.draw(st.integers(first + 1, masking.q_len)))
    start, stop = masking.key_range(rows, (packed.cu_q, packed.cu_k))
    assert 0 <= start <= stop
    seen = packed.allowed[rows].any(0).nonzero().flatten().tolist()
    if seen:
        assert start <= seen[0]
        assert seen[-1] < stop <= masking.k_len
    homes = [home(packed.cu_q, token) for token in range(rows.start, rows.stop)]
    if not any(homes):
        assert start == stop
    elif seen and all(homes) and len({place[0] for place in homes if place}) == 1:
        # Queries of one sequence are not shown the keys of others, nor keys beyond the window.
        assert (start, stop) == (seen[0], seen[-1] + 1)


def test_positions_count_within_each_sequence() -> None:
    packed = pack([2, 3], [4, 2], (0, 0), None, 0, torch.int64)
    assert packed.allowed.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    allowed, _ = packed.masking.whole(CPU, DTYPE)
    assert allowed is not None
    assert torch.equal(allowed, packed.allowed)


def test_slopes_count_within_each_sequence() -> None:
    packed = pack([2, 2], [3, 2], (0, 0), None, None, torch.int64)
    slopes = torch.tensor([0.5, 2.0], dtype=DTYPE).view(1, 2, 1, 1)
    packing = packed.masking.packing
    masking = Masking(4, 5, None, None, None, slopes, 0, packing)
    distance = masking.distance(slice(0, 4), slice(0, 5), packed.segments, CPU)
    inside = torch.where(packed.allowed, distance, 0)
    assert inside.tolist() == [[0, 1, 2, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]
    _, bias = masking.whole(CPU, DTYPE)
    assert bias is not None
    assert torch.equal(torch.where(packed.allowed, bias, 0.0), -slopes * inside)


CASES = [
    PackedCase(q_lens=(7, 0, 12), k_lens=(5, 3, 17), scale="token", base=Case(heads=2, key_heads=1)),
    PackedCase(q_lens=(9, 14), tail=2, scale="head", base=Case(heads=2, is_causal=True, alibi="head")),
    PackedCase(q_lens=(6, 11, 4), k_lens=(9, 13, 8), base=Case(heads=2, window=(3, 2), spread=2.0)),
    PackedCase(q_lens=(8, 8), k_lens=(11, 9), base=Case(heads=1, window=(None, -1), kernel="epanechnikov")),
]
SMALL = {"KEY_TILE": 4, "MAX_ROWS": 3, "PANEL_ELEMENTS": 40, "GATHER_ABOVE": 0, "GROUP_KEYS": 8}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_in_blocks_of_a_few_tokens(case: PackedCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that begin and end inside sequences."""
    for name, value in SMALL.items():
        monkeypatch.setattr(tiled, name, value)
    conformance.packs_sequences(varlen_backend("tiled"), case)


def test_queries_whose_window_lies_beyond_their_keys() -> None:
    """290 queries on 50 keys: the window of a whole block starts behind the last key."""
    case = PackedCase(q_lens=(10, 290), k_lens=(30, 50), base=Case(heads=1, key_heads=1, window=(0, None)))
    conformance.packs_sequences(varlen_backend("tiled"), case)
