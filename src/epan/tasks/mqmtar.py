"""The MQMTAR task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EpanError
from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["MQMTAR"]

_PAIR = 5  # tokens of a pair: k1 k2 [kv] v1 v2


@dataclass(frozen=True)
class MQMTAR(Task):
    """Multi-query multi-token associative recall: the values of four keys, keys and values being two-letter words.

    For the nominal length L: P = ⌊0.8·L/6⌋ pairs (at most ``words``) in slots of ⌊L/P⌋ tokens. A slot holds the pair
    ``k1 k2 [kv] v1 v2`` at a uniformly random place and spaces before and after it. Then ``queries`` times ``[q] k1
    k2``, keys drawn with replacement among those of the sequence. Target: ``[q] v1 v2`` for each query. Loss on the
    target and <eos>, score on the values; the [q] of the target are given. L = 64 makes 8 pairs and 76 source tokens,
    1,024: 136 and 964, 65,536: 8,738 and 61,178.

    Written below: space _, [kv] =, [q] ?, letters in hexadecimal.

        >>> from epan import tasks
        >>> task = tasks.get("mqmtar", queries=2)
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=16).tokens[0]))
        <bos> _ b8 3c = 49 f5 _ _ _ d5 38 = 55 ee _ _ ? b8 3c ? d5 38 <sep> ? 49 f5 ? 55 ee <eos>

    Key and value words are two lists of ``words`` different ones among the letters² possible (a word may be in both
    lists). The lists are a function of (letters, words, vocabulary_seed, split): one vocabulary for all seeds and
    steps of a split, another one for each split. Which keys and values a sequence holds, and who is paired with whom,
    is redrawn for every sequence.

    Parameters
    ----------
    letters: number of letters, at least 2.
    words: key words, and as many value words; 1 to letters².
    queries: number of queries, at least 1.
    vocabulary_seed: which vocabulary, any integer.

    Raises
    ------
    EpanError: if an option is out of range.

    Source: Vasylenko et al. 2506.16640. The published generator keeps one space behind every pair and scatters the
    others slightly more before than after; here the place of the pair in its slot is uniform.
    """

    letters: int = 256
    words: int = 10_000
    queries: int = 4
    vocabulary_seed: int = 0

    name: ClassVar[str] = "mqmtar"
    unit: ClassVar[str] = "tokens before the queries, at most"
    test_lengths: ClassVar[tuple[int, ...]] = tuple(64 * 2**i for i in range(11))

    def __post_init__(self) -> None:
        self._at_least("letters", 2)
        self._at_least("words", 1, self.letters**2)
        self._at_least("queries", 1)
        if isinstance(self.vocabulary_seed, bool) or not isinstance(self.vocabulary_seed, int):
            raise EpanError("Option 'vocabulary_seed' is no integer", found=self.vocabulary_seed)

    @property
    def shortest(self) -> int:
        return 8

    @property
    def alphabet(self) -> tuple[str, ...]:
        digits = len(f"{self.letters - 1:x}")
        return (*(f"{letter:0{digits}x}" for letter in range(self.letters)), "_", "=", "?")

    def pairs(self, length: int) -> int:
        """P = ⌊0.8·L/6⌋ = ⌊2L/15⌋, at most ``words``."""
        return min(2 * length // 15, self.words)

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        space, middle, ask = range(self.letters, self.letters + 3)
        batch, device = len(lengths), lengths.device
        count = (2 * lengths // 15).clamp(max=self.words)
        slot = lengths // count
        body, most, width = count * slot, self.pairs(longest), _widest_body(longest, self.words)

        words = _vocabulary(self.letters, self.words, self.vocabulary_seed, stream.split, str(device))
        key, value = (words[i][stream.distinct(tag, most, self.words)] for i, tag in enumerate(("key", "value")))
        pair = torch.cat((key, torch.full_like(key[..., :1], middle), value), dim=2)
        index = torch.arange(most, device=device)
        start = index * slot[:, None] + stream.integers("place", most, slot[:, None] - _PAIR + 1)
        # Spare columns behind the widest source take the pairs that a shorter row does not have.
        total = width + 3 * self.queries
        start = torch.where(index < count[:, None], start, total)[..., None]
        source = torch.full((batch, total + _PAIR), space, device=device)
        source.scatter_(1, (start + torch.arange(_PAIR, device=device)).flatten(1), pair.flatten(1))

        chosen = stream.integers("query", self.queries, count[:, None])
        rows = torch.arange(batch, device=device)[:, None]
        mark = torch.full((batch, self.queries, 1), ask, device=device)
        queries = torch.cat((mark, key[rows, chosen]), dim=2).flatten(1)
        column = torch.arange(3 * self.queries, device=device)
        source.scatter_(1, body[:, None] + column, queries)
        return Pieces(
            source[:, :total],
            body + 3 * self.queries,
            torch.cat((mark, value[rows, chosen]), dim=2).flatten(1),
            torch.full_like(lengths, 3 * self.queries),
            score=column[None] % 3 != 0,
            score_on_end=False,
        )

    def solve(self, prompt: Sequence[int]) -> list[int]:
        source = self._source(prompt)
        middle, ask = self.letters + 1, self.letters + 2
        memory, target = {}, []
        try:
            for place, token in enumerate(source):
                if token == middle:
                    memory[source[place - 2], source[place - 1]] = source[place + 1], source[place + 2]
                elif token == ask:
                    target += [ask, *memory[source[place + 1], source[place + 2]]]
        except (IndexError, KeyError):
            raise EpanError("A pair or query is cut off, or a query asks for a key that is not there") from None
        return [TASK_TOKENS + token for token in target] + [EOS]

    def scored(self, target: Sequence[int]) -> list[bool]:
        return [place % 3 != 0 and token != EOS for place, token in enumerate(target)]


@lru_cache(maxsize=64)
def _widest_body(longest: int, words: int) -> int:
    """Tokens that the slots of a sequence take at most, over all nominal lengths up to ``longest``."""
    lengths = torch.arange(8, longest + 1)
    count = (2 * lengths // 15).clamp(max=words)
    return int((count * (lengths // count)).max())


@lru_cache(maxsize=16)
def _vocabulary(letters: int, words: int, seed: int, split: str, device: str) -> tuple[Tensor, Tensor]:
    """The key words and the value words of a split, each (words, 2) int64: random draws without replacement."""
    stream = Stream("mqmtar vocabulary", seed, 0, split, 0, 1, device)
    drawn = (stream.bits(tag, letters**2).argsort(dim=1, stable=True)[0, :words] for tag in ("key", "value"))
    keys, values = (torch.stack((word // letters, word % letters), dim=1) for word in drawn)
    if keys.is_cuda:
        # It is read on any stream from here on.
        torch.cuda.current_stream(keys.device).synchronize()
    return keys, values
