"""How many keys carry weight: support size, density, empty rows, from the statistics that a model returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import torch

from epan.errors import EpanError

__all__ = ["RowStats", "SupportMeter", "allowed_keys", "empty_rows"]


class RowStats(Protocol):
    """What is read of ``epan.ops.Stats``: per query, each (B, H, L)."""

    @property
    def threshold(self) -> torch.Tensor: ...
    @property
    def support_size(self) -> torch.Tensor: ...
    @property
    def partition(self) -> torch.Tensor: ...


def allowed_keys(
    name: str, length: int, *, size: int | None = None, window: int | None = None, skip: int = 1
) -> torch.Tensor:
    """How many keys the query at each position i (from 0) may see, by the last part of a statistics key.

    attention: i + 1 (causal, with itself), at most window; contextual and long: max(0, i + 1 − skip) (those at least skip steps back); short:
    min(i, window) (the last ones before the query); persistent: size.

    Parameters
    ----------
    name: a key such as ``layers.0.contextual``.
    length: number of query positions.
    size: number of stored pairs of a persistent memory.
    window: span of a short-term memory, or of attention that sees the last steps alone.
    skip: distance to the newest pair of a contextual or long-term memory.

    Returns
    -------
    (length,) int64.

    Raises
    ------
    EpanError: a name of another kind, or a persistent or short-term memory without its size.
    """
    kind = name.rsplit(".", 1)[-1]
    positions = torch.arange(length)
    if kind == "attention":
        return positions + 1 if window is None else (positions + 1).clamp(max=window)
    if kind in ("contextual", "long"):
        return (positions + 1 - skip).clamp(min=0)
    if kind in ("short", "persistent"):
        span = window if kind == "short" else size
        if span is None:
            fix = "pass size= for a persistent and window= for a short-term memory"
            raise EpanError("The size of the memory is unknown", found=name, fix=fix)
        return positions.clamp(max=span) if kind == "short" else torch.full_like(positions, span)
    known = "names that end in attention, contextual, short, long or persistent"
    raise EpanError("Statistics of an unknown kind", found=name, allowed=known)


def empty_rows(stats: RowStats, allowed: torch.Tensor) -> torch.Tensor:
    """Queries that may see keys and give weight to none by the kernel alone: (B, H, L) bool.

    That is partition 0 with keys allowed. The Gaussian's partition is a log-sum-exp, which may be 0 by chance: its
    threshold −inf marks it, and it is never empty.
    """
    return (stats.partition == 0) & (allowed > 0) & (stats.threshold != -torch.inf)


class SupportMeter:
    """Averages of the statistics over batches.

    support_size: mean number of keys with weight per query and head.
    density: mean share of the allowed keys that have weight.
    empty_rows: share of queries that give weight to no key (``empty_rows``).
    tile_density: mean of ``epan.ops.Stats.tile_density``; only where the backend tells it for every batch.

    Queries at padding, and queries that may see no key at all, are left out.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    @classmethod
    def of(cls, names: Iterable[str], sums: torch.Tensor) -> SupportMeter:
        """The meter that :meth:`sums` describes."""
        meter = cls()
        meter._sums = dict(zip(names, sums, strict=True))
        return meter

    def sums(self) -> tuple[list[str], torch.Tensor]:
        """Names of the memories, and what was added up of each, (memories, 5) float64, on their device."""
        return [*self._sums], torch.stack([*self._sums.values()]) if self._sums else torch.zeros(0, 5)

    def add(self, name: str, stats: RowStats, valid: torch.Tensor, allowed: torch.Tensor) -> None:
        """Take in one batch of one memory.

        Parameters
        ----------
        name: the statistics key.
        stats: threshold, support_size and partition, each (B, H, L), and tile_density where it is known.
        valid: (B, L) bool, False at padding.
        allowed: (L,) or (B, L) integers, the keys each query may see.
        """
        support = stats.support_size
        allowed = allowed.to(support.device)
        allowed = allowed[:, None] if allowed.dim() == 2 else allowed
        counted = valid[:, None] & (allowed > 0)
        rows = counted.sum() * support.shape[1]
        share = support.double() / allowed.clamp(min=1)
        tiles = getattr(stats, "tile_density", None)
        sums = torch.stack(
            [
                (support.double() * counted).sum(),
                (share * counted).sum(),
                (empty_rows(stats, allowed) & counted).sum().double(),
                rows.double(),
                # Not known of one batch, it is not known of all.
                rows.new_full((), torch.nan, dtype=torch.float64)
                if tiles is None
                else (tiles.double() * counted).sum(),
            ]
        )
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def per_layer(self) -> dict[str, dict[str, float | None]]:
        """The averages of every memory; None where no query counted."""
        return {name: self._averages(sums) for name, sums in self._sums.items()}

    def overall(self) -> dict[str, float | None]:
        """The averages over all memories that grow with the sequence (all of them where there is no other)."""
        chosen = [sums for name, sums in self._sums.items() if not name.endswith("persistent")] or [
            *self._sums.values()
        ]
        return self._averages(torch.stack(chosen).sum(dim=0) if chosen else torch.zeros(5))

    @staticmethod
    def _averages(sums: torch.Tensor) -> dict[str, float | None]:
        support, share, empty, rows, tiles = sums.tolist()
        found = {"support_size": support, "density": share, "empty_rows": empty}
        if rows and not math.isnan(tiles):
            found["tile_density"] = tiles
        return {name: value / rows if rows else None for name, value in found.items()}
