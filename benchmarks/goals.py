"""What the fused kernels are to reach: ratios within one group of a run, so that both sides ran in turn on one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["EPAN", "GOALS", "TITLES", "Goal", "Record", "Verdict", "groups_of", "judge", "verdicts"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """``other`` over ``ours`` of one quantity must be at least ``least``.

    Parameters
    ----------
    part: heading under which it is listed. text: what is compared.
    ours, other: fields that the two records must have, beside those in ``both``; without ``other`` the ratio is 1 over ours.
    quantity: what is divided; a function of a record for what is no field.
    """

    part: str
    text: str
    least: float
    ours: Mapping[str, Any]
    other: Mapping[str, Any]
    both: Mapping[str, Any] = field(default_factory=dict)
    quantity: str | Callable[[Record], float | None] = "forward_backward_ms"


@dataclass(frozen=True)
class Verdict:
    """A goal and the newest ratio that was measured for it; None if there is none."""

    goal: Goal
    ratio: float | None
    ours: Record | None = None
    other: Record | None = None

    @property
    def reached(self) -> bool | None:
        return None if self.ratio is None else self.ratio >= self.goal.least


EPAN = {"name": "epan", "kernel": "biweight", "normalization": "adaptive"}
TITLES = {"adasplash2": "AdaSplash-2", "cudnn": "cuDNN", "fa4": "FlashAttention-4", "fa2": "FlashAttention-2"}
# Clusters → least ratio, at N = 16,384, forward and backward.
SPEED = {
    "adasplash2": {1: 1.2, 4: 1.8, 16: 3.0, 64: 4.0},
    "cudnn": {1: 0.5, 4: 1.3, 16: 2.5, 64: 3.5},
    "fa4": {1: 0.4, 4: 1.1, 16: 2.0, 64: 3.0},
}


def _speed() -> Iterable[Goal]:
    for d in (64, 128):
        for rival, leasts in SPEED.items():
            for M, least in leasts.items():
                if (rival, M, d) == ("adasplash2", 64, 128):
                    least = 3.5
                both = {"workload": "segments", "M": M, "N": 16384, "d": d}
                yield Goal(
                    "forward + backward", f"{TITLES[rival]}, d = {d}, M = {M}", least, EPAN, {"name": rival}, both
                )
    both = {"workload": "segments", "M": 64, "N": 16384, "d": 64}
    for rival, least in (("adasplash2", 5.0), ("fa4", 1.3)):
        text = f"{TITLES[rival]}, d = 64, M = 64"
        yield Goal("forward alone", text, least, EPAN, {"name": rival}, both, "forward_ms")


def _family() -> Iterable[Goal]:
    for d in (64, 128):
        both = {"workload": "segments", "M": 4, "N": 16384, "d": d}
        for kernel in ("epanechnikov", "triweight"):
            text = f"biweight's time over {kernel}'s, d = {d}, M = 4"
            yield Goal("other kernels", text, 1 / 1.25, {**EPAN, "kernel": kernel}, EPAN, both)
        for rule in ("anchored", "fixed"):
            for M, least in ((1, 1.0), (4, 2.0), (16, 4.0)):
                both = {"workload": "segments", "M": M, "N": 16384, "d": d}
                text = f"FlashAttention-2 over {rule}, d = {d}, M = {M}"
                yield Goal("other rules", text, least, {**EPAN, "normalization": rule}, {"name": "fa2"}, both)


def _room(record: Record) -> float | None:
    """Extra memory in units of q, k, v and out together."""
    if record.get("memory_mb") is None:
        return None
    width = {"bfloat16": 2, "float16": 2, "float32": 4}[record["dtype"]]
    tensors = 4 * record["B"] * record["H"] * record["N"] * record["d"] * width / 2**20
    return record["memory_mb"] / tensors


def _rest() -> Iterable[Goal]:
    both = {"workload": "segments", "N": 131072, "d": 64}
    yield Goal("long", "q, k, v, out over the extra memory, N = 131,072", 1 / 3, EPAN, {}, both, _room)
    for N in (1024, 2048):
        both = {"workload": "segments", "N": N, "d": 64, "B": 4, "H": 16}
        yield Goal("short", f"FlashAttention-2, N = {N:,}, B·H = 64", 0.5, EPAN, {"name": "fa2"}, both)
    ours, other = {**EPAN, "workload": "sink"}, {**EPAN, "workload": "spread"}
    yield Goal("sink column", "the same tiles without the column over with it", 1 / 1.3, ours, other, {"N": 16384})


GOALS: tuple[Goal, ...] = (*_speed(), *_family(), *_rest())


def _has(record: Record, wanted: Mapping[str, Any]) -> bool:
    return all(record.get(name) == value for name, value in wanted.items())


def groups_of(records: Sequence[Record]) -> list[list[Record]]:
    """Records that were timed alternately, the newest group first."""
    groups: dict[tuple[Any, Any], list[Record]] = {}
    for record in records:
        groups.setdefault((record["run"], record["group"]), []).append(record)
    return sorted(groups.values(), key=lambda group: (str(group[0]["time"]), group[0]["group"]), reverse=True)


def verdicts(records: Sequence[Record], goals: Sequence[Goal] = GOALS) -> list[Verdict]:
    """For each goal the ratio in the newest group that has both sides."""
    newest = groups_of(records)
    return [next((found for group in newest if (found := judge(goal, group))), Verdict(goal, None)) for goal in goals]


def judge(goal: Goal, group: Sequence[Record]) -> Verdict | None:
    """The ratio of one group; None if it lacks one of the sides."""
    quantity = goal.quantity
    get = quantity if callable(quantity) else lambda record: record.get(quantity)
    usable = [record for record in group if _has(record, goal.both) and get(record) is not None]
    ours = next((record for record in usable if _has(record, goal.ours)), None)
    if ours is None:
        return None
    if not goal.other:
        return Verdict(goal, 1 / get(ours), ours)
    other = next((record for record in usable if _has(record, goal.other)), None)
    return None if other is None else Verdict(goal, get(other) / get(ours), ours, other)
