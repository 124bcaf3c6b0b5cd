"""Typed runs, training, evaluation, checkpoints, records and sweeps. Names load at first use; configs need no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epan.training import checkpoint, records
    from epan.training.config import EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig
    from epan.training.errors import TrainingError
    from epan.training.evaluation import evaluate
    from epan.training.gpus import choose_gpus
    from epan.training.loading import evaluate_run, load, load_run
    from epan.training.parsing import load_config, override
    from epan.training.progress import EvaluationInfo, Progress, RunResult, StartInfo, StepInfo
    from epan.training.sweep import RunState, SweepProgress, SweepResult, load_sweep, run_sweep
    from epan.training.together import train_together
    from epan.training.trainer import check, train
    from epan.training.verification import Finding, verify

_HOME = {
    "EvaluationConfig": "config",
    "ModelConfig": "config",
    "OptimizerConfig": "config",
    "RunConfig": "config",
    "TaskConfig": "config",
    "TrainingError": "errors",
    "evaluate": "evaluation",
    "evaluate_run": "loading",
    "load": "loading",
    "load_run": "loading",
    "load_config": "parsing",
    "override": "parsing",
    "EvaluationInfo": "progress",
    "Progress": "progress",
    "RunResult": "progress",
    "StartInfo": "progress",
    "StepInfo": "progress",
    "choose_gpus": "gpus",
    "RunState": "sweep",
    "SweepProgress": "sweep",
    "SweepResult": "sweep",
    "load_sweep": "sweep",
    "run_sweep": "sweep",
    "train_together": "together",
    "check": "trainer",
    "train": "trainer",
    "Finding": "verification",
    "verify": "verification",
}
_MODULES = ("checkpoint", "records")

__all__ = [
    "EvaluationConfig",
    "EvaluationInfo",
    "Finding",
    "ModelConfig",
    "OptimizerConfig",
    "Progress",
    "RunConfig",
    "RunResult",
    "RunState",
    "StartInfo",
    "StepInfo",
    "SweepProgress",
    "SweepResult",
    "TaskConfig",
    "TrainingError",
    "check",
    "checkpoint",
    "choose_gpus",
    "evaluate",
    "evaluate_run",
    "load",
    "load_config",
    "load_run",
    "load_sweep",
    "override",
    "records",
    "run_sweep",
    "train",
    "train_together",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
