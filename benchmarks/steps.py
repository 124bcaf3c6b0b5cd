"""Steps per second of small Memory Mosaics on one GPU: alone, several in one process, with and without torch.compile.

    python benchmarks/steps.py                                         # d = 512 and 128, Gaussian and biweight, 1 and 4 runs
    python benchmarks/steps.py --widths 128 --kernels gaussian --pack 1,2,4,8 --compile
    python benchmarks/steps.py --device cpu --widths 16 --heads 2 --batch 4 --steps 6 --warmup 2 --pack 1 --records -

A case is N runs (other seeds) of `epan.training.train_together`, or one of `epan.training.train`, on the task `reverse`, with
all that a run does: data, records, and a checkpoint at the end. Counted are the steps of all runs between the time when the
last one has done --warmup steps and the time when the first one ends. `first_step_s` is the time from the start of the case to
its first step. With --profile the kernels of 100 steps of one run are recorded: `outside` is the share of the time in which none
of them ran. `saving` is the share that a checkpoint every --checkpoint-every steps adds.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from epan.training import (
    EvaluationConfig,
    ModelConfig,
    Progress,
    RunConfig,
    StepInfo,
    TaskConfig,
    train,
    train_together,
)
from epan.training.engine import Engine, own_settings
from epan.training.environment import commit, device_name
from epan.training.loading import build_model, build_task
from keeping import append, versions

RECORDS = Path(__file__).parent / "records" / "steps.jsonl"


class Watch(Progress):
    """The time of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, info: StepInfo) -> None:
        self.times.append(time.perf_counter())


def config_of(options: argparse.Namespace, width: int, kernel: str, seed: int) -> RunConfig:
    sizes = {"layers": options.layers, "heads": options.heads, "width": width, "dropout": options.dropout}
    return RunConfig(
        name=f"run-{seed}", seed=seed, steps=options.warmup + options.steps, batch=options.batch,
        task=TaskConfig("reverse"), model=ModelConfig("memory_mosaic", sizes, kernel=kernel),
        evaluation=EvaluationConfig(lengths=(8,), sequences=1), precision=options.precision, device=options.device,
        compile=options.compile, deterministic=options.deterministic,
    )  # fmt: skip


def timed(configs: Sequence[RunConfig], warmup: int) -> tuple[float, float]:
    """Steps per second of all runs together, and seconds to the first step."""
    watches = [Watch() for _ in configs]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / config.label for config in configs]
        began = time.perf_counter()
        if len(configs) == 1:
            train(configs[0], outs[0], progress=watches[0])
        else:
            for found in train_together(configs, outs, progress=watches):
                if isinstance(found, Exception):
                    raise found
    start = max(watch.times[warmup - 1] for watch in watches)
    end = min(watch.times[-1] for watch in watches)
    count = sum(sum(start < moment <= end for moment in watch.times) for watch in watches)
    return count / (end - start), min(watch.times[0] for watch in watches) - began


def outside(config: RunConfig, steps: int = 100) -> float:
    """The share of the time of some steps in which no kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    device = torch.device(config.device)
    with own_settings(config, device):
        torch.manual_seed(config.seed)
        task = build_task(config)
        engine = Engine(config, task, build_model(config, task), device)

        def do(first: int, last: int) -> None:
            for _ in engine.steps(first, last, lambda step: step % config.log_every == 0, lambda: False):
                pass

        do(0, 20)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            do(20, 20 + steps)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record per case."""
    run, device = options.run or time.strftime("%Y%m%d-%H%M%S"), torch.device(options.device)
    records = []
    for width in options.widths:
        for kernel in options.kernels:
            for count in options.pack:
                configs = [config_of(options, width, kernel, seed) for seed in range(count)]
                speed, first = timed(configs, options.warmup)
                record: dict[str, Any] = {
                    "name": "memory-mosaic", "kernel": kernel, "layers": options.layers, "width": width,
                    "heads": options.heads, "task": "reverse", "batch": options.batch, "precision": options.precision,
                    "dropout": options.dropout, "compiled": options.compile, "deterministic": options.deterministic,
                    "runs": count, "steps": options.steps, "steps_per_second": round(speed, 2),
                    "first_step_s": round(first, 2), "device": device_name(device), "versions": versions(),
                    "commit": options.commit or commit(), "run": run,
                }  # fmt: skip
                if count == 1 and options.checkpoint_every:
                    saving = [dataclasses.replace(configs[0], checkpoint_every=options.checkpoint_every)]
                    record["checkpoint_every"] = options.checkpoint_every
                    record["saving"] = round(speed / timed(saving, options.warmup)[0] - 1, 4)
                if count == 1 and options.profile and device.type == "cuda":
                    record["outside"] = round(outside(configs[0]), 4)
                records.append(record)
                show([record], header=len(records) == 1)
    return records


def show(records: Sequence[dict[str, Any]], header: bool) -> None:
    if header:
        print(f"{'kernel':<12}{'width':>6}{'runs':>6}{'steps/s':>10}{'first step s':>14}{'outside':>9}{'saving':>8}")
    for r in records:
        extra = "".join(
            f"{'-' if r.get(key) is None else format(r[key], '.1%'):>{size}}"
            for key, size in (("outside", 9), ("saving", 8))
        )
        print(
            f"{r['kernel']:<12}{r['width']:>6}{r['runs']:>6}{r['steps_per_second']:>10.1f}{r['first_step_s']:>14.1f}{extra}",
            flush=True,
        )


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=_numbers, default=[512, 128])
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=["gaussian", "biweight"])
    parser.add_argument("--pack", type=_numbers, default=[1, 4], help="how many runs share the GPU")
    for name, default in (
        ("layers", 2), ("heads", 8), ("batch", 256), ("steps", 400), ("warmup", 50), ("checkpoint-every", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.05, help="of weights and residuals (published: 0.05)")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--profile", action="store_true", help="how much of the time no kernel ran")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--records", default=str(RECORDS), help="file that records are appended to; - for none")
    parser.add_argument("--run", help="name of the run; the time if not given")
    parser.add_argument("--commit", help="the commit of the code, where git does not know it")
    options = parser.parse_args(arguments)
    options.precision = "fp32" if options.device == "cpu" else options.precision
    records = measure(options)
    append(records, options.records)


if __name__ == "__main__":
    main()
