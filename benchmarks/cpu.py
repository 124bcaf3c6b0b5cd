"""Weights and attention on a CPU, beside the entmax package: time and memory, in one run on the same inputs.

    python benchmarks/cpu.py            # all tables, about two minutes on two cores
    python benchmarks/cpu.py weights    # or: attention, memory

The rivals run in turn, A B A B …, after a warm-up; printed are the medians and the ratio of medians with the range of the
pairwise ratios. Needs ``pip install "epan[dev]"``.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import epan


def paired(rival: Callable[[], object], ours: Callable[[], object], repeats: int) -> tuple[float, float, float, float]:
    """(rival ms, ours ms, smallest pairwise ratio, largest), medians over ``repeats`` alternating runs."""
    rival(), ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, record in zip((rival, ours), times, strict=True):
            start = time.perf_counter()
            function()
            record.append((time.perf_counter() - start) * 1e3)
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), min(ratios), max(ratios)


def row(name: str, result: tuple[float, float, float, float]) -> None:
    rival, ours, low, high = result
    print(f"{name:58s} {rival:9.1f} {ours:9.1f} {rival / ours:7.1f}   ({low:.1f} … {high:.1f})")


def header(title: str, rival: str) -> None:
    print(f"\n{title}\n{'':58s} {rival + ' ms':>9s} {'epan ms':>9s} {'ratio':>7s}   (range)")


def weights(repeats: int) -> None:
    """attention_weights forward, float32, scores ~ N(0, 2²)."""
    from entmax import entmax15, entmax_bisect, sparsemax

    header("attention_weights, forward, float32, scores ~ N(0, 2²)", "entmax")
    for shape in ((1024, 4096), (256, 16384)):
        scores = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, kernel, rival in (
            ("order 1: sparsemax", "epanechnikov", lambda z: sparsemax(z, dim=-1)),
            ("order 2: entmax15", "biweight", lambda z: entmax15(z, dim=-1)),
            ("order 3: entmax_bisect(4/3)", "triweight", lambda z: entmax_bisect(z, 4 / 3, dim=-1)),
        ):
            result = paired(
                lambda z=scores, f=rival: f(z), lambda z=scores, k=kernel: epan.attention_weights(z, kernel=k), repeats
            )
            row(f"{shape[0]} × {shape[1]}, {name}", result)


def attention(repeats: int) -> None:
    """Causal attention, B=1, H=8, D=64, L=1024: dense through entmax15 against the tiled backend."""
    from entmax import entmax15

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, 1024, 64, generator=generator).requires_grad_() for _ in range(3))
    mask = torch.ones(1024, 1024, dtype=torch.bool).tril()

    def dense() -> torch.Tensor:
        scores = (q @ k.transpose(-2, -1) / math.sqrt(64)).masked_fill(~mask, -math.inf)
        return entmax15(scores, dim=-1) @ v

    def tiled() -> torch.Tensor:
        return epan.attention(q, k, v, is_causal=True, kernel="biweight", backend="tiled")

    header("attention, causal, B=1, H=8, D=64, L=1024, float32, biweight adaptive", "entmax15")
    with torch.no_grad():
        print(f"largest difference of the outputs: {float((dense() - tiled()).abs().max()):.1e}")
        row("forward", paired(dense, tiled, repeats))
    row("forward + backward", paired(lambda: dense().sum().backward(), lambda: tiled().sum().backward(), repeats))


_MEMORY = """
import pathlib, sys, time, torch, epan
generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(1, 4, int(sys.argv[1]), 64, generator=generator).requires_grad_() for _ in range(3))
for t in (q, k, v):
    t.grad = torch.ones_like(t)
status = pathlib.Path("/proc/self/status")
def read(name):
    return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1]) / 1024
# Forget the peak of the start-up, so that only what follows counts.
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
start = time.perf_counter()
epan.attention(q, k, v, is_causal=True, backend="tiled").sum().backward()
print(read("VmHWM") - before, time.perf_counter() - start)
"""


def memory() -> None:
    """Peak resident memory of forward + backward beyond inputs and gradients, each length in its own process; Linux."""
    print(
        "\ntiled attention, causal, H=4, D=64, float32, biweight adaptive: forward + backward\n  length   peak MiB    seconds"
    )
    for length in (8192, 16384, 32768):
        done = subprocess.run([sys.executable, "-c", _MEMORY, str(length)], capture_output=True, text=True, check=True)
        peak, seconds = map(float, done.stdout.split())
        print(f"{length:8d} {peak:10.0f} {seconds:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("weights", "attention", "memory"), help="one table instead of all")
    parser.add_argument("--repeats", type=int, default=7, help="alternating pairs that are timed (default 7)")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, Python {platform.python_version()}"
    )
    if options.part in (None, "weights"):
        weights(options.repeats)
    if options.part in (None, "attention"):
        attention(options.repeats)
    if options.part in (None, "memory"):
        memory()


if __name__ == "__main__":
    main()
