"""What each source looks like: the statements of the definitions that the oracle cannot see."""

from __future__ import annotations

import itertools

import pytest
import torch

from epan import tasks
from epan.tasks import Batch
from epan.tasks.base import TASK_TOKENS


def sources(batch: Batch) -> list[list[int]]:
    """Sources without <bos> and <sep>, counted from the task's first token."""
    return [
        [token - TASK_TOKENS for token in row[1 : first - 1]]
        for row, first in zip(batch.tokens.tolist(), batch.prompt_length.tolist(), strict=True)
    ]


def spread(values: list[int], kinds: int) -> float:
    """Chi square of ``values`` against the uniform distribution, per degree of freedom."""
    counts = torch.bincount(torch.tensor(values), minlength=kinds).double()
    assert len(counts) == kinds
    expected = len(values) / kinds
    return float(((counts - expected) ** 2 / expected).sum()) / (kinds - 1)


@pytest.mark.parametrize(
    ("name", "kinds"), [("reverse", 32), ("sort", 32), ("copy", 32), ("parity", 2), ("n-back", 16)]
)
def test_symbols_are_uniform_and_as_many_as_the_length_says(name: str, kinds: int) -> None:
    batch = tasks.get(name).sample(0, 0, 512, (32, 64))
    rows = sources(batch)
    assert [len(row) for row in rows] == batch.lengths.tolist()
    assert spread([symbol for row in rows for symbol in row], kinds) < 4
    assert spread([row[0] for row in rows], kinds) < 4
    assert spread([row[-1] for row in rows], kinds) < 4


def test_small_examples_by_hand() -> None:
    def answer(name: str, source: list[int], **options: object) -> list[int]:
        prompt = [1, *(TASK_TOKENS + token for token in source), 2]
        return [token - TASK_TOKENS for token in tasks.get(name, **options).solve(prompt)[:-1]]

    assert answer("reverse", [5, 1, 1, 9]) == [9, 1, 1, 5]
    assert answer("copy", [5, 1, 1, 9]) == [5, 1, 1, 9]
    assert answer("sort", [5, 1, 31, 1, 9]) == [1, 1, 5, 9, 31]
    assert answer("parity", [1, 0, 1, 1]) == [1]
    assert answer("parity", [1, 0, 1, 1], running=True) == [1, 1, 0, 1]
    assert answer("n-back", [7, 8, 9, 3], n=2) == [16, 16, 7, 8]
    assert answer("local-count", [4, 4, 4, 0, 0, 4]) == [16, 17, 18, 16, 17, 16]
    # w 1, i 0, r 1, w 0, i 1, r: the last write is 0.
    assert answer("flip-flop", [2, 1, 3, 0, 4, 1, 2, 0, 3, 1, 4]) == [0]


def test_mqar_by_hand() -> None:
    task = tasks.get("mqar", words=16)
    written = {token: index for index, token in enumerate(("<pad>", "<bos>", "<sep>", "<eos>", *task.alphabet))}
    prompt = [written[token] for token in ["<bos>", "k7", "v0", "k2", "v5", "k3", "v1", "<sep>"]]
    assert task.decode(task.solve(prompt)) == "k2 v5 k3 v1 k7 v0 <eos>"


def test_mqar_keys_and_values_are_different_ones_of_two_halves() -> None:
    for lengths in ((2, 8), 512, (100, 300)):
        batch = tasks.get("mqar").sample(0, 0, 64, lengths)
        for row, pairs in zip(sources(batch), batch.lengths.tolist(), strict=True):
            keys, values = row[::2], row[1::2]
            assert len(keys) == len(values) == len(set(keys)) == len(set(values)) == pairs
            assert max(keys) < 512 <= min(values)
    rows = sources(tasks.get("mqar").sample(0, 1, 4096, 8))
    assert spread([row[0] for row in rows], 512) < 1.3
    assert spread([row[1] - 512 for row in rows], 512) < 1.3


def test_mqar_asks_in_an_order_that_is_random_relative_to_the_source() -> None:
    rows = sources(tasks.get("mqar").sample(0, 0, 4096, 4))
    place_of_first_query = [row[::2].index(min(row[::2])) for row in rows]
    assert spread(place_of_first_query, 4) < 4


@pytest.mark.parametrize(("write", "read"), [(0.1, 0.1), (0.45, 0.45), (0.1, 0.0)])
def test_flip_flop_strings(write: float, read: float) -> None:
    batch = tasks.get("flip-flop", write=write, read=read).sample(0, 0, 256, (32, 64))
    kinds = []
    for row, length in zip(sources(batch), batch.lengths.tolist(), strict=True):
        instructions, bits = row[::2], row[1::2]
        assert len(row) == 2 * (length // 2) - 1
        assert instructions[0] == 2
        assert instructions[-1] == 4
        assert set(instructions) <= {2, 3, 4}
        assert set(bits) <= {0, 1}
        register = -1
        for instruction, bit in zip(instructions, bits, strict=False):
            register = bit if instruction == 2 else register
            assert instruction != 4 or bit == register, "a read that does not return the latest write"
        kinds += instructions[1:-1]
    shares = [kinds.count(kind) / len(kinds) for kind in (2, 3, 4)]
    assert shares == pytest.approx([write, 1 - write - read, read], abs=0.02)


def test_flip_flop_answers_are_even_handed() -> None:
    batch = tasks.get("flip-flop").sample(0, 0, 2048, 64)
    answers = batch.tokens.gather(1, batch.prompt_length[:, None]) - TASK_TOKENS
    assert float(answers.double().mean()) == pytest.approx(0.5, abs=0.04)


def test_local_count_runs() -> None:
    batch = tasks.get("local-count").sample(0, 0, 512, (32, 64))
    lengths_of_runs, next_steps = [], []
    for row, length in zip(sources(batch), batch.lengths.tolist(), strict=True):
        assert len(row) == length
        runs: list[list[int]] = []
        for symbol in row:
            if runs and runs[-1][0] == symbol:
                runs[-1][1] += 1
            else:
                runs.append([symbol, 1])
        assert all(2 <= count <= 12 for _, count in runs[:-1])
        assert 1 <= runs[-1][1] <= 12
        # The first two runs always end before the shortest length, so they are not cut.
        lengths_of_runs += [count for _, count in runs[:2]]
        next_steps += [(after[0] - before[0]) % 16 for before, after in itertools.pairwise(runs)]
    assert spread([count - 2 for count in lengths_of_runs], 11) < 3
    assert spread([step - 1 for step in next_steps], 15) < 3
