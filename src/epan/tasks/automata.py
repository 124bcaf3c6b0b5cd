"""Random deterministic automata: drawn, minimised, told apart, and walked along. All of them side by side, in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .random import Stream

__all__ = ["EDGES", "LETTERS", "STATES", "Automata", "Walks", "distinct", "draw", "minimal", "walk"]

LETTERS = 18
STATES, EDGES = 12, 3
LEAST_STATES, LEAST_LETTERS = 4, 4
LONGEST_WORD = 49


class Automata(NamedTuple):
    """A automata with at most 12 states, of which state 0 is the start and all accept.

    Attributes
    ----------
    letters: (A, 12, 3) int64; the letters of each state's edges, ascending, 0 to 17; −1 where there is no edge.
    targets: (A, 12, 3) int64; the state that each edge leads to; −1 where there is no edge.
    """

    letters: Tensor
    targets: Tensor

    def rows(self, which: Tensor | slice) -> Automata:
        """Some of them."""
        return Automata(self.letters[which], self.targets[which])

    @property
    def states(self) -> Tensor:
        """(A,) int64: how many states each has, those with edges."""
        return (self.letters >= 0).any(2).sum(1)

    def edges(self, which: int) -> list[dict[int, int]]:
        """One of them: for each of its states {letter: target}."""
        pairs = zip(self.letters[which].tolist(), self.targets[which].tolist(), strict=True)
        found = [{a: t for a, t in zip(*edges, strict=True) if a >= 0} for edges in pairs]
        return [edges for edges in found if edges]

    @property
    def degrees(self) -> Tensor:
        """(A, 12) int64: edges of each state."""
        return (self.letters >= 0).sum(2)


class Walks(NamedTuple):
    """Words of automata, one sequence of words each.

    Attributes
    ----------
    letters: (B, T) int64; the letters, with −1 between words and −2 behind the last one.
    states: (B, T) int64; the state in which the letter was drawn, −1 where there is none.
    """

    letters: Tensor
    states: Tensor


def draw(stream: Stream) -> Automata:
    """Automata as published, before anything is done to them.

    4 to 12 states; an alphabet of 4 to 18 of the 18 letters; in each state 1 to 3 edges with different letters of the
    alphabet, to different other states. All numbers are uniform. States may be out of reach.
    """
    states = stream.integers("states", 1, STATES - LEAST_STATES + 1) + LEAST_STATES
    size = stream.integers("alphabet", 1, LETTERS - LEAST_LETTERS + 1) + LEAST_LETTERS
    order = stream.distinct("letters", LETTERS, LETTERS)
    chosen = _three(stream, "letter", size)
    letters = order.gather(1, chosen.flatten(1)).view_as(chosen)
    targets = _three(stream, "target", states - 1)
    # No state leads to itself.
    own = torch.arange(STATES, device=order.device)[:, None]
    targets = targets + (targets >= own)
    edge = torch.arange(EDGES, device=order.device)
    count = stream.integers("edges", STATES, EDGES) + 1
    there = (edge < count[..., None]) & (own < states[:, :, None])
    sort = torch.where(there, letters, LETTERS).argsort(dim=2, stable=True)
    letters, targets = torch.where(there, letters, -1), torch.where(there, targets, -1)
    return Automata(letters.gather(2, sort), targets.gather(2, sort))


def _three(stream: Stream, tag: str, population: Tensor) -> Tensor:
    """For each state three different numbers below ``population`` (A, 1), in random order: (A, 12, 3)."""
    fewer = torch.arange(EDGES, device=population.device).repeat(STATES)
    drawn = stream.integers(tag, STATES * EDGES, population - fewer).view(-1, STATES, EDGES)
    first, second, third = drawn.unbind(2)
    # Of what is left: numbers from the first one taken on stand one higher, and again from the second one.
    second = second + (second >= first)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    third = third + (third >= low)
    third = third + (third >= high)
    return torch.stack((first, second, third), dim=2)


def equivalent(automata: Automata) -> Tensor:
    """(A, 12, 12) bool: whether exactly the same words can be read from two states.

    Moore's refinement: states with different letters differ, and so do states that a letter leads to states that differ,
    until nothing changes any more.
    """
    letters, targets = automata
    there = letters >= 0
    same = (letters[:, :, None] == letters[:, None]).all(3)
    # Edges are sorted by letter, so where the letters agree, edge e of one state goes with edge e of the other.
    pairs = (targets[:, :, None] * STATES + targets[:, None]).clamp(min=0).flatten(1)
    while True:
        after = same.flatten(1).gather(1, pairs).view(*same.shape, EDGES)
        refined = same & (after | ~there[:, :, None]).all(3)
        if torch.equal(refined, same):
            return same
        same = refined


def minimal(automata: Automata) -> Automata:
    """The minimal automata of the same languages, with states numbered in the order of a breadth-first search by letters.

    Equivalent states become one, states out of reach go. Two automata have the same language exactly if their minimal
    automata are equal in this numbering.
    """
    letters, targets = automata
    rows = torch.arange(len(letters), device=letters.device)
    # Each state stands for the first one that is equivalent to it.
    stands = equivalent(automata).to(torch.uint8).argmax(2)
    targets = torch.where(targets >= 0, stands.gather(1, targets.clamp(min=0).flatten(1)).view_as(targets), -1)
    number = torch.full((len(letters), STATES), -1, device=letters.device)
    number[:, 0] = 0
    # One spare place takes what is not new.
    order = torch.zeros(len(letters), STATES + 1, dtype=torch.int64, device=letters.device)
    count = torch.ones_like(rows)
    for place in range(STATES):
        state = order[:, place]
        for edge in range(EDGES):
            target = targets[rows, state, edge]
            fresh = (place < count) & (target >= 0) & (number[rows, target] < 0)
            number[rows, target] = torch.where(fresh, count, number[rows, target])
            order[rows, torch.where(fresh, count, STATES)] = target
            count = count + fresh
    order = torch.where(torch.arange(STATES, device=rows.device) < count[:, None], order[:, :STATES], -1)
    picked = order.clamp(min=0)[..., None].expand(-1, -1, EDGES)
    there = (order >= 0)[..., None] & (letters.gather(1, picked) >= 0)
    letters = torch.where(there, letters.gather(1, picked), -1)
    reached = targets.gather(1, picked)
    targets = torch.where(there, number.gather(1, reached.clamp(min=0).flatten(1)).view_as(reached), -1)
    return Automata(letters, targets)


def distinct(automata: Automata) -> Tensor:
    """(N,) int64: the places of automata that no earlier one equals, ascending."""
    table = torch.cat(automata, dim=2).flatten(1).to(torch.int8)
    kinds, kind = torch.unique(table, dim=0, return_inverse=True)
    places = torch.arange(len(table), device=kind.device)
    first = torch.full((len(kinds),), len(table), device=kind.device).scatter_reduce_(0, kind, places, "amin")
    return first.sort().values


def walk(automata: Automata, lengths: Tensor, longest: int, stream: Stream) -> Walks:
    """A sequence of words of each automaton: T = 50 · ``longest`` − 1.

    The number of words is uniform from ⌊L/2⌋ + 1 to L; a word has 1 to 49 letters, and starts in state 0; each next letter
    is uniform among those of the state.

    Parameters
    ----------
    automata: of B sequences. lengths: (B,) int64, L, none above ``longest``.
    """
    letters, targets = (part.flatten(1) for part in automata)
    degrees, rows = automata.degrees, len(lengths)
    count = stream.integers("words", 1, (lengths - lengths // 2)[:, None]) + lengths[:, None] // 2 + 1
    sizes = stream.integers("size", longest, LONGEST_WORD) + 1
    sizes = torch.where(torch.arange(longest, device=lengths.device) < count, sizes, 0)
    chance = stream.words("edge", longest * LONGEST_WORD).view(rows, longest, LONGEST_WORD)
    width = longest * (LONGEST_WORD + 1) - 1
    ends = (sizes + 1).cumsum(1)
    starts = ends - sizes - 1
    shape = (rows, width + 1)
    written = torch.full(shape, -2, device=lengths.device)
    visited = torch.full(shape, -1, device=lengths.device)
    # The last column is spare: it takes what is no letter and the separator behind the last word, and is cut off.
    behind = torch.where(torch.arange(1, longest + 1, device=lengths.device) < count, ends - 1, width)
    written.scatter_(1, behind, -1)
    state = torch.zeros_like(sizes)
    for place in range(LONGEST_WORD):
        edge = state * EDGES + (chance[:, :, place] * degrees.gather(1, state) >> 32)
        where = torch.where(place < sizes, starts + place, width)
        written.scatter_(1, where, letters.gather(1, edge))
        visited.scatter_(1, where, state)
        state = targets.gather(1, edge)
    return Walks(written[:, :width], visited[:, :width])
