"""Device time of the fused GPU kernels, kernel by kernel, on an NVIDIA GPU: forward and forward + backward.

    python benchmarks/fused.py [--length 16384] >> benchmarks/records/fused.jsonl

One JSON object a line, times in ms: medians would need the launch cost of the host out of the way, so these are sums over
the kernels that the profiler saw, mean of three calls after a warm-up. The workload "segments": tokens in segments of
256, each of one of M clusters, so that about 1/M of the causal tiles carry weight.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import epan
from epan.masks import Masking
from epan.ops.triton.launch import Forward, Problem, backward, forward

SEGMENT, SPREAD = 256, 0.85


def segments(heads: int, length: int, size: int, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (1, H, L, D) in bfloat16; rows have norm about √D, and a cluster the spread 1 − 0.85²."""
    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    centres = torch.nn.functional.normalize(normal(1, heads, clusters, size), dim=-1)
    which = torch.randint(clusters, (1, heads, length // SEGMENT), device="cuda", generator=generator)
    base = centres.gather(2, which.repeat_interleave(SEGMENT, -1)[..., None].expand(-1, -1, -1, size))
    rows = [
        math.sqrt(size) * (SPREAD * base + math.sqrt((1 - SPREAD**2) / size) * normal(1, heads, length, size))
        for _ in range(2)
    ]
    q, k, v = (x.bfloat16() for x in (*rows, normal(1, heads, length, size)))
    return q, k, v


def device_time(function: Callable[[], object]) -> tuple[float, dict[str, float]]:
    """(ms per call, ms per call of the longest kernels)."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            function()
        torch.cuda.synchronize()
    times = {event.key: event.device_time_total / 3000 for event in profiler.key_averages()}
    ours = {
        name: round(times[name], 3)
        for name in ("prepare", "sweep", "attend", "by_rows", "by_columns", "merge")
        if name in times
    }
    return sum(times.values()), ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384, help="number of tokens, a multiple of 256")
    length = parser.parse_args().length
    for size, heads in ((64, 16), (128, 8)):
        for kernel, rule, counts in (
            ("biweight", "adaptive", (1, 4, 16, 64)),
            ("epanechnikov", "adaptive", (4,)),
            ("triweight", "adaptive", (4,)),
            ("biweight", "anchored", (1, 4, 16)),
            ("biweight", "fixed", (1, 4, 16)),
        ):
            for clusters in counts:
                q, k, v = segments(heads, length, size, clusters)
                grad = torch.randn_like(v)
                # For the fixed rule h² = 2n/β is 1.5 times the mean squared distance within a cluster.
                beta = 4 / (1.5 * 2 * size * (1 - SPREAD**2)) if rule == "fixed" else 1 / math.sqrt(size)
                masking = Masking(length, length, None, None, 0)
                problem = Problem(
                    masking, epan.kernels.get(kernel), epan.normalizations.get(rule), rule == "fixed", 0.0, True
                )
                scale = torch.full((), beta, device="cuda").expand(1, heads, length)
                seed = torch.zeros((), dtype=torch.long, device="cuda")

                def ahead(p: Problem = problem, t: tuple[Tensor, ...] = (q, k, v, scale, seed)) -> Forward:
                    return forward(p, *t, False)

                def both(
                    p: Problem = problem, t: tuple[Tensor, ...] = (q, k, v, scale, seed), g: Tensor = grad
                ) -> None:
                    found = ahead(p, t)
                    backward(p, g, *t, found.out, found.saved, {"q", "k", "v"})

                one, _ = device_time(ahead)
                two, parts = device_time(both)
                record = {
                    "name": "epan", "workload": "segments", "kernel": kernel, "normalization": rule, "M": clusters,
                    "B": 1, "H": heads, "N": length, "d": size, "dtype": "bfloat16", "forward_ms": round(one, 3),
                    "forward_backward_ms": round(two, 3), "kernels_ms": parts, "device": torch.cuda.get_device_name(),
                    "versions": {"torch": torch.__version__, "triton": triton.__version__},
                }  # fmt: skip
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
