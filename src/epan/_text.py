"""Numbers as people read them: one rule for the console, the report and its figures."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["duration", "listing", "percent"]


def percent(share: float) -> str:
    """``0.984`` → ``98.4``, ``1.0`` → ``100``; never rounded up to 100 or down to 0: ``>99.9``, ``<0.1``."""
    value = 100 * share
    if value in (0.0, 100.0):
        return f"{value:.0f}"
    if 99.9 < value < 100:
        return ">99.9"
    return "<0.1" if 0 < value < 0.1 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """``75`` → ``1:15``, ``4000`` → ``1:06:40``; ``-`` for what is no span of time."""
    if not 0 <= seconds < float("inf"):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def listing(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
