"""A run that takes a moment, and what its weights are, for tests and for the scripts that they start."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from epan.training import (
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    Progress,
    RunConfig,
    StepInfo,
    TaskConfig,
    records,
)
from epan.training.checkpoint import load
from epan.training.engine import Engine, own_settings
from epan.training.loading import build_model, build_task

SMALL: dict[str, Any] = {"layers": 1, "heads": 2, "width": 8, "persistent_size": 6}


def tiny(options: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A config of eight short steps; arguments replace its fields, ``options`` extends the model's."""
    config = RunConfig(
        steps=8,
        batch=6,
        lengths=(2, 4),
        task=TaskConfig("copy", {"symbols": 3}),
        model=ModelConfig("memory_mosaic", {**SMALL, "dropout": 0.1, **(options or {})}),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(lengths=(2, 5), sequences=6),
        device="cpu",
        log_every=2,
    )
    return dataclasses.replace(config, **changes)


@contextmanager
def engine_of(config: RunConfig) -> Iterator[Engine]:
    """The engine of a run on the CPU, before its first step."""
    device = torch.device("cpu")
    with own_settings(config, device):
        torch.manual_seed(config.seed)
        task = build_task(config)
        yield Engine(config, task, build_model(config, task), device)


def numbers(run: Path) -> list[records.Entry]:
    """What a repeated run must repeat: everything in its record but times, events and ends."""
    kept = []
    for entry in records.read(run):
        if entry["kind"] in ("step", "bandwidth", "eval"):
            kept.append({key: value for key, value in entry.items() if key not in ("elapsed", "tokens_per_second")})
    return kept


class StopAt(Progress):
    """Asks the run to save and stop, as SIGTERM from outside does, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def fingerprint(path: Path) -> str:
    """SHA-256 of all tensors of a checkpoint, weights and optimizer."""
    checkpoint, content = load(path), hashlib.sha256()
    for tensors in (checkpoint.model, checkpoint.optimizer):
        assert tensors
        for name in sorted(tensors):
            content.update(name.encode())
            content.update(tensors[name].numpy().tobytes())
    return content.hexdigest()
