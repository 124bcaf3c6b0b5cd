"""Whether short sequences have kernels of their own; the result is exact either way."""

from __future__ import annotations

from contextlib import AbstractContextManager

from .modes import Mode

__all__ = ["SHORTS", "short", "short_mode"]

SHORTS = ("auto", "never")
_mode = Mode("way with short sequences", SHORTS)


def short(mode: str) -> AbstractContextManager[None]:
    """Chooses whether short sequences have kernels of their own, within a ``with`` block.

    >>> with epan.ops.triton.short("never"):
    ...     out = epan.attention(query, key, value, backend="triton")

    Parameters
    ----------
    mode: "auto" where they fit: float16 and bfloat16, up to 256 queries of which none sees a key beyond the 160th, head sizes
        up to 64, no mask tensor, no packed sequences, no statistics; "never" leaves them to the kernels for long ones.
        The Gaussian that torch's flash attention computes as well comes here up to head sizes of 32, and goes there with
        "never", which has other dropout masks and another treatment of non-finite numbers.

    Otherwise this changes time and rounding, nothing else. It holds for the forward passes that this thread or task starts;
    not for those that gradient checkpointing repeats in a thread of its own. A compiled function keeps the mode in which it
    was compiled.

    Raises
    ------
    EpanError: for an unknown mode.
    """
    return _mode.forced(mode)


def short_mode() -> str:
    """The mode in force."""
    return _mode.in_force()


# Read once when a function is compiled: torch.compile cannot trace it.
short_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]
