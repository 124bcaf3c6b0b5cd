"""Training step of a Memory Mosaic: tokens per second with a sparse contextual memory, and with the Gaussian.

    python benchmarks/mosaic.py                                     12 layers, width 768, 12 heads, T = 4096, on a GPU
    python benchmarks/mosaic.py --compile --kernels biweight,gaussian
    python benchmarks/mosaic.py --device cpu --layers 1 --width 32 --heads 2 --vocab 64 --size 16 --length 64 --records -

The models differ in the kernel of their contextual memories alone (the persistent ones are Gaussian in all, as published)
and see the same tokens. On an NVIDIA GPU the Gaussian goes through torch's scaled_dot_product_attention; strict
causality costs it the first query and the last key. --sdpa flash holds torch to its flash attention (FlashAttention-2)
where it can take the call; by default torch chooses, on Hopper cuDNN's. A step is forward, loss, backward and AdamW; models
take turns, so that the clock of the chip favours none. Reported: median over the steps, spread (90th less 10th percentile,
over the median), and the ratio to the last kernel named. With --weights float32 (the default) products run in --dtype
under autocast.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from epan.models import MemoryMosaic, MemoryMosaicConfig
from epan.training.environment import commit, device_name
from keeping import append, versions

RECORDS = Path(__file__).parent / "records" / "mosaic.jsonl"
# What torch's attention may take, the first first; None leaves it to torch.
SDPA: dict[str, list[SDPBackend] | None] = {
    "auto": None,
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def make_step(kernel: str, options: argparse.Namespace, tokens: Tensor) -> Callable[[], Tensor]:
    """One training step of a fresh model: tokens (B, T + 1) in, the loss out."""
    torch.manual_seed(options.seed)
    config = MemoryMosaicConfig(
        vocab_size=options.vocab, layers=options.layers, heads=options.heads, width=options.width, kernel=kernel,
        normalization=options.normalization, persistent_size=options.size, dropout=options.dropout,
    )  # fmt: skip
    device, dtype = tokens.device, DTYPES[options.dtype]
    model = MemoryMosaic(config).to(device=device, dtype=DTYPES[options.weights]).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-4, fused=device.type == "cuda")
    call: Callable[[Tensor], Tensor] = torch.compile(model) if options.compile else model
    mixed = dtype != DTYPES[options.weights]

    def step() -> Tensor:
        with torch.autocast(device.type, dtype) if mixed else contextlib.nullcontext():
            logits = call(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def timed(step: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profiled(step: Callable[[], Tensor]) -> list[tuple[str, float, int]]:
    """(kernel, ms, calls) of one step on the GPU, longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    rows = [(event.key, event.device_time_total / 1e3, event.count) for event in profiler.key_averages()]
    return sorted(rows, key=lambda row: -row[1])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per kernel."""
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, options.length + 1)
    tokens = torch.randint(options.vocab, shape, generator=generator).to(device)
    names = options.kernels.split(",")
    steps: dict[str, Callable[[], Tensor]] = {}
    peaks: dict[str, float | None] = {}
    losses: dict[str, float] = {}
    for name in names:
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        steps[name] = make_step(name, options, tokens)
        for turn in range(options.warmup):
            if turn == options.warmup - 1 and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            losses[name] = float(steps[name]())
        # What the models before it hold is not this one's.
        peaks[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20 if device.type == "cuda" else None
        if options.profile and device.type == "cuda":
            print(f"-- {name}: one step on the GPU")
            for key, ms, calls in profiled(steps[name])[: options.profile]:
                print(f"{ms:9.2f} ms {calls:5} × {key[:110]}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.steps):
        for name in names:
            seconds[name].append(timed(steps[name], device))
    count = options.batch * options.length
    run = options.run or time.strftime("%Y%m%d-%H%M%S")
    records = []
    for name in names:
        middle = statistics.median(seconds[name])
        cuts = statistics.quantiles(seconds[name], n=10) if len(seconds[name]) > 1 else [middle] * 9
        records.append(
            {
                "name": "memory-mosaic", "kernel": name, "normalization": options.normalization,
                "layers": options.layers, "width": options.width, "heads": options.heads, "T": options.length,
                "batch": options.batch, "dtype": options.dtype, "weights": options.weights, "dropout": options.dropout,
                "compiled": options.compile, "sdpa": options.sdpa, "tokens_per_second": round(count / middle, 1),
                "spread": round((cuts[-1] - cuts[0]) / middle, 4), "steps": options.steps, "loss": losses[name],
                "peak_memory_mb": None if peaks[name] is None else round(peaks[name] or 0.0, 1),
                "device": device_name(device), "versions": versions(), "commit": options.commit or commit(), "run": run,
            }
        )  # fmt: skip
    return records


def show(records: Sequence[dict[str, Any]]) -> None:
    """The table, with the ratio to the last one."""
    print(f"{'kernel':<14}{'tokens/s':>12}{'spread':>9}{'memory MB':>12}{'ratio':>8}")
    base = records[-1]["tokens_per_second"]
    for record in records:
        memory = "-" if record["peak_memory_mb"] is None else f"{record['peak_memory_mb']:.0f}"
        speed = record["tokens_per_second"]
        print(f"{record['kernel']:<14}{speed:>12.0f}{record['spread']:>9.1%}{memory:>12}{speed / base:>8.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kernels", default="biweight,gaussian", help="of the contextual memories; the last is the base"
    )
    parser.add_argument("--normalization", default="adaptive")
    for name, default in (
        ("layers", 12), ("width", 768), ("heads", 12), ("vocab", 50304), ("size", 2688), ("length", 4096),
        ("batch", 8), ("warmup", 3), ("steps", 10), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0, help="of weights and residuals (published: 0.05)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the products")
    parser.add_argument("--weights", choices=list(DTYPES), default="float32", help="of parameters and optimizer")
    parser.add_argument("--sdpa", choices=list(SDPA), default="auto", help="what torch's own attention runs on")
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--profile", type=int, default=0, help="print so many GPU kernels of one step of each model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--records", default=str(RECORDS), help="file that records are appended to; - for none")
    parser.add_argument("--run", help="name of the run; the time if not given")
    parser.add_argument("--commit", help="the commit of the code, where git does not know it")
    options = parser.parse_args(arguments)
    allowed = SDPA[options.sdpa]
    with contextlib.nullcontext() if allowed is None else sdpa_kernel(allowed, set_priority=True):
        records = measure(options)
    show(records)
    append(records, options.records)


if __name__ == "__main__":
    main()
