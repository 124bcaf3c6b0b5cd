"""The local count task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["LocalCount"]


@dataclass(frozen=True)
class LocalCount(Task):
    """Count, within each run of equal symbols, how often the symbol has just been seen.

    Source: L symbols in runs; a run repeats one symbol 2 to ``repeats`` times (uniform), the next run has another
    symbol (uniform over the others), the last run is cut at L. Target: for every source symbol its place in its run,
    from 0. Loss and score on the target and <eos>.

        >>> from epan import tasks
        >>> task = tasks.get("local-count", repeats=4)
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=9).tokens[0]))
        <bos> s11 s11 s14 s14 s14 s1 s1 s2 s2 <sep> 0 1 0 1 2 0 1 0 1 <eos>

    Parameters
    ----------
    symbols: size of the alphabet, at least 2.
    repeats: length of the longest run, at least 2.

    Raises
    ------
    EpanError: if an option is out of range.

    Source: Vasylenko et al. 2506.16640, whose generator defines the runs (default ``repeats`` 12; trained with 16
    symbols and 48). There the last run is whole, so that L holds only on average, and the labels stand in place
    instead of behind <sep>.
    """

    symbols: int = 16
    repeats: int = 12

    name: ClassVar[str] = "local-count"
    test_lengths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024, 2048, 4096)

    def __post_init__(self) -> None:
        self._at_least("symbols", 2)
        self._at_least("repeats", 2)

    @property
    def alphabet(self) -> tuple[str, ...]:
        return (*(f"s{symbol}" for symbol in range(self.symbols)), *map(str, range(self.repeats)))

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        runs = (longest + 1) // 2
        ends = (stream.integers("run", runs, self.repeats - 1) + 2).cumsum(1)
        # A step of 1 … symbols - 1 around the alphabet reaches every other symbol alike, and never the same one.
        steps = 1 + stream.integers("step", runs, self.symbols - 1)
        steps[:, :1] = stream.integers("symbol", 1, self.symbols)
        symbols = steps.cumsum(1) % self.symbols
        position = torch.arange(longest, device=lengths.device).expand(len(lengths), -1).contiguous()
        run = torch.searchsorted(ends, position, right=True)
        starts = torch.cat((torch.zeros_like(ends[:, :1]), ends[:, :-1]), dim=1)
        return Pieces(symbols.gather(1, run), lengths, self.symbols + position - starts.gather(1, run), lengths)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        target, before, place = [], None, 0
        for symbol in self._source(prompt):
            place = place + 1 if symbol == before else 0
            target.append(TASK_TOKENS + self.symbols + place)
            before = symbol
        return [*target, EOS]
