"""The sort task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["Sort"]


@dataclass(frozen=True)
class Sort(Task):
    """Write the source in ascending order, repeated symbols as often as they occur.

    Source: L symbols, uniform and independent. Target: the same symbols, ascending. Loss and score on the target and
    <eos>.

        >>> from epan import tasks
        >>> task = tasks.get("sort")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=6).tokens[0]))
        <bos> 25 30 5 6 21 16 <sep> 5 6 16 21 25 30 <eos>

    Parameters
    ----------
    symbols: size of the alphabet, at least 2.

    Raises
    ------
    EpanError: if ``symbols`` is out of range.

    Source: Vasylenko et al. 2506.16640 (32 symbols, lengths 32 to 64 in training).
    """

    symbols: int = 32

    name: ClassVar[str] = "sort"

    def __post_init__(self) -> None:
        self._at_least("symbols", 2)

    @property
    def alphabet(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.symbols)))

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, self.symbols)
        inside = torch.arange(longest, device=lengths.device) < lengths[:, None]
        # What stands behind a row's end sorts behind every symbol.
        ordered = torch.where(inside, source, self.symbols).sort(dim=1).values
        return Pieces(source, lengths, ordered, lengths)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        counts = [0] * self.symbols
        for symbol in self._source(prompt):
            counts[symbol] += 1
        return [TASK_TOKENS + symbol for symbol, count in enumerate(counts) for _ in range(count)] + [EOS]

    def sources(self, length: int) -> int:
        return self.symbols**length
