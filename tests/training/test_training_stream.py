"""Training data as a function of (seed, step, rank)."""

from __future__ import annotations

import pytest
import torch

from epan import tasks
from epan.tasks import Batch
from epan.training.stream import micro_batches, step_seed, trim

TASK = tasks.get("reverse", symbols=8)


def sequences(parts: list[Batch]) -> list[tuple[int, ...]]:
    """Every sequence without its padding, in order."""
    found = []
    for part in parts:
        for row, mask in zip(part.tokens, part.loss_mask, strict=True):
            found.append(tuple(row[: int(mask.nonzero()[-1]) + 1].tolist()))
    return found


def draw(seed: int = 0, step: int = 0, **options: int) -> list[tuple[int, ...]]:
    return sequences(micro_batches(TASK, seed, step, 24, (3, 9), **options))


def test_data_is_a_function_of_seed_and_step() -> None:
    first = draw()
    torch.manual_seed(1234)
    draw(step=7)
    assert draw() == first
    assert draw(seed=1) != first
    assert not set(draw(step=1)) & set(first)


def test_it_is_the_training_split() -> None:
    assert draw(seed=4, step=2) == sequences([TASK.sample(4, 2, 24, (3, 9), split="train")])


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_are_the_whole_batch_once(parts: int) -> None:
    pieces = micro_batches(TASK, 0, 5, 24, (3, 9), parts=parts)
    assert [len(piece.tokens) for piece in pieces] == [24 // parts] * parts
    assert sequences(pieces) == draw(step=5)
    assert len(set(sequences(pieces))) == 24


def test_processes_share_the_batch_of_one_process() -> None:
    together = [row for rank in range(3) for row in draw(step=5, rank=rank, world=3, parts=2)]
    assert together == draw(step=5)


def test_a_batch_ends_at_its_longest_sequence() -> None:
    whole = TASK.sample(0, 0, 6, (3, 40))
    short = trim(whole)
    last = max(int(mask.nonzero()[-1]) for mask in whole.loss_mask)
    assert short.tokens.shape[1] == last + 1 < whole.tokens.shape[1]
    for name in ("tokens", "loss_mask", "score_mask"):
        assert torch.equal(getattr(short, name), getattr(whole, name)[:, : last + 1])
    assert torch.equal(short.lengths, whole.lengths)
    assert not whole.loss_mask[:, last + 1 :].any()
    full = TASK.sample(0, 0, 3, 7)
    assert trim(full) is full


def test_dropout_seeds_are_all_different() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(8) for step in range(8) for rank in range(8)}
    assert len(seeds) == 512
    assert step_seed(1, 23) != step_seed(12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)
