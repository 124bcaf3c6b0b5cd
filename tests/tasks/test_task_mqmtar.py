"""MQMTAR in every detail: its figures, its slots, its vocabulary."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from epan import tasks
from epan.tasks import Batch
from epan.tasks.base import TASK_TOKENS
from epan.tasks.mqmtar import MQMTAR

SPACE, MIDDLE, ASK = 256, 257, 258
Word = tuple[int, int]


def read(batch: Batch, queries: int = 4) -> list[tuple[list[list[int]], list[Word], list[int]]]:
    """Slots, asked keys and source of every row, cut by the definition alone."""
    rows = []
    for row, first, length in zip(
        batch.tokens.tolist(), batch.prompt_length.tolist(), batch.lengths.tolist(), strict=True
    ):
        source = [token - TASK_TOKENS for token in row[1 : first - 1]]
        pairs = min(int(Fraction(8, 10) * length / 6), 10_000)
        slot = length // pairs
        assert len(source) == pairs * slot + 3 * queries
        slots = [source[place : place + slot] for place in range(0, pairs * slot, slot)]
        asked = source[pairs * slot :]
        assert asked[::3] == [ASK] * queries
        rows.append((slots, list(zip(asked[1::3], asked[2::3], strict=True)), source))
    return rows


def pair_of(slot: list[int]) -> tuple[int, Word, Word]:
    """Place, key and value of a slot that holds one pair in one piece and spaces elsewhere."""
    place = slot.index(MIDDLE) - 2
    assert all(0 <= letter < 256 for letter in slot[place : place + 2] + slot[place + 3 : place + 5])
    assert len(slot[place : place + 5]) == 5
    assert all(token == SPACE for token in slot[:place] + slot[place + 5 :])
    return place, (slot[place], slot[place + 1]), (slot[place + 3], slot[place + 4])


@pytest.mark.parametrize(("length", "source", "pairs"), [(64, 76, 8), (1024, 964, 136), (65_536, 61_178, 8_738)])
def test_published_figures(length: int, source: int, pairs: int) -> None:
    task = MQMTAR()
    batch = task.sample(0, 0, 2, length, split="test")
    assert batch.prompt_length.tolist() == [source + 2] * 2
    assert task.pairs(length) == pairs
    assert int((batch.tokens[0] == TASK_TOKENS + MIDDLE).sum()) == pairs
    assert batch.tokens.shape == (2, source + 2 + 12 + 1), "no padding at a single length"
    assert task.vocab_size == 4 + 256 + 3


def test_pairs_never_exceed_the_words() -> None:
    assert MQMTAR().pairs(75_000) == MQMTAR().pairs(80_000) == 10_000
    task = MQMTAR(letters=4, words=10)
    batch = task.sample(0, 0, 4, 1000)
    assert batch.prompt_length.tolist() == [1000 + 12 + 2] * 4
    assert int((batch.tokens[0] == TASK_TOKENS + 5).sum()) == 10


def test_the_number_of_pairs_is_exact_for_every_length() -> None:
    for length in range(8, 2000):
        assert MQMTAR().pairs(length) == int(Fraction(8, 10) * length / 6)


@pytest.mark.parametrize("lengths", [(32, 64), (8, 200), 1024, 4096])
def test_each_slot_holds_its_pair_and_spaces(lengths: int | tuple[int, int]) -> None:
    batch = MQMTAR().sample(0, 0, 32, lengths)
    for slots, asked, _ in read(batch):
        pairs = [pair_of(slot) for slot in slots]
        keys = [key for _, key, _ in pairs]
        values = [value for _, _, value in pairs]
        assert len(set(keys)) == len(keys), "a key twice"
        assert len(set(values)) == len(values), "a value twice"
        assert set(asked) <= set(keys)


def test_the_place_in_the_slot_is_uniform() -> None:
    places = [pair_of(slot)[0] for slots, _, _ in read(MQMTAR().sample(0, 0, 512, 64)) for slot in slots]
    counts = torch.bincount(torch.tensor(places)).double()
    assert len(counts) == 4, "a slot of 8 leaves 3 spaces, so 4 places"
    assert float((counts / counts.sum() - 0.25).abs().max()) < 0.025


def test_queries_are_drawn_with_replacement_and_uniformly() -> None:
    chosen, doubled = [], 0
    for slots, asked, _ in read(MQMTAR().sample(0, 0, 1024, 64)):
        keys = [pair_of(slot)[1] for slot in slots]
        chosen += [keys.index(key) for key in asked]
        doubled += len(set(asked)) < len(asked)
    counts = torch.bincount(torch.tensor(chosen), minlength=8).double()
    assert float((counts / counts.sum() - 1 / 8).abs().max()) < 0.02
    # All four different: 8·7·6·5 / 8⁴.
    assert doubled / 1024 == pytest.approx(1 - 1680 / 4096, abs=0.05)


def words(split: str, seed: int = 0, **options: int) -> tuple[set[Word], set[Word]]:
    """The key and the value words that many long sequences of a split show."""
    keys: set[Word] = set()
    values: set[Word] = set()
    for slots, _, _ in read(MQMTAR(**options).sample(seed, 0, 4, 65_536, split=split)):
        for slot in slots:
            _, key, value = pair_of(slot)
            keys.add(key)
            values.add(value)
    return keys, values


def test_one_vocabulary_for_each_split_whatever_the_seed() -> None:
    train_keys, train_values = words("train")
    test_keys, test_values = words("test")
    assert 9_900 < len(train_keys) <= 10_000
    assert 9_900 < len(train_values) <= 10_000
    assert len(train_keys | words("train", seed=8)[0]) <= 10_000, "another seed, another vocabulary"
    for left, right in ((train_keys, test_keys), (train_values, test_values), (train_keys, train_values)):
        # Two independent sets of 10,000 among 65,536 share 1,526 on average.
        assert 1_350 < len(left & right) < 1_700
    assert len(train_keys & words("train", vocabulary_seed=1)[0]) < 1_700


def test_the_pairing_is_redrawn_for_every_sequence() -> None:
    task = MQMTAR(letters=4, words=8)
    partners: set[tuple[Word, Word]] = set()
    for row in task.sample(0, 0, 128, 64).tokens.tolist():
        middles = [place for place, token in enumerate(row) if token == TASK_TOKENS + 5]
        for place in middles:
            partners.add(((row[place - 2], row[place - 1]), (row[place + 1], row[place + 2])))
    assert len(partners) == 64, "128 sequences of all 8 words should show every pairing of a key with a value"


def test_values_are_the_answers() -> None:
    task = tasks.get("mqmtar")
    batch = task.sample(4, 2, 64, (32, 64))
    for row, (slots, asked, _) in enumerate(read(batch)):
        memory = {key: value for _, key, value in map(pair_of, slots)}
        first = int(batch.prompt_length[row])
        scored = batch.tokens[row][batch.score_mask[row]] - TASK_TOKENS
        assert scored.tolist() == [letter for key in asked for letter in memory[key]]
        assert (batch.tokens[row, first : first + 12 : 3] == TASK_TOKENS + ASK).all()


def test_a_query_without_its_pair_is_an_error() -> None:
    task = MQMTAR(queries=1)
    batch = task.sample(0, 0, 1, 8)
    prompt = batch.tokens[0, : int(batch.prompt_length)].tolist()
    prompt[-2] = TASK_TOKENS + (prompt[-2] - TASK_TOKENS + 1) % 256
    with pytest.raises(ValueError, match="key that is not there"):
        task.solve(prompt)
