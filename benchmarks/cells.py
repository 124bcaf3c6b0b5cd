"""What is timed: groups of methods that run in turn on inputs of one shape, and presets of groups."""

from __future__ import annotations

from dataclasses import dataclass

from workloads import Shape

__all__ = ["PRESETS", "Entry", "Group"]


@dataclass(frozen=True)
class Entry:
    """One method on one workload. A dense rival computes the Gaussian, whatever ``kernel`` says."""

    rival: str
    workload: str
    M: int
    kernel: str = "biweight"
    normalization: str = "adaptive"


@dataclass(frozen=True)
class Group:
    """Entries that are timed alternately. ``name`` says what the group is for."""

    name: str
    shape: Shape
    entries: tuple[Entry, ...]
    backward: bool = True


FAST = ("fa2", "cudnn", "fa4", "adasplash2")
LENGTHS = tuple(1024 << step for step in range(8))
RULES = ("anchored", "fixed")


def _heads(d: int) -> int:
    """As many heads as make 1024 channels."""
    return 1024 // d


def _targets() -> list[Group]:
    groups = []
    for d in (64, 128):
        for M in (1, 4, 16, 64):
            entries = [Entry("epan", "segments", M)]
            if M == 4:
                entries += [Entry("epan", "segments", M, kernel) for kernel in ("epanechnikov", "triweight")]
            if M < 64:
                entries += [Entry("epan", "segments", M, normalization=rule) for rule in RULES]
            entries += [Entry(rival, "segments", M) for rival in FAST]
            groups.append(Group("main", Shape(1, _heads(d), 16384, d), tuple(entries)))
    for N in (1024, 2048):
        entries = [Entry(rival, "segments", 4) for rival in ("epan", "fa2", "cudnn", "fa4")]
        groups.append(Group("short", Shape(4, 16, N, 64), tuple(entries)))
    # A straggler would show in the backward pass for the keys, where one column holds every query block.
    sink = (Entry("epan", "sink", 16), Entry("epan", "spread", 16))
    groups.append(Group("sink", Shape(1, 16, 16384, 64), sink))
    return groups + _memory()


def _memory() -> list[Group]:
    entries = [Entry(rival, "segments", 16) for rival in ("epan", "fa2", "cudnn")]
    return [Group("memory", Shape(1, 4, 131072, 64), tuple(entries))]


def _lengths() -> list[Group]:
    """Every length with about the same number of tokens up to 16,384, then one sequence."""
    rivals = ("epan", *FAST, "flex", "entmax", "eager")
    return [
        Group("lengths", Shape(max(1, 16384 // N), 16, N, 64), tuple(Entry(rival, "segments", 16) for rival in rivals))
        for N in LENGTHS
    ]


def _workloads() -> list[Group]:
    rivals = ("epan", *FAST, "flex", "flex_threshold", "adasplash1")
    cases = (("segments", 4), ("segments", 16), ("trained", 16), ("unit", 32), ("gaussian", 1))
    return [
        Group("workloads", Shape(1, 16, 16384, 64), tuple(Entry(rival, workload, M) for rival in rivals))
        for workload, M in cases
    ]


def _batches() -> list[Group]:
    """Batches of many short sequences of narrow heads, as small models train on."""
    kinds = (("biweight", "adaptive"), ("biweight", "anchored"), ("biweight", "fixed"), ("gaussian", "adaptive"))
    entries = tuple(
        Entry(rival, "unit", 12, kernel, rule) for kernel, rule in kinds for rival in ("epan", "epan_long")
    ) + tuple(Entry(rival, "unit", 12) for rival in ("fa2", "cudnn"))
    return [Group("batches", Shape(256, 8, N, 16), entries) for N in (64, 90, 130)]


def _tiny() -> list[Group]:
    """Every part of the machinery in a few seconds, also on a CPU; the times mean nothing."""
    shape = Shape(1, 2, 256, 32)
    rivals = ("epan", "epan_tiled", "eager", "sdpa", "entmax", *FAST, "flex_threshold")
    entries = [Entry(rival, "segments", 4) for rival in rivals]
    entries += [
        Entry("epan_tiled", "segments", 4, "triweight"),
        Entry("epan_tiled", "segments", 4, "biweight", "fixed"),
    ]
    marked = (Entry("epan_tiled", "sink", 4), Entry("epan_tiled", "spread", 4))
    return [Group("main", shape, tuple(entries)), Group("sink", shape, marked)]


PRESETS = {
    "targets": _targets(),
    "lengths": _lengths(),
    "workloads": _workloads(),
    "memory": _memory(),
    "batches": _batches(),
    "tiny": _tiny(),
}
PRESETS["all"] = PRESETS["targets"] + PRESETS["lengths"] + PRESETS["workloads"]
