"""The experiments are scripts beside the package: their folder is put on the path, as when one of them is run."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import length_generalization as study  # noqa: E402
from epan.training import EvaluationConfig, RunConfig, train  # noqa: E402

SMALL = {"layers": 1, "heads": 2, "width": 8}


def _tiny(model: str, task: str, method: Any, seed: int, rate: float, budgets: int = 1) -> RunConfig:
    whole = _CONFIG(model, task, method, seed, rate, budgets)
    return dataclasses.replace(
        whole,
        batch=4,
        precision="fp32",
        device="cpu",
        compile=False,
        deterministic=False,
        log_every=2,
        checkpoint_every=4,
        evaluation=EvaluationConfig(lengths=(4,), sequences=3, every=4, decoding="teacher-forced"),
    )


_CONFIG = study.config


@pytest.fixture(autouse=True)
def small_study(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Two methods, two seeds, six steps."""
    if "trained" not in request.fixturenames:
        return
    for name, value in _small().items():
        monkeypatch.setattr(study, name, value)


def _small() -> dict[str, Any]:
    biweight = study.Method("adaptive", "biweight")
    return {
        "PLANS": {"copy": study.Plan(6, (4, 8))},
        "TRAINED": (2, 4),
        "SEEDS": (0, 1),
        "MODELS": {"memory_mosaic": SMALL},
        "PANELS": {"memory_mosaic": {"Adaptive (entmax)": (biweight,)}},
        "METHODS": {"memory_mosaic": (study.GAUSSIAN, biweight)},
        "PROBES": {"memory_mosaic": (study.GAUSSIAN, biweight)},
        "RATES": {("memory_mosaic", "copy"): {"gaussian": 1e-3, "adaptive": 1e-3}},
        "LONGER_TASK": "copy",
        "SHIFTED_TASK": "copy",
        "SHIFTED": (biweight,),
        "LONGER_METHODS": (study.GAUSSIAN,),
        "BEYOND": {},
        "sequences": lambda length: 5,
        "FACTORS": (0.5, 1.0, 2.0),
        "GROWTHS": {"power": (-0.5, 0.0, 0.5)},
        "LONGER_VALIDATION": (8,),
        "LOOKS_AT": 3,
        "config": _tiny,
    }


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("study") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _small().items():
            patch.setattr(study, name, value)
        for run in (*study.rates(), *study.main()):
            train(run, out / run.label, resume="auto")
        assert study.command(["test", str(out)]) == 0
    return out


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """Six trained and tested runs: both rates of two methods with seed 0, and seed 1 of each."""
    return Path(shutil.copytree(trained_once, tmp_path / "runs"))
