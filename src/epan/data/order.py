"""In which order the windows of a text are seen: a permutation that is computed, not kept."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from ..tasks.random import mix

__all__ = ["permuted", "shift"]

_ROUNDS = 6
# An odd constant, as a signed integer: that of splitmix64.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)


def _key(words: tuple[object, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=8).digest(), "little", signed=True)


def permuted(numbers: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    r"""Epoch and window of the sequences ``numbers``, counted from the start of training.

    Sequence g belongs to epoch :math:`e = \lfloor g / n \rfloor` and has the window :math:`\pi_e(g \bmod n)`, where each
    :math:`\pi_e` is a permutation of the n windows: in an epoch every window comes once, in an order of its own. The
    permutation is a Feistel network of six rounds on :math:`\{0, …, a - 1\} \times \{0, …, b - 1\}` with :math:`ab \ge n`,
    walked until it arrives below n again, so that it needs no memory and any step can be asked for.

    Parameters
    ----------
    numbers: int64, on the CPU. count: n. seed: of the order.

    Returns
    -------
    Two int64 tensors like ``numbers``.

    Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    epoch, place = numbers // count, numbers % count
    keys = mix(epoch * _STEP + _key(("windows", seed, count)))
    wide = math.isqrt(count - 1) + 1
    high = -(-count // wide)
    result = _network(place, keys, wide, high)
    while bool((outside := result >= count).any()):
        result = torch.where(outside, _network(result, keys, wide, high), result)
    return epoch, result


def shift(epoch: Tensor, count: int, seed: int) -> Tensor:
    """Where in a ring of ``count`` tokens an epoch begins: int64 like ``epoch``."""
    return (mix(epoch * _STEP + _key(("shift", seed))) >> 1 & (1 << 62) - 1) % count


def _network(place: Tensor, keys: Tensor, wide: int, high: int) -> Tensor:
    """A permutation of 0 … wide · high − 1 for each key."""
    left, right = place // wide, place % wide
    for number in range(_ROUNDS):
        # In turn one half is moved by a hash of the other.
        if number % 2:
            left = (left + _hash(right, keys, number) % high) % high
        else:
            right = (right + _hash(left, keys, number) % wide) % wide
    return left * wide + right


def _hash(half: Tensor, keys: Tensor, number: int) -> Tensor:
    return mix(mix(half * _ROUNDS + number) ^ keys) >> 1 & (1 << 62) - 1
