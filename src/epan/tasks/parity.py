"""The parity task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EpanError
from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["Parity"]


@dataclass(frozen=True)
class Parity(Task):
    """Say whether the number of ones is odd (1) or even (0).

    Source: L bits, uniform and independent. Target: one bit; with ``running=True`` L bits, the parity of every
    prefix, which is the scratchpad that makes the task learnable one step at a time. Loss and score on the target and
    <eos>. Guessing is right half of the time.

        >>> from epan import tasks
        >>> task = tasks.get("parity")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=6).tokens[0]))
        <bos> 1 0 0 1 1 0 <sep> 1 <eos>

    Parameters
    ----------
    running: ask for the parity of every prefix instead of the final one.

    Raises
    ------
    EpanError: if ``running`` is neither True nor False.

    Source: the parity check of Delétang et al. 2207.02098; running parity as in the scratchpads of Anil et al.
    2207.04901. The generator published with 2506.16640 writes 1 for even.
    """

    running: bool = False

    name: ClassVar[str] = "parity"

    def __post_init__(self) -> None:
        if not isinstance(self.running, bool):
            raise EpanError(
                "Option 'running' of the task 'parity' is a switch", found=self.running, allowed="True or False"
            )

    @property
    def alphabet(self) -> tuple[str, ...]:
        return ("0", "1")

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        source = stream.integers("source", longest, 2)
        prefixes = source.cumsum(1).bitwise_and_(1)
        if self.running:
            return Pieces(source, lengths, prefixes, lengths)
        return Pieces(source, lengths, prefixes.gather(1, lengths[:, None] - 1), torch.ones_like(lengths))

    def solve(self, prompt: Sequence[int]) -> list[int]:
        bits = self._source(prompt)
        ends = range(1, len(bits) + 1) if self.running else [len(bits)]
        return [TASK_TOKENS + bits[:end].count(1) % 2 for end in ends] + [EOS]

    def sources(self, length: int) -> int:
        return 2**length
