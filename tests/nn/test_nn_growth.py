"""Caches that grow in place: what was there stays, continuations do not meet, and little is copied."""

from __future__ import annotations

import torch

from epan.nn._growth import append


def piece(length: int, value: float) -> torch.Tensor:
    return torch.full((2, 3, length, 4), value)


@torch.no_grad()
def test_continuations_of_one_cache_do_not_meet() -> None:
    first = append(append(piece(0, 0.0), piece(5, 1.0)), piece(1, 2.0))
    second, third = append(first, piece(2, 3.0)), append(first, piece(3, 4.0))
    fourth = append(second, piece(1, 5.0))
    for found, parts in (
        (first, [(5, 1.0), (1, 2.0)]),
        (second, [(5, 1.0), (1, 2.0), (2, 3.0)]),
        (third, [(5, 1.0), (1, 2.0), (3, 4.0)]),
        (fourth, [(5, 1.0), (1, 2.0), (2, 3.0), (1, 5.0)]),
    ):
        assert torch.equal(found, torch.cat([piece(*part) for part in parts], dim=2))


@torch.no_grad()
def test_positions_are_copied_a_few_times_in_all() -> None:
    grown, places = piece(7, 0.0), set()
    for number in range(1000):
        grown = append(grown, piece(1, float(number)))
        places.add(grown.data_ptr())
    assert grown[0, 0, 7:, 0].tolist() == [float(number) for number in range(1000)]
    assert len(places) < 10


def test_gradients_reach_every_step() -> None:
    one, two = piece(2, 1.0).requires_grad_(), piece(1, 2.0).requires_grad_()
    with torch.no_grad():
        early = append(piece(1, 0.0), piece(1, 0.5))
    weight = torch.arange(5.0)[:, None].requires_grad_()
    before = append(early, one)
    # What the first product keeps for its gradient must stay.
    read = (before * weight[:4]).sum()
    (read + (append(before, two) * weight).sum()).backward()
    assert one.grad[0, 0, :, 0].tolist() == [4.0, 6.0]
    assert two.grad[0, 0, :, 0].tolist() == [4.0]
    assert weight.grad[:, 0].tolist() == [0.0, 24.0, 48.0, 48.0, 48.0]


def test_inference_mode_may_end_between_two_steps() -> None:
    with torch.inference_mode():
        grown = append(piece(3, 1.0), piece(1, 2.0))
    with torch.no_grad():
        longer = append(grown, piece(1, 3.0))
    assert longer[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0, 3.0]
