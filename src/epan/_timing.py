"""Times of several functions beside each other, on any device: in turn, so that a drift of the clock hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["alternate", "captured", "peak_memory", "quartiles"]

# More than the second-level cache of any GPU: writing it makes every call start from main memory.
_FLUSH_BYTES = 256 << 20


def alternate(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    *,
    least: int = 5,
    most: int = 200,
) -> dict[str, list[float]]:
    """Milliseconds of every call, round by round: A B C, B C A, C A B, …

    Parameters
    ----------
    functions: name → what to time; each is called twice before the first round.
    device: where they compute. On a GPU the times are those between CUDA events, after a write that empties the cache.
    seconds: how long the rounds may take in all; at least ``least`` and at most ``most`` of them are made.
    """
    for function in functions.values():
        for _ in range(2):
            function()
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    on_gpu = device.type == "cuda"
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=device) if on_gpu else None
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end, done = time.monotonic() + seconds, 0
        while done < least or (done < most and time.monotonic() < end):
            first = done % len(names)
            events = {}
            for name in names[first:] + names[:first]:
                if flush is None:
                    start = time.perf_counter()
                    functions[name]()
                    times[name].append((time.perf_counter() - start) * 1e3)
                    continue
                flush.zero_()
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                functions[name]()
                after.record()
                events[name] = before, after
            if flush is not None:
                torch.cuda.synchronize(device)
            for name, (before, after) in events.items():
                times[name].append(before.elapsed_time(after))
            done += 1
    finally:
        if collecting:
            gc.enable()
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """(median, lower quartile, upper quartile)."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return float(middle), float(low), float(high)


def peak_memory(function: Callable[[], object], device: torch.device) -> float | None:
    """MiB of GPU memory that a call takes at its peak beyond what was taken before; None on other devices."""
    if device.type != "cuda":
        return None
    function()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del result
    return peak / 2**20


def captured(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A function that replays the GPU work of ``function`` from a CUDA graph, without the cost of launching it.

    Raises
    ------
    RuntimeError: what ``function`` does cannot be captured.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The results must outlive the capture: their memory belongs to the graph.
    with torch.cuda.graph(graph):
        kept = function()

    def replay(kept: object = kept) -> object:
        graph.replay()
        return kept

    return replay
