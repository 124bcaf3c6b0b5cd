"""RegBench: automata against plain Python, published statistics, disjoint splits, one sequence an epoch, the truth."""

from __future__ import annotations

import doctest
import math
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from epan import tasks
from epan.tasks import regbench
from epan.tasks.automata import EDGES, STATES, Automata, distinct, draw, equivalent, minimal, walk
from epan.tasks.random import Stream
from epan.tasks.regbench import BAR, FIRST, RegBench

# An automaton as a list of {letter: target}, state 0 first.
Plain = list[dict[int, int]]


def stream(batch: int, first: int = 0, name: str = "test") -> Stream:
    return Stream(name, 0, 0, "train", first, batch, "cpu")


def plain(automata: Automata) -> list[Plain]:
    return [
        [{a: t for a, t in zip(*edges, strict=True) if a >= 0} for edges in zip(letters, targets, strict=True)]
        for letters, targets in zip(automata.letters.tolist(), automata.targets.tolist(), strict=True)
    ]


def dense(machine: Plain) -> Automata:
    letters, targets = torch.full((1, STATES, EDGES), -1), torch.full((1, STATES, EDGES), -1)
    for state, edges in enumerate(machine):
        for place, (letter, target) in enumerate(sorted(edges.items())):
            letters[0, state, place], targets[0, state, place] = letter, target
    return Automata(letters, targets)


def hopcroft(machine: Plain) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The minimal automaton in canonical numbering, by splitting classes of states in sets; another way than the one tested."""
    reached, todo = {0}, [0]
    while todo:
        for target in machine[todo.pop()].values():
            if target not in reached:
                reached.add(target)
                todo.append(target)
    # A state without a number rejects everything.
    classes = {state: tuple(sorted(machine[state])) for state in reached}
    while True:
        finer = {
            state: (
                classes[state],
                tuple((letter, classes[machine[state][letter]]) for letter in sorted(machine[state])),
            )
            for state in reached
        }
        names = {value: number for number, value in enumerate(dict.fromkeys(finer.values()))}
        named = {state: names[finer[state]] for state in reached}
        if len(names) == len(set(classes.values())):
            break
        classes = named
    numbers, order = {named[0]: 0}, [0]
    for state in order:
        for letter in sorted(machine[state]):
            target = machine[state][letter]
            if named[target] not in numbers:
                numbers[named[target]] = len(numbers)
                order.append(target)
    return tuple(tuple((a, numbers[named[machine[s][a]]]) for a in sorted(machine[s])) for s in order)


def canonical(automata: Automata) -> list[tuple[tuple[tuple[int, int], ...], ...]]:
    return [tuple(tuple(sorted(edges.items())) for edges in machine if edges) for machine in plain(automata)]


# ---------------------------------------------------------------------- automata


def test_drawn_automata_are_as_published() -> None:
    found = plain(draw(stream(4000)))
    states: Counter[int] = Counter()
    edges: Counter[int] = Counter()
    alphabets = []
    for machine in found:
        there = [edges for edges in machine if edges]
        assert machine[len(there) :] == [{}] * (STATES - len(there))
        states[len(there)] += 1
        if sum(map(len, there)) >= 20:
            alphabets.append(len({letter for state in there for letter in state}))
        for state, out in enumerate(there):
            edges[len(out)] += 1
            assert state not in out.values(), "a self loop"
            assert len(set(out.values())) == len(out), "two edges to one target"
            assert all(0 <= letter < 18 and 0 <= target < len(there) for letter, target in out.items())
    assert sorted(states) == list(range(4, 13))
    assert sorted(edges) == [1, 2, 3]
    for counts in (states, edges):
        expected = counts.total() / len(counts)
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 30
    # So many edges show all letters of a small alphabet, and most of a large one.
    assert min(alphabets) == 4
    assert max(alphabets) >= 16
    # A fifteenth of the alphabets has 4 letters, and as many have 5.
    assert all(0.04 < Counter(alphabets)[size] / len(alphabets) < 0.1 for size in (4, 5))
    letters = Counter(letter for machine in found for state in machine for letter in state)
    targets = Counter(
        (state, target) for machine in found for state, out in enumerate(machine[:4]) for target in out.values()
    )
    assert max(letters.values()) / min(letters.values()) < 1.1
    # From each of the first four states the others are as likely: those of the first four are there in any automaton.
    same = [targets[state, target] for state in range(4) for target in range(4) if state != target]
    assert max(same) / min(same) < 1.2


def test_minimal_automata_agree_with_hopcroft_in_plain_python() -> None:
    drawn = draw(stream(600))
    machines = plain(drawn)
    # Few letters and a single edge here and there, so that much is equivalent.
    source = random.Random(0)
    for _ in range(600):
        count = source.randint(4, 8)
        machine = []
        for state in range(count):
            others = [target for target in range(count) if target != state]
            degree = source.randint(1, 2)
            machine.append(dict(zip(source.sample(range(2), degree), source.sample(others, degree), strict=True)))
        machines.append(machine)
    drawn = Automata(*(torch.cat(part) for part in zip(drawn, *(dense(m) for m in machines[600:]), strict=True)))
    expected = [hopcroft(machine) for machine in machines]
    assert canonical(minimal(drawn)) == expected
    sizes = [len(machine) for machine in expected]
    assert sum(size < len(machine) for size, machine in zip(sizes[600:], machines[600:], strict=True)) > 200
    # Minimising again changes nothing.
    assert all(torch.equal(*pair) for pair in zip(minimal(minimal(drawn)), minimal(drawn), strict=True))
    first: dict[object, int] = {}
    for place, machine in enumerate(expected):
        first.setdefault(machine, place)
    assert distinct(minimal(drawn)).tolist() == sorted(first.values())
    assert len(first) < len(expected)


def test_equivalent_states_read_the_same_words() -> None:
    # 1 and 2 read the same, 3 does not: it cannot go on with letter 5 after a 4.
    machine = [{0: 1, 1: 2, 2: 3}, {4: 2}, {4: 1}, {4: 0}]
    same = equivalent(dense(machine))[0, :4, :4]
    assert same.tolist() == [[i == j or {i, j} == {1, 2} for j in range(4)] for i in range(4)]
    assert canonical(minimal(dense(machine))) == [(((0, 1), (1, 1), (2, 2)), ((4, 1),), ((4, 0),))]
    assert int(minimal(dense(machine)).states) == 3


# ---------------------------------------------------------------------- published statistics


def test_statistics_of_two_thousand_automata() -> None:
    """Words uniform on 10 … 19, letters of a word on 1 … 49: mean 14.5 · 25 + 13.5 = 376 tokens, at most 949."""
    task = RegBench(automata=2000)
    batch = task.sample(0, 0, 2000, (19, 19))
    assert task.sample(0, 0, 1, (19, 19), split="test").tokens.shape == (1, 949)
    # Padded to the longest, and to a multiple of eight tokens that are read.
    longest = int((batch.tokens != 0).sum(1).max())
    assert batch.tokens.shape[0] == 2000
    assert longest <= batch.tokens.shape[1] < longest + 8
    assert batch.tokens.shape[1] % 8 == 1
    assert task.vocab_size == 20
    words, sizes, tokens = [], [], []
    for row in batch.tokens.tolist():
        ids = row[: row.index(0)] if 0 in row else row
        tokens.append(len(ids))
        parts = "".join("|" if token == BAR else "x" for token in ids).split("|")
        words.append(len(parts))
        sizes += map(len, parts)
    assert (min(words), max(words)) == (10, 19)
    assert (min(sizes), max(sizes)) == (1, 49)
    # Standard deviations: of a word's length 14.14, of the words' number 2.87, of a sequence's tokens 92.
    assert sum(sizes) / len(sizes) == pytest.approx(25, abs=4 * 14.14 / math.sqrt(len(sizes)))
    assert sum(words) / 2000 == pytest.approx(14.5, abs=4 * 2.87 / math.sqrt(2000))
    assert sum(tokens) / 2000 == pytest.approx(376, abs=4 * 92 / math.sqrt(2000))
    for counts in (Counter(words), Counter(sizes)):
        expected = counts.total() / len(counts)
        # Chi square with 48 degrees of freedom exceeds 96 once in twenty thousand.
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 96
    made = [task.automaton(number) for number in range(2000)]
    sizes = Counter(int(automaton.states) for automaton in made)
    assert max(sizes) == 12
    # Minimising and trimming take some below four states.
    assert 0 < sum(sizes[size] for size in (1, 2, 3)) < 200


def test_every_next_letter_is_as_likely() -> None:
    machine = [{0: 1, 3: 2, 9: 1}, {0: 2, 5: 0}, {7: 0}]
    automata = Automata(*(part.expand(500, -1, -1) for part in dense(machine)))
    walks = walk(automata, torch.full((500,), 19), 19, stream(500))
    drawn: Counter[tuple[int, int]] = Counter()
    for letters, states in zip(walks.letters.tolist(), walks.states.tolist(), strict=True):
        state = 0
        for letter, where in zip(letters, states, strict=True):
            if letter < 0:
                assert where == -1
                state = 0
                continue
            assert where == state
            drawn[state, letter] += 1
            state = machine[state][letter]
    for state, edges in enumerate(machine):
        counts = [drawn[state, letter] for letter in edges]
        assert max(counts) / min(counts) < 1.05


# ---------------------------------------------------------------------- splits and epochs


def test_no_automaton_is_there_twice_in_or_between_splits() -> None:
    found = canonical(regbench._population(0, 3000))
    assert len(found) == len(set(found)) == 4000
    task = RegBench(automata=3000)
    # The first of each split are where they are said to be.
    for split, place in (("validation", 0), ("test", 500), ("train", 1000)):
        assert canonical(task.automaton(7, split)) == found[place + 7 : place + 8]
    # Without the removal there would be some.
    drawn = canonical(minimal(draw(Stream("regbench automata", 0, 0, "train", 0, 4096, "cpu"))))
    assert len(set(drawn)) < 4096
    assert list(dict.fromkeys(drawn))[:1000] == found[:1000]


def test_a_smaller_training_set_is_the_beginning_of_a_larger_one() -> None:
    small, large = (regbench._training_set(count, 0, 19, 19, "cpu") for count in (100, 2000))
    width = small.tokens.shape[1]
    assert torch.equal(small.tokens, large.tokens[:100, :width])
    assert torch.equal(small.states, large.states[:100, :width])
    assert bool((large.tokens[:100, width:] == 0).all())
    assert torch.equal(small.lengths, large.lengths[:100])
    other = regbench._training_set(100, 1, 19, 19, "cpu")
    assert not torch.equal(other.tokens, small.tokens)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected = regbench._training_set(100, 5, 3, 4, "cpu"), regbench._population(5, 100)
    monkeypatch.setattr(regbench, "_CHUNK", 37)
    for once in (regbench._population, regbench._training_set):
        monkeypatch.setattr(regbench, once.__name__, once.__wrapped__)  # type: ignore[attr-defined]
    assert all(torch.equal(*pair) for pair in zip(regbench._population(5, 100), expected, strict=True))
    assert all(torch.equal(*pair) for pair in zip(regbench._training_set(100, 5, 3, 4, "cpu"), before, strict=True))


def rows(batch: tasks.Batch) -> list[tuple[int, ...]]:
    return [tuple(row) for row in batch.tokens.tolist()]


@pytest.mark.parametrize("batch", [4, 10, 30])
def test_every_sequence_comes_once_an_epoch(batch: int) -> None:
    task = RegBench(automata=20).for_training((1, 2), batch)
    drawn = [row for step in range(60 // batch) for row in rows(task.sample(3, step, batch, (1, 2)))]
    whole = set(rows(RegBench(automata=20).sample(0, 0, 20, (1, 2))))
    assert len(whole) == 20
    epochs = [drawn[start : start + 20] for start in (0, 20, 40)]
    assert all(set(epoch) == whole for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # Processes share a step, several steps may be asked for at once, and another seed has another order.
    parts = [row for first in (0, batch // 2) for row in rows(task.sample(3, 1, batch // 2, (1, 2), first=first))]
    assert parts == rows(task.sample(3, 1, batch, (1, 2)))
    assert rows(task.sample(3, 0, batch, (1, 2), steps=60 // batch)) == drawn
    assert rows(task.sample(4, 0, batch, (1, 2))) != drawn[:batch]


def test_held_out_sequences_depend_on_their_number_and_the_seed() -> None:
    task = RegBench(automata=5)
    whole = task.sample(1, 0, 600, 3, split="test")
    assert rows(task.sample(1, 0, 100, 3, split="test", first=450)) == rows(whole)[450:550]
    assert rows(replace(task, automata=50).sample(1, 0, 600, 3, split="test")) == rows(whole)
    # The same automata again, with other words.
    automata, _ = task.states(1, 0, 600, 3, "test")
    assert torch.equal(automata.letters[500:], automata.letters[:100])
    assert not set(rows(whole)[500:]) & set(rows(whole)[:100])
    assert len(set(rows(whole)) & set(rows(task.sample(2, 0, 600, 3, split="test")))) < 20
    assert len(set(rows(whole)) & set(rows(task.sample(1, 0, 600, 3, split="validation")))) == 0
    longer = task.sample(1, 0, 40, 38, split="test")
    assert longer.tokens.shape == (40, 50 * 38 - 1)
    words = 1 + (longer.tokens == BAR).sum(1)
    assert 20 <= int(words.min()) < int(words.max()) <= 38


@pytest.mark.parametrize("split", tasks.base.SPLITS)
def test_the_truth_is_what_the_automaton_says(split: str) -> None:
    task = RegBench(automata=6).for_training((2, 4), 4)
    batch, truth = task.sample(2, 3, 4, (2, 4), split=split), task.truth(2, 3, 4, (2, 4), split=split)
    automata, _ = task.states(2, 3, 4, (2, 4), split)
    assert torch.equal(truth.scored, batch.score_mask)
    assert truth.among.tolist() == [False, False, *[True] * 18]
    for row, machine in enumerate(plain(automata)):
        state = 0
        for place, token in enumerate(batch.tokens[row].tolist()):
            assert bool(batch.loss_mask[row, place]) == (place > 0 and token != 0)
            scored = place > 0 and token >= FIRST
            expected = dict.fromkeys(machine[state], 1 / len(machine[state])) if scored else {}
            found = truth.probabilities[row, place].tolist()
            assert found == pytest.approx([expected.get(token - FIRST, 0.0) for token in range(20)])
            state = machine[state][token - FIRST] if token >= FIRST else 0


def test_forty_thousand_training_automata_take_less_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of them in a tenth of the time: what is made grows with their number."""
    monkeypatch.setattr(regbench, "_population", regbench._population.__wrapped__)  # type: ignore[attr-defined]
    start = time.process_time()
    regbench._training_set.__wrapped__(4000, 9, 19, 19, "cpu")  # type: ignore[attr-defined]
    assert time.process_time() - start < 12, "two cores have 120 s in a minute"


def test_the_docstring_shows_real_data() -> None:
    result = doctest.testmod(regbench)
    assert (result.attempted, result.failed) == (3, 0)


def test_decode() -> None:
    assert RegBench().decode([2, 4, 1, 19, 0, 0]) == "a c | r"
    assert RegBench().decode(torch.tensor([0, 0])) == ""
    assert tasks.get(RegBench(automata=7).config()) == RegBench(automata=7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_same_bits_on_a_gpu_and_nothing_waits_for_it() -> None:
    task = RegBench(automata=50).for_training(None, 8)
    for split in tasks.base.SPLITS:
        here, there = (task.sample(3, 4, 8, (19, 19), device, split) for device in ("cpu", "cuda"))
        assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))
    torch.cuda.set_sync_debug_mode("error")
    try:
        task.sample(3, 5, 8, (19, 19), "cuda", steps=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
