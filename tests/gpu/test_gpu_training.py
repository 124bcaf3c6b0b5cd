"""Recorded steps, resumed runs and runs that share a GPU, on one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from epan.training import EvaluationConfig, ModelConfig, RunConfig, RunResult, TaskConfig, train, train_together
from epan.training.checkpoint import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from small import StopAt, fingerprint, tiny

pytestmark = pytest.mark.gpu


def config(**changes: Any) -> RunConfig:
    options = {"layers": 2, "heads": 4, "width": 64, "persistent_size": 48, "dropout": changes.pop("dropout", 0.1)}
    base = tiny(options, device="cuda", steps=24, batch=16, lengths=(8, 40), precision="bf16", log_every=5)
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("kernel", ["gaussian", "biweight"])
@pytest.mark.parametrize("loss", ["gaussian", "epanechnikov", "polynomial:order=4"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_recorded_steps_are_plain_steps(tmp_path: Path, kernel: str, accumulation: int, loss: str) -> None:
    runs = []
    for graph in (None, False):
        made = config(dropout=0.0, accumulation=accumulation, precision="fp32", cuda_graph=graph, steps=8, loss=loss)
        made = dataclasses.replace(made, model=dataclasses.replace(made.model, kernel=kernel))
        result = train(made, tmp_path / str(graph))
        runs.append((result.loss, load(result.checkpoint).model))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-3)
    for name, tensor in runs[0][1].items():
        assert torch.allclose(tensor, runs[1][1][name], atol=2e-3), name


@pytest.mark.parametrize("positions", ["half", "rope"])
def test_steps_of_a_transformer_can_be_recorded(tmp_path: Path, positions: str) -> None:
    options = {"layers": 1, "heads": 4, "width": 64, "positions": positions}
    options["length_scaling"] = "asentmax" if positions == "half" else None
    made = config(cuda_graph=True, steps=4)
    result = train(dataclasses.replace(made, model=ModelConfig("transformer", options)), tmp_path / "run")
    assert result.status == "finished"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path: Path, compiled: bool) -> None:
    made = config(deterministic=True, compile=compiled, steps=60)
    whole = fingerprint(train(made, tmp_path / "whole").checkpoint)
    assert fingerprint(train(made, tmp_path / "again").checkpoint) == whole
    for stop in (3, 17, 25):
        out = tmp_path / f"stopped-{stop}"
        assert train(made, out, progress=StopAt(stop)).status == "interrupted"
        assert fingerprint(train(made, out, resume="require").checkpoint) == whole


def test_runs_that_share_a_gpu_have_the_bits_that_they_have_alone(tmp_path: Path) -> None:
    configs = [config(deterministic=True, name=f"run-{seed}", seed=seed, steps=40) for seed in range(3)]
    configs[1] = dataclasses.replace(configs[1], model=dataclasses.replace(configs[1].model, kernel="gaussian"))
    found = train_together(configs, [tmp_path / made.label for made in configs])
    for made, result in zip(configs, found, strict=True):
        assert isinstance(result, RunResult), result
        alone = train(made, tmp_path / "alone" / made.label)
        assert fingerprint(result.checkpoint) == fingerprint(alone.checkpoint)


def test_a_number_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    # So large a step that the next losses are not finite.
    made = config(on_nonfinite="skip", steps=30, precision="fp32")
    made = dataclasses.replace(made, optimizer=dataclasses.replace(made.optimizer, learning_rate=1e30, clip=None))
    with pytest.raises(Exception, match="in a row were skipped"):
        train(made, tmp_path / "run")
    record = (tmp_path / "run" / "record.jsonl").read_text()
    assert '"skipped"' in record
    assert '"failed"' in record


@pytest.mark.parametrize("documents", ["joined", "separate"])
@pytest.mark.parametrize("kernel", ["gaussian", "biweight"])
def test_text_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str, kernel: str) -> None:
    """Windows cut on the device, and documents whose number nothing waits for: what plain steps learn."""
    monkeypatch.setenv("EPAN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text("ship sea whale " * (5 + 3 * number))
    losses = []
    for graph in (True, False):
        made = config(dropout=0.0, cuda_graph=graph, steps=12, lengths=(64, 64), log_every=4)
        made = dataclasses.replace(
            made,
            task=TaskConfig("text", {"path": str(folder), "documents": documents}),
            model=dataclasses.replace(made.model, kernel=kernel),
            evaluation=EvaluationConfig(lengths=(16,), sequences=4),
        )
        losses.append(train(made, tmp_path / str(graph)).loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
