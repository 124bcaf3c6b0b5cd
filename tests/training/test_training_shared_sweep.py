"""Several sweeps on one folder: no run twice, the runs of a dead one go on, what others do is told; GPUs are shared out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from epan.errors import EpanError
from epan.training import (
    Progress,
    RunConfig,
    RunState,
    StepInfo,
    SweepProgress,
    choose_gpus,
    claims,
    jobs,
    records,
    run_sweep,
    train,
)

FOREIGN = claims.Holder("elsewhere", 42, "7", "another", "0")


def write_sweep(folder: Path, configs: list[RunConfig]) -> Path:
    plans = [json.dumps(config.to_dict()) for config in configs]
    file = folder / "many.py"
    file.write_text(
        f"import json\nfrom epan.training import RunConfig\nruns = [RunConfig.from_dict(json.loads(t)) for t in {plans}]\n"
    )
    return file


def start(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "epan", "sweep", str(file), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def sessions(run: Path) -> Counter[str]:
    """How often the record says that the run began, was resumed, and ended."""
    lines = [json.loads(line) for line in (run / records.FILE_NAME).read_text().splitlines()]
    return Counter(entry.get("event") or entry["kind"] for entry in lines if entry["kind"] in ("run", "event", "end"))


def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def held_elsewhere(run: Path, beat: bool = True) -> Iterator[Path]:
    """A process of another machine holds the run, and lives as long as the block where it beats."""
    (run / claims.NAME).mkdir(parents=True)
    file, over = run / claims.NAME / FOREIGN.name, threading.Event()
    file.touch()

    def live() -> None:
        count = 0
        while not over.wait(0.05) and file.exists():
            count += 1
            os.utime(file, (count, count))

    thread = threading.Thread(target=live)
    if beat:
        thread.start()
    try:
        yield file
    finally:
        over.set()
        if beat:
            thread.join()


class Notes(SweepProgress):
    def __init__(self) -> None:
        self.changes: list[tuple[str, str, str]] = []

    def on_run(self, state: RunState) -> None:
        self.changes.append((state.label, state.status, state.where))


class StopAtThree(Progress):
    def on_step(self, info: StepInfo) -> None:
        if info.step == 3:
            raise KeyboardInterrupt


def test_two_commands_train_every_run_once(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    configs = [tiny(seed=seed, name=f"run{seed}") for seed in range(4)]
    file, out = write_sweep(tmp_path, configs), tmp_path / "out"
    commands = [start(file, out, "--workers", "1", "--wait") for _ in range(2)]
    said = [command.communicate(timeout=240) for command in commands]
    assert [command.returncode for command in commands] == [0, 0], said
    for config in configs:
        assert sessions(out / config.label) == Counter(run=1, end=1)
        assert not (out / config.label / claims.NAME).exists()
    own = [{line.partition(":")[0] for line in text.splitlines() if line.endswith(": running")} for text, _ in said]
    assert all(own)
    assert not own[0] & own[1]
    assert own[0] | own[1] == {config.label for config in configs}
    for text, _ in said:
        assert "running elsewhere (process " in text
        assert "4 of 4 runs finished." in text


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("whole", [False, True], ids=["the command", "the command and its worker"])
def test_the_runs_of_a_killed_command_go_on(tiny: Callable[..., RunConfig], tmp_path: Path, whole: bool) -> None:
    """Without its worker: that one notices, saves and lets go. With it: its claim is that of a dead process."""
    endless = {"steps": 100_000, "log_every": 1, "checkpoint_every": 10}
    configs = [tiny(seed=seed, name=f"run{seed}", **endless) for seed in range(2)]
    file, out = write_sweep(tmp_path, configs), tmp_path / "out"

    def read(label: str) -> list[records.Entry]:
        path = out / label
        return records.read(path) if (path / records.FILE_NAME).exists() else []

    first = start(file, out, "--workers", "1")
    until((out / "run0" / claims.NAME).exists)
    second = start(file, out, "--workers", "2")
    until(lambda: min(records.summary(read(label)).step for label in ("run0", "run1")) > 10)
    first.kill()
    if whole:
        holder = claims.Watch(out / "run0").look().holder
        assert holder is not None
        os.kill(holder.pid, signal.SIGKILL)
    first.communicate()
    until(lambda: any(entry.get("event") == "resumed" for entry in read("run0")))
    second.send_signal(signal.SIGINT)
    said, complaint = second.communicate(timeout=120)
    assert second.returncode == 130, complaint
    assert "run0: running elsewhere (process " in said
    assert said.index("run0: running elsewhere") < said.index("run0: running\n")
    assert (sessions(out / "run0")["run"], sessions(out / "run0")["resumed"]) == (1, 1)
    (resumed,) = [entry["step"] for entry in read("run0") if entry.get("event") == "resumed"]
    assert resumed >= 10
    assert sessions(out / "run1") == Counter(run=1, interrupted=1, end=1)
    assert not (out / "run0" / claims.NAME).exists()


def test_a_run_elsewhere_is_shown_and_left_alone(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    mine, theirs = tiny(name="mine", steps=2), tiny(name="theirs", steps=2)
    notes = Notes()
    with held_elsewhere(tmp_path / "theirs") as file:
        result = run_sweep([theirs, mine], tmp_path, progress=notes, validate=False)
        assert os.listdir(file.parent) == [FOREIGN.name]
    assert [(state.status, state.where) for state in result.states] == [
        ("elsewhere", "process 42 on elsewhere"),
        ("finished", ""),
    ]
    assert result.exit_code == 0
    assert ("theirs", "elsewhere", "process 42 on elsewhere") in notes.changes
    assert [item.name for item in (tmp_path / "theirs").iterdir()] == [claims.NAME]


def test_a_silent_run_elsewhere_is_taken_over(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(name="theirs", steps=6)
    train(config, tmp_path / "theirs", progress=StopAtThree())
    monkeypatch.setattr(claims, "PATIENCE", 3.0)
    with held_elsewhere(tmp_path / "theirs", beat=False):
        result = run_sweep([config], tmp_path, validate=False)
    assert [(state.status, state.where) for state in result.states] == [("finished", "")]
    assert sessions(tmp_path / "theirs") == Counter(run=1, resumed=1, interrupted=1, end=2)


@pytest.mark.parametrize("status", ["failed", pytest.param("finished", marks=pytest.mark.slow), "interrupted"])
def test_how_a_run_ended_elsewhere_is_told(tiny: Callable[..., RunConfig], tmp_path: Path, status: str) -> None:
    """What failed there is not tried again here; what was only stopped goes on here."""
    config = tiny(name="theirs", steps=6)
    train(config, tmp_path / "theirs", progress=StopAtThree())
    with held_elsewhere(tmp_path / "theirs") as file:

        def end() -> None:
            with records.RecordWriter(tmp_path / "theirs") as writer:
                writer.write("event", event="resumed", step=3, message="")
                until(lambda: ("theirs", "elsewhere", "process 42 on elsewhere") in notes.changes)
                writer.write("end", status=status, elapsed=1.0, step=4, message="the loss is not finite")
            file.unlink()
            file.parent.rmdir()

        notes = Notes()
        ending = threading.Thread(target=end)
        ending.start()
        result = run_sweep([config], tmp_path, wait=True, progress=notes, validate=False)
        ending.join()
    (state,) = result.states
    if status == "failed":
        assert (state.status, state.where, state.message) == (
            "failed", "process 42 on elsewhere", "the loss is not finite",
        )  # fmt: skip
        assert result.exit_code == 1
    else:
        assert (state.status, result.exit_code) == ("finished", 0)
    assert sessions(tmp_path / "theirs")["resumed"] == (2 if status == "interrupted" else 1)


def test_a_run_that_ended_just_now_is_not_started(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    config, take = tiny(name="theirs", steps=2), claims.take

    def late(run: Path, stale: claims.Holder | None = None) -> claims.Claim | None:
        # Free at the look, and whole by the time that it is claimed.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "take", take)
            train(config, tmp_path / "theirs")
        return take(run, stale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "take", late)
        patch.setattr("epan.training.sweep.Job", lambda *rest: pytest.fail("it was started"))
        result = run_sweep([config], tmp_path, validate=False)
    assert result.states[0].status == "finished"
    assert not (tmp_path / "theirs" / claims.NAME).exists()


def test_the_worker_says_when_a_third_process_has_the_run(
    tiny: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from epan.training import worker

    (tmp_path / "config.json").write_text(json.dumps(tiny().to_dict()))
    with held_elsewhere(tmp_path / "run", beat=False):
        given = claims.Holder.here().name
        assert worker.main([str(tmp_path / "config.json"), str(tmp_path / "run"), given]) == worker.TAKEN
    assert "Found: process 42 on elsewhere" in capsys.readouterr().err
    assert not (tmp_path / "run" / records.FILE_NAME).exists()


def test_every_process_sees_one_gpu(
    tiny: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    begin = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        seen.append(options["env"]["CUDA_VISIBLE_DEVICES"])
        return begin(*arguments, **options)

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    configs = [tiny(steps=1, name=f"run{seed}", seed=seed) for seed in range(3)]
    result = run_sweep(configs, tmp_path, workers=1, gpus=["5", "GPU-a"], validate=False)
    assert result.exit_code == 0
    # Two at once, one on each; the third takes the one that is free first.
    assert sorted(seen[:2]) == ["5", "GPU-a"]
    assert [state.gpu for state in result.states] == seen


def test_gpus_are_those_that_are_visible(tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    anywhere, on_cpu = [tiny(device="auto"), tiny()], [tiny()]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choose_gpus(anywhere) == ["0", "1"]
    assert choose_gpus(on_cpu) == []
    assert choose_gpus(on_cpu, ["1", "1"]) == ["1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, 7,-1,5")
    assert choose_gpus(anywhere) == ["6", "7"]
    with pytest.raises(EpanError, match=r"no GPU '0' here.*Found: 7, 0.*Allowed: 6, 7"):
        choose_gpus(anywhere, ["7", "0"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_gpus(anywhere) == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EpanError, match="finds no NVIDIA GPU"):
        choose_gpus(anywhere, ["0"])
