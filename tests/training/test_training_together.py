"""Several runs in one process: each with the numbers that it has alone, and what ends one or all of them."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small import fingerprint

from epan.errors import EpanError, UnsupportedError
from epan.training import Progress, RunConfig, RunResult, StepInfo, engine, run_sweep, sweep, together, train
from epan.training.jobs import alike
from epan.training.starting import Ready, StartingLine


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on the CPU are queued, and may share a process."""
    monkeypatch.setattr(engine, "recordable", lambda *_: None)
    monkeypatch.setattr(together, "recordable", lambda *_: None)


def several(tiny: Callable[..., RunConfig], **changes: object) -> list[RunConfig]:
    # Without dropout, whose numbers on a CPU come from one generator of the process.
    kernels = ("biweight", "gaussian", "biweight")
    configs = [tiny({"dropout": 0.0}, name=f"run-{i}", seed=i, device="auto", **changes) for i in range(3)]
    return [
        dataclasses.replace(config, model=dataclasses.replace(config.model, kernel=kernel))
        for config, kernel in zip(configs, kernels, strict=True)
    ]


def test_each_run_has_the_numbers_that_it_has_alone(
    tiny: Callable[..., RunConfig], shared: None, tmp_path: Path
) -> None:
    configs = several(tiny, checkpoint_every=3)
    outs = [tmp_path / config.label for config in configs]
    found = together.train_together(configs, outs)
    for config, result in zip(configs, found, strict=True):
        assert isinstance(result, RunResult)
        assert result.status == "finished"
        alone = train(config, tmp_path / "alone" / config.label)
        assert fingerprint(alone.checkpoint) == fingerprint(result.checkpoint)
        assert alone.evaluations == result.evaluations


def test_no_run_steps_before_all_are_ready(
    tiny: Callable[..., RunConfig], shared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    recorded = engine.ResidentStep

    def slow(config: RunConfig, *rest: object) -> object:
        if config.seed == 2:
            time.sleep(0.5)
        made = recorded(config, *rest)
        happened.append("ready")
        return made

    class Told(Progress):
        def on_step(self, info: StepInfo) -> None:
            happened.append("step")

    monkeypatch.setattr(engine, "ResidentStep", slow)
    configs = several(tiny)
    together.train_together(
        configs, [tmp_path / config.label for config in configs], progress=[Told() for _ in configs]
    )
    assert happened[:3] == ["ready"] * 3
    assert happened.count("step") == sum(config.steps for config in configs)


def test_who_waits_at_the_line_is_told_to_stop_and_who_ends_holds_up_nobody() -> None:
    line, order = StartingLine(3), []

    def fails(ready: Ready) -> None:
        raise RuntimeError

    def stops(ready: Ready) -> None:
        ready(lambda: True)
        order.append("stopped")

    def waits(ready: Ready) -> None:
        ready(lambda: False)
        ready(lambda: False)
        order.append("started")

    waiting = threading.Thread(target=line.run, args=(waits,))
    waiting.start()
    line.run(stops)
    assert order == ["stopped"]
    with pytest.raises(RuntimeError):
        line.run(fails)
    waiting.join(10)
    assert order == ["stopped", "started"]


class _Fail(Progress):
    def on_step(self, info: StepInfo) -> None:
        raise RuntimeError("this one fails")


def test_one_that_fails_stops_no_other(tiny: Callable[..., RunConfig], shared: None, tmp_path: Path) -> None:
    configs = several(tiny)
    outs = [tmp_path / config.label for config in configs]
    found = together.train_together(configs, outs, progress=[Progress(), _Fail(), Progress()])
    assert [type(result).__name__ for result in found] == ["RunResult", "RuntimeError", "RunResult"]
    assert '"failed"' in (outs[1] / "record.jsonl").read_text()


class _Signal(Progress):
    """Sends the process a signal at a step, as another process would: it reaches the main thread."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_step(self, info: StepInfo) -> None:
        if info.step in self.steps:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)


def test_a_signal_saves_all_and_all_go_on(tiny: Callable[..., RunConfig], shared: None, tmp_path: Path) -> None:
    configs = several(tiny, steps=50, log_every=40)
    outs = [tmp_path / config.label for config in configs]
    found = together.train_together(configs, outs, progress=[Progress(), _Signal({8}), Progress()])
    assert [result.status for result in found] == ["interrupted"] * 3
    assert all(0 < result.step < 50 and result.checkpoint is not None for result in found)
    found = together.train_together(configs, outs)
    for config, result in zip(configs, found, strict=True):
        assert result.status == "finished"
        assert fingerprint(result.checkpoint) == fingerprint(train(config, tmp_path / "a" / config.label).checkpoint)


def test_runs_that_cannot_share_a_process_are_refused(
    tiny: Callable[..., RunConfig], shared: None, tmp_path: Path
) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    first = tiny(device="auto")
    changes = (
        {"precision": "bf16"},
        {"threads": 2},
        {"deterministic": True},
        {"cuda_graph": False},
        {"accumulation": 2},
    )
    for change in changes:
        with pytest.raises(UnsupportedError, match="beside other runs"):
            together.train_together([first, dataclasses.replace(first, name="b", **change)], outs)
    with pytest.raises(EpanError, match="Too many"):
        together.train_together([first] * 13, [tmp_path / str(place) for place in range(13)])
    with pytest.raises(EpanError, match="claim"):
        together.train_together([first], [tmp_path / "a"], claims=[])
    with pytest.raises(EpanError, match="folder"):
        together.train_together([tiny()], outs)
    assert not any(out.exists() for out in outs)


def test_without_a_graph_no_process_is_shared(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the device is cpu"):
        together.train_together([tiny()], [tmp_path / "a"])
    with pytest.raises(EpanError, match="NVIDIA GPU"):
        run_sweep([tiny()], tmp_path, pack=2)


def test_a_sweep_packs_runs_that_are_alike(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["0"])
    configs = [tiny(name=f"run-{i}", seed=i, device="auto") for i in range(3)]
    configs += [dataclasses.replace(configs[0], name="other", precision="bf16")]
    configs += [dataclasses.replace(configs[0], name="alone", gradient_checkpointing=True)]
    configs += [dataclasses.replace(configs[0], name="cpu", device="cpu")]
    assert alike(configs[-1]) is None
    jobs: list[list[str]] = []

    class Job:
        def __init__(self, runs: list, logs: Path, threads: int, gpu: str | None) -> None:
            jobs.append([run.state.label for run, _ in runs])
            self.runs, self.gpu = runs, gpu

        def ended(self) -> bool:
            for run, claim in self.runs:
                claim.release()
                run.state.status = "finished"
            return True

    monkeypatch.setattr(sweep, "Job", Job)
    run_sweep(configs, tmp_path, workers=1, pack=2)
    assert jobs == [["run-0", "run-1"], ["run-2"], ["other"], ["alone"], ["cpu"]]
    # Two workers get two runs each, rather than one of them all four.
    jobs.clear()
    four = [dataclasses.replace(configs[0], name=f"again-{i}") for i in range(4)]
    run_sweep(four, tmp_path, workers=2, pack=4)
    assert jobs == [["again-0", "again-1"], ["again-2", "again-3"]]


def test_the_arguments_of_a_worker_train_together(tiny: Callable[..., RunConfig], shared: None, tmp_path: Path) -> None:
    from epan.training import claims, worker

    configs, arguments = several(tiny)[:2], []
    for config in configs:
        out = tmp_path / config.label
        path = tmp_path / f"{config.label}.json"
        path.write_text(json.dumps(config.to_dict()))
        out.mkdir()
        claim = claims.take(out, None)
        arguments += [str(path), str(out), claim.holder.name]
    assert worker.main(arguments) == 0
    for config in configs:
        assert '"finished"' in (tmp_path / config.label / "record.jsonl").read_text()
