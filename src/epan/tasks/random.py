"""Counter-based random numbers: every number is a hash of where it stands, so there is no state to save or to share."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

__all__ = ["Stream", "mix", "without_waiting"]

# Constants of splitmix64, as signed 64-bit integers: torch has no unsigned product, and two's complement wraps alike.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_LOW32 = (1 << 32) - 1


def mix(state: Tensor) -> Tensor:
    """The finaliser of splitmix64, a bijection of 64-bit integers; ``state`` (int64) is overwritten and returned.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators" (variant 13 of Stafford).
    """
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # The shift of a signed integer copies its sign; the mask makes it logical.
        shifted = (state >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        state.bitwise_xor_(shifted)
        if factor != 1:
            state.mul_(factor)
    return state


def without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``; from pinned memory, so that nothing waits for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Stream:
    r"""The random numbers of the sequences ``first`` … ``first + batch - 1`` of one step.

    The number at (tag, sequence i, column j) is :math:`\text{mix}(r_i + (j+1)\gamma)` with :math:`r_i =
    \text{mix}(\kappa + i\gamma)`, γ the odd constant of splitmix64, and κ 64 bits of BLAKE2 over (name, seed, split,
    step, tag). It depends on nothing else: not on what was drawn before, not on the size of the batch, and, since all
    of it is integer arithmetic, not on the device.

    Parameters
    ----------
    name: name of the task.
    seed, step, split: which data; different ones give unrelated streams.
    first, batch: index of the first sequence, and how many of each step.
    device: where the tensors live.
    steps: how many steps, from ``step`` on; their sequences follow one another.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        step: int,
        split: str,
        first: int,
        batch: int,
        device: torch.device | str,
        steps: int = 1,
    ) -> None:
        self.name, self.seed, self.step, self.split, self.steps = name, seed, step, split, steps
        self.batch, self.device = batch * steps, torch.device(device)
        self._sequences = torch.arange(first, first + batch, device=self.device).repeat(steps)

    def key(self, tag: str, step: int | None = None) -> int:
        """κ: the 64-bit key of everything drawn under ``tag`` in a step, the first one if None."""
        words = repr((self.name, self.seed, self.split, self.step if step is None else step, tag)).encode()
        return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)

    def _keys(self, tag: str) -> int | Tensor:
        """κ of every sequence."""
        if self.steps == 1:
            return self.key(tag)
        keys = torch.tensor([self.key(tag, self.step + index) for index in range(self.steps)])
        return without_waiting(keys, self.device).repeat_interleave(self.batch // self.steps)

    def bits(self, tag: str, columns: int) -> Tensor:
        """64 random bits per sequence and column: (batch, columns) int64."""
        rows = mix(self._sequences * _STEP + self._keys(tag))
        return mix(rows[:, None] + torch.arange(1, columns + 1, device=self.device) * _STEP)

    def words(self, tag: str, columns: int) -> Tensor:
        """32 random bits per sequence and column, as integers in [0, 2³²): (batch, columns) int64."""
        return self.bits(tag, columns).bitwise_right_shift_(32).bitwise_and_(_LOW32)

    def integers(self, tag: str, columns: int, count: int | Tensor) -> Tensor:
        """Uniform integers in [0, count): (batch, columns) int64.

        ``count`` is at least 1 and below 2³¹, a number or a tensor that broadcasts to the result. A value's
        probability differs from 1/count by at most 2⁻³².
        """
        return self.words(tag, columns).mul_(count).bitwise_right_shift_(32)

    def distinct(self, tag: str, columns: int, population: int) -> Tensor:
        """Different integers of [0, population), drawn without replacement, in random order: (batch, columns) int64.

        Many columns: the head of a random permutation. Few: the first different values of a sequence drawn with
        replacement, which has the same distribution and costs O(columns log columns) instead of O(population).
        """
        if 2 * columns > population:
            return self.bits(tag, population).argsort(dim=1, stable=True)[:, :columns]
        drawn = columns + columns // 2 + 8
        while True:
            values = self.integers(tag, drawn, population)
            ordered, origin = values.sort(dim=1, stable=True)
            is_first = torch.ones_like(values, dtype=torch.bool)
            is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
            fresh = torch.empty_like(is_first).scatter_(1, origin, is_first)
            rank = fresh.cumsum(1)
            if bool((rank[:, -1] >= columns).all()):
                break
            # Longer draws begin with the same values, so the result does not depend on how many were needed.
            drawn *= 2
        place = torch.where(fresh & (rank <= columns), rank - 1, columns)
        return values.new_zeros(self.batch, columns + 1).scatter_(1, place, values)[:, :columns]
