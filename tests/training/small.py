"""A run that takes a moment, and what its weights are, for tests and for the scripts that they start."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from epan.training import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig
from epan.training.checkpoint import load

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


def fingerprint(path: Path) -> str:
    """SHA-256 of all tensors of a checkpoint, weights and optimizer."""
    checkpoint, content = load(path), hashlib.sha256()
    for tensors in (checkpoint.model, checkpoint.optimizer):
        assert tensors
        for name in sorted(tensors):
            content.update(name.encode())
            content.update(tensors[name].numpy().tobytes())
    return content.hexdigest()
