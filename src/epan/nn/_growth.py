"""A cache that grows by a few positions at a time, without copying the others each time."""

from __future__ import annotations

import torch
from torch import Tensor

from .._modes import is_traced

__all__ = ["append"]

# Positions that are free after a copy: a share of those that are taken, at least so many.
_SHARE, _LEAST = 0.5, 64


class _Room:
    """Memory for more positions than are taken; ``taken`` counts those of the longest tensor in it."""

    def __init__(self, past: Tensor, length: int) -> None:
        size = list(past.shape)
        size[2] = length + max(_LEAST, int(_SHARE * length))
        self.memory = past.new_empty(size)
        self.memory[:, :, : past.shape[2]] = past
        self.taken = past.shape[2]

    def fits(self, past: Tensor, length: int) -> bool:
        """Whether positions behind ``past`` are free: not if another continuation of it took them."""
        foreign = self.memory.is_inference() and not torch.is_inference_mode_enabled()
        return self.taken == past.shape[2] and length <= self.memory.shape[2] and not foreign


def append(past: Tensor, new: Tensor) -> Tensor:
    """``past`` (B, H, s, D) and behind it ``new`` (B, H, t, D); both stay as they are.

    Without gradient the result lies in memory with room for what comes next, so that n positions appended one by one cost
    O(n) copies, not O(n²).
    """
    if past.shape[2] == 0:
        return new
    if torch.is_grad_enabled() or is_traced() or past.dtype != new.dtype:
        return torch.cat([past, new], dim=2)
    length = past.shape[2] + new.shape[2]
    room = vars(past).get("_room")
    if room is None or not room.fits(past, length):
        room = _Room(past, length)
    room.memory[:, :, past.shape[2] : length] = new
    room.taken = length
    grown = room.memory[:, :, :length]
    vars(grown)["_room"] = room
    return grown
