"""The search for launch parameters: candidates, their time on the GPU, and the table in force; ``epan bench tune``."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ...kernels import Biweight
from ...masks import Masking
from ...normalizations import Adaptive
from . import launch, parameters
from .parameters import DTYPES, NAMES, Config
from .support import MAX_SIZE

__all__ = ["SCHEDULES", "candidates", "load", "measure", "save"]

#: The kernels that are tuned; what merges partial sums takes no time worth a search.
SCHEDULES = ("prepare", "sweep", "attend", "by_rows", "by_columns")
_FORWARD = ("prepare", "sweep", "attend")
# Tokens in segments of 256, each of one of four clusters: about a quarter of the tiles below the diagonal carry weight.
_LENGTH, _SEGMENT, _CLUSTERS, _SPREAD = 8192, 256, 4, 0.85
_MOST_CALLS = 200


def candidates(schedule: str) -> list[Config]:
    """Launch parameters that may be the fastest of a kernel, for any head size and dtype.

    Parameters
    ----------
    schedule: one of :data:`SCHEDULES`.
    """
    choices: dict[str, list[Config]] = {
        "prepare": [{"ROWS": rows} for rows in (16, 32, 64)],
        "sweep": [{}],
        "attend": [{"HALVES": halves, "SPLIT": split} for halves in (1, 2) for split in (1, 2)],
        "by_rows": [
            {"HALVES": halves, "SPLIT": split, "RC": 32, "CC": 32}
            for halves, split in ((1, 2), (1, 4), (2, 1), (2, 2), (2, 4))
        ],
        "by_columns": [
            {"T": turned, "HALVES": halves, "SPLIT": split}
            for turned in (False, True)
            for halves, split in ((1, 2), (2, 1), (2, 2), (4, 2), (4, 4))
        ],
    }
    # Each is compiled, which takes seconds, so that not everything can be tried.
    stages = {"prepare": (1,), "sweep": (2, 3, 4), "attend": (1, 2), "by_rows": (1, 2), "by_columns": (2, 3)}
    # Registers a thread at most: fewer let two blocks share a multiprocessor.
    registers = {"sweep": (None, 128), "attend": (None, 128), "by_rows": (None, 168)}
    return [
        {**choice, "num_warps": warps, "num_stages": stage, **({} if most is None else {"maxnreg": most})}
        for choice, warps, stage, most in itertools.product(
            choices[schedule], (4, 8), stages[schedule], registers.get(schedule, (None,))
        )
    ]


def load() -> dict[str, Config]:
    """The parameters in force for every kernel, head size and dtype: those of the user's file above those that epan brings."""
    shipped = {
        f"{kernel}/{size}/{name}": launch.shipped(kernel, launch.padded(size), dtype)
        for kernel in NAMES
        for size in range(1, MAX_SIZE + 1)
        for name, dtype in DTYPES.items()
    }
    return {**shipped, **parameters.in_force()}


def save(path: Path, found: dict[str, Config]) -> None:
    """Adds ``found`` to the file at ``path``, in one step; this process uses it from its next call on.

    Raises
    ------
    ValueError: an entry that no launch could use.
    """
    parameters.save(path, found)


def measure(schedule: str, size: int, dtype: torch.dtype, config: Config, *, seconds: float) -> float:
    """Milliseconds on the GPU of one kernel alone, the mean of some calls; infinite if its parts do not divide a tile.

    Parameters
    ----------
    schedule: one of :data:`SCHEDULES`, in the causal adaptive rule with the biweight kernel on 8,192 tokens, of which each
        sees about a quarter of the tiles of 128 keys.
    size: the head size; 16 heads of 64, 8 of 128, and so on.
    seconds: for how long it is called.

    Raises
    ------
    Exception: what Triton raises for parameters that the GPU cannot take.
    """
    if not parameters.fits(config, dtype):
        return math.inf
    q, k, v, scale, state = _inputs(size, dtype)
    problem = _problem(q)
    key = f"{schedule}/{size}/{str(dtype).removeprefix('torch.')}"

    def call() -> object:
        if schedule in _FORWARD:
            return launch.forward(problem, q, k, v, scale, scale, False)
        return launch.backward(problem, v, q, k, v, scale, scale, state.out, state.saved, {"q", "k", "v"})

    with parameters.instead(key, config):
        return _device_ms(call, schedule, seconds)


def _problem(q: Tensor) -> launch.Problem:
    length = q.shape[2]
    return launch.Problem(Masking(length, length, None, None, 0), Biweight(), Adaptive(), False, 0.0, True)


@functools.lru_cache(maxsize=1)
def _inputs(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, launch.Forward]:
    """(q, k, v, scale, what the forward pass leaves); one set at a time is kept for all candidates."""
    heads = max(1, 1024 // launch.padded(size))
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    centres = torch.nn.functional.normalize(normal(1, heads, _CLUSTERS, size), dim=-1)
    cluster = torch.randint(_CLUSTERS, (1, heads, _LENGTH // _SEGMENT), device="cuda", generator=generator)
    place = cluster.repeat_interleave(_SEGMENT, -1).unsqueeze(-1).expand(-1, -1, -1, size)
    # Rows of norm about √D, as a scale of 1/√D expects.
    noise = math.sqrt((1 - _SPREAD**2) / size)
    q, k = (
        (math.sqrt(size) * (_SPREAD * centres.gather(2, place) + noise * normal(1, heads, _LENGTH, size))).to(dtype)
        for _ in range(2)
    )
    v = normal(1, heads, _LENGTH, size).to(dtype)
    scale = q.new_full((), 1.0 / math.sqrt(size), dtype=torch.float32).expand(q.shape[:3])
    return q, k, v, scale, launch.forward(_problem(q), q, k, v, scale, scale, False)


def _device_ms(call: Callable[[], object], kernel: str, seconds: float) -> float:
    """Mean milliseconds of ``kernel`` in the calls, as the profiler of the GPU sees them."""
    # The first call compiles.
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
    count = min(max(3, int(seconds / (time.perf_counter() - start))), _MOST_CALLS)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    return sum(event.device_time_total for event in profiler.key_averages() if event.key == kernel) / count / 1e3
