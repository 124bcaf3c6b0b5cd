"""Windows and masks that mean nothing are refused: what was found, what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

import epan
from epan.errors import EpanError
from epan.masks import combine_window, split_mask
from epan.testing import catalogue

BACKENDS = (*catalogue.backends(), "auto")


def attend(backend: str = "auto", **options: object) -> torch.Tensor:
    """Four queries, six keys, two heads."""
    q, k = torch.zeros(2, 2, 4, 8), torch.zeros(2, 2, 6, 8)
    return epan.attention(q, k, k, backend=backend, **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("is_causal", "window", "right", "expected"),
    [
        (False, None, None, (None, None)),
        (True, None, None, (None, 0)),
        (False, (3, 2), None, (3, 2)),
        (False, [3, None], None, (3, None)),
        (True, (3, 2), None, (3, 0)),
        (True, (3, -1), None, (3, -1)),
        (True, (None, None), 2, (None, 0)),
        (False, (None, 5), 2, (None, 2)),
        (False, (-2, 1), 4, (-2, 1)),
        (False, None, -3, (None, -3)),
    ],
)
def test_windows_combine_by_intersection(
    is_causal: bool,
    window: tuple[int | None, int | None] | None,
    right: int | None,
    expected: tuple[int | None, int | None],
) -> None:
    assert combine_window(is_causal, window, right) == expected


WINDOWS = [
    3,
    (3,),
    (1, 2, 3),
    (),
    (1.5, 0),
    (None, 2.0),
    (True, 0),
    (np.True_, 0),
    (np.float64(1.0), 0),
    (np.array([1]), 0),
    (0, False),
    "ab",
    (None, "0"),
    range(2),
    {1, 2},
    torch.tensor([1, 2]),
    (torch.tensor(1), 0),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_window_is_a_pair_of_integers_or_none(window: object) -> None:
    for refused in (lambda: combine_window(False, window, None), lambda: attend(window=window)):  # type: ignore[arg-type]
        with pytest.raises(EpanError, match="window must be a pair") as caught:
            refused()
        assert caught.value.found is window
        assert "Found: " in str(caught.value)


def test_integers_of_numpy_are_integers() -> None:
    assert combine_window(False, (np.int64(3), np.uint8(2)), None) == (3, 2)
    assert all(type(bound) is int for bound in combine_window(True, (np.int32(3), np.int16(-1)), None))


@pytest.mark.parametrize(
    "bound", [2**63, np.uint64(2**63), -(2**63), -(10**400)], ids=["2**63", "NumPy", "-2**63", "10**400"]
)
def test_bounds_beyond_64_bits_are_refused(bound: int) -> None:
    for window in ((bound, 0), [None, bound]):
        for refused in (lambda w=window: combine_window(False, w, None), lambda w=window: attend(window=w)):
            with pytest.raises(EpanError, match="exceeds 64 bits") as caught:
                refused()
            assert caught.value.found is window
            assert caught.value.allowed == "|bound| < 2**63"
            assert "None" in str(caught.value.fix)


def test_masks_are_split_into_what_they_are() -> None:
    assert split_mask(None, 4, 6) == (None, None, 0)
    for mask in (torch.ones(4, 6).bool(), torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bfloat16)):
        tensor, right, offset = split_mask(mask, 4, 6)
        assert tensor is mask
        assert (right, offset) == (None, 0)
    assert split_mask(causal_lower_right(4, 6), 4, 6) == (None, 2, 2)
    assert split_mask(causal_lower_right(6, 4), 6, 4) == (None, -2, -2)
    assert split_mask(causal_upper_left(4, 6), 4, 6) == (None, 0, 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_masks_of_no_known_kind_are_refused(name: str) -> None:
    for dtype in (torch.int64, torch.uint8, torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(EpanError, match="must be boolean") as caught:
            attend(name, attn_mask=torch.ones(4, 6).to(dtype))
        assert caught.value.found == str(dtype)
        assert "attn_mask.bool()" in str(caught.value.fix)
    for mask in ([[True] * 6] * 4, 0.5, "causal"):
        with pytest.raises(EpanError, match="must be a tensor or a causal bias") as caught:
            attend(name, attn_mask=mask)
        assert caught.value.found == type(mask).__name__


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (6, 4), (2, 4, 1, 6), (3, 1, 4, 6), (1, 1, 1, 4, 6), (2, 3, 4, 6)])
def test_masks_that_do_not_broadcast_are_refused(shape: tuple[int, ...], name: str) -> None:
    for dtype in (torch.bool, torch.float32):
        with pytest.raises(EpanError, match="attn_mask does not broadcast") as caught:
            attend(name, attn_mask=torch.ones(shape, dtype=dtype))
        assert str(shape) in str(caught.value.found)
        assert "(2, 2, 4, 6)" in str(caught.value.allowed)


@pytest.mark.parametrize("shape", [(), (6,), (4, 1), (4, 6), (2, 4, 6), (1, 2, 1, 6), (2, 1, 4, 6), (2, 2, 4, 6)])
def test_masks_that_broadcast_are_taken(shape: tuple[int, ...]) -> None:
    for name in BACKENDS:
        for dtype in (torch.bool, torch.float32):
            assert attend(name, attn_mask=torch.ones(shape, dtype=dtype)).shape == (2, 2, 4, 8)


@pytest.mark.parametrize("make", [causal_lower_right, causal_upper_left], ids=["lower right", "upper left"])
def test_a_causal_bias_of_other_lengths_is_refused(make: type) -> None:
    for q_len, k_len in ((4, 5), (6, 4), (5, 6)):
        with pytest.raises(EpanError, match="made for other lengths") as caught:
            attend(attn_mask=make(q_len, k_len))
        assert caught.value.found == (q_len, k_len)
        assert caught.value.allowed == "(4, 6)"


def test_causal_with_other_lengths_is_ambiguous() -> None:
    for name in BACKENDS:
        with pytest.raises(EpanError, match="ambiguous") as caught:
            attend(name, is_causal=True)
        assert "Lq = 4, Lk = 6" in str(caught.value.found)
        assert "causal_lower_right" in str(caught.value.fix)
        assert "window=(None, Lk - Lq)" in str(caught.value.fix)


@pytest.mark.parametrize(
    "slopes", [torch.ones(3), torch.ones(1, 1, 2, 1), torch.ones(3, 2), torch.ones(2).long(), 0.5, [0.5, 0.25]]
)
def test_slopes_that_do_not_fit_are_refused(slopes: object) -> None:
    with pytest.raises(EpanError, match="alibi_slopes") as caught:
        attend(alibi_slopes=slopes)
    assert caught.value.found


def test_masks_of_weights_are_tensors_that_fit() -> None:
    scores = torch.zeros(3, 6)
    with pytest.raises(EpanError, match="must be a tensor") as caught:
        epan.attention_weights(scores, mask=causal_lower_right(3, 6))
    assert "tril" in str(caught.value.fix)
    with pytest.raises(EpanError, match="does not broadcast"):
        epan.attention_weights(scores, mask=torch.ones(3, 5).bool())
    with pytest.raises(EpanError, match="does not broadcast"):
        epan.attention_weights(scores, mask=torch.ones(2, 3, 6).bool())
    with pytest.raises(EpanError, match="boolean"):
        epan.attention_weights(scores, mask=torch.ones(3, 6, dtype=torch.int32))
