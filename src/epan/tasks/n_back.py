"""The n-back task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["NBack"]


@dataclass(frozen=True)
class NBack(Task):
    """Write, for every source symbol, the symbol that stood n places before it.

    Source: L symbols, uniform and independent. Target: n blanks (-), then the source without its last n symbols. Loss
    and score on the target and <eos>.

        >>> from epan import tasks
        >>> task = tasks.get("n-back")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=6).tokens[0]))
        <bos> 0 4 11 13 9 4 <sep> - - 0 4 11 13 <eos>

    Parameters
    ----------
    symbols: size of the alphabet without the blank, at least 2.
    n: how far back, at least 1; sequences are longer than n.

    Raises
    ------
    EpanError: if an option is out of range.

    Source: Vasylenko et al. 2506.16640 (n = 2, 16 tokens with the blank, lengths 32 to 64 in training, 64 to 4,096 in
    tests); there the labels stand in place instead of behind <sep>.
    """

    symbols: int = 16
    n: int = 2

    name: ClassVar[str] = "n-back"
    test_lengths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024, 2048, 4096)

    def __post_init__(self) -> None:
        self._at_least("symbols", 2)
        self._at_least("n", 1)

    @property
    def shortest(self) -> int:
        return self.n + 1

    @property
    def alphabet(self) -> tuple[str, ...]:
        return (*map(str, range(self.symbols)), "-")

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, self.symbols)
        blanks = torch.full_like(source[:, : self.n], self.symbols)
        return Pieces(source, lengths, torch.cat((blanks, source[:, : longest - self.n]), dim=1), lengths)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        source = self._source(prompt)
        answers = [self.symbols if place < self.n else source[place - self.n] for place in range(len(source))]
        return [TASK_TOKENS + answer for answer in answers] + [EOS]

    def sources(self, length: int) -> int:
        return self.symbols**length
