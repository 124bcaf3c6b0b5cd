"""Steps that are started ahead of their results: the numbers of plain steps, and the same answers to what goes wrong.

Here, without a GPU, what would be recorded is run as it is; ``tests/gpu`` records it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import StopAt, engine_of, fingerprint, numbers

from epan import tasks
from epan.errors import UnsupportedError
from epan.training import RunConfig, TrainingError, engine, resident, train
from epan.training.engine import Engine

CPU = torch.device("cpu")


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on the CPU are queued."""
    monkeypatch.setattr(engine, "recordable", lambda *_: None)
    monkeypatch.setattr(resident, "BLOCK", 3)
    monkeypatch.setattr(resident, "CHUNK", 2)
    # Steps may be slow here.
    monkeypatch.setattr(resident, "SECONDS", 1e9)


def steps_of(made: Engine, first: int, last: int) -> list[Any]:
    return list(made.steps(first, last, lambda number: number % 4 == 0, lambda: False))


def same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=2e-5), name


def weights(made: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


@pytest.mark.parametrize(("accumulation", "loss"), [(1, "gaussian"), (2, "gaussian"), (2, "biweight")])
def test_queued_steps_are_plain_steps(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, queued: None, accumulation: int, loss: str
) -> None:
    config = tiny({"dropout": 0.0}, steps=11, accumulation=accumulation, loss=loss)
    with engine_of(config) as ours:
        assert ours.queued
        found = steps_of(ours, 0, 7) + steps_of(ours, 7, 11)
        after = weights(ours)
        moments = ours.tensors()["optimizer"]
    with engine_of(dataclasses.replace(config, cuda_graph=False)) as plain:
        assert not plain.queued
        expected = steps_of(plain, 0, 11)
        assert [outcome.learning_rate for outcome in found] == [outcome.learning_rate for outcome in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
            assert one.norm == pytest.approx(other.norm, rel=1e-3)
            assert (one.support is None) == (other.support is None)
        if accumulation == 1:
            assert found[3].support == pytest.approx(expected[3].support, rel=1e-6)
        same_weights(after, weights(plain))
        assert moments.keys() == plain.tensors()["optimizer"].keys()
        steps = {float(value) for name, value in moments.items() if name.endswith("/step")}
        assert steps == {11.0}


def test_measuring_changes_nothing(tiny: Callable[..., RunConfig], queued: None) -> None:
    config = tiny({"dropout": 0.2}, steps=8)
    found = []
    for every in (1, 100):
        with engine_of(config) as ours:
            found.append([outcome.loss for outcome in ours.steps(0, 8, lambda n, k=every: n % k == 0, lambda: False)])
    assert found[0] == found[1]


def test_bandwidths_are_those_after_their_step(tiny: Callable[..., RunConfig], queued: None) -> None:
    with engine_of(tiny({"dropout": 0.0}, steps=9)) as ours:
        found = list(ours.steps(0, 8, lambda number: number in (2, 8), lambda: False))
        assert [outcome.bandwidths is not None for outcome in found] == [False, True, *[False] * 5, True]
        for name, beta in ours.bandwidths().items():
            assert found[7].bandwidths[name] == beta.tolist()
            assert found[1].bandwidths[name] != beta.tolist()


def test_the_ring_of_results_may_turn(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, queued: None
) -> None:
    monkeypatch.setattr(resident, "RING", 7)
    config = tiny({"dropout": 0.0}, steps=20)
    with engine_of(config) as ours, engine_of(dataclasses.replace(config, cuda_graph=False)) as plain:
        found, expected = steps_of(ours, 0, 20), steps_of(plain, 0, 20)
        for one, other in zip(found, expected, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)


def test_slow_steps_are_started_one_by_one(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, queued: None
) -> None:
    monkeypatch.setattr(resident, "SECONDS", 1e-9)
    with engine_of(tiny({"dropout": 0.0}, steps=40)) as ours:
        wanted = [False]
        found = []
        for outcome in ours.steps(0, 40, lambda number: False, lambda: wanted[0]):
            found.append(outcome)
            wanted[0] = len(found) >= 4
        assert len(found) == 5


def test_whoever_wants_to_stop_gets_what_was_started(tiny: Callable[..., RunConfig], queued: None) -> None:
    with engine_of(tiny({"dropout": 0.0}, steps=40)) as ours:
        wanted = [False]
        found = []
        for outcome in ours.steps(0, 40, lambda number: False, lambda: wanted[0]):
            found.append(outcome)
            wanted[0] = len(found) >= 4
        # Two blocks of one step, then the block at hand and the one that was started already.
        assert 4 <= len(found) <= 11
        assert not ours.updating
        steps = {float(value) for name, value in ours.tensors()["optimizer"].items() if name.endswith("/step")}
        assert steps == {float(len(found))}


class _Poison:
    """Makes the loss of chosen steps NaN: the n-th forward pass with gradient."""

    def __init__(self, model: torch.nn.Module, bad: set[int]) -> None:
        self.calls, self.bad = 0, bad
        model.register_forward_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: object, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return output
        self.calls += 1
        return output * float("nan") if self.calls - 1 in self.bad else output


def test_a_bad_step_changes_nothing_and_the_next_ones_are_done_again(
    tiny: Callable[..., RunConfig], queued: None
) -> None:
    config = tiny({"dropout": 0.0}, steps=12, on_nonfinite="skip")
    with engine_of(config) as ours:
        # Step 4 is bad; after it a block is in flight already, whose steps are taken again.
        _Poison(ours.model, {4})
        found = steps_of(ours, 0, 12)
        assert [outcome.skipped is not None for outcome in found] == [number == 4 for number in range(12)]
        assert "the loss itself" in found[4].skipped or "not finite" in found[4].skipped
        after = weights(ours)
    with engine_of(dataclasses.replace(config, cuda_graph=False)) as plain:
        _Poison(plain.model, {4})
        steps_of(plain, 0, 12)
        same_weights(after, weights(plain))


def test_a_bad_step_stops_the_run_with_the_weights_before_it(tiny: Callable[..., RunConfig], queued: None) -> None:
    config = tiny({"dropout": 0.0}, steps=12)
    with engine_of(config) as ours:
        _Poison(ours.model, {5})
        seen: list[Any] = []
        with pytest.raises(TrainingError, match="step 6"):
            seen.extend(ours.steps(0, 12, lambda number: False, lambda: False))
        assert len(seen) == 5
        assert not ours.updating
        after = weights(ours)
    with engine_of(dataclasses.replace(config, cuda_graph=False)) as plain:
        steps_of(plain, 0, 5)
        same_weights(after, weights(plain))


def test_a_queued_run_goes_on_with_the_same_bits(tiny: Callable[..., RunConfig], queued: None, tmp_path: Path) -> None:
    config = tiny({"dropout": 0.1}, steps=14, log_every=4, checkpoint_every=5)
    whole = train(config, tmp_path / "whole")
    stopped = train(config, tmp_path / "parts", progress=StopAt(6))
    assert stopped.status == "interrupted"
    assert 6 <= stopped.step < 14
    assert stopped.checkpoint.name == f"step-{stopped.step:08d}"
    resumed = train(config, tmp_path / "parts", resume="require")
    assert fingerprint(resumed.checkpoint) == fingerprint(whole.checkpoint)
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_graph_that_cannot_be_says_why(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the device is cpu"):
        train(tiny(cuda_graph=True), tmp_path / "run")


@pytest.mark.parametrize("name", tasks.names())
def test_data_of_several_steps_are_those_of_each(name: str) -> None:
    task = tasks.get(name)
    low = max(task.shortest, 8)
    many = task.sample(3, 5, 4, (low, low + 4), split="train", first=2, steps=3)
    for index in range(3):
        one = task.sample(3, 5 + index, 4, (low, low + 4), split="train", first=2)
        for whole, part in zip(many, one, strict=True):
            assert torch.equal(whole[4 * index : 4 * index + 4], part)


def test_what_cannot_be_recorded_takes_plain_steps(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, queued: None
) -> None:
    def refuse(*_: Any) -> None:
        raise resident.RecordingError("operation not permitted when stream is capturing")

    config = tiny(steps=12)
    with engine_of(dataclasses.replace(config, cuda_graph=False)) as plain:
        expected = steps_of(plain, 0, 12)
    monkeypatch.setattr(resident.ResidentStep, "_record", refuse)
    with engine_of(config) as ours:
        with pytest.warns(RuntimeWarning, match="Plain steps are taken, .* operation not permitted"):
            found = steps_of(ours, 0, 12)
        assert [outcome.loss for outcome in found] == [outcome.loss for outcome in expected]
    must = dataclasses.replace(config, cuda_graph=True)
    with engine_of(must) as ours, pytest.raises(TrainingError, match="cannot be recorded"):
        steps_of(ours, 0, 12)


def test_each_run_of_a_process_is_compiled_on_its_own(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, queued: None
) -> None:
    # Torch compiles one function for so many models, and then runs it as it is.
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    config = tiny({"dropout": 0.0}, steps=4)
    with engine_of(config) as plain:
        expected = steps_of(plain, 0, 4)
    for _ in range(2):
        with engine_of(dataclasses.replace(config, compile=True)) as ours:
            assert [outcome.loss for outcome in steps_of(ours, 0, 4)] == [outcome.loss for outcome in expected]
    one, other = (function.__func__.__code__ for function in compiled)
    assert one is not other
