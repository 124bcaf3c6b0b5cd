"""Exact match, token accuracy and the interval of a share."""

from __future__ import annotations

import math

import pytest
import torch

from epan.errors import EpanError
from epan.metrics import count_right, exact_match, wilson_interval


def test_exact_match_looks_at_scored_tokens_alone() -> None:
    tokens = torch.tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    predicted = torch.tensor([[9, 2, 3], [9, 2, 4], [9, 4, 3], [9, 2, 4]])
    scored = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0]]).bool()
    assert exact_match(predicted, tokens, scored).tolist() == [True, False, True, True]


def test_a_sequence_without_a_scored_token_is_not_right() -> None:
    tokens = torch.tensor([[1, 2]])
    assert exact_match(tokens, tokens, torch.zeros(1, 2, dtype=torch.bool)).tolist() == [False]


def test_count_right_counts_scored_tokens() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    predicted = torch.tensor([[1, 2, 0], [0, 5, 6]])
    scored = torch.tensor([[0, 1, 1], [1, 1, 0]]).bool()
    assert [int(value) for value in count_right(predicted, tokens, scored)] == [2, 4]


@pytest.mark.parametrize(("right", "total"), [(1, 10), (8, 10), (500, 1000), (999, 1000)])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.959963984540054), (0.99, 2.5758293035489004)])
def test_wilson_bounds_solve_their_equation(right: int, total: int, confidence: float, z: float) -> None:
    # The bounds are the shares whose own standard error puts the observed share z errors away.
    share = right / total
    low, high = wilson_interval(right, total, confidence)
    assert 0 < low < share < high < 1
    for bound in (low, high):
        assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / total, rel=1e-9)


def test_wilson_at_the_ends() -> None:
    z = 1.959963984540054
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    # With no right one the bound is z²/(n + z²).
    assert wilson_interval(0, 20)[1] == pytest.approx(z * z / (20 + z * z), rel=1e-9)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert math.isclose(sum(wilson_interval(7, 14)), 1.0)


@pytest.mark.parametrize(("right", "total", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_wilson_refuses_the_impossible(right: int, total: int, confidence: float) -> None:
    with pytest.raises(EpanError):
        wilson_interval(right, total, confidence)
