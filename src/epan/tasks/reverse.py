"""The reverse task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["Reverse"]


@dataclass(frozen=True)
class Reverse(Task):
    """Write the source backwards.

    Source: L symbols, uniform and independent. Target: the same symbols from the last to the first. Loss and score on
    the target and <eos>.

        >>> from epan import tasks
        >>> task = tasks.get("reverse")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=6).tokens[0]))
        <bos> 5 30 29 12 26 5 <sep> 5 26 12 29 30 5 <eos>

    Parameters
    ----------
    symbols: size of the alphabet, at least 2.

    Raises
    ------
    EpanError: if ``symbols`` is out of range.

    Source: Vasylenko et al. 2506.16640 (32 symbols, lengths 32 to 64 in training).
    """

    symbols: int = 32

    name: ClassVar[str] = "reverse"
    test_lengths: ClassVar[tuple[int, ...]] = (64, 96, 128, 256, 512)

    def __post_init__(self) -> None:
        self._at_least("symbols", 2)

    @property
    def alphabet(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.symbols)))

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, self.symbols)
        mirrored = lengths[:, None] - 1 - torch.arange(longest, device=lengths.device)
        return Pieces(source, lengths, source.gather(1, mirrored.clamp(min=0)), lengths)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        return [TASK_TOKENS + symbol for symbol in reversed(self._source(prompt))] + [EOS]

    def sources(self, length: int) -> int:
        return self.symbols**length
