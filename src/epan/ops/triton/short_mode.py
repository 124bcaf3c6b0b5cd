"""Whether short sequences have kernels of their own; the result is exact either way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ...errors import unknown_name

__all__ = ["SHORTS", "short", "short_mode"]

SHORTS = ("auto", "never")
_chosen: ContextVar[str] = ContextVar("epan_triton_short", default="auto")


@contextmanager
def short(mode: str) -> Iterator[None]:
    """Chooses whether short sequences have kernels of their own, within a ``with`` block.

    >>> with epan.ops.triton.short("never"):
    ...     out = epan.attention(query, key, value, backend="triton")

    Parameters
    ----------
    mode: "auto" where they fit: float16 and bfloat16, up to 256 queries that see up to 160 keys, head sizes up to 64, no mask tensor, no packed sequences, no statistics; "never" leaves them to the kernels for long ones.

    This changes time and rounding, nothing else. It holds for the forward passes that this thread or task starts.

    Raises
    ------
    EpanError: for an unknown mode.
    """
    if mode not in SHORTS:
        raise unknown_name("way with short sequences", mode, SHORTS)
    token = _chosen.set(mode)
    try:
        yield
    finally:
        _chosen.reset(token)


def short_mode() -> str:
    """The mode in force."""
    return _chosen.get()
