"""Training on several GPUs of one host against one: tokens per second of the steps that ``epan train`` takes.

    python benchmarks/scaling.py --gpus 2                           12 layers, width 768, context 512, bf16, DDP
    python benchmarks/scaling.py --gpus 4 --parallel fsdp --models biweight
    python benchmarks/scaling.py --gpus 2 --device cpu --layers 1 --width 16 --heads 2 --vocab 32 --length 16 --batch 4 --records -

Starts torchrun by itself: once with one process, once with all and as many sequences for each (weak scaling), once with all
and as many sequences in total (strong scaling). A step is a plain one of the training engine (cuda_graph=false, as several
processes have it): data, forward, loss, backward with
the gradients added up, clipping, AdamW, and the look at loss and norm. Models are Memory Mosaics with a sparse and with the
Gaussian contextual memory, and the transformer with the Gaussian; sequences are those of the copy task, all of one length.
Reported: tokens per second by the median step of the first process, spread (90th less 10th percentile, over the median),
and speed-up over one process: the ratio of tokens per second, at best the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from epan.training import ModelConfig, RunConfig, TaskConfig
from epan.training.engine import Engine, own_settings
from epan.training.environment import commit, device_name
from epan.training.loading import build_model, build_task, find_device
from epan.training.processes import Processes, join, local_device
from keeping import append, versions

RECORDS = Path(__file__).parent / "records" / "scaling.jsonl"
# Name: model and kernel.
MODELS = {
    "biweight": ("memory_mosaic", "biweight"),
    "gaussian": ("memory_mosaic", "gaussian"),
    "transformer": ("transformer", "gaussian"),
}


def configured(name: str, options: argparse.Namespace, batch: int) -> RunConfig:
    """The run whose steps are timed, ``batch`` sequences each."""
    model, kernel = MODELS[name]
    sizes: dict[str, Any] = {
        "layers": options.layers, "heads": options.heads, "width": options.width, "dropout": options.dropout,
    }  # fmt: skip
    # A sequence is BOS, the word, a mark, the word again and EOS.
    word = max(1, options.length // 2 - 1)
    return RunConfig(
        seed=options.seed, steps=options.warmup + options.steps, batch=batch, accumulation=options.accumulation,
        gradient_checkpointing=options.gradient_checkpointing, parallel=options.parallel, lengths=(word, word),
        task=TaskConfig("copy", {"symbols": options.vocab}), model=ModelConfig(model, sizes, kernel=kernel),
        precision=options.precision, device=options.device, compile=options.compile,
        threads=1 if options.device == "cpu" else None, cuda_graph=False,
    )  # fmt: skip


def timed(config: RunConfig, device: torch.device, processes: Processes, warmup: int) -> dict[str, Any]:
    """Steps of one run in this process and the others: what is measured of them."""
    with own_settings(config, device):
        torch.manual_seed(config.seed)
        task = build_task(config)
        engine = Engine(config, task, build_model(config, task), device, processes)
        seconds, tokens, loss = [], 0, 0.0
        for step in range(config.steps):
            if step == warmup and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            # Ends with a look at the loss, for which the device has to be done with the gradient.
            outcome = engine.take_step(step, measure=False)
            seconds.append(time.perf_counter() - start)
            tokens, loss = outcome.tokens, outcome.loss
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        parameters = engine.model.num_parameters()
    measured = seconds[warmup:]
    middle = statistics.median(measured)
    cuts = statistics.quantiles(measured, n=10) if len(measured) > 1 else [middle] * 9
    return {
        "tokens_per_second": round(tokens / middle, 1), "step_ms": round(middle * 1e3, 3),
        "spread": round((cuts[-1] - cuts[0]) / middle, 4), "tokens": tokens, "loss": loss, "parameters": parameters,
        "peak_memory_mb": None if peak is None else round(peak, 1), "device": device_name(device),
    }  # fmt: skip


def work(options: argparse.Namespace) -> None:
    """One process of a group: time every model and, in the first, write what was found."""
    device = local_device(find_device(options.device))
    with join(device) as processes:
        found = {}
        for name in options.models.split(","):
            found[name] = timed(configured(name, options, options.batch), device, processes, options.warmup)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if processes.main:
            Path(options.worker).write_text(json.dumps(found))


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(world: int, batch: int, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a group of ``world`` processes with ``batch`` sequences a step, in total, measures of each model."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "found.json"
        # What follows "--" is ours: until Python 3.12, argparse took "--run" for a short form of torchrun's own options.
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-addr", "127.0.0.1",
            "--master-port", str(_port()), "--", __file__, *arguments, "--batch", str(batch), "--worker", str(result),
        ]  # fmt: skip
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{world} processes ended with code {done.returncode}:\n{done.stderr[-3000:]}")
        found: dict[str, dict[str, Any]] = json.loads(result.read_text())
        return found


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One record per model and group."""
    run = options.run or time.strftime("%Y%m%d-%H%M%S")
    one: dict[str, dict[str, Any]] = {}
    kinds = [("one", 1, options.batch), ("weak", options.gpus, options.batch * options.gpus)]
    if options.batch % (options.gpus * options.accumulation) == 0:
        kinds.append(("strong", options.gpus, options.batch))
    for kind, world, batch in kinds:
        found = start(world, batch, arguments)
        one = one or found
        for name, values in found.items():
            base = one[name]["tokens_per_second"]
            yield {
                "name": "scaling", "model": MODELS[name][0], "kernel": MODELS[name][1], "scaling": kind,
                "processes": world, "batch": batch, "parallel": options.parallel, "layers": options.layers,
                "width": options.width, "heads": options.heads, "T": options.length, "vocab": options.vocab,
                "precision": options.precision, "compiled": options.compile, "accumulation": options.accumulation,
                "gradient_checkpointing": options.gradient_checkpointing, "dropout": options.dropout,
                **values, "speed_up": round(values["tokens_per_second"] / base, 4), "steps": options.steps,
                "versions": versions("accelerate"), "commit": options.commit or commit(), "run": run,
            }  # fmt: skip


HEAD = f"{'model':<28}{'scaling':<9}{'processes':>9}{'batch':>7}{'tokens/s':>12}{'spread':>9}{'memory MB':>11}{'speed-up':>10}"


def row(record: dict[str, Any]) -> str:
    """A line of the table."""
    memory = "-" if record["peak_memory_mb"] is None else f"{record['peak_memory_mb']:.0f}"
    name = f"{record['model']}, {record['kernel']}"
    return (
        f"{name:<28}{record['scaling']:<9}{record['processes']:>9}{record['batch']:>7}"
        f"{record['tokens_per_second']:>12.0f}{record['spread']:>9.1%}{memory:>11}{record['speed_up']:>10.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=2, help="processes, each on a GPU of its own (or on the CPU)")
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    for name, default in (
        ("layers", 12), ("width", 768), ("heads", 12), ("vocab", 32000), ("length", 512), ("batch", 32),
        ("accumulation", 1), ("warmup", 10), ("steps", 50), ("seed", 0),
    ):  # fmt: skip
        text = "sequences of one process in a step" if name == "batch" else None
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the models")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--records", default=str(RECORDS), help="file that records are appended to; - for none")
    parser.add_argument("--run", help="name of the run; the time if not given")
    parser.add_argument("--commit", help="the commit of the code, where git does not know it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    unknown = [name for name in options.models.split(",") if name not in MODELS]
    if unknown:
        parser.error(f"unknown model {unknown[0]!r}: --models takes {', '.join(MODELS)}")
    if options.worker:
        work(options)
        return
    print(HEAD)
    records = []
    for record in measure(options, given):
        records.append(record)
        print(row(record), flush=True)
    append(records, options.records)


if __name__ == "__main__":
    main()
