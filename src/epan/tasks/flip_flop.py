"""The flip-flop task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import EpanError
from .base import EOS, TASK_TOKENS, Pieces, Task
from .random import Stream

__all__ = ["FlipFlop"]

_WRITE, _IGNORE, _READ = range(2, 5)


@dataclass(frozen=True)
class FlipFlop(Task):
    """Remember one bit: what does the last read return?

    A string of the flip-flop language of L tokens: L // 2 instructions (w write, i ignore, r read), each followed by
    a bit. The first instruction is w, the last is r, the others are drawn independently: w with probability
    ``write``, r with ``read``, else i. Bits after w and i are uniform; the bit after r is that of the latest w.
    Source: the string without its last bit. Target: that bit. Loss and score on the target and <eos>. Guessing is
    right half of the time.

        >>> from epan import tasks
        >>> task = tasks.get("flip-flop")
        >>> print(task.decode(task.sample(seed=0, step=0, batch=1, lengths=16).tokens[0]))
        <bos> w 1 w 0 i 1 i 0 i 0 w 1 w 1 r <sep> 1 <eos>

    Parameters
    ----------
    write: probability of a write, above 0.
    read: probability of a read before the end; 0 for the variant of 2506.16640, which reads only at the end.

    Raises
    ------
    EpanError: if the probabilities are out of range or add to more than 1.

    Source: Liu et al. 2306.00946, definition 1: FFL(0.8), that is ``write=0.1, read=0.1``; its dense and sparse
    test strings FFL(0.1) and FFL(0.98) are ``write=read=0.45`` and ``write=read=0.01``. There every read is scored,
    here the last.
    """

    write: float = 0.1
    read: float = 0.1

    name: ClassVar[str] = "flip-flop"
    unit: ClassVar[str] = "tokens of the string, two per instruction"
    test_lengths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512, 1024, 2048, 4096)

    def __post_init__(self) -> None:
        for option in ("write", "read"):
            value = getattr(self, option)
            known = isinstance(value, int | float) and not isinstance(value, bool)
            if not known or not 0 <= value <= 1 or (option == "write" and value == 0):
                allowed = "above 0, at most 1" if option == "write" else "0 to 1"
                raise EpanError(
                    f"Option {option!r} of the task 'flip-flop' is no probability", found=value, allowed=allowed
                )
        if self.write + self.read > 1:
            raise EpanError("write + read of the task 'flip-flop' exceeds 1", found=(self.write, self.read))

    @property
    def shortest(self) -> int:
        return 4

    @property
    def alphabet(self) -> tuple[str, ...]:
        return ("0", "1", "w", "i", "r")

    def generate(self, lengths: Tensor, longest: int, stream: Stream) -> Pieces:
        count, most = lengths // 2, longest // 2
        index = torch.arange(most, device=lengths.device)
        drawn = stream.words("instruction", most)
        below_write, below_read = (round(share * 2**32) for share in (self.write, self.write + self.read))
        kind = torch.where(drawn < below_write, _WRITE, torch.where(drawn < below_read, _READ, _IGNORE))
        kind[:, 0] = _WRITE
        kind.scatter_(1, count[:, None] - 1, _READ)
        bits = stream.integers("bit", most, 2)
        latest_write = torch.where(kind == _WRITE, index, 0).cummax(1).values
        bits = torch.where(kind == _READ, bits.gather(1, latest_write), bits)
        string = torch.stack((kind, bits), dim=2).flatten(1)
        answer = bits.gather(1, count[:, None] - 1)
        return Pieces(string[:, :-1], 2 * count - 1, answer, torch.ones_like(count))

    def solve(self, prompt: Sequence[int]) -> list[int]:
        string = self._source(prompt)
        register: int | None = None
        for position in range(0, len(string) - 1, 2):
            if string[position] == _WRITE:
                register = string[position + 1]
        if register is None or string[-1] != _READ or len(string) % 2 == 0:
            raise EpanError("This is no flip-flop string", fix="begin with a write and end with a read")
        return [TASK_TOKENS + register, EOS]
