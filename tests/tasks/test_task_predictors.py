"""n-grams and the Bayesian against plain Python: counting in dictionaries, and summing over all automata of a small world."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from fractions import Fraction
from math import comb

import pytest
import torch

from epan import tasks
from epan.errors import EpanError
from epan.metrics import DivergenceMeter
from epan.tasks.predictors import ngram, state_bayes


def some(count: int, words: int, split: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    """Letters and states of a few sequences."""
    task = tasks.get("regbench", automata=10)
    batch = task.sample(0, 0, count, words, split=split)
    return batch.tokens - 2, task.states(0, 0, count, words, split)[1]  # type: ignore[attr-defined]


def counted(row: list[int], order: int, even: bool) -> list[dict[int, float]]:
    """The predictions of an n-gram model by its definition; one for each letter."""
    history: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def predict(context: tuple[int, ...]) -> dict[int, float]:
        shorter = predict(context[1:]) if context else dict.fromkeys(range(18), 1 / 18)
        seen = history[len(context), *context]
        if not seen:
            return shorter
        total = seen.total()
        rest = sum(shorter[letter] for letter in range(18) if letter not in seen)
        full = total + (1 if rest else 0)
        return {
            letter: ((total / len(seen) if even else seen[letter]) / full)
            if letter in seen
            else shorter[letter] / rest / full
            for letter in range(18)
        }

    found, word = [], []
    for letter in row:
        if letter < 0:
            word = []
            continue
        context = tuple(([99] * order + word)[len(word) + 1 :]) if order > 1 else ()
        found.append(predict(context))
        for size in range(order):
            part = context[len(context) - size :]
            history[len(part), *part][letter] += 1
        word.append(letter)
    return found


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_an_ngram_model_counts_in_its_words(order: int, even: bool) -> None:
    letters, _ = some(6, 6)
    found = ngram(letters, order, even=even)
    assert torch.allclose(found.sum(2), torch.ones(()).double())
    for row, predicted in zip(letters.tolist(), found, strict=True):
        expected = counted(row, order, even)
        places = [place for place, letter in enumerate(row) if letter >= 0]
        table = torch.tensor([[one[letter] for letter in range(18)] for one in expected], dtype=torch.float64)
        assert torch.allclose(predicted[places], table, rtol=1e-12, atol=1e-14)


def test_an_ngram_model_where_all_letters_were_seen() -> None:
    letters = torch.arange(18).repeat(2)[None]
    letters = torch.stack((letters, -torch.ones_like(letters)), dim=2).flatten(1)
    found = ngram(letters, 1)[0, ::2]
    assert found[18].tolist() == pytest.approx([1 / 18] * 18)
    assert found[19].tolist() == pytest.approx([2 / 19] + [1 / 19] * 17)


def test_what_comes_later_changes_no_prediction() -> None:
    letters, states = some(4, 5)
    later = letters.clone()
    later[:, 60:] = torch.where(letters[:, 60:] >= 0, (letters[:, 60:] + 1) % 18, letters[:, 60:])
    for order in (1, 3):
        assert torch.equal(ngram(letters, order)[:, :61], ngram(later, order)[:, :61])
    other = torch.where(torch.arange(states.shape[1]) < 60, states, torch.arange(states.shape[1]))
    assert torch.equal(state_bayes(letters, states)[:, :60], state_bayes(later, other)[:, :60])


def brute(history: list[tuple[int, int]], state: int) -> list[Fraction]:
    """P(next letter) in ``state`` after (state, letter) pairs: a sum over alphabets' sizes and over the edges of each state.

    Alphabets of one size are as likely, so of those that hold the letters seen it is enough to know how many there are; their
    other letters are alike, too.
    """
    used = {letter for _, letter in history}
    result = [Fraction(0)] * 18
    total = Fraction(0)
    for size in range(max(4, len(used)), 19):
        # One such alphabet: the letters used, and the first others.
        others = [letter for letter in range(18) if letter not in used]
        alphabet = [*sorted(used), *others[: size - len(used)]]
        weight = Fraction(comb(18 - len(used), size - len(used)), comb(18, size) * 15)
        nexts: dict[int, Fraction] = defaultdict(Fraction)
        for place in {where for where, _ in history} | {state}:
            shown = [letter for where, letter in history if where == place]
            here = Fraction(0)
            for degree in (1, 2, 3):
                for edges in itertools.combinations(alphabet, degree):
                    if not set(shown) <= set(edges):
                        continue
                    chance = Fraction(1, 3 * comb(size, degree)) / degree ** len(shown)
                    here += chance
                    if place == state:
                        for letter in edges:
                            nexts[letter] += chance / degree
            if place != state:
                weight *= here
            else:
                normal = here
        weight_all = weight * normal
        total += weight_all
        inside, outside = used, [letter for letter in alphabet if letter not in used]
        for letter in inside:
            result[letter] += weight * nexts[letter]
        # By symmetry each letter that was not seen is in so many of the alphabets.
        fresh = sum((nexts[letter] for letter in outside), Fraction(0))
        for letter in others:
            result[letter] += weight * fresh / len(others)
    return [value / total for value in result]


def test_the_bayesian_sums_over_all_automata() -> None:
    history = [(0, 3), (1, 5), (0, 3), (1, 9), (2, 3), (0, 11), (1, 5), (0, 7), (3, 1), (0, 7)]
    letters = torch.tensor([[letter for _, letter in history]])
    states = torch.tensor([[state for state, _ in history]])
    found = state_bayes(letters, states)[0]
    for place, (state, _) in enumerate(history):
        expected = [float(value) for value in brute(history[:place], state)]
        assert sum(expected) == pytest.approx(1)
        assert found[place].tolist() == pytest.approx(expected, rel=1e-12)


def test_four_letters_of_one_state_are_refused() -> None:
    with pytest.raises(EpanError, match=r"more letters than it can have edges.*Found: 4"):
        state_bayes(torch.tensor([[0, 1, 2, 3]]), torch.zeros(1, 4, dtype=torch.int64))
    for order in (0, 13, True):
        with pytest.raises(EpanError, match="order of an n-gram"):
            ngram(torch.zeros(1, 4, dtype=torch.int64), order)


def test_knowing_the_states_is_better_than_counting_letters() -> None:
    task = tasks.get("regbench", automata=10)
    letters, states = some(40, 19)
    truth = task.truth(0, 0, 40, 19, split="test")
    assert truth is not None
    scores = {}
    for name, found in {"1": ngram(letters, 1), "3": ngram(letters, 3), "states": state_bayes(letters, states)}.items():
        meter = DivergenceMeter()
        meter.add(torch.nn.functional.pad(found, (2, 0)).log(), *truth)
        scores[name] = meter.result()
    order = ["1", "3", "states"]
    assert sorted(scores, key=lambda name: scores[name]["accuracy"]) == order
    for measure in ("tvd", "kl"):
        assert sorted(scores, key=lambda name: -scores[name][measure]) == order
    # Measured on all 500 test automata: 0.935, 0.242 and 0.987, 0.041.
    assert scores["3"]["accuracy"] == pytest.approx(0.935, abs=0.03)
    assert scores["states"]["tvd"] == pytest.approx(0.041, abs=0.02)
