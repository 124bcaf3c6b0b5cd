"""The memory of a step, told beforehand: against what a real step keeps and takes, and never a reason not to start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from epan.training import ModelConfig, Progress, RunConfig, StartInfo, TaskConfig, TrainingError, records, train
from epan.training.engine import Engine, own_settings
from epan.training.loading import build_model, build_task
from epan.training.memory import MemoryEstimate, size

CPU = torch.device("cpu")
MODELS = {
    "memory_mosaic": {"layers": 4, "heads": 2, "width": 32, "persistent_size": 40, "dropout": 0.1},
    "transformer": {"layers": 4, "heads": 2, "width": 32, "dropout": 0.1},
}


def config(model: str, **changes: Any) -> RunConfig:
    plain = RunConfig(
        batch=24, lengths=(40, 40), task=TaskConfig("copy", {"symbols": 3}), model=ModelConfig(model, MODELS[model]), device="cpu"
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


@contextmanager
def engine(chosen: RunConfig) -> Iterator[Engine]:
    with own_settings(chosen, CPU):
        torch.manual_seed(chosen.seed)
        task = build_task(chosen)
        yield Engine(chosen, task, build_model(chosen, task), CPU)


def kept_by_a_step(ours: Engine) -> int:
    """Bytes of different memory that a real step hands to autograd, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in ours.model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours.take_step(0, measure=False)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)


def peak_of_a_step(ours: Engine) -> int:
    """Bytes that the allocator gave out at most beyond those before the step."""
    ours.take_step(0, measure=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        ours.take_step(1, measure=False)
    held = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_activations_are_what_a_step_keeps(model: str, precision: str) -> None:
    with engine(config(model, precision=precision)) as ours:
        found, reason = ours.memory()
        assert reason is None
        assert found.activations == pytest.approx(kept_by_a_step(ours), rel=0.002)
        assert found.weights == found.gradients == 4 * ours.model.num_parameters()
        moments = sum(t.nbytes for name, t in ours.tensors()["optimizer"].items() if not name.endswith("/step"))
        assert found.optimizer == moments


@pytest.mark.parametrize("model", MODELS)
def test_what_is_saved_is_saved(model: str) -> None:
    """Checkpointing and accumulation, against what the allocator gives out at most."""
    peaks, told = {}, {}
    for name, changes in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "parts": {"accumulation": 4},
    }.items():
        with engine(config(model, **changes)) as ours:
            told[name] = ours.memory()[0].activations or 0
            assert ours.model.gradient_checkpointing == (name == "checkpointing")
            peaks[name] = peak_of_a_step(ours)
    # Beside what is kept, the allocator sees what one layer computes with, which is the same in both.
    assert told["plain"] < peaks["plain"]
    assert told["plain"] - told["checkpointing"] == pytest.approx(peaks["plain"] - peaks["checkpointing"], rel=0.05)
    assert told["checkpointing"] < 0.5 * told["plain"]
    assert told["parts"] == pytest.approx(told["plain"] / 4, rel=0.05)


def test_measuring_changes_nothing_and_never_fails_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for measured in (False, True):
        with engine(config("memory_mosaic")) as ours:
            state = torch.get_rng_state()
            if measured:
                ours.memory()
            assert torch.equal(torch.get_rng_state(), state)
            assert all(p.grad is None for p in ours.model.parameters())
            assert not any(block._forward_hooks or block._forward_pre_hooks for block in ours.model.layers)
            outcomes.append(ours.take_step(0, measure=False))
    assert outcomes[0] == outcomes[1]
    with engine(config("memory_mosaic")) as ours:
        monkeypatch.setattr(ours.model.layers[1], "forward", lambda *_: 1 / 0)
        found, reason = ours.memory()
        assert found.activations is None
        assert reason is not None
        assert "division by zero" in reason
        assert "activations unknown" in str(found)
        assert not ours.model.layers[0]._forward_hooks


class Start(Progress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_start(self, info: StartInfo) -> None:
        self.told.append(info.memory)


def test_a_run_tells_and_records_it(tmp_path: Path, tiny: Callable[..., RunConfig]) -> None:
    start = Start()
    train(tiny(steps=1), tmp_path / "run", progress=start)
    kept = records.header(records.read(tmp_path / "run"), tmp_path)["memory"]
    assert start.told == [str(MemoryEstimate(**kept))]
    assert kept["activations"] > 0


def test_when_memory_is_used_up_need_and_ways_out_are_told(
    tmp_path: Path, tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Engine, step: int, *, measure: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "take_step", full)
    with pytest.raises(
        TrainingError,
        match=r"used up after step 0.*needs weights .*activations about.*gradient_checkpointing=true.*accumulation",
    ):
        train(tiny(), tmp_path / "plain")
    with pytest.raises(TrainingError) as caught:
        train(tiny(gradient_checkpointing=True), tmp_path / "other")
    assert "gradient_checkpointing" not in str(caught.value)


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 940, 12_345, 9_400_000, 310_000_000, 1_240_000_000, 85_000_000_000)] == [
        "0.0 kB", "0.9 kB", "12 kB", "9.4 MB", "310 MB", "1.2 GB", "85 GB",
    ]  # fmt: skip
    told = str(MemoryEstimate(12_000_000, 12_000_000, 24_000_000, 5_000_000, 310_000_000, 85_000_000_000))
    assert told == (
        "weights 12 MB (and 5.0 MB gathered), gradients 12 MB, optimizer 24 MB, activations about 310 MB, of 85 GB"
    )
