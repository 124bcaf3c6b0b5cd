"""One group of methods on one device: errors, memory and times, as records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accuracy import density, errors, thresholds, tile_map
from cells import Entry, Group
from epan._timing import alternate, captured, peak_memory, quartiles
from epan.training.environment import device_name
from keeping import versions
from problem import Problem
from rivals import RIVALS, Rival
from workloads import Inputs, make

__all__ = ["Clock", "Context", "DeviceLost", "common_fields", "head", "identity", "measure", "planned"]

# Seconds that the timing of a group and what belongs to it may take beside the tuning of its methods.
GROUP_SECONDS = 25.0


class DeviceLost(RuntimeError):
    """The GPU answers no more, so that nothing else can be measured in this process."""


@dataclass
class Clock:
    """The seconds that are left of a budget; None is no limit."""

    budget: float | None
    start: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return float("inf") if self.budget is None else self.budget - (time.monotonic() - self.start)


@dataclass
class Context:
    """What all groups of one run share."""

    device: torch.device
    dtype: torch.dtype
    clock: Clock
    common: dict[str, Any]
    seconds: float = 4.0
    graphs: bool = True
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    tuned: set[tuple[str, int, int]] = field(default_factory=set)


@dataclass
class _Running:
    """A method that has been prepared, and what is known of it."""

    label: str
    rival: Rival
    record: dict[str, Any]
    forward: Callable[[], object]
    both: Callable[[], object] | None


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two records measurements of the same thing."""
    names = ("name", "kernel", "normalization", "workload", "M", "B", "H", "N", "d", "dtype", "causal", "device")
    return tuple(record.get(name) for name in names)


def _problem(entry: Entry, group: Group, context: Context) -> tuple[Problem, Problem]:
    """(what is asked for, what the method computes)."""
    asked = Problem(group.shape, context.dtype, context.device, entry.kernel, entry.normalization)
    return asked, asked.gaussian() if RIVALS[entry.rival].dense else asked


def head(entry: Entry, group: Group, context: Context) -> dict[str, Any]:
    """The part of a record that is known before anything is measured."""
    _, problem = _problem(entry, group, context)
    order = problem.order
    return {
        "name": entry.rival, "kernel": problem.kernel, "normalization": problem.normalization,
        "order": None if order == float("inf") else order, "workload": entry.workload, "M": entry.M,
        **group.shape._asdict(), "dtype": str(context.dtype).removeprefix("torch."), "causal": problem.causal,
        "device": context.common["device"],
    }  # fmt: skip


def planned(group: Group, context: Context, names: Iterable[str] | None) -> tuple[list[Entry], dict[str, str]]:
    """(entries that can be timed, name → reason of those that cannot); ``names`` restricts the rivals of epan."""
    chosen, reasons = [], {}
    wanted = None if names is None else {"epan", *names}
    for entry in group.entries:
        rival = RIVALS[entry.rival]
        if wanted is not None and entry.rival not in wanted:
            continue
        reason = rival.missing(context.device) or rival.refuses(_problem(entry, group, context)[0])
        if reason is None:
            chosen.append(entry)
        else:
            reasons[entry.rival] = reason
    return chosen, reasons


def measure(group: Group, entries: list[Entry], context: Context) -> list[dict[str, Any]]:
    """The records of ``entries``, which share a ``group`` id: their times come from alternating calls.

    A method that fails has a record with ``failed`` in place of times.

    Raises
    ------
    DeviceLost: after a failure from which the GPU does not recover.
    """
    now = time.time()
    mark = {"group": round(now, 3), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))}
    inputs: dict[tuple[str, int], Inputs] = {}
    tiles: dict[tuple[Any, ...], float] = {}
    records, running = [], []
    for entry in entries:
        rival = RIVALS[entry.rival]
        tuning = (entry.rival, group.shape.N, group.shape.d)
        need = rival.tuning_s if tuning not in context.tuned else 0.0
        if context.clock.left() < need + GROUP_SECONDS:
            context.say(f"  {entry.rival}: not enough time left for it ({need + GROUP_SECONDS:.0f} s)")
            continue
        place = (entry.workload, entry.M)
        if place not in inputs:
            inputs[place] = make(*place, group.shape, context.dtype, context.device)
        record = {**head(entry, group, context), "purpose": group.name, **mark, **context.common}
        if rival.package is not None:
            record["versions"] = {**record["versions"], rival.package: rival.version()}
        records.append(record)
        start = time.monotonic()
        try:
            made = _prepare(entry, group, context, inputs[place], record, tiles)
        except Exception as error:
            _fail(record, error, context)
            continue
        context.tuned.add(tuning)
        running.append(made)
        shown = ", ".join(f"{name} {value:.1e}" for name, value in record["error"].items())
        context.say(f"  {made.label}: error {shown} ({time.monotonic() - start:.0f} s)")
    try:
        _time(running, group, context)
    except Exception as error:
        for made in running:
            if "forward_ms" not in made.record or (group.backward and "forward_backward_ms" not in made.record):
                _fail(made.record, error, context)
    return records


def _prepare(
    entry: Entry,
    group: Group,
    context: Context,
    inputs: Inputs,
    record: dict[str, Any],
    tiles: dict[tuple[Any, ...], float],
) -> _Running:
    """Builds, checks and weighs one method."""
    rival = RIVALS[entry.rival]
    _, problem = _problem(entry, group, context)
    key = (entry.workload, entry.M, problem.kernel, problem.normalization)
    if key not in tiles:
        tiles[key] = 1.0 if rival.dense else density(problem, tile_map(problem, inputs, thresholds(problem, inputs)))
    record["tile_density"] = _short(tiles[key])
    method = rival.prepare(problem, inputs)
    found, eager = errors(problem, inputs, method, gradients=group.backward and rival.gradients)
    record["error"] = {name: _short(value) for name, value in found.items()}
    record["error_eager"] = {name: _short(value) for name, value in eager.items()}
    forward, both = _calls(method, inputs)
    calls = both if group.backward else forward
    memory = peak_memory(calls, context.device)
    record["memory_mb"] = None if memory is None else _short(memory)
    rule = "" if rival.dense else f" {problem.kernel} {problem.normalization}"
    label = f"{entry.rival}{rule} {entry.workload} M={entry.M}"
    return _Running(label, rival, record, forward, both if group.backward else None)


def _calls(
    method: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Inputs
) -> tuple[Callable[[], object], Callable[[], object]]:
    """(forward, forward and backward) as functions without arguments."""
    leaves = [t.detach().requires_grad_() for t in inputs[:3]]

    def forward() -> Tensor:
        with torch.no_grad():
            return method(*leaves)

    def both() -> object:
        return torch.autograd.grad(method(*leaves), leaves, inputs.grad)

    return forward, both


def _time(running: list[_Running], group: Group, context: Context) -> None:
    """Adds medians and quartiles, in ms, to the records."""
    if not running:
        return
    seconds = min(context.seconds, max(1.0, context.clock.left() / 6))
    jobs = {"forward": {made.label: made.forward for made in running}}
    if group.backward:
        jobs["forward_backward"] = {made.label: made.both for made in running if made.both is not None}
    for name, functions in jobs.items():
        _store(running, name, alternate(functions, context.device, seconds))
    if not context.graphs or context.device.type != "cuda":
        return
    for name, functions in jobs.items():
        replays = {}
        for made in running:
            if not made.rival.graphs or context.clock.left() < 2.0:
                continue
            try:
                replays[made.label] = captured(functions[made.label], context.device)
            except Exception as error:
                context.say(f"  {made.label}: no CUDA graph ({_line(error)})")
                _check_device(context)
        if replays:
            _store(running, f"{name}_graph", alternate(replays, context.device, seconds / 2))
        # The memory of the graphs goes back before the next ones are made.
        replays.clear()
        torch.cuda.empty_cache()


def _store(running: list[_Running], name: str, times: dict[str, list[float]]) -> None:
    for made in running:
        if made.label in times:
            middle, low, high = quartiles(times[made.label])
            made.record[f"{name}_ms"] = _short(middle)
            made.record[f"{name}_quartiles"] = [_short(low), _short(high)]
            made.record[f"{name}_calls"] = len(times[made.label])


def _fail(record: dict[str, Any], error: Exception, context: Context) -> None:
    record["failed"] = _line(error)
    context.say(f"  {record['name']}: failed, {record['failed']}")
    _check_device(context)


def _check_device(context: Context) -> None:
    if context.device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(context.device)
        torch.cuda.empty_cache()
    except RuntimeError as lost:
        raise DeviceLost(f"the GPU answers no more: {_line(lost)}") from lost


def _line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:199] + "…"


def _short(value: float) -> float:
    """Four significant digits, which is more than is repeatable."""
    return float(f"{value:.4g}")


def common_fields(device: torch.device, run: str, commit: str | None) -> dict[str, Any]:
    """What all records of a run share."""
    return {"run": run, "commit": commit, "device": device_name(device), "versions": versions()}
