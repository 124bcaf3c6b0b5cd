"""``epan demo --text``: a small Memory Mosaic learns to write, byte by byte, on a CPU, and shows what it writes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from epan.cli import building, progress
from epan.cli.generate import GenerateOptions, generate

if TYPE_CHECKING:
    from epan.training import RunConfig, RunResult

__all__ = ["config", "text_demo"]

# Bytes of the sample at the end.
SAMPLE = 300


def config(text: str, seed: int = 0, quick: bool = False) -> RunConfig:
    """The run: about a megabyte of text is enough, and a few minutes of two cores."""
    from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig

    return RunConfig(
        name="text",
        seed=seed,
        steps=8 if quick else 900,
        batch=16,
        lengths=(64, 64),
        task=TaskConfig("text", {"path": text, "tokenizer": "bytes"}),
        model=ModelConfig("memory_mosaic", {"layers": 3, "heads": 4, "width": 128, "dropout": 0.0}),
        optimizer=OptimizerConfig(learning_rate=5e-3, final_learning_rate=2e-4, warmup=0.05),
        evaluation=EvaluationConfig(lengths=(64, 256), sequences=8 if quick else 1000),
        device="cpu",
        log_every=2 if quick else 20,
        checkpoint_every=None if quick else 100,
    )


def text_demo(text: str, out: Path, quick: bool = False) -> int:
    """Train it, or go on where an interrupted demo stopped, and let it write; the exit code."""
    from epan.training import train

    chosen = config(text, quick=quick)
    building.show(chosen)
    shown = progress.for_run(chosen)
    try:
        result = train(chosen, out, resume="auto", progress=shown, command=shlex.join(["epan", *sys.argv[1:]]))
    finally:
        shown.close()
    code = progress.finish(result)
    if result.status == "finished":
        _conclude(result)
    return code


def _conclude(result: RunResult) -> None:
    tested = result.evaluations[0]
    print(f"Validation loss: {tested['loss_per_byte']:.3f} nats a byte in windows of {tested['length']} bytes")
    print(f"\nWhat it writes, {SAMPLE} bytes:\n", flush=True)
    # On the device that it was trained on, so that a seed gives the same text everywhere.
    generate(result.out, options=GenerateOptions(tokens=SAMPLE, device="cpu"))
    print("\nLet it write more, from a beginning of yours:")
    print(
        f"  {shlex.join(['epan', 'generate', str(result.out), '--prompt', 'The ', '--temperature', '0.8'])}", flush=True
    )
