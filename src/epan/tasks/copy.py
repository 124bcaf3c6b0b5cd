"""The copy task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["Copy"]


@dataclass(frozen=True)
class Copy(Task):
    """Write the source again.

    Source: L symbols, uniform and independent. Target: the same. Loss and score on the target and <eos>.

        >>> from epan import tasks
        >>> task = tasks.get("copy")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=6).tokens[0]))
        <bos> 21 14 30 22 0 13 <sep> 21 14 30 22 0 13 <eos>

    Parameters
    ----------
    symbols: size of the alphabet, at least 2.

    Raises
    ------
    EpanError: if ``symbols`` is out of range.

    Source: Vasylenko et al. 2506.16640 (32 symbols, lengths 32 to 64 in training).
    """

    symbols: int = 32

    name: ClassVar[str] = "copy"
    test_lengths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024, 2048, 4096)

    def __post_init__(self) -> None:
        self._at_least("symbols", 2)

    @property
    def alphabet(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.symbols)))

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, self.symbols)
        return Pieces(source, lengths, source, lengths)

    def solve(self, prompt: Sequence[int]) -> list[int]:
        return [TASK_TOKENS + symbol for symbol in self._source(prompt)] + [EOS]

    def sources(self, length: int) -> int:
        return self.symbols**length
