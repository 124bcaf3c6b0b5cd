"""The best checkpoints: chosen by the record, kept, found again, and the same in a run that was interrupted."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import epan
from epan.errors import EpanError
from epan.training import EvaluationConfig, Progress, RunConfig, StepInfo, check, evaluate_run, records, train, verify
from epan.training import checkpoint as checkpoints
from epan.training.retention import ranking

Tiny = Callable[..., RunConfig]


@pytest.fixture
def config(tiny: Tiny) -> RunConfig:
    """Twelve steps, tested every second one; the loss decides, since exact matches are rare so early."""
    tests = EvaluationConfig(lengths=(2, 5), sequences=6, every=2)
    return tiny(steps=12, evaluation=tests, keep=1, keep_best=2, best_by="loss", best_length=5)


def kept(run: Path) -> list[int]:
    return [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(run)]


def losses(run: Path, length: int = 5) -> dict[int, float]:
    tests = [entry for entry in records.read(run) if entry["kind"] == "eval" and entry["length"] == length]
    return {test["step"]: test["loss"] for test in tests}


def spoil(monkeypatch: pytest.MonkeyPatch, order: list[int]) -> None:
    """Tests find the losses 0, 1, 2 … at the steps of ``order``."""
    from epan.training import session

    real = session.evaluate

    def evaluate(*given: Any, **named: Any) -> list[dict[str, Any]]:
        return [{**entry, "loss": float(order.index(entry["step"]))} for entry in real(*given, **named)]

    monkeypatch.setattr(session, "evaluate", evaluate)


def test_the_best_stay_beside_the_newest(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, [4, 8, 2, 6, 10, 12])
    train(config, tmp_path / "run")
    assert kept(tmp_path / "run") == [4, 8, 12]
    train(dataclasses.replace(config, keep=3, checkpoint_every=3), tmp_path / "three")
    assert kept(tmp_path / "three") == [4, 8, 9, 10, 12]
    train(dataclasses.replace(config, keep_best=0, checkpoint_every=3), tmp_path / "none")
    assert kept(tmp_path / "none") == [12]


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_resumed_run_keeps_the_same_ones(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: Callable[[Path], str], stop: int
) -> None:
    class Stop(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == stop:
                raise KeyboardInterrupt

    spoil(monkeypatch, [4, 8, 2, 6, 10, 12])
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", progress=Stop())
    train(config, tmp_path / "parts", resume="require")
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole") == [4, 8, 12]
    for step in (4, 8, 12):
        ours, theirs = (tmp_path / run / "checkpoints" / f"step-{step:08d}" for run in ("parts", "whole"))
        assert fingerprint(ours) == fingerprint(theirs)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_of_those_that_are_left_the_best_stay(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 9:
                raise KeyboardInterrupt

    spoil(monkeypatch, [4, 8, 2, 6, 10, 12])
    train(config, tmp_path / "run", progress=Stop())
    assert kept(tmp_path / "run") == [4, 8, 9]
    (tmp_path / "run" / "checkpoints" / "step-00000004").rename(tmp_path / "lost")
    train(config, tmp_path / "run", resume="require")
    assert kept(tmp_path / "run") == [8, 10, 12]


def test_what_was_tested_beyond_the_checkpoint_is_tested_again(config: RunConfig, tmp_path: Path) -> None:
    """A kill may take a checkpoint whose test has been written already."""

    class Killed(BaseException):
        pass

    class Stop(Progress):
        def on_step(self, info: StepInfo) -> None:
            if info.step == 5:
                raise Killed

    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "parts", progress=Stop())
    for path in checkpoints.list_checkpoints(tmp_path / "parts"):
        if checkpoints.step_of(path) == 4:
            path.rename(tmp_path / "lost")
    assert 4 in losses(tmp_path / "parts")
    train(config, tmp_path / "parts", resume="require")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_best_one_is_loaded_tested_and_told(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, [4, 8, 2, 6, 10, 12])
    run = train(config, tmp_path / "run").out
    best = epan.load(run, step="best").state_dict()
    for step, same in ((4, True), (8, False), (12, False)):
        other = epan.load(run, step=step).state_dict()
        assert all(torch.equal(best[name], other[name]) for name in best) == same
    assert {entry["step"] for entry in evaluate_run(run, step="best", device="cpu", append=False)} == {4}
    told = {finding.path.name: finding.text for finding in verify(run)}
    assert told["step-00000004"].endswith("number 1 of the best, loss 0 at length 5")
    assert told["step-00000008"].endswith("number 2 of the best, loss 1 at length 5")
    assert "best" not in told["step-00000012"]
    (run / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="step-00000004 is passed over"):
        second = epan.load(run, step="best").state_dict()
    other = epan.load(run, step=8).state_dict()
    assert all(torch.equal(second[name], other[name]) for name in second)


def test_a_run_without_tests_has_no_best_one(tiny: Tiny, tmp_path: Path) -> None:
    run = train(tiny(), tmp_path / "run").out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        epan.load(run, step="best")
    lines = (run / records.FILE_NAME).read_text().splitlines(keepends=True)
    (run / records.FILE_NAME).write_text("".join(line for line in lines if '"eval"' not in line))
    with pytest.raises(EpanError, match="no good checkpoint that it tested"):
        epan.load(run, step="best")


def line(step: int, **values: Any) -> dict[str, Any]:
    test = {"kind": "eval", "step": step, "length": 5, "sequences": 6, "seed": 0, "split": "test", "decoding": "greedy"}
    return {**test, "exact_match": 0.5, "token_accuracy": 0.5, "loss": 1.0, **values}


def test_the_order_of_the_steps(config: RunConfig) -> None:
    def order(by: str, *lines: dict[str, Any]) -> list[int]:
        return [place.step for place in ranking(lines, dataclasses.replace(config, best_by=by), 5)]  # type: ignore[arg-type]

    matches = [line(1, exact_match=0.2), line(2, exact_match=0.9), line(3, exact_match=0.4)]
    assert order("exact_match", *matches) == [2, 3, 1]
    assert order("loss", line(1, loss=0.2), line(2, loss=0.9), line(3, loss=0.4)) == [1, 3, 2]
    assert order("token_accuracy", line(1), line(2, token_accuracy=0.6)) == [2, 1]
    # The same accuracy: the lower loss, then the later step.
    assert order("exact_match", line(1, loss=2.0), line(2), line(3), line(4, loss=None)) == [3, 2, 1, 4]
    # Not the run's own test, not this length, no number; and the first of two lines.
    strange = [line(7, seed=1), line(8, sequences=5), line(9, split="train"), line(10, length=2), line(11, loss=None)]
    assert order("loss", *strange, line(1, loss=0.5), line(2, loss=0.4), line(1, loss=0.1)) == [2, 1]


def test_keys_that_do_not_fit_are_refused(config: RunConfig, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(EpanError, match=r"tests during training.*set evaluation\.every"):
        tiny(keep_best=1)
    with pytest.raises(EpanError, match=r"not tested at best_length.*7.*Allowed: 2, 5"):
        check(dataclasses.replace(config, best_length=7))
    with pytest.raises(EpanError, match=r"not tested at best_length.*7.*Allowed: 2, 5"):
        train(dataclasses.replace(config, best_length=7), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert config.hash() == dataclasses.replace(config, keep_best=0, best_by="exact_match", best_length=None).hash()
