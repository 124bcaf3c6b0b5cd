"""Whether products of 8-bit integers may find the tiles with weight; the result is exact either way."""

from __future__ import annotations

from contextlib import AbstractContextManager

from .modes import Mode

__all__ = ["SCREENS", "screen", "screening"]

SCREENS = ("auto", "always", "never")
_mode = Mode("screen", SCREENS)


def screen(mode: str) -> AbstractContextManager[None]:
    """Forces how the fused kernels of the adaptive rule find the tiles with weight, within a ``with`` block.

    >>> with epan.ops.triton.screen("never"):
    ...     out = epan.attention(query, key, value, backend="triton")

    Parameters
    ----------
    mode: "auto" takes 8-bit products for every block of queries where their error bars are fine enough, and the
        scores themselves elsewhere; "always" takes them however wide the bars are, "never" not at all. Without effect
        where 8-bit products have no use: other rules, euclidean similarity, mask tensors, ALiBi, head sizes up to 16, short
        sequences (see :func:`short`).

    A key is left out only if its largest possible score says so, so this changes time and rounding, nothing else. It holds
    for the forward passes that this thread or task starts, compiled ones too.

    Raises
    ------
    EpanError: for an unknown mode.
    """
    return _mode.forced(mode)


def screening() -> str:
    """The mode in force."""
    return _mode.in_force()
