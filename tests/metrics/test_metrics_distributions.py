"""Predicted distributions against exact ones: by hand, and whatever the batches are."""

from __future__ import annotations

import math

import pytest
import torch

from epan.metrics import DivergenceMeter, divergence

AMONG = torch.tensor([False, True, True, True])


def test_values_by_hand() -> None:
    predicted = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.0, 0.5, 0.5, 0.0], [0.9, 0.05, 0.05, 0.0]])
    exact = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    found = divergence(predicted.log(), exact, AMONG)
    assert found.legal.tolist() == [True, True, False]
    # The first token is left out, so the first prediction is 1/2, 1/3, 1/6.
    assert found.tvd.tolist() == pytest.approx([1 / 6, 0, 1], abs=1e-6)
    assert found.kl.tolist() == pytest.approx([0.5 * math.log(1.5), 0, math.inf], abs=1e-6)


def test_the_most_probable_token_of_those_left_counts() -> None:
    exact = torch.tensor([0.0, 0.0, 1.0, 0.0])
    assert divergence(torch.tensor([9.0, 1.0, 2.0, 0.0]), exact, AMONG).legal
    assert not divergence(torch.tensor([9.0, 3.0, 2.0, 0.0]), exact, AMONG).legal


def test_half_precision_is_raised() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = torch.tensor([0.0, 0.5, 0.5, 0.0]).expand(5, 4)
    found, wanted = divergence(logits, exact, AMONG), divergence(logits.double(), exact, AMONG)
    assert found.tvd.dtype == torch.float32
    assert torch.allclose(found.kl.double(), wanted.kl, rtol=1e-5)


def test_means_are_over_scored_positions_of_all_batches() -> None:
    source = torch.Generator().manual_seed(1)
    logits, exact = torch.randn(7, 11, 4, generator=source), torch.rand(7, 11, 4, generator=source) * AMONG
    exact = exact / exact.sum(2, keepdim=True)
    exact = torch.where(torch.rand(7, 11, 1, generator=source) < 0.5, exact, torch.tensor([0.0, 1.0, 0.0, 0.0]))
    scored = torch.rand(7, 11, generator=source) < 0.7
    scored[:, 0] = False
    whole, parts = DivergenceMeter(), DivergenceMeter()
    whole.add(logits, exact, scored, AMONG)
    # Narrower batches may come before and after wider ones.
    for rows, width in ((slice(0, 2), 11), (slice(2, 7), 11)):
        kept = scored[rows].clone()
        parts.add(logits[rows, :width], exact[rows, :width], kept, AMONG)
    each = divergence(logits, exact, AMONG)
    expected = {"accuracy": each.legal, "tvd": each.tvd, "kl": each.kl}
    for name, values in expected.items():
        assert whole.result()[name] == pytest.approx(float(values[scored].double().mean()), rel=1e-6)
        assert parts.result()[name] == pytest.approx(whole.result()[name], rel=1e-9)
    ranges = whole.by_position()
    assert [(row["first"], row["last"]) for row in ranges] == [(1, 1), (2, 3), (4, 7), (8, 10)]
    for row in ranges:
        inside = scored.clone()
        inside[:, : row["first"]] = inside[:, row["last"] + 1 :] = False
        assert row["tokens"] == int(inside.sum())
        assert row["tvd"] == pytest.approx(float(each.tvd[inside].double().mean()), rel=1e-6)


def test_batches_of_different_widths() -> None:
    meter = DivergenceMeter()
    exact = torch.tensor([0.0, 1.0, 0.0, 0.0])
    for width in (3, 9, 5):
        scored = torch.ones(2, width, dtype=torch.bool)
        meter.add(torch.zeros(2, width, 4), exact.expand(2, width, 4), scored, AMONG)
    assert meter.result()["tvd"] == pytest.approx(2 / 3)
    assert sum(row["tokens"] for row in meter.by_position()) == 2 * (2 + 8 + 4)
    assert DivergenceMeter().by_position() == []
    assert DivergenceMeter().result()["accuracy"] == 0
