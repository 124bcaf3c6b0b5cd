"""Overlap of training and test: measured equals expected, and counting by hand."""

from __future__ import annotations

import importlib

import pytest

from epan import tasks
from epan.errors import EpanError
from epan.tasks import Task, expected_overlap, overlap


def prompts(
    task: Task, seed: int, step: int, batch: int, lengths: int | tuple[int, int], split: str
) -> list[tuple[int, ...]]:
    drawn = task.sample(seed, step, batch, lengths, split=split)
    return [tuple(row[:first]) for row, first in zip(drawn.tokens.tolist(), drawn.prompt_length.tolist(), strict=True)]


# Where there are prompts.
NAMES = [name for name in tasks.names() if isinstance(tasks.get(name), Task)]


@pytest.mark.parametrize("name", NAMES)
def test_the_share_is_that_of_counting(name: str) -> None:
    task = tasks.get(name, **{"mqar": {"words": 8}, "mqmtar": {"letters": 2, "words": 1, "queries": 1}}.get(name, {}))
    length = {"mqmtar": 12, "mqar": 2}.get(name, max(task.shortest, 4))
    span = (length, length) if name == "mqar" else (length, length + 1)
    found = overlap(task, length, seed=5, steps=20, batch=64, lengths=span, test=300)
    train = {prompt for step in range(20) for prompt in prompts(task, 5, step, 64, span, "train")}
    test = prompts(task, 5, 0, 300, length, "test")
    assert found.share == pytest.approx(sum(prompt in train for prompt in test) / 300)
    assert found.repeated == pytest.approx(1 - len(set(test)) / 300)
    assert (found.length, found.train, found.test) == (length, 20 * 64, 300)


@pytest.mark.parametrize(
    ("name", "options", "length", "lengths", "steps"),
    [
        ("parity", {}, 10, (4, 13), 40),
        ("sort", {"symbols": 5}, 6, (6, 6), 60),
        ("n-back", {"symbols": 3}, 8, (3, 12), 100),
        ("mqar", {"words": 16}, 2, (2, 4), 30),
    ],
)
def test_the_measured_share_meets_its_expectation(
    name: str, options: dict[str, int], length: int, lengths: tuple[int, int], steps: int
) -> None:
    found = overlap(tasks.get(name, **options), length, steps=steps, batch=128, lengths=lengths, test=2000)
    assert found.expected is not None
    assert 0.05 < found.expected < 0.999
    assert found.share == pytest.approx(found.expected, abs=0.05)


def test_long_sequences_and_other_lengths_do_not_overlap() -> None:
    found = overlap(tasks.get("reverse"), 64, steps=20)
    assert found.share == found.repeated == 0
    assert found.expected == pytest.approx(0, abs=1e-12)
    assert overlap(tasks.get("reverse", symbols=2), 6, lengths=(7, 9), steps=5).expected == 0
    assert overlap(tasks.get("copy"), 4096, steps=1, test=4).expected == 0


def test_the_expectation_is_left_out_where_it_is_not_simple() -> None:
    for name in ("flip-flop", "local-count", "mqmtar"):
        assert overlap(tasks.get(name), 40, steps=1, test=10).expected is None


def test_prompts_of_another_length_are_none_that_training_has_shown() -> None:
    for name in ("flip-flop", "local-count", "mqmtar", "reverse", "mqar"):
        task = tasks.get(name)
        assert expected_overlap(task, 500, train=10**9) == 0
        assert expected_overlap(task, task.train_lengths[1], train=0) == 0
    # Nominal lengths 64 and 65 make the same strings of instructions, and the same slots for the pairs.
    assert expected_overlap(tasks.get("flip-flop"), 65, train=1000) is None
    assert expected_overlap(tasks.get("flip-flop"), 66, train=1000) == 0
    assert expected_overlap(tasks.get("mqmtar"), 65, train=1000) is None
    # Too many lengths to look at each.
    assert expected_overlap(tasks.get("flip-flop"), 5000, train=1000, lengths=(4, 4000)) is None


def test_the_expectation_at_its_ends() -> None:
    parity = tasks.get("parity")
    assert expected_overlap(parity, 1, train=1, lengths=1) == pytest.approx(0.5)
    assert expected_overlap(parity, 3, train=10**6, lengths=(1, 4)) == pytest.approx(1)
    with pytest.raises(EpanError, match="cannot have the length"):
        expected_overlap(parity, 0, train=1)


def test_the_function_is_not_hidden_by_its_module() -> None:
    importlib.import_module("epan.tasks.overlap")
    assert callable(tasks.overlap)
